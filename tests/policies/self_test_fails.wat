;; self_test says no.
(module
  (memory (export "memory") 1)
  (data (i32.const 0) "two and two are five")
  (func (export "self_test") (result i32)
    (i32.store8 (i32.const 512) (i32.const 1))
    (i32.store (i32.const 520) (i32.const 20))
    (i32.const 512))
  (func (export "on_request") (result i32) (i32.const 1024)))
