package complete

import (
	"time"

	"baton/internal/abi"
)

//go:wasmexport on_complete
func exportOnComplete(id, idLength, outcome, outcomeLength, hasTarget, target, targetLength, hasStatus, status uint32,
	durationUS, bytesIn, bytesOut uint64, carry, carryLength uint32) {
	summary := Summary{
		RequestID: abi.String(id, idLength),
		Outcome:   abi.String(outcome, outcomeLength),
		Duration:  time.Duration(durationUS) * time.Microsecond,
		BytesIn:   bytesIn,
		BytesOut:  bytesOut,
	}
	if hasTarget != 0 {
		summary.Target = abi.String(target, targetLength)
	}
	if hasStatus != 0 {
		summary.Status = int(status)
	}
	given := abi.Bytes(carry, carryLength)
	abi.Begin()
	told(summary, given)
	abi.End()
}
