package failure

import (
	"unsafe"

	"baton/internal/abi"
	"baton/internal/hook"
)

//go:wasmexport on_handoff_failed
func exportOnHandoffFailed(target, targetLength, stage, hasErrno, errno, message, messageLength, attempt, retryable,
	carry, carryLength uint32) unsafe.Pointer {
	failure := &Failure{
		Target:    abi.String(target, targetLength),
		Stage:     Stage(stage),
		Message:   abi.String(message, messageLength),
		Attempt:   int(attempt),
		Retryable: retryable != 0,
	}
	if hasErrno != 0 {
		failure.Errno = int(int32(errno))
	}
	given := abi.Bytes(carry, carryLength)
	abi.Begin()
	return hook.Answer(ask(failure, given))
}
