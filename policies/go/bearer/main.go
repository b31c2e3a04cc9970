// Bearer hands a client over when it carries a known bearer token (RFC 6750), and answers 401 when it does not.
//
// It is the policy of ../../rust/bearer, with the same answers. This file joins it to the gateway; what is decided stands
// in bearer.go, what the configuration means in config.go.
package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"

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
	baton.Log.Info("configured", "realm", read.realm, "tokens", len(read.tokens))
	current = read
	return baton.Requirements{Targets: []string{read.target}}, nil
}

// selfTest proves the digest with the vectors of FIPS 180-4, one block and two.
func selfTest() error {
	for message, start := range map[string]string{
		"abc": "ba7816bf",
		"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq": "248d6a61",
	} {
		wanted, err := hex.DecodeString(start)
		if digest := sha256.Sum256([]byte(message)); err != nil || !bytes.HasPrefix(digest[:], wanted) {
			return fmt.Errorf("SHA-256 of %d bytes is wrong", len(message))
		}
	}
	return nil
}

func onRequest(req *baton.Request) baton.Decision {
	// A panic, if the gateway had not configured us; it then applies on_error.
	user, refusal := current.decide(req.HeaderValues("authorization"))
	if refusal != nil {
		// Never the token. The level is asked for first: an attacker decides how often this runs.
		baton.Log.Debug(refusal.detail)
		return refusal.respond(current.realm)
	}
	query, hasQuery := req.Query()
	return baton.Handoff{
		Target:      current.target,
		Data:        data(user, req.Method(), req.Path(), query, hasQuery),
		Annotations: baton.Fields{{"user", user}},
	}
}
