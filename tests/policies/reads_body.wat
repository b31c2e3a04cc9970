;; Answers 200 with the first 16 bytes of the body, or 500 and the number of the error.
(module
  (import "baton:policy/request@0.1.0" "body-prefix" (func $prefix (param i32 i32)))
  (memory (export "memory") 1)
  (global $free (mut i32) (i32.const 4096))
  ;; Never frees: an instance of this size serves some hundred requests at most.
  (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32)
    (local $p i32)
    (local.set $p (i32.and (i32.add (global.get $free) (i32.const 7)) (i32.const -8)))
    (global.set $free (i32.add (local.get $p) (local.get 3)))
    (local.get $p))
  (func (export "on_request") (result i32)
    (memory.fill (i32.const 1024) (i32.const 0) (i32.const 88))
    (i32.store8 (i32.const 1024) (i32.const 3))
    (call $prefix (i32.const 16) (i32.const 512))
    (if (i32.load8_u (i32.const 512))
      (then
        (i32.store16 (i32.const 1028) (i32.add (i32.const 500) (i32.load8_u (i32.const 516)))))
      (else
        (i32.store16 (i32.const 1028) (i32.const 200))
        (i64.store (i32.const 1040) (i64.load (i32.const 516)))))
    (i32.const 1024)))
