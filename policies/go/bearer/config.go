package main

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// config is what the policy is told once, as JSON:
//
//	{"target": "chat", "realm": "demo", "tokens": {"<SHA-256 of a token, in hex>": "alice"}}
//
// Tokens stand there as digests, so that neither the configuration nor its backups hold anything that opens a door. That
// is safe for tokens that a program made at random; words that people chose can be guessed from their digest.
type config struct {
	// Who takes the clients.
	target string
	// Names the protected space in challenges (RFC 9110, 11.5).
	realm  string
	tokens []token
}

type token struct {
	digest digest
	user   string
}

// parse reads a configuration. Its error has every fault, not only the first: whoever has to mend it wants to go there
// once.
func parse(text string) (*config, error) {
	var value any
	if json.Unmarshal([]byte(text), &value) != nil {
		return nil, errors.New("config: not JSON")
	}
	object, ok := value.(map[string]any)
	if !ok {
		return nil, errors.New("config: must be an object")
	}
	reader := reader{object: object}
	read := &config{target: reader.printable("target"), realm: reader.printable("realm"), tokens: reader.tokens()}
	for _, key := range slices.Sorted(maps.Keys(object)) {
		reader.fault("%s: unknown key", key)
	}
	return read, errors.Join(reader.faults...)
}

// reader takes keys out of an object, and collects what is wrong with them.
type reader struct {
	object map[string]any
	faults []error
}

func (r *reader) fault(format string, values ...any) {
	r.faults = append(r.faults, fmt.Errorf(format, values...))
}

func (r *reader) take(key string) (any, bool) {
	value, ok := r.object[key]
	delete(r.object, key)
	if !ok {
		r.fault("%s: missing", key)
	}
	return value, ok
}

// printable takes a string that can stand between the quotes of a header field as it is (RFC 9110, 5.6.4).
func (r *reader) printable(key string) string {
	value, ok := r.take(key)
	if !ok {
		return ""
	}
	text, _ := value.(string)
	if text == "" || strings.ContainsFunc(text, func(c rune) bool { return c < ' ' || c > '~' || c == '"' || c == '\\' }) {
		r.fault("%s: must be a string of printable ASCII without quotes and backslashes", key)
	}
	return text
}

func (r *reader) tokens() []token {
	value, ok := r.take("tokens")
	if !ok {
		return nil
	}
	entries, _ := value.(map[string]any)
	if len(entries) == 0 {
		r.fault("tokens: must be an object with at least one entry")
	}
	tokens := make([]token, 0, len(entries))
	for _, key := range slices.Sorted(maps.Keys(entries)) {
		user, _ := entries[key].(string)
		if strings.ContainsFunc(user, func(c rune) bool { return c < ' ' || c == 0x7f }) {
			user = ""
		}
		// A key that is no digest may be the token itself, put there by mistake: it is never repeated in a message.
		switch digest, ok := readDigest(key); {
		case ok && user != "":
			tokens = append(tokens, token{digest, user})
		case ok:
			r.fault("tokens: the user of %s... must be a string without control characters, and not empty", key[:8])
		case user != "":
			r.fault("tokens: the key of \"%s\" must be 64 lower-case hexadecimal digits, the SHA-256 of the token", user)
		default:
			r.fault("tokens: an entry has neither a SHA-256 as its key nor a user")
		}
	}
	return tokens
}

// readDigest reads 64 lower-case hexadecimal digits, as sha256sum prints them. One spelling only: two for one token would
// be two entries.
func readDigest(text string) (digest, bool) {
	var digest digest
	if len(text) != hex.EncodedLen(len(digest)) || text != strings.ToLower(text) {
		return digest, false
	}
	_, err := hex.Decode(digest[:], []byte(text))
	return digest, err == nil
}
