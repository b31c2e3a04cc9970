// Sticky hands each session to the same daemon of a target, for as long as that daemon is there.
//
// A session is named by a cookie, which is a random number and nothing else: it says nothing of the daemons, and no state is
// kept about it. Which daemon it is for follows from rendezvous hashing over the target's members (rendezvous.go), so every
// instance, every worker and every gateway with the same members comes to the same result, before and after a restart.
// When a daemon goes down or drains, its sessions move, each to the daemon that is next for it, and all others stay.
//
// Who has no session yet gets one. The daemon answers the client, so the daemon has to set the cookie: it finds it, ready to
// be written, in the data:
//
//	{"session":"JmSyK1…","new":true,"set_cookie":"sid=JmSyK1…; Path=/; HttpOnly; SameSite=Lax"}
//
// and for later requests {"session":"JmSyK1…","new":false}. With response_head in the configuration the gateway writes the
// head of the answer, the cookie in it, before it hands over; the daemon then only writes a body.
package main

import (
	"crypto/rand"
	"encoding/base64"
	"errors"

	"baton"
)

// Set once by Configure; every later instance starts from the memory that it left.
var current *config

func init() {
	baton.Configure(configure)
	baton.SelfTest(selfTest)
	baton.OnRequest(onRequest)
}

// A module has no main, but a Go program needs one.
func main() {}

func configure(text string) (baton.Requirements, error) {
	read, err := parse(text)
	if err != nil {
		return baton.Requirements{}, err
	}
	current = read
	return baton.Requirements{Targets: []string{read.target}}, nil
}

// selfTest proves that sessions are drawn anew: a session that two clients have is a client that sees what is not for it.
func selfTest() error {
	if newSession() == newSession() {
		return errors.New("two sessions have the same name")
	}
	return nil
}

func onRequest(req *baton.Request) baton.Decision {
	session, known := req.Cookie(current.cookie)
	// What the client sent is taken as a name only if we could have given it: it ends up in a log and in a field.
	known = known && isSession(session)
	if !known {
		session = newSession()
	}
	daemons := ranked(session, baton.Targets.Members(current.target))
	handoff := baton.Handoff{
		// All of them are down, or there is none: the target itself has the answer to that.
		Target:      current.target,
		Annotations: baton.Fields{{"session", session[:shownLength]}},
	}
	if len(daemons) > 0 {
		handoff.Target, handoff.Alternates = daemons[0], daemons[1:]
	}
	data := baton.AppendJSON([]byte(`{"session":`), session)
	if known {
		data = append(data, `,"new":false`...)
	} else {
		data = append(data, `,"new":true`...)
	}
	setCookie := ""
	if !known {
		setCookie = current.setCookie(session, req.Scheme() == "https")
	}
	if head := current.responseHead; head != nil {
		written := baton.ResponseHead{Status: head.Status, Headers: head.Headers}
		if !known {
			// A new list: the one of the configuration is for every request.
			written.Headers = append(baton.Fields{{"set-cookie", setCookie}}, head.Headers...)
		}
		handoff.ResponseHead = &written
	} else if !known {
		data = baton.AppendJSON(append(data, `,"set_cookie":`...), setCookie)
	}
	handoff.Data = append(data, '}')
	return handoff
}

const (
	// 128 bits, which nobody guesses.
	sessionBytes  = 16
	sessionLength = 22
	// The access log has enough of a session to follow it, and too little to take it over.
	shownLength = 8
)

func newSession() string {
	var random [sessionBytes]byte
	// Never fails: without randomness it ends the program, and so the instance.
	rand.Read(random[:])
	return base64.RawURLEncoding.EncodeToString(random[:])
}

func isSession(text string) bool {
	if len(text) != sessionLength {
		return false
	}
	for i := range len(text) {
		switch c := text[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '-', c == '_':
		default:
			return false
		}
	}
	return true
}
