;; Hands over as the request's fields say: one policy for every case.
;;   x-target      the target; `chat` without
;;   x-alternate   targets to try then, repeatable
;;   x-data        the data
;;   x-bytes       instead: so many bytes `d`
;;   x-head        the request's head goes along
;;   x-timeout-ms  bounds all of it
;;   x-status      a response-head of that status, with the field `x-by: policy`
;;   x-first       first bytes of the body behind it
(module
  (import "baton:policy/request@0.1.0" "header" (func $header (param i32 i32 i32)))
  (import "baton:policy/request@0.1.0" "header-all" (func $header-all (param i32 i32 i32)))
  (memory (export "memory") 160)
  (global $free (mut i32) (i32.const 4096))
  (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32)
    (local $p i32)
    (local.set $p (i32.and (i32.add (global.get $free) (i32.const 7)) (i32.const -8)))
    (global.set $free (i32.add (local.get $p) (local.get 3)))
    (local.get $p))
  (data (i32.const 0) "chatx-targetx-datax-bytesx-headx-timeout-msx-alternatex-statusx-bypolicyx-first")
  ;; One field: its name and its value.
  (data (i32.const 80) "\3e\00\00\00\04\00\00\00\42\00\00\00\06\00\00\00")

  ;; Whether there is such a field; the value's place is at 516, its length at 520.
  (func $has (param $name i32) (param $length i32) (result i32)
    (call $header (local.get $name) (local.get $length) (i32.const 512))
    (i32.load8_u (i32.const 512)))

  ;; That value as a number.
  (func $number (result i32)
    (local $at i32) (local $end i32) (local $n i32)
    (local.set $at (i32.load (i32.const 516)))
    (local.set $end (i32.add (local.get $at) (i32.load (i32.const 520))))
    (block $done
      (loop $digit
        (br_if $done (i32.ge_u (local.get $at) (local.get $end)))
        (local.set $n (i32.add
          (i32.mul (local.get $n) (i32.const 10))
          (i32.sub (i32.load8_u (local.get $at)) (i32.const 48))))
        (local.set $at (i32.add (local.get $at) (i32.const 1)))
        (br $digit)))
    (local.get $n))

  (func (export "on_request") (result i32)
    (global.set $free (i32.const 4096))
    (memory.fill (i32.const 1024) (i32.const 0) (i32.const 88))
    (i32.store8 (i32.const 1024) (i32.const 1))
    ;; target
    (i32.store (i32.const 1028) (i32.const 0))
    (i32.store (i32.const 1032) (i32.const 4))
    (if (call $has (i32.const 4) (i32.const 8))
      (then (i64.store (i32.const 1028) (i64.load (i32.const 516)))))
    ;; data
    (if (call $has (i32.const 12) (i32.const 6))
      (then (i64.store (i32.const 1036) (i64.load (i32.const 516)))))
    (if (call $has (i32.const 18) (i32.const 7))
      (then
        (i32.store (i32.const 1036) (i32.const 1048576))
        (i32.store (i32.const 1040) (call $number))
        (memory.fill (i32.const 1048576) (i32.const 100) (i32.load (i32.const 1040)))))
    ;; response-head
    (if (call $has (i32.const 54) (i32.const 8))
      (then
        (i32.store8 (i32.const 1052) (i32.const 1))
        (i32.store16 (i32.const 1056) (call $number))
        (i32.store (i32.const 1060) (i32.const 80))
        (i32.store (i32.const 1064) (i32.const 1))))
    ;; include-head
    (i32.store8 (i32.const 1068) (call $has (i32.const 25) (i32.const 6)))
    ;; relay: if-needed
    (i32.store8 (i32.const 1069) (i32.const 1))
    ;; timeout-ms
    (if (call $has (i32.const 31) (i32.const 12))
      (then
        (i32.store8 (i32.const 1072) (i32.const 1))
        (i32.store (i32.const 1076) (call $number))))
    ;; alternates: a list of byte lists is laid out as a list of strings
    (call $header-all (i32.const 43) (i32.const 11) (i32.const 1080))
    ;; response-body
    (if (call $has (i32.const 72) (i32.const 7))
      (then (i64.store (i32.const 1088) (i64.load (i32.const 516)))))
    (i32.const 1024)))
