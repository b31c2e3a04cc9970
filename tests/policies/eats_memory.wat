;; Takes memory until there is no more, then stops.
(module
  (memory (export "memory") 1)
  (func $decide (export "on_request") (result i32)
    (loop $again
      (br_if $again (i32.ne (memory.grow (i32.const 16)) (i32.const -1))))
    unreachable))
