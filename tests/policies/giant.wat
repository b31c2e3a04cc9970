;; Answers with 2 MiB.
(module
  (memory (export "memory") 33)
  (func (export "on_request") (result i32)
    (i32.store8 (i32.const 1024) (i32.const 3))
    (i32.store16 (i32.const 1028) (i32.const 200))
    (i32.store (i32.const 1044) (i32.const 0x200000))
    (i32.const 1024)))
