package hook

import (
	"unsafe"

	"baton/internal/abi"
)

var (
	// Answer writes a baton.Decision, or none, for the gateway to read.
	Answer func(decision any) unsafe.Pointer
	// Handoff writes a *baton.Handoff.
	Handoff func(handoff any, at abi.At)
)
