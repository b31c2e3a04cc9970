package baton

import "time"

// Fields are names and values in order; a name may repeat. Values of header fields may hold any byte but CR, LF and NUL.
//
//	baton.Fields{{"content-type", "text/plain"}, {"vary", "origin"}}
type Fields [][2]string

// Decision is what shall happen now: [Pass], [Handoff], [Proxy], [Respond] or [Abort].
//
// All of them have Carry, which is handed unchanged to later hooks of the request (at most 64 KiB), and Annotations, which
// are added to the access log; the last value of a name wins.
type Decision interface {
	decision()
}

// Edits are changes to a message that continues on its way. Removal happens first.
type Edits struct {
	Remove []string
	Set    Fields
	Append Fields
}

// Pass has no opinion: in OnRequest the next policy is asked, then the route's default applies; in OnResponse the answer
// is delivered; in OnHandoffFailed the gateway answers.
type Pass struct {
	Edits
	Carry       []byte
	Annotations Fields
}

// Handoff gives the client to a target.
type Handoff struct {
	// Target is a target, one of its members, or, when the configuration allows it, a socket's path.
	Target string
	// Data is delivered together with the client's socket.
	Data []byte
	// Metadata travels in the native dialect only.
	Metadata Fields
	// ResponseHead is written to the client before its socket is handed over.
	ResponseHead *ResponseHead
	// ResponseBody is the beginning of the answer's body, written right behind ResponseHead.
	ResponseBody []byte
	// IncludeHead delivers the request's head exactly as it was received.
	IncludeHead bool
	// Relay says whether the gateway may stay in between.
	Relay Relay
	// Timeout bounds connecting, sending and acknowledging; 0 is the target's own.
	Timeout time.Duration
	// Alternates are targets to try in order before OnHandoffFailed is asked.
	Alternates  []string
	Carry       []byte
	Annotations Fields
}

// ResponseHead is the head of an answer that somebody else continues.
type ResponseHead struct {
	Status  int
	Headers Fields
}

// Relay says whether a client that cannot be handed over as it is (HTTP/2, TLS in user space) is relayed.
type Relay uint8

const (
	// RelayIfNeeded relays what cannot be handed over directly. It is the zero value.
	RelayIfNeeded Relay = iota
	// RelayNever fails instead.
	RelayNever
	// RelayAlways relays every client.
	RelayAlways
)

// Proxy gives the request to an upstream, whose answer the gateway passes on.
type Proxy struct {
	// Upstream is named in the configuration.
	Upstream string
	// PathAndQuery replaces path and query, unless it is empty.
	PathAndQuery string
	// Request changes what the upstream gets.
	Request Edits
	// Timeout bounds the wait for the head of the answer; 0 is the upstream's own.
	Timeout time.Duration
	// InspectResponse asks OnResponse (baton/response) about the answer.
	InspectResponse bool
	Carry           []byte
	Annotations     Fields
}

// Respond answers the client.
type Respond struct {
	Status      int
	Headers     Fields
	Body        []byte
	Carry       []byte
	Annotations Fields
}

// Abort closes the connection without an answer.
type Abort struct {
	Carry       []byte
	Annotations Fields
}

func (Pass) decision()    {}
func (Handoff) decision() {}
func (Proxy) decision()   {}
func (Respond) decision() {}
func (Abort) decision()   {}

// milliseconds rounds up, because 0 would be no time at all.
func milliseconds(d time.Duration) uint32 {
	const most = 1<<32 - 1
	switch ms := (d + time.Millisecond - 1) / time.Millisecond; {
	case ms < 0:
		return 0
	case ms > most:
		return most
	default:
		return uint32(ms)
	}
}
