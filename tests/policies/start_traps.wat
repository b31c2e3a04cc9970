;; Cannot even be started.
(module
  (memory (export "memory") 1)
  (func $begin unreachable)
  (start $begin)
  (func (export "on_request") (result i32) (i32.const 1024)))
