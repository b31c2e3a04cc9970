package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"baton"
)

// config is what the policy is told once, as JSON:
//
//	{"target": "chat", "cookie": "sid", "max_age": 86400, "response_head": {"status": 200, "headers": {"content-type": "text/plain"}}}
//
// Only target must be there.
type config struct {
	target string
	// Name of the cookie: sid.
	cookie string
	// Seconds that a session is kept; 0: until the browser is closed.
	maxAge int
	// Written by the gateway before it hands over; nil: the daemon answers.
	responseHead *baton.ResponseHead
}

// parse reads a configuration. Its error has every fault.
func parse(text string) (*config, error) {
	var written struct {
		Target       string  `json:"target"`
		Cookie       *string `json:"cookie"`
		MaxAge       int     `json:"max_age"`
		ResponseHead *struct {
			Status  int               `json:"status"`
			Headers map[string]string `json:"headers"`
		} `json:"response_head"`
	}
	decoder := json.NewDecoder(strings.NewReader(text))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&written); err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	read := &config{target: written.Target, cookie: "sid", maxAge: written.MaxAge}
	var faults []error
	fault := func(text string) { faults = append(faults, errors.New(text)) }
	if read.target == "" {
		fault("target: missing")
	}
	if written.Cookie != nil {
		if read.cookie = *written.Cookie; !isToken(read.cookie) {
			fault("cookie: must be a name that RFC 6265 allows: letters, digits and !#$%&'*+-.^_`|~")
		}
	}
	if read.maxAge < 0 {
		fault("max_age: must be seconds, 0 for as long as the browser runs")
	}
	if head := written.ResponseHead; head != nil {
		if head.Status < 200 || head.Status > 599 {
			fault("response_head.status: must be 200 to 599")
		}
		read.responseHead = &baton.ResponseHead{Status: head.Status}
		for _, name := range slices.Sorted(maps.Keys(head.Headers)) {
			value := head.Headers[name]
			if !isToken(name) || strings.ContainsAny(value, "\r\n\x00") {
				fault("response_head.headers: " + strconv.Quote(name) + " is no field that can be written")
			}
			read.responseHead.Headers = append(read.responseHead.Headers, [2]string{strings.ToLower(name), value})
		}
	}
	return read, errors.Join(faults...)
}

// setCookie is the value of Set-Cookie (RFC 6265, 4.1).
func (c *config) setCookie(session string, secure bool) string {
	value := c.cookie + "=" + session + "; Path=/; HttpOnly; SameSite=Lax"
	if c.maxAge > 0 {
		value += "; Max-Age=" + strconv.Itoa(c.maxAge)
	}
	if secure {
		value += "; Secure"
	}
	return value
}

func isToken(text string) bool {
	return text != "" && !strings.ContainsFunc(text, func(c rune) bool {
		return c <= ' ' || c >= 0x7f || strings.ContainsRune("\"(),/:;<=>?@[\\]{}", c)
	})
}
