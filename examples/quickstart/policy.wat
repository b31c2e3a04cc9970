;; This policy decides what happens to each client of the demo. It is a
;; program, in WebAssembly's text form, and the gateway runs it as it stands:
;; change it with any editor, save, and the next request is decided by what
;; you saved. A mistake changes nothing: the gateway says what is wrong and
;; keeps the policy that it has.

(module
  ;; What it asks the gateway: the path of the request. Anything else in
  ;; `interface request` of wit/policy.wit can be asked for in the same way.
  (import "baton:policy/request@0.1.0" "path" (func $request_path (param i32)))

  ;; ---- Things to change -------------------------------------------------

  ;; 1: clients are handed to the daemon. 0: they are answered 403 instead.
  (global $open i32 (i32.const 1))

  ;; What the daemon is given with each client, as JSON. It says the greeting
  ;; and keeps to the pace. Write \" for each quote inside. As long as you
  ;; like up to 3000 bytes: its length is measured, not written down.
  (data (i32.const 1000)
    "{\"greeting\":\"Hello from the daemon\",\"words_per_second\":10}")

  ;; What clients read while $open is 0. Room for 900 bytes.
  (data (i32.const 4000) "closed by the policy\n")

  ;; Paths that begin with this are ours; all others we leave to the route.
  (data (i32.const 5000) "/stream")

  ;; Who takes the clients: a [target.…] of the configuration.
  (data (i32.const 5100) "stream")

  ;; ---- What is decided --------------------------------------------------

  ;; Called once for each request. Returns the address of a decision.
  (func (export "on_request") (result i32)
    (global.set $free (global.get $heap))          ;; forget the last request
    (memory.fill (i32.const 0) (i32.const 0) (i32.const 100))
    (if (i32.eqz (call $path_begins_with (i32.const 5000)))
      (then (return (call $pass))))
    (if (i32.eqz (global.get $open))
      (then (return (call $respond (i32.const 403) (i32.const 4000)))))
    (call $handoff (i32.const 5100) (i32.const 1000)))

  ;; ---- How a decision looks in memory -----------------------------------

  ;; 88 bytes at address 0, all zero at first. Byte 0 says which case it is;
  ;; what belongs to the case begins at byte 4. Texts and lists are an address
  ;; and a length.

  (func $pass (result i32)                         ;; case 0, no edits
    (i32.const 0))

  (func $handoff (param $target i32) (param $data i32) (result i32)
    (i32.store8 (i32.const 0) (i32.const 1))       ;; case 1: handoff
    (call $text (i32.const 4) (local.get $target))
    (call $text (i32.const 12) (local.get $data))
    (i32.store8 (i32.const 45) (i32.const 1))      ;; relay: if needed
    (i32.const 0))

  (func $respond (param $status i32) (param $body i32) (result i32)
    (i32.store8 (i32.const 0) (i32.const 3))       ;; case 3: respond
    (i32.store16 (i32.const 4) (local.get $status))
    (call $text (i32.const 16) (local.get $body))
    (i32.const 0))

  ;; Writes address and length of a text, which ends at the first zero byte.
  (func $text (param $at i32) (param $text i32)
    (local $end i32)
    (local.set $end (local.get $text))
    (loop $next
      (if (i32.load8_u (local.get $end))
        (then
          (local.set $end (i32.add (local.get $end) (i32.const 1)))
          (br $next))))
    (i32.store (local.get $at) (local.get $text))
    (i32.store offset=4 (local.get $at)
      (i32.sub (local.get $end) (local.get $text))))

  ;; ---- How the request is read ------------------------------------------

  ;; The gateway writes address and length of the path to where we say: 88.
  (func $path_begins_with (param $prefix i32) (result i32)
    (local $path i32) (local $end i32)
    (call $request_path (i32.const 88))
    (local.set $path (i32.load (i32.const 88)))
    (local.set $end (i32.add (local.get $path) (i32.load (i32.const 92))))
    (loop $next
      (if (i32.eqz (i32.load8_u (local.get $prefix)))
        (then (return (i32.const 1))))             ;; all of it was there
      (if (i32.eq (local.get $path) (local.get $end))
        (then (return (i32.const 0))))
      (if (i32.ne (i32.load8_u (local.get $path))
                  (i32.load8_u (local.get $prefix)))
        (then (return (i32.const 0))))
      (local.set $path (i32.add (local.get $path) (i32.const 1)))
      (local.set $prefix (i32.add (local.get $prefix) (i32.const 1)))
      (br $next))
    unreachable)

  ;; ---- Memory: two pages of 64 KiB --------------------------------------

  (memory (export "memory") 2)
  (global $heap i32 (i32.const 8192))              ;; the gateway writes here
  (global $free (mut i32) (i32.const 8192))

  ;; The gateway asks here for room, for example for the path.
  (func (export "cabi_realloc") (param i32 i32 i32) (param $size i32) (result i32)
    (local $at i32)
    (local.set $at (global.get $free))             ;; multiples of 8 from here
    (global.set $free (i32.and (i32.const -8)
      (i32.add (i32.const 7) (i32.add (local.get $at) (local.get $size)))))
    (local.get $at)))
