;; Imports an interface that the contract does not have.
(module
  (import "baton:policy/nothing@0.1.0" "status" (func $status (result i32)))
  (memory (export "memory") 1)
  (func (export "on_request") (result i32)
    (drop (call $status))
    (i32.const 1024)))
