;; Imports an interface of the contract that is not offered yet.
(module
  (import "baton:policy/response@0.1.0" "status" (func $status (result i32)))
  (memory (export "memory") 1)
  (func (export "on_request") (result i32)
    (drop (call $status))
    (i32.const 1024)))
