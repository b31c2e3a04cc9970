;; Exports something else.
(module
  (memory (export "memory") 1)
  (func (export "other")))
