// Package connection asks a policy about a client before a byte of it has been read. Importing it exports the hook.
package connection

import "baton"

// Connection is a client that has just been accepted.
type Connection struct {
	// Listener is the name of the listener that accepted it.
	Listener     string
	Peer         baton.Peer
	LocalAddress string
	// SNI and ALPN are what the client said in TLS, when the listener looks at that; empty otherwise.
	SNI  string
	ALPN []string
}

// Action is what shall happen: [Accept], [Reject] or [Handoff].
type Action interface{ action() }

// Accept goes on.
type Accept struct{}

// Reject closes the connection.
type Reject struct{}

// Handoff passes the untouched socket, before TLS and HTTP. Carry and Annotations are not looked at.
type Handoff baton.Handoff

func (Accept) action()  {}
func (Reject) action()  {}
func (Handoff) action() {}

var decide func(Connection) Action

func ask(connection Connection) Action {
	if decide == nil {
		return Accept{}
	}
	return decide(connection)
}

// OnConnect registers what decides on a client that has just been accepted. No action (nil) is [Accept].
func OnConnect(hook func(Connection) Action) { decide = hook }
