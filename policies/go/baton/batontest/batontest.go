// Package batontest lets a policy be tested with go test, on this machine and without a gateway:
//
//	func TestDenied(t *testing.T) {
//		gateway := batontest.New(t)
//		gateway.Config["token"] = "open-sesame"
//		decision := gateway.Ask("GET /v1/chat HTTP/1.1\r\nHost: example.org\r\n\r\n")
//		if respond, ok := decision.(baton.Respond); !ok || respond.Status != 401 {
//			t.Errorf("%+v", decision)
//		}
//	}
//
// What a policy decides can be tested like that, and what it asks for is as the test has set it. What the gateway makes of
// it cannot: no limit holds here, no path is normalised, no time passes. That is for baton policy test, with the module.
package batontest

import (
	"strconv"
	"strings"
	"testing"

	"baton"
	"baton/complete"
	"baton/connection"
	"baton/failure"
	"baton/internal/native"
	_ "baton/response" // its hook is asked through native
)

// Gateway is what the policy asks; its fields are what it gets, and what it has left behind: Config, Secrets, Store,
// Numbers, Buckets, Targets, Fetch, Log, Metrics, Revoked, and what else may be set in Request and Response.
type Gateway struct {
	*native.Gateway
	t testing.TB
}

// Member is a daemon of a target.
type Member = native.Member

// Line is a line of the log.
type Line = native.Line

// New gives a gateway with nothing in it, until the test ends. There is one at a time: no t.Parallel.
func New(t testing.TB) *Gateway {
	gateway := &native.Gateway{
		Config:  map[string]string{},
		Secrets: map[string]string{},
		Store:   map[string]native.Entry{},
		Numbers: map[string]int64{},
		Buckets: map[string]float64{},
		Targets: map[string][]Member{},
		Metrics: map[string]float64{},
	}
	native.Use(gateway)
	t.Cleanup(func() { native.Use(nil) })
	g := &Gateway{gateway, t}
	g.Receive("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
	return g
}

// Configure configures the policy, and gives every fault that it found.
func (g *Gateway) Configure(config string) (baton.Requirements, []string) {
	requirements, faults := native.Configure(config)
	return requirements.(baton.Requirements), faults
}

// SelfTest runs the policy's own test.
func (g *Gateway) SelfTest() error { return native.SelfTest() }

// Tick calls what OnTick has registered.
func (g *Gateway) Tick() { native.Tick() }

// Ask asks the policy about a raw HTTP/1.1 request.
func (g *Gateway) Ask(raw string) baton.Decision {
	g.t.Helper()
	g.Receive(raw)
	return decided(native.Decide())
}

// Connect asks it about a client that has just been accepted.
func (g *Gateway) Connect(client connection.Connection) connection.Action {
	if action, ok := native.OnConnect(client).(connection.Action); ok {
		return action
	}
	return connection.Accept{}
}

// Respond asks it about the answer in Response.
func (g *Gateway) Respond(carry []byte) baton.Decision { return decided(native.OnResponse(carry)) }

// Fail tells it that nobody took the client.
func (g *Gateway) Fail(what *failure.Failure, carry []byte) baton.Decision {
	return decided(native.OnHandoffFailed(what, carry))
}

// Complete tells it what became of the request.
func (g *Gateway) Complete(summary complete.Summary, carry []byte) { native.OnComplete(summary, carry) }

func decided(given any) baton.Decision {
	if decision, ok := given.(baton.Decision); ok {
		return decision
	}
	return baton.Pass{}
}

// Receive makes a raw HTTP/1.1 request the one that is asked about. The path is what stands before the question mark.
func (g *Gateway) Receive(raw string) {
	g.t.Helper()
	head, body, ok := strings.Cut(raw, "\r\n\r\n")
	line, fields, _ := strings.Cut(head, "\r\n")
	words := strings.Split(line, " ")
	if !ok || len(words) != 3 {
		g.t.Fatalf("not a request, which is lines that end in CR LF, and an empty one: %q", raw)
	}
	request := native.Request{
		ID: "test", Method: words[0], Target: words[1], Scheme: "http", Body: []byte(body), ContentLength: -1,
		PeerIP: "192.0.2.1", PeerPort: 7, ClientIP: "192.0.2.1", LocalAddress: "127.0.0.1:80", Listener: "http",
	}
	if words[2] != "HTTP/1.0" {
		request.Version = uint8(baton.HTTP11)
	}
	request.Path, request.Query, request.HasQuery = strings.Cut(words[1], "?")
	for _, field := range strings.Split(fields, "\r\n") {
		name, value, ok := strings.Cut(field, ":")
		if !ok {
			continue
		}
		name, value = strings.ToLower(name), strings.Trim(value, " \t")
		request.Headers = append(request.Headers, [2]string{name, value})
		switch name {
		case "host":
			request.Authority = strings.ToLower(value)
		case "content-length":
			request.ContentLength, _ = strconv.ParseInt(value, 10, 64)
		}
	}
	g.Request = request
}
