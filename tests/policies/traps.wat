;; Stops in the middle, two functions deep.
(module
  (memory (export "memory") 1)
  (func $give_up unreachable)
  (func $decide (export "on_request") (result i32)
    (call $give_up)
    (i32.const 1024)))
