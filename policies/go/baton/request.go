package baton

import "errors"

// Request is the request that a hook is asked about. It holds nothing: each method asks the gateway for what it names, so
// keep a value that is needed twice. A call outside of OnRequest, OnResponse and OnHandoffFailed ends the instance.
type Request struct{}

// Version is a version of HTTP.
type Version uint8

// Versions, in the order of the contract.
const (
	HTTP10 Version = iota
	HTTP11
	HTTP2
	HTTP3
)

// Passable says what can be done with the client's socket right now.
type Passable uint8

const (
	// PassableDirect is clear-text HTTP/1: the receiver gets the client's own socket.
	PassableDirect Passable = iota
	// PassableKTLS is TLS with its record layer in the kernel: the receiver reads and writes plain text.
	PassableKTLS
	// PassableRelayOnly is HTTP/2 or TLS in user space: the receiver gets one end of a pair.
	PassableRelayOnly
)

// Peer is who is at the other end of a socket.
type Peer struct {
	// IP and Port are those of TCP; IP is empty for a Unix socket.
	IP   string
	Port uint16
	// Unix is nil for TCP.
	Unix *UnixPeer
}

// UnixPeer is the process at the other end of a Unix socket.
type UnixPeer struct {
	UID, GID uint32
	// PID is 0 when it is not known.
	PID uint32
}

// TLS is what is known of a client's TLS.
type TLS struct {
	Version, Cipher string
	// SNI and ALPN are empty when there was none.
	SNI, ALPN string
	// ClientVerified is true when the client's certificate was presented and verified.
	ClientVerified bool
}

// Why the beginning of a body could not be read.
var (
	ErrBodyTooLarge     = errors.New("baton: the body is too large")
	ErrBodyTimedOut     = errors.New("baton: the body came too slowly")
	ErrBodyClosed       = errors.New("baton: the client is gone")
	ErrBodyNotAvailable = errors.New("baton: the body cannot be read now")
)

var bodyErrors = [...]error{ErrBodyTooLarge, ErrBodyTimedOut, ErrBodyClosed, ErrBodyNotAvailable}

// Header is the first value of a field, and empty when there is none. Names are in lower case, and compared as they are.
func (r *Request) Header(name string) string {
	value, _ := r.LookupHeader(name)
	return value
}

// LookupHeader is the first value of a field, if there is one.
func (*Request) LookupHeader(name string) (string, bool) { return requestHeader(name) }

// HeaderValues are all values of a field, in order.
func (*Request) HeaderValues(name string) []string { return requestHeaderAll(name) }

// HeaderMany asks for many fields in one call; nil where there is none.
func (*Request) HeaderMany(names ...string) []*string { return requestHeaderMany(names) }

// Headers are all fields. Names are in lower case, and repeat.
func (*Request) Headers() Fields { return requestHeaders() }

// RawHeaders are all fields as lines that end in CR LF, in one piece: the cheapest way to have all of them.
func (*Request) RawHeaders() []byte { return requestHeadersRaw() }

// Cookie is the value of a cookie, if there is one.
func (*Request) Cookie(name string) (string, bool) { return requestCookie(name) }

// ID names the request in logs, and towards targets.
func (*Request) ID() string { return requestID() }

// Method is the request's method.
func (*Request) Method() string { return requestMethod() }

// Target is the request-target as the client wrote it (RFC 9112, 3.2), what a signature over a URL was made of. Never
// decide by it what Path decides.
func (*Request) Target() string { return requestTarget() }

// Path is the normalised path, without a query.
func (*Request) Path() string { return requestPath() }

// Query is what stands behind the question mark, if there is one.
func (*Request) Query() (string, bool) { return requestQuery() }

// QueryParam is the first value of a parameter of the query, decoded, if there is one.
func (*Request) QueryParam(name string) (string, bool) { return requestQueryParam(name) }

// Authority is the Host field, in lower case, with its port if it has one.
func (*Request) Authority() string { return requestAuthority() }

// Scheme is http or https.
func (*Request) Scheme() string { return requestScheme() }

// Version is the client's version of HTTP.
func (*Request) Version() Version { return requestVersion() }

// Route is the route that the gateway chose, if there is one.
func (*Request) Route() (string, bool) { return requestRoute() }

// Param is what the route captured, or what an authorizer has set, if there is such a thing.
func (*Request) Param(name string) (string, bool) { return requestParam(name) }

// Peer is who is at the other end of the socket.
func (*Request) Peer() Peer { return requestPeer() }

// ClientIP is the client's address, behind proxies that are trusted.
func (*Request) ClientIP() string { return requestClientIP() }

// LocalAddress is where the client has connected to.
func (*Request) LocalAddress() string { return requestLocalAddress() }

// Listener is the name of the listener that accepted the client.
func (*Request) Listener() string { return requestListener() }

// TLS is nil for a client without TLS.
func (*Request) TLS() *TLS { return requestTLS() }

// ClientCertificate is the client's own certificate in DER, or nil.
func (*Request) ClientCertificate() []byte { return requestClientCertificate() }

// Passability says what can be done with the client's socket.
func (*Request) Passability() Passable { return requestPassability() }

// ContentLength is the declared length of the body, or -1 when it is chunked or unknown.
func (*Request) ContentLength() int64 { return requestContentLength() }

// BodyPrefix waits for up to limit bytes of the body, of which the gateway shows 32 KiB at most. They stay where they are:
// the upstream or the daemon gets them too.
func (*Request) BodyPrefix(limit int) ([]byte, error) { return requestBodyPrefix(limit) }
