package response

import (
	"time"
	"unsafe"

	"baton"
	"baton/internal/abi"
	"baton/internal/hook"
)

//go:wasmexport on_response
func exportOnResponse(carry, carryLength uint32) unsafe.Pointer {
	given := abi.Bytes(carry, carryLength)
	abi.Begin()
	return hook.Answer(ask(given))
}

//go:wasmimport baton:policy/response@0.1.0 status
func importStatus() uint32

func status() int { return int(importStatus()) }

//go:wasmimport baton:policy/response@0.1.0 header
//go:noescape
func importHeader(name string, result unsafe.Pointer)

func header(name string) (string, bool) {
	var result abi.Result
	abi.Room(1 << 20)
	importHeader(name, result.Pointer())
	return result.At().OptionalString(0)
}

//go:wasmimport baton:policy/response@0.1.0 headers
//go:noescape
func importHeaders(result unsafe.Pointer)

func headers() baton.Fields {
	var result abi.Result
	// An answer may have a head of 2 MiB.
	abi.Room(4 << 20)
	importHeaders(result.Pointer())
	return abi.Elements(result.At(), 0, 16, func(field abi.At) [2]string {
		return [2]string{field.String(0), field.String(8)}
	})
}

//go:wasmimport baton:policy/response@0.1.0 upstream
//go:noescape
func importUpstream(result unsafe.Pointer)

func upstream() string {
	var result abi.Result
	abi.Room(0)
	importUpstream(result.Pointer())
	return result.At().String(0)
}

//go:wasmimport baton:policy/response@0.1.0 elapsed-us
func importElapsed() uint64

func elapsed() time.Duration { return time.Duration(importElapsed()) * time.Microsecond }
