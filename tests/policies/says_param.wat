;; Answers with the variable REMOTE_USER that an authorizer has set; 404 where none has.
(module
  (import "baton:policy/request@0.1.0" "param" (func $param (param i32 i32 i32)))
  (memory (export "memory") 1)
  (global $free (mut i32) (i32.const 4096))
  ;; Never frees: an instance of this size serves some hundred requests at most.
  (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32)
    (local $p i32)
    (local.set $p (i32.and (i32.add (global.get $free) (i32.const 7)) (i32.const -8)))
    (global.set $free (i32.add (local.get $p) (local.get 3)))
    (local.get $p))
  (data (i32.const 0) "REMOTE_USER")
  (func (export "on_request") (result i32)
    (memory.fill (i32.const 1024) (i32.const 0) (i32.const 88))
    (call $param (i32.const 0) (i32.const 11) (i32.const 512))
    (i32.store8 (i32.const 1024) (i32.const 3))
    (i32.store16 (i32.const 1028) (select (i32.const 200) (i32.const 404) (i32.load8_u (i32.const 512))))
    (i64.store (i32.const 1040) (i64.load (i32.const 516)))
    (i32.const 1024)))
