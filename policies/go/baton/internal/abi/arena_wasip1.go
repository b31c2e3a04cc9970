package abi

import "unsafe"

// Room that stands ready. It is not part of the module's file, and a page that is never touched costs nothing.
const readyBytes = 2 << 20

// What must be free before anything is asked whose size is not known: a request's whole head, twice over.
const plainBytes = 256 << 10

var (
	ready [readyBytes]byte
	// Where room is given from: ready, or a larger one of the heap until the hook ends.
	arena = ready[:]
	used  uint32
	// Arenas that became too small while a hook ran; what stands there is still to be read.
	outgrown [][]byte
	// Below stands what a WASI adapter asked for while Go started. It is kept.
	floor uint32
	// A hook has given its answer, and whatever is asked for next belongs to the next hook.
	answered bool
)

func init() {
	floor = used
}

// realloc gives the gateway room to write to. It must not allocate, must not be preempted (hence nosplit), and must
// not panic, because that would write to standard error. Without room it names an address that no memory has; the
// gateway refuses that with "beyond end of memory". Nothing is ever moved: the length of UTF-8 is known beforehand.
//
//go:wasmexport cabi_realloc
//go:nosplit
func realloc(old, oldSize, align, size uint32) uint32 {
	if answered {
		used, answered = floor, false
	}
	base := address(unsafe.Pointer(unsafe.SliceData(arena)))
	at := (base + used + align - 1) &^ (align - 1)
	if old != 0 || size > uint32(len(arena)) || at-base > uint32(len(arena))-size {
		return -align
	}
	used = at - base + size
	return at
}

// Begin starts a hook: its arguments have been copied.
func Begin() {
	arena, outgrown, used, answered = ready[:], nil, floor, false
}

// End ends a hook: the answer may stand in the arena until the gateway asks for room again.
func End() {
	answered = true
}

// Room makes sure that the gateway can write size bytes, and something for lists.
func Room(size int) {
	need := size + plainBytes
	if len(arena)-int(used) >= need {
		return
	}
	outgrown = append(outgrown, arena)
	arena, used = make([]byte, max(need, readyBytes)), 0
}

// take gives room for a list that the gateway will read.
func take(size int) At {
	Room(size)
	base := uintptr(unsafe.Pointer(unsafe.SliceData(arena)))
	start := (base+uintptr(used)+7)&^7 - base
	used = uint32(start) + uint32(size)
	clear(arena[start:used])
	return At{unsafe.Pointer(unsafe.SliceData(arena[start:]))}
}

// arrived is what the gateway has written. A panic here means that somebody asks from another goroutine.
func arrived(at, length uint32) []byte {
	if length == 0 {
		return nil
	}
	return arena[at-address(unsafe.Pointer(unsafe.SliceData(arena))):][:length]
}

func address(p unsafe.Pointer) uint32 {
	return uint32(uintptr(p))
}
