// Package failure asks a policy when nobody took the client that it handed over. Importing it exports the hook.
package failure

import "baton"

// Stage is how far the handoff, or the request to an upstream, has come.
type Stage uint8

// Stages, in the order of the contract.
const (
	Resolve Stage = iota
	Connect
	Send
	Acknowledge
	Rejected
	Upstream
)

// Failure is what happened last.
type Failure struct {
	// Target is the target or upstream that failed last.
	Target string
	Stage  Stage
	// Errno is Linux's number of the error, and 0 when there is none.
	Errno   int
	Message string
	// Attempt is 1 the first time that this hook is asked about a request; at most 3.
	Attempt int
	// Retryable is false once bytes went to the client or its socket may have left. Then only Pass and Abort are honoured.
	Retryable bool
}

var decide func(*baton.Request, *Failure, []byte) baton.Decision

func ask(failure *Failure, carry []byte) baton.Decision {
	if decide == nil {
		return nil
	}
	return decide(new(baton.Request), failure, carry)
}

// OnHandoffFailed registers what is asked when nobody took the client; not when it is unknown whether somebody did. Carry is
// what the decision had. No decision (nil) lets the gateway answer.
func OnHandoffFailed(hook func(req *baton.Request, failure *Failure, carry []byte) baton.Decision) {
	decide = hook
}
