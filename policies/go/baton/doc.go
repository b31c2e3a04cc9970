// Package baton writes policies for the Baton gateway in Go.
//
// A policy is a program of its own. It says in an init function what it wants to be asked, and has an empty main:
//
//	package main
//
//	import "baton"
//
//	func init() { baton.OnRequest(decide) }
//
//	func main() {}
//
//	func decide(req *baton.Request) baton.Decision {
//		if req.Header("x-deny") != "" {
//			baton.Log.Info("denied", "path", req.Path())
//			return baton.Respond{Status: 403, Body: []byte("no\n")}
//		}
//		return baton.Handoff{Target: "chat", Data: []byte("hello")}
//	}
//
// It is built with nothing but the Go toolchain:
//
//	GOOS=wasip1 GOARCH=wasm go build -buildmode=c-shared -ldflags='-s -w' -o policy.wasm
//
// # Hooks
//
// [OnRequest], [Configure], [OnTick] and [SelfTest] are here. Every module that this package is in exports them; those
// that nobody registered have no opinion and cost nothing. Each of the other hooks is a package of its own, because the
// gateway calls what a module exports, and a package that is not imported is not in the module: baton/connection,
// baton/response, baton/failure and baton/complete.
//
// # What a hook may rely on
//
// An instance handles one request at a time, and serves many: what is to be remembered of a request goes into Carry,
// never into a variable. What Configure leaves in variables is where every instance starts.
//
// time.Now and crypto/rand work as everywhere. math/rand does not: its seed is drawn before the state that Configure
// leaves is kept, so that every instance gives the same numbers. What is printed becomes lines of the gateway's log, a
// panic with its stack too; it costs the instance, and the policy's on_error decides. There are no files, no sockets, no
// environment and no arguments.
//
// Functions of this package are for the goroutine of the hook. Other goroutines may compute, and end when the hook does.
//
// # Memory
//
// What one answer of the gateway may hold is bounded by [Reserve], and what Configure is called with by 2 MiB; beyond it the
// gateway reports "beyond end of memory".
//
// Policies can be tested natively: see baton/batontest.
package baton
