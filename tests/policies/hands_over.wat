;; Hands over to `chat` with the value of the field x-data, or with nothing.
(module
  (import "baton:policy/request@0.1.0" "header" (func $header (param i32 i32 i32)))
  (memory (export "memory") 1)
  (global $free (mut i32) (i32.const 4096))
  ;; Never frees: an instance of this size serves some hundred requests at most.
  (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32)
    (local $p i32)
    (local.set $p (i32.and (i32.add (global.get $free) (i32.const 7)) (i32.const -8)))
    (global.set $free (i32.add (local.get $p) (local.get 3)))
    (local.get $p))
  (data (i32.const 0) "chatx-data")
  (func (export "on_request") (result i32)
    (memory.fill (i32.const 1024) (i32.const 0) (i32.const 88))
    (i32.store8 (i32.const 1024) (i32.const 1))
    (i32.store (i32.const 1028) (i32.const 0))
    (i32.store (i32.const 1032) (i32.const 4))
    ;; option<list<u8>>: a tag at 512, pointer and length behind it
    (call $header (i32.const 4) (i32.const 6) (i32.const 512))
    (if (i32.load8_u (i32.const 512))
      (then (i64.store (i32.const 1036) (i64.load (i32.const 516)))))
    ;; relay: if-needed
    (i32.store8 (i32.const 1069) (i32.const 1))
    (i32.const 1024)))
