;; The policy that is measured when the Rust one is not built: reads the path
;; and one header, and hands over with about 100 bytes of JSON.
;;
;; Layouts are those of the canonical ABI for wit/policy.wit. `decision`, 80
;; bytes: tag u8 @0 (1: handoff); of the handoff, target @4, data @12,
;; metadata @20, response-head @28, include-head u8 @44, relay u8 @45
;; (1: if-needed), timeout-ms @48, alternates @56; carry @64, annotations @72.
(module
  (import "baton:policy/request@0.1.0" "path" (func $path (param i32)))
  (import "baton:policy/request@0.1.0" "header" (func $header (param i32 i32 i32)))
  (memory (export "memory") 1)
  (data (i32.const 16) "chat")
  (data (i32.const 32) "cookie")
  (data (i32.const 64) "{\"version\":1,\"path\":\"")            ;; 21 bytes
  (data (i32.const 96) "\",\"user\":\"")                         ;; 10 bytes
  (data (i32.const 112) "\",\"role\":\"reader\"}")               ;; 18 bytes

  ;; What the host puts here lives until the hook returns: an arena from 8192.
  (global $at (mut i32) (i32.const 8192))
  (func (export "cabi_realloc") (param $old i32) (param $old_size i32) (param $align i32) (param $size i32) (result i32)
    (local $p i32)
    (local.set $p (i32.and (i32.add (global.get $at) (i32.const 7)) (i32.const -8)))
    (global.set $at (i32.add (local.get $p) (local.get $size)))
    (if (i32.gt_u (global.get $at) (i32.const 65536)) (then (unreachable)))
    (local.get $p))

  ;; Appends at most $max bytes at $to and returns the new end. A byte that JSON would have escaped becomes `_`.
  (func $append (param $to i32) (param $from i32) (param $len i32) (param $max i32) (result i32)
    (local $byte i32) (local $end i32)
    (if (i32.gt_u (local.get $len) (local.get $max)) (then (local.set $len (local.get $max))))
    (local.set $end (i32.add (local.get $to) (local.get $len)))
    (block $done
      (loop $next
        (br_if $done (i32.eq (local.get $to) (local.get $end)))
        (local.set $byte (i32.load8_u (local.get $from)))
        (if (i32.or (i32.lt_u (local.get $byte) (i32.const 32))
              (i32.or (i32.gt_u (local.get $byte) (i32.const 126))
                (i32.or (i32.eq (local.get $byte) (i32.const 34)) (i32.eq (local.get $byte) (i32.const 92)))))
          (then (local.set $byte (i32.const 95))))
        (i32.store8 (local.get $to) (local.get $byte))
        (local.set $to (i32.add (local.get $to) (i32.const 1)))
        (local.set $from (i32.add (local.get $from) (i32.const 1)))
        (br $next)))
    (local.get $end))

  (func (export "on_request") (result i32)
    (local $end i32)
    (global.set $at (i32.const 8192))
    (memory.fill (i32.const 1024) (i32.const 0) (i32.const 80))
    (call $path (i32.const 256))                                        ;; string @256
    (call $header (i32.const 32) (i32.const 6) (i32.const 272))         ;; option<list<u8>> @272
    ;; Without a cookie: pass, to the route's default.
    (if (i32.eqz (i32.load8_u (i32.const 272))) (then (return (i32.const 1024))))

    (memory.copy (i32.const 2048) (i32.const 64) (i32.const 21))
    (local.set $end (call $append (i32.const 2069) (i32.load (i32.const 256)) (i32.load (i32.const 260)) (i32.const 512)))
    (memory.copy (local.get $end) (i32.const 96) (i32.const 10))
    (local.set $end (call $append (i32.add (local.get $end) (i32.const 10))
      (i32.load (i32.const 276)) (i32.load (i32.const 280)) (i32.const 40)))
    (memory.copy (local.get $end) (i32.const 112) (i32.const 18))

    (i32.store8 (i32.const 1024) (i32.const 1))
    (i32.store (i32.const 1028) (i32.const 16))
    (i32.store (i32.const 1032) (i32.const 4))
    (i32.store (i32.const 1036) (i32.const 2048))
    (i32.store (i32.const 1040) (i32.sub (i32.add (local.get $end) (i32.const 18)) (i32.const 2048)))
    (i32.store8 (i32.const 1069) (i32.const 1))
    (i32.const 1024)))
