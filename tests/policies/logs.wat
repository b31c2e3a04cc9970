;; Writes 1,000 lines, then passes once and stops ever after.
(module
  (import "baton:policy/log@0.1.0" "write" (func $write (param i32 i32 i32 i32 i32)))
  (memory (export "memory") 1)
  (global $free (mut i32) (i32.const 4096))
  ;; Never frees: an instance of this size serves some hundred requests at most.
  (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32)
    (local $p i32)
    (local.set $p (i32.and (i32.add (global.get $free) (i32.const 7)) (i32.const -8)))
    (global.set $free (i32.add (local.get $p) (local.get 3)))
    (local.get $p))
  (data (i32.const 0) "first\r\nsecond\1b[31m")
  (global $worn (mut i32) (i32.const 0))
  (func (export "on_request") (result i32)
    (local $left i32)
    (local.set $left (i32.const 1000))
    (loop $again
      (call $write (i32.const 3) (i32.const 0) (i32.const 18) (i32.const 0) (i32.const 0))
      (br_if $again (local.tee $left (i32.sub (local.get $left) (i32.const 1)))))
    (if (global.get $worn) (then unreachable))
    (global.set $worn (i32.const 1))
    (i32.const 1024)))
