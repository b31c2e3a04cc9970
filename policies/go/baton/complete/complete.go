// Package complete tells a policy what became of a request. Importing it exports the hook.
package complete

import "time"

// Summary is what became of a request.
type Summary struct {
	RequestID string
	// Outcome is one of the access log's: handed-off, responded, refused and so on.
	Outcome string
	// Target is empty when there was none.
	Target string
	// Status is 0 when nothing was answered here.
	Status            int
	Duration          time.Duration
	BytesIn, BytesOut uint64
}

var tell func(Summary, []byte)

func told(summary Summary, carry []byte) {
	if tell != nil {
		tell(summary, carry)
	}
}

// OnComplete registers what is told of every request that the policy was asked about, after the gateway let go of it. Carry is
// what its last decision had.
func OnComplete(hook func(summary Summary, carry []byte)) { tell = hook }
