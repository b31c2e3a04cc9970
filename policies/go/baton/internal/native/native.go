// Package native has the gateway that a policy finds when it is compiled for this machine: what baton/batontest has
// prepared, for as long as a test runs. It is no part of a module.
package native

import "time"

// Gateway is what a policy can ask. Everything is as the test has set it, and nothing is checked that the real one checks.
type Gateway struct {
	Request  Request
	Response Response
	Config   map[string]string
	Secrets  map[string]string
	Store    map[string]Entry
	// Numbers are counters of the store; their keys are apart from those of Store.
	Numbers map[string]int64
	// Buckets are the tokens that are left; a key that is not there is full.
	Buckets map[string]float64
	Targets map[string][]Member
	// Fetch answers callouts; nil: none is allowed.
	Fetch func(upstream, method, pathAndQuery string, headers [][2]string, body []byte, timeout time.Duration) (
		status int, answerHeaders [][2]string, answerBody []byte, err error)
	Log     []Line
	Metrics map[string]float64
	Revoked []string
}

// Request is the request that is asked about.
type Request struct {
	ID, Method, Target, Path, Query, Authority, Scheme, Route string
	HasQuery                                                  bool
	Version                                                   uint8
	Params                                                    map[string]string
	Headers                                                   [][2]string
	Body                                                      []byte
	ContentLength                                             int64
	PeerIP                                                    string
	PeerPort                                                  uint16
	ClientIP, LocalAddress, Listener                          string
}

// Response is the upstream's answer, for OnResponse.
type Response struct {
	Status   int
	Headers  [][2]string
	Upstream string
	Elapsed  time.Duration
}

// Entry is what the store holds.
type Entry struct {
	Value   []byte
	Version uint64
}

// Member is a daemon of a target.
type Member struct {
	Name     string
	Health   uint8
	InFlight uint32
}

// Line is a line of the log. Levels are those of the contract.
type Line struct {
	Level   uint8
	Message string
	Fields  [][2]string
}

var current *Gateway

// Use makes a gateway the one that policies ask, or none.
func Use(gateway *Gateway) { current = gateway }

// Current is the gateway that policies ask.
func Current() *Gateway {
	if current == nil {
		panic("baton: there is no gateway here; test with baton/batontest, or build with GOOS=wasip1 GOARCH=wasm")
	}
	return current
}

// What the policy has registered; what is any is of a type of baton and its packages. Those of a package that is not
// imported are nil.
var (
	Decide          func() any
	Configure       func(config string) (requirements any, faults []string)
	SelfTest        func() error
	Tick            func()
	OnConnect       func(connection any) any
	OnResponse      func(carry []byte) any
	OnHandoffFailed func(failure any, carry []byte) any
	OnComplete      func(summary any, carry []byte)
)
