;; Answers with the upstream's status and the value of its field x-socket-handoff, and carries on what it was given. Looks
;; at the response in on_request too, where there is none.
(module
  (import "baton:policy/response@0.1.0" "status" (func $status (result i32)))
  (import "baton:policy/response@0.1.0" "header" (func $header (param i32 i32 i32)))
  (memory (export "memory") 1)
  (global $free (mut i32) (i32.const 4096))
  ;; Never frees: an instance of this size serves some hundred requests at most.
  (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32)
    (local $p i32)
    (local.set $p (i32.and (i32.add (global.get $free) (i32.const 7)) (i32.const -8)))
    (global.set $free (i32.add (local.get $p) (local.get 3)))
    (local.get $p))
  (data (i32.const 0) "x-socket-handoff")
  (func (export "on_request") (result i32) (drop (call $status)) (i32.const 1024))
  (func (export "on_response") (param $carry i32) (param $length i32) (result i32)
    (memory.fill (i32.const 1024) (i32.const 0) (i32.const 88))
    (i32.store8 (i32.const 1024) (i32.const 3))
    (i32.store16 (i32.const 1028) (call $status))
    (call $header (i32.const 0) (i32.const 16) (i32.const 512))
    (i64.store (i32.const 1040) (i64.load (i32.const 516)))
    (i32.store (i32.const 1096) (local.get $carry))
    (i32.store (i32.const 1100) (local.get $length))
    (i32.const 1024)))
