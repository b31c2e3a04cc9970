;; Imports an interface of the contract that is not offered yet.
(module
  (import "baton:policy/store@0.1.0" "delete" (func $delete (param i32 i32)))
  (memory (export "memory") 1)
  (func (export "on_request") (result i32)
    (call $delete (i32.const 0) (i32.const 0))
    (i32.const 1024)))
