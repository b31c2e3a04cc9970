// A policy that allocates in its hook and in cabi_realloc, so that the collector runs within both. The hard way, on
// purpose: policies/go has an allocator that needs no luck.
package main

import (
	"crypto/rand"
	"fmt"
	"os"
	"runtime"
	"time"
	"unsafe"
)

//go:wasmimport baton:policy/request@0.1.0 path
func requestPath(result unsafe.Pointer)

// What the gateway was given in this hook: alive until the next one begins.
var given [][]byte

// What `configure` draws is in every instance.
var seed [16]byte

//go:wasmexport cabi_realloc
func cabiRealloc(old unsafe.Pointer, oldSize, align, size uint32) unsafe.Pointer {
	block := make([]byte, size+64<<10)
	given = append(given, block)
	return unsafe.Pointer(&block[0])
}

// Requests that this instance has decided.
var calls int
var parts = make(map[string][]byte)
var result [2]uint32
var decision [80]byte
var body []byte

func put(at int, value uint32) { *(*uint32)(unsafe.Pointer(&decision[at])) = value }

func address(bytes []byte) uint32 { return uint32(uintptr(unsafe.Pointer(unsafe.SliceData(bytes)))) }

//go:wasmexport on_request
func onRequest() unsafe.Pointer {
	given = given[:0]
	requestPath(unsafe.Pointer(&result))
	path := string(unsafe.Slice((*byte)(unsafe.Pointer(uintptr(result[0]))), result[1]))
	switch path {
	case "/exit":
		fmt.Println("no end")
		os.Exit(3)
	case "/panic":
		panic("as asked")
	case "/say":
		fmt.Print("to standard output\nand no end")
		fmt.Fprintln(os.Stderr, "to standard error\x1b[31m")
	case "/sleep":
		time.Sleep(time.Hour)
	}
	for i := range 20 {
		parts[fmt.Sprintf("%d", i)] = make([]byte, 512)
	}
	calls++
	var memory runtime.MemStats
	if path == "/memory" {
		runtime.ReadMemStats(&memory)
	}
	var fresh [4]byte
	rand.Read(fresh[:])
	_, file := os.ReadFile("/etc/passwd")
	body = fmt.Appendf(nil, "%d %d %d %x %x %d %v", calls, memory.NumGC, memory.Sys, seed, fresh, time.Now().Year(), file)
	decision = [80]byte{3}
	put(4, 200)
	put(16, address(body))
	put(20, uint32(len(body)))
	return unsafe.Pointer(&decision)
}

var requirements [32]byte

//go:wasmexport configure
func configure(config unsafe.Pointer, n uint32) unsafe.Pointer {
	rand.Read(seed[:])
	*(*uint32)(unsafe.Pointer(&requirements[4])) = 1 << 30
	return unsafe.Pointer(&requirements)
}

func main() {}
