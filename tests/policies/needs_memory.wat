;; Begins with 64 MiB.
(module
  (memory (export "memory") 1024)
  (func (export "on_request") (result i32) (i32.const 1024)))
