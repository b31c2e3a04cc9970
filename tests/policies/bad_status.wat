;; Answers 999.
(module
  (memory (export "memory") 1)
  (func (export "on_request") (result i32)
    (i32.store8 (i32.const 1024) (i32.const 3))
    (i32.store16 (i32.const 1028) (i32.const 999))
    (i32.const 1024)))
