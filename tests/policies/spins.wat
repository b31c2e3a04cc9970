;; Never ends.
(module
  (memory (export "memory") 1)
  (func $decide (export "on_request") (result i32)
    (loop $again (br $again))
    unreachable))
