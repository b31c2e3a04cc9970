package main

import (
	"crypto/sha256"
	"encoding/binary"
	"strings"

	"baton"
)

// Who is asking, and what they get: RFC 6750. The token is taken from the Authorization field alone. The access_token
// parameter of RFC 6750, 2.3 is deliberately not looked at: a query stands in access logs, in browser histories, in
// Referer fields and in the handoff's data, and RFC 9700, 4.3.2 forbids it.

// digest is the SHA-256 of a token.
type digest [sha256.Size]byte

// refusal is an answer to a client that is not let through.
type refusal struct {
	status        int
	title, detail string
	// An error of RFC 6750, 3.1, or nothing.
	err string
}

var (
	// No credentials at all, or of another scheme: the challenge carries no error then (RFC 6750, 3).
	noToken = &refusal{401, "Unauthorized", "a bearer token is required", ""}

	malformed = &refusal{400, "Bad Request", "there must be one Authorization field with one bearer token",
		"invalid_request"}

	unknownToken = &refusal{401, "Unauthorized", "the bearer token is not valid", "invalid_token"}
)

// respond has problem details (RFC 9457); the texts are ours and need no quoting.
func (r *refusal) respond(realm string) baton.Respond {
	challenge := `Bearer realm="` + realm + `"`
	if r.err != "" {
		challenge += `, error="` + r.err + `"`
	}
	status := "401"
	if r.status == 400 {
		status = "400"
	}
	return baton.Respond{
		Status:  r.status,
		Headers: baton.Fields{{"www-authenticate", challenge}, {"content-type", "application/problem+json"}},
		Body:    []byte(`{"title":"` + r.title + `","status":` + status + `,"detail":"` + r.detail + `"}`),
	}
}

// decide decides on the values of all Authorization fields.
func (c *config) decide(authorization []string) (user string, _ *refusal) {
	if len(authorization) == 0 {
		return "", noToken
	}
	if len(authorization) > 1 {
		// Which of them counts would be a guess, and the daemon might guess differently.
		return "", malformed
	}
	// Bearer 1*SP b64token (RFC 6750, 2.1); the scheme's case does not matter (RFC 9110, 11.1).
	scheme, rest, _ := strings.Cut(authorization[0], " ")
	if !isBearer(scheme) {
		return "", noToken
	}
	token := strings.TrimLeft(rest, " ")
	if !isB64Token(token) {
		return "", malformed
	}
	if user = c.user(token); user == "" {
		return "", unknownToken
	}
	return user, nil
}

// isBearer compares ASCII only: there are letters beyond it that have their lower case in it.
func isBearer(scheme string) bool {
	const bearer = "bearer"
	if len(scheme) != len(bearer) {
		return false
	}
	for i := range len(bearer) {
		if scheme[i]|0x20 != bearer[i] {
			return false
		}
	}
	return true
}

// isB64Token wants at least one of the characters, then any number of =.
func isB64Token(token string) bool {
	body := strings.TrimRight(token, "=")
	for i := range len(body) {
		switch c := body[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		case strings.IndexByte("-._~+/", c) >= 0:
		default:
			return false
		}
	}
	return body != ""
}

// user tells whose token this is. It looks at every entry and at every byte of it, so that the time tells nothing of how
// near a guess came.
func (c *config) user(token string) string {
	sum := sha256.Sum256([]byte(token))
	found := ""
	for i := range c.tokens {
		if isSame(&c.tokens[i].digest, (*digest)(&sum)) {
			found = c.tokens[i].user
		}
	}
	return found
}

// isSame compares without an early end. Eight bytes at a time: crypto/subtle goes byte by byte, which for ten tokens
// takes nearly as long as the digest.
func isSame(a, b *digest) bool {
	word := func(digest *digest, at int) uint64 { return binary.LittleEndian.Uint64(digest[at:]) }
	difference := word(a, 0) ^ word(b, 0) | word(a, 8) ^ word(b, 8) | word(a, 16) ^ word(b, 16) | word(a, 24) ^ word(b, 24)
	return difference == 0
}

// data is what the daemon is told.
func data(user, method, path, query string, hasQuery bool) []byte {
	text := make([]byte, 0, 64+len(user)+len(method)+len(path)+len(query))
	text = baton.AppendJSON(append(text, `{"user":`...), user)
	text = baton.AppendJSON(append(text, `,"method":`...), method)
	text = baton.AppendJSON(append(text, `,"path":`...), path)
	text = append(text, `,"query":`...)
	if hasQuery {
		text = baton.AppendJSON(text, query)
	} else {
		text = append(text, "null"...)
	}
	return append(text, '}')
}
