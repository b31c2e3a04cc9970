;; Answers with a field name that would end the log's line and colour the next.
(module
  (memory (export "memory") 1)
  (data (i32.const 0) "x\0d\0a\1b[31mred")
  (data (i32.const 32) "\00\00\00\00\0b\00\00\00\00\00\00\00\00\00\00\00")
  (func (export "on_request") (result i32)
    (i32.store8 (i32.const 1024) (i32.const 3))
    (i32.store16 (i32.const 1028) (i32.const 200))
    (i32.store (i32.const 1032) (i32.const 32))
    (i32.store (i32.const 1036) (i32.const 1))
    (i32.const 1024)))
