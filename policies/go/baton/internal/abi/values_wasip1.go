package abi

import "unsafe"

// At is a place in memory where a value of the contract stands. All offsets are those of wasm32, as wit-parser gives
// them; a string or a list is its address and its length, an option is a byte that says whether there is one.
type At struct{ p unsafe.Pointer }

// Result is where a function of the gateway writes what does not fit into a WebAssembly value. Its largest is
// option<target-status>, 56 bytes.
type Result [7]uint64

// At is the place of the result.
func (r *Result) At() At { return At{unsafe.Pointer(r)} }

// Pointer is what the gateway is told.
func (r *Result) Pointer() unsafe.Pointer { return unsafe.Pointer(r) }

// Place is memory that a hook's answer stands in.
func Place(p unsafe.Pointer) At { return At{p} }

func (a At) plus(offset uintptr) unsafe.Pointer { return unsafe.Add(a.p, offset) }

// Inside is a part of the value.
func (a At) Inside(offset uintptr) At { return At{a.plus(offset)} }

func (a At) U8(offset uintptr) uint8      { return *(*uint8)(a.plus(offset)) }
func (a At) Bool(offset uintptr) bool     { return a.U8(offset) != 0 }
func (a At) U16(offset uintptr) uint16    { return *(*uint16)(a.plus(offset)) }
func (a At) U32(offset uintptr) uint32    { return *(*uint32)(a.plus(offset)) }
func (a At) U64(offset uintptr) uint64    { return *(*uint64)(a.plus(offset)) }
func (a At) F64(offset uintptr) float64   { return *(*float64)(a.plus(offset)) }
func (a At) String(offset uintptr) string { return String(a.U32(offset), a.U32(offset+4)) }
func (a At) Bytes(offset uintptr) []byte  { return Bytes(a.U32(offset), a.U32(offset+4)) }

// OptionalString is there when the second is true.
func (a At) OptionalString(offset uintptr) (string, bool) {
	if !a.Bool(offset) {
		return "", false
	}
	return a.String(offset + 4), true
}

// Elements reads a list whose elements are of that size.
func Elements[T any](a At, offset, size uintptr, read func(At) T) []T {
	return List(a.U32(offset), a.U32(offset+4), size, read)
}

// String copies a string that arrived.
func String(at, length uint32) string { return string(arrived(at, length)) }

// Bytes copies bytes that arrived.
func Bytes(at, length uint32) []byte { return append([]byte(nil), arrived(at, length)...) }

// List reads a list that arrived.
func List[T any](at, count uint32, size uintptr, read func(At) T) []T {
	if count == 0 {
		return nil
	}
	bytes := arrived(at, count*uint32(size))
	list := make([]T, count)
	for i := range list {
		list[i] = read(At{unsafe.Pointer(unsafe.SliceData(bytes[uintptr(i)*size:]))})
	}
	return list
}

func (a At) PutU8(offset uintptr, value uint8)   { *(*uint8)(a.plus(offset)) = value }
func (a At) PutU16(offset uintptr, value uint16) { *(*uint16)(a.plus(offset)) = value }
func (a At) PutU32(offset uintptr, value uint32) { *(*uint32)(a.plus(offset)) = value }

// PutBool writes 1 for true.
func (a At) PutBool(offset uintptr, value bool) {
	if value {
		a.PutU8(offset, 1)
	}
}

// PutString writes where a string stands. It must be held until the gateway has read it.
func (a At) PutString(offset uintptr, text string) {
	a.put(offset, unsafe.Pointer(unsafe.StringData(text)), len(text))
}

// PutBytes writes where bytes stand. They must be held until the gateway has read them.
func (a At) PutBytes(offset uintptr, bytes []byte) {
	a.put(offset, unsafe.Pointer(unsafe.SliceData(bytes)), len(bytes))
}

// PutStrings writes a list of strings.
func (a At) PutStrings(offset uintptr, list []string) {
	p, count := Strings(list)
	a.put(offset, p, int(count))
}

// PutPairs writes a list of names and values.
func (a At) PutPairs(offset uintptr, list [][2]string) {
	p, count := Pairs(list)
	a.put(offset, p, int(count))
}

func (a At) put(offset uintptr, p unsafe.Pointer, length int) {
	if length == 0 {
		// No address: what is empty may have none of its own.
		a.PutU32(offset, 0)
		a.PutU32(offset+4, 0)
		return
	}
	a.PutU32(offset, address(p))
	a.PutU32(offset+4, uint32(length))
}

// Strings makes a list that the gateway can read.
func Strings(list []string) (unsafe.Pointer, uint32) {
	if len(list) == 0 {
		return nil, 0
	}
	room := take(len(list) * 8)
	for i, text := range list {
		room.PutString(uintptr(i)*8, text)
	}
	return room.p, uint32(len(list))
}

// Pairs makes a list of names and values that the gateway can read; header fields have the same form.
func Pairs(list [][2]string) (unsafe.Pointer, uint32) {
	if len(list) == 0 {
		return nil, 0
	}
	room := take(len(list) * 16)
	for i, pair := range list {
		room.PutString(uintptr(i)*16, pair[0])
		room.PutString(uintptr(i)*16+8, pair[1])
	}
	return room.p, uint32(len(list))
}

// Text has the bytes as a string, without a copy: for arguments of the gateway's functions.
func Text(bytes []byte) string { return unsafe.String(unsafe.SliceData(bytes), len(bytes)) }
