;; Wants the connection closed without an answer.
(module
  (memory (export "memory") 1)
  (func (export "on_request") (result i32)
    (i32.store8 (i32.const 1024) (i32.const 4))
    (i32.const 1024)))
