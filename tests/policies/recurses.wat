;; Calls itself for ever.
(module
  (memory (export "memory") 1)
  (func $dig (param i32) (result i32)
    (i32.add (i32.const 1) (call $dig (i32.add (local.get 0) (i32.const 1)))))
  (func (export "on_request") (result i32)
    (call $dig (i32.const 0))))
