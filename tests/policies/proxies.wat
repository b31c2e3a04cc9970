;; Wants an upstream to be asked for a path that is none.
(module
  (memory (export "memory") 1)
  (data (i32.const 0) "app")
  (func (export "on_request") (result i32)
    (i32.store8 (i32.const 1024) (i32.const 2))
    (i32.store (i32.const 1032) (i32.const 3))
    (i32.store8 (i32.const 1036) (i32.const 1))
    (i32.store (i32.const 1044) (i32.const 3))
    (i32.const 1024)))
