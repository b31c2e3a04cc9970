;; Passes once, then stops: what an earlier request left behind is in the way.
(module
  (import "baton:policy/log@0.1.0" "write" (func $write (param i32 i32 i32 i32 i32)))
  (memory (export "memory") 1)
  (global $worn (mut i32) (i32.const 0))
  (func (export "on_request") (result i32)
    (if (global.get $worn) (then unreachable))
    (global.set $worn (i32.const 1))
    (i32.const 1024))
  ;; Not called; it makes the import one that is used.
  (func (call $write (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0))))
