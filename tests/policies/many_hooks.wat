;; Exports hooks that are called later than on_request, and on_tick.
(module
  (memory (export "memory") 1)
  (global $free (mut i32) (i32.const 4096))
  ;; Never frees: an instance of this size serves some hundred requests at most.
  (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32)
    (local $p i32)
    (local.set $p (i32.and (i32.add (global.get $free) (i32.const 7)) (i32.const -8)))
    (global.set $free (i32.add (local.get $p) (local.get 3)))
    (local.get $p))
  (func (export "on_request") (result i32) (i32.const 1024))
  (func (export "on_response") (param i32 i32) (result i32) (i32.const 1024))
  (func (export "on_tick")))
