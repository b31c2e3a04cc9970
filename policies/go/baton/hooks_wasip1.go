package baton

import (
	"math"
	"unsafe"

	"baton/internal/abi"
	"baton/internal/hook"
)

// What this package exports to the gateway. The names are those that the gateway looks for in a core module.

// Where answers stand; an instance answers one question at a time. Aligned for all that is in them.
var (
	decisionRoom   [11]uint64 // 88 bytes
	configuredRoom [3]uint64  // 20 bytes
	testedRoom     [2]uint64  // 12 bytes
)

// What the answer that was given points to, until the next question.
var held any

//go:wasmexport on_request
func exportOnRequest() unsafe.Pointer {
	abi.Begin()
	return answer(decide())
}

// exportConfigure answers with a result; 4 requirements (max-reuse, 8 tick-interval-ms, 12 targets), or list<string>.
//
//go:wasmexport configure
func exportConfigure(address, length uint32) unsafe.Pointer {
	config := abi.String(address, length)
	abi.Begin()
	requirements, faults := configure(config)
	configuredRoom = [3]uint64{}
	room := abi.Place(unsafe.Pointer(&configuredRoom))
	if faults != nil {
		held = faults
		room.PutU8(0, 1)
		room.PutStrings(4, faults)
	} else {
		held = requirements.Targets
		room.PutU32(4, requirements.maxReuse())
		if hooks.onTick != nil {
			room.PutU32(8, milliseconds(hooks.tickInterval))
		}
		room.PutStrings(12, requirements.Targets)
	}
	abi.End()
	return unsafe.Pointer(&configuredRoom)
}

func (r Requirements) maxReuse() uint32 {
	switch {
	case r.Fresh:
		return 0
	case r.MaxReuse == 0:
		return math.MaxUint32
	default:
		return r.MaxReuse
	}
}

//go:wasmexport on_tick
func exportOnTick() {
	abi.Begin()
	if hooks.onTick != nil {
		hooks.onTick()
	}
	abi.End()
}

// exportSelfTest answers with a result; 4 string.
//
//go:wasmexport self_test
func exportSelfTest() unsafe.Pointer {
	abi.Begin()
	testedRoom = [2]uint64{}
	if err := selfTest(); err != nil {
		fault := err.Error()
		held = fault
		room := abi.Place(unsafe.Pointer(&testedRoom))
		room.PutU8(0, 1)
		room.PutString(4, fault)
	}
	abi.End()
	return unsafe.Pointer(&testedRoom)
}

func init() {
	hook.Answer = func(decision any) unsafe.Pointer {
		given, _ := decision.(Decision)
		return answer(given)
	}
	hook.Handoff = func(handoff any, at abi.At) { handoff.(*Handoff).put(at) }
}

// answer writes a decision for the gateway to read: 0 u8 action   4 its payload   72 carry   80 annotations.
func answer(decision Decision) unsafe.Pointer {
	held = decision
	decisionRoom = [11]uint64{}
	room := abi.Place(unsafe.Pointer(&decisionRoom))
	payload := room.Inside(4)
	var carry []byte
	var annotations Fields
	switch decision := decision.(type) {
	case nil:
	case Pass:
		decision.Edits.put(payload)
		carry, annotations = decision.Carry, decision.Annotations
	case Handoff:
		room.PutU8(0, 1)
		decision.put(payload)
		carry, annotations = decision.Carry, decision.Annotations
	case Proxy:
		room.PutU8(0, 2)
		decision.put(payload)
		carry, annotations = decision.Carry, decision.Annotations
	case Respond:
		room.PutU8(0, 3)
		payload.PutU16(0, status(decision.Status))
		payload.PutPairs(4, decision.Headers)
		payload.PutBytes(12, decision.Body)
		carry, annotations = decision.Carry, decision.Annotations
	case Abort:
		room.PutU8(0, 4)
		carry, annotations = decision.Carry, decision.Annotations
	default:
		panic("baton: not a decision")
	}
	room.PutBytes(72, carry)
	room.PutPairs(80, annotations)
	abi.End()
	return unsafe.Pointer(&decisionRoom)
}

// put: 0 remove   8 set   16 append
func (e *Edits) put(at abi.At) {
	at.PutStrings(0, e.Remove)
	at.PutPairs(8, e.Set)
	at.PutPairs(16, e.Append)
}

// put: 0 target   8 data   16 metadata   24 option; 28 u16 status   32 headers   40 u8 include-head   41 u8 relay
// 44 option<u32> timeout-ms   52 alternates   60 response-body
func (h *Handoff) put(at abi.At) {
	at.PutString(0, h.Target)
	at.PutBytes(8, h.Data)
	at.PutPairs(16, h.Metadata)
	if head := h.ResponseHead; head != nil {
		at.PutU8(24, 1)
		at.PutU16(28, status(head.Status))
		at.PutPairs(32, head.Headers)
	}
	at.PutBool(40, h.IncludeHead)
	at.PutU8(41, [...]uint8{RelayIfNeeded: 1, RelayNever: 0, RelayAlways: 2}[h.Relay])
	if h.Timeout > 0 {
		at.PutU8(44, 1)
		at.PutU32(48, milliseconds(h.Timeout))
	}
	at.PutStrings(52, h.Alternates)
	at.PutBytes(60, h.ResponseBody)
}

// put: 0 upstream   8 option path-and-query   20 request   44 option<u32> timeout-ms   52 u8 inspect-response
func (p *Proxy) put(at abi.At) {
	at.PutString(0, p.Upstream)
	if p.PathAndQuery != "" {
		at.PutU8(8, 1)
		at.PutString(12, p.PathAndQuery)
	}
	p.Request.put(at.Inside(20))
	if p.Timeout > 0 {
		at.PutU8(44, 1)
		at.PutU32(48, milliseconds(p.Timeout))
	}
	at.PutBool(52, p.InspectResponse)
}

// status keeps what is out of range out of range, so that the gateway refuses it.
func status(status int) uint16 { return uint16(min(max(status, 0), math.MaxUint16)) }
