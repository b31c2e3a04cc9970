;; WASI preview 1 for policies: two clocks, random bytes, and a log behind the descriptors 1 and 2. Nothing else is there.
;;
;; Wit-component links this to a core module that imports `wasi_snapshot_preview1`, and leaves out what is not imported.
;; It has no memory of its own, and nothing that it calls wants to allocate in the module's.
;;
;; While the module allocates for the gateway (`cabi_realloc`), or frees for it (`cabi_post_…`), it must not call
;; anything outside of itself: the component model forbids it. A garbage collector runs exactly then, and reads the
;; clock. `baton_inside`, which the loader adds to the module, says so, and what was read last is told again, a
;; microsecond later each time, so that nobody finds a clock that stands still.
(module
  (import "env" "memory" (memory 0))
  (import "__main_module__" "baton_inside" (global $inside (mut i32)))
  (import "baton:host/preview1@0.1.0" "wall-ns" (func $wall_ns (result i64)))
  (import "baton:host/preview1@0.1.0" "monotonic-ns" (func $monotonic_ns (result i64)))
  (import "baton:host/preview1@0.1.0" "random" (func $random (result i64)))
  (import "baton:host/preview1@0.1.0" "write" (func $write (param $stream i32) (param $bytes i32) (param $count i32)))
  (import "baton:host/preview1@0.1.0" "exit" (func $exit (param $status i32)))

  ;; What was told last.
  (global $wall (mut i64) (i64.const 0))
  (global $monotonic (mut i64) (i64.const 0))

  (func $read_wall
    (if (global.get $inside)
      (then (global.set $wall (i64.add (global.get $wall) (i64.const 1000))))
      (else (global.set $wall (call $wall_ns)))))

  ;; Never runs backwards.
  (func $read_monotonic
    (local $now i64)
    (if (global.get $inside)
      (then (global.set $monotonic (i64.add (global.get $monotonic) (i64.const 1000))) (return)))
    ;; Who reads one clock first within an allocation finds the other near the truth.
    (if (i64.eqz (global.get $wall)) (then (call $read_wall)))
    (local.set $now (call $monotonic_ns))
    (if (i64.gt_u (local.get $now) (global.get $monotonic)) (then (global.set $monotonic (local.get $now)))))

  (func (export "clock_time_get") (param $clock i32) (param $precision i64) (param $time i32) (result i32)
    (if (i32.eqz (local.get $clock))
      (then (call $read_wall) (i64.store (local.get $time) (global.get $wall)) (return (i32.const 0))))
    (if (i32.eq (local.get $clock) (i32.const 1))
      (then (call $read_monotonic) (i64.store (local.get $time) (global.get $monotonic)) (return (i32.const 0))))
    (i32.const 28)) ;; EINVAL: no clocks of processor time
  (func (export "clock_res_get") (param $clock i32) (param $resolution i32) (result i32)
    (if (i32.gt_u (local.get $clock) (i32.const 1)) (then (return (i32.const 28))))
    (i64.store (local.get $resolution) (i64.const 1))
    (i32.const 0))

  (func (export "random_get") (param $at i32) (param $count i32) (result i32)
    (local $word i64)
    (if (global.get $inside) (then (return (i32.const 6)))) ;; EAGAIN
    (block $done
      (loop $words
        (br_if $done (i32.lt_u (local.get $count) (i32.const 8)))
        (i64.store (local.get $at) (call $random))
        (local.set $at (i32.add (local.get $at) (i32.const 8)))
        (local.set $count (i32.sub (local.get $count) (i32.const 8)))
        (br $words)))
    (if (local.get $count) (then (local.set $word (call $random))))
    (block $all
      (loop $bytes
        (br_if $all (i32.eqz (local.get $count)))
        (i64.store8 (local.get $at) (local.get $word))
        (local.set $word (i64.shr_u (local.get $word) (i64.const 8)))
        (local.set $at (i32.add (local.get $at) (i32.const 1)))
        (local.set $count (i32.sub (local.get $count) (i32.const 1)))
        (br $bytes)))
    (i32.const 0))

  ;; Everything is taken, also what cannot be said from inside an allocation.
  (func (export "fd_write") (param $fd i32) (param $vectors i32) (param $count i32) (param $written i32) (result i32)
    (local $at i32) (local $left i32) (local $piece i32) (local $sum i32)
    (if (i32.gt_u (i32.sub (local.get $fd) (i32.const 1)) (i32.const 1)) (then (return (i32.const 8)))) ;; EBADF
    (block $done
      (loop $next
        (br_if $done (i32.eqz (local.get $count)))
        (local.set $at (i32.load (local.get $vectors)))
        (local.set $left (i32.load offset=4 (local.get $vectors)))
        (local.set $sum (i32.add (local.get $sum) (local.get $left)))
        (block $said
          (br_if $said (global.get $inside))
          ;; In pieces: what one call copies is bounded.
          (loop $pieces
            (br_if $said (i32.eqz (local.get $left)))
            (local.set $piece (select
              (local.get $left) (i32.const 16384) (i32.lt_u (local.get $left) (i32.const 16384))))
            (call $write (local.get $fd) (local.get $at) (local.get $piece))
            (local.set $at (i32.add (local.get $at) (local.get $piece)))
            (local.set $left (i32.sub (local.get $left) (local.get $piece)))
            (br $pieces)))
        (local.set $vectors (i32.add (local.get $vectors) (i32.const 8)))
        (local.set $count (i32.sub (local.get $count) (i32.const 1)))
        (br $next)))
    (i32.store (local.get $written) (local.get $sum))
    (i32.const 0))

  ;; 1 and 2 are character devices that can only be written to: C's library then ends its buffers at each line.
  (func (export "fd_fdstat_get") (param $fd i32) (param $stat i32) (result i32)
    (if (i32.gt_u (i32.sub (local.get $fd) (i32.const 1)) (i32.const 1)) (then (return (i32.const 8))))
    (i64.store (local.get $stat) (i64.const 2))
    (i64.store offset=8 (local.get $stat) (i64.const 0x40))
    (i64.store offset=16 (local.get $stat) (i64.const 0))
    (i32.const 0))

  ;; No waiting: every subscription is answered at once, clocks as if their time had come, descriptors with EBADF.
  (func (export "poll_oneoff") (param $subscriptions i32) (param $events i32) (param $count i32) (param $stored i32)
    (result i32)
    (local $at i32) (local $kind i32)
    (if (i32.eqz (local.get $count)) (then (return (i32.const 28))))
    (loop $next
      (local.set $kind (i32.load8_u offset=8 (local.get $subscriptions)))
      (i64.store (local.get $events) (i64.load (local.get $subscriptions)))
      (i64.store offset=8 (local.get $events) (i64.const 0))
      (i64.store offset=16 (local.get $events) (i64.const 0))
      (i64.store offset=24 (local.get $events) (i64.const 0))
      (i32.store16 offset=8 (local.get $events) (select (i32.const 8) (i32.const 0) (local.get $kind)))
      (i32.store8 offset=10 (local.get $events) (local.get $kind))
      (local.set $subscriptions (i32.add (local.get $subscriptions) (i32.const 48)))
      (local.set $events (i32.add (local.get $events) (i32.const 32)))
      (local.set $at (i32.add (local.get $at) (i32.const 1)))
      (br_if $next (i32.lt_u (local.get $at) (local.get $count))))
    (i32.store (local.get $stored) (local.get $count))
    (i32.const 0))

  (func (export "proc_exit") (param $status i32)
    (if (i32.eqz (global.get $inside)) (then (call $exit (local.get $status))))
    (unreachable))
  (func (export "sched_yield") (result i32) (i32.const 0))

  ;; No arguments and no environment.
  (func $none (param $count i32) (param $bytes i32) (result i32)
    (i32.store (local.get $count) (i32.const 0))
    (i32.store (local.get $bytes) (i32.const 0))
    (i32.const 0))
  (export "args_sizes_get" (func $none))
  (export "environ_sizes_get" (func $none))
  (func (export "args_get") (param i32 i32) (result i32) (i32.const 0))
  (func (export "environ_get") (param i32 i32) (result i32) (i32.const 0))

  ;; No files, and no folder to find one in: EBADF.
  (func (export "fd_advise") (param i32 i64 i64 i32) (result i32) (i32.const 8))
  (func (export "fd_allocate") (param i32 i64 i64) (result i32) (i32.const 8))
  (func (export "fd_close") (param i32) (result i32) (i32.const 8))
  (func (export "fd_datasync") (param i32) (result i32) (i32.const 8))
  (func (export "fd_fdstat_set_flags") (param i32 i32) (result i32) (i32.const 8))
  (func (export "fd_fdstat_set_rights") (param i32 i64 i64) (result i32) (i32.const 8))
  (func (export "fd_filestat_get") (param i32 i32) (result i32) (i32.const 8))
  (func (export "fd_filestat_set_size") (param i32 i64) (result i32) (i32.const 8))
  (func (export "fd_filestat_set_times") (param i32 i64 i64 i32) (result i32) (i32.const 8))
  (func (export "fd_pread") (param i32 i32 i32 i64 i32) (result i32) (i32.const 8))
  (func (export "fd_prestat_get") (param i32 i32) (result i32) (i32.const 8))
  (func (export "fd_prestat_dir_name") (param i32 i32 i32) (result i32) (i32.const 8))
  (func (export "fd_pwrite") (param i32 i32 i32 i64 i32) (result i32) (i32.const 8))
  (func (export "fd_read") (param i32 i32 i32 i32) (result i32) (i32.const 8))
  (func (export "fd_readdir") (param i32 i32 i32 i64 i32) (result i32) (i32.const 8))
  (func (export "fd_renumber") (param i32 i32) (result i32) (i32.const 8))
  (func (export "fd_seek") (param i32 i64 i32 i32) (result i32) (i32.const 8))
  (func (export "fd_sync") (param i32) (result i32) (i32.const 8))
  (func (export "fd_tell") (param i32 i32) (result i32) (i32.const 8))
  (func (export "path_create_directory") (param i32 i32 i32) (result i32) (i32.const 8))
  (func (export "path_filestat_get") (param i32 i32 i32 i32 i32) (result i32) (i32.const 8))
  (func (export "path_filestat_set_times") (param i32 i32 i32 i32 i64 i64 i32) (result i32) (i32.const 8))
  (func (export "path_link") (param i32 i32 i32 i32 i32 i32 i32) (result i32) (i32.const 8))
  (func (export "path_open") (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32) (i32.const 8))
  (func (export "path_readlink") (param i32 i32 i32 i32 i32 i32) (result i32) (i32.const 8))
  (func (export "path_remove_directory") (param i32 i32 i32) (result i32) (i32.const 8))
  (func (export "path_rename") (param i32 i32 i32 i32 i32 i32) (result i32) (i32.const 8))
  (func (export "path_symlink") (param i32 i32 i32 i32 i32) (result i32) (i32.const 8))
  (func (export "path_unlink_file") (param i32 i32 i32) (result i32) (i32.const 8))

  ;; No sockets and no signals: ENOSYS.
  (func (export "proc_raise") (param i32) (result i32) (i32.const 52))
  (func (export "sock_accept") (param i32 i32 i32) (result i32) (i32.const 52))
  (func (export "sock_recv") (param i32 i32 i32 i32 i32 i32) (result i32) (i32.const 52))
  (func (export "sock_send") (param i32 i32 i32 i32 i32) (result i32) (i32.const 52))
  (func (export "sock_shutdown") (param i32 i32) (result i32) (i32.const 52)))
