;; Hands over to a target whose name is not UTF-8.
(module
  (memory (export "memory") 1)
  (data (i32.const 0) "\ff\fe")
  (func (export "on_request") (result i32)
    (i32.store8 (i32.const 1024) (i32.const 1))
    (i32.store (i32.const 1032) (i32.const 2))
    (i32.const 1024)))
