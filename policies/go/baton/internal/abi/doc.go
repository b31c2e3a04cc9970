// Package abi has how values cross between the gateway and a policy in Go: the canonical ABI of WebAssembly
// components, for baton:policy@0.1.0. It knows how a string or a list stands in memory, and nothing of the contract.
//
// # Memory
//
// What the gateway writes into a policy it asks room for by cabi_realloc. Inside of that function the component model
// forbids to call the gateway. Go's allocator may begin a collection at any time, a collection reads the clock, and
// the clock is the gateway's: so cabi_realloc must neither allocate nor let another goroutine run. It is one bump of an
// index into an arena that stands ready, and what has arrived there is copied into ordinary Go values before anything
// else is asked. The arena begins anew with every hook.
//
// In the other direction nothing is copied: the gateway reads strings and bytes where Go has them. Collections move
// nothing and run only while Go runs, so it is enough that a value is held until the gateway has read it.
//
// All of it belongs to the goroutine of the hook.
package abi
