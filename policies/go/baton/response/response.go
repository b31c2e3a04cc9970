// Package response asks a policy about an upstream's answer before anything of it has been sent to the client. Importing
// it exports the hook.
package response

import (
	"time"

	"baton"
)

// Response is the head of an upstream's answer. It holds nothing: each method asks the gateway. A call outside of
// OnResponse ends the instance.
type Response struct{}

// Status is the answer's status.
func (*Response) Status() int { return status() }

// Header is the first value of a field, and empty when there is none. Names are in lower case.
func (r *Response) Header(name string) string {
	value, _ := r.LookupHeader(name)
	return value
}

// LookupHeader is the first value of a field, if there is one.
func (*Response) LookupHeader(name string) (string, bool) { return header(name) }

// Headers are all fields.
func (*Response) Headers() baton.Fields { return headers() }

// Upstream is the name of who answered.
func (*Response) Upstream() string { return upstream() }

// Elapsed is how long the answer took.
func (*Response) Elapsed() time.Duration { return elapsed() }

var decide func(*baton.Request, *Response, []byte) baton.Decision

func ask(carry []byte) baton.Decision {
	if decide == nil {
		return nil
	}
	return decide(new(baton.Request), new(Response), carry)
}

// OnResponse registers what decides on an upstream's answer, where OnRequest gave a Proxy with InspectResponse. Carry is
// what it gave with that. No decision (nil) delivers the answer.
func OnResponse(hook func(req *baton.Request, res *Response, carry []byte) baton.Decision) {
	decide = hook
}
