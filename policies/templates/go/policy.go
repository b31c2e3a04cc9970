// Lets in whoever has the token, and hands them over to the target chat.
package main

import (
	"strings"

	"baton"
)

// Hooks are registered here: the gateway starts a module, but never runs its main.
func init() { baton.OnRequest(onRequest) }

func main() {}

func onRequest(req *baton.Request) baton.Decision {
	path := req.Path()
	if !strings.HasPrefix(path, "/v1/") {
		return baton.Pass{}
	}
	token, ok := bearer(req.Header("authorization"))
	if !ok {
		return respond(401, "a bearer token is required\n", [2]string{"www-authenticate", "Bearer"})
	}
	if token != setting("token", "open-sesame") {
		// Never the token itself: logs are read by more people than secrets are for.
		baton.Log.Info("refused a token", "path", path)
		return respond(403, "this token opens nothing here\n")
	}
	user := setting("user", "alice")
	// Not fmt.Sprintf: a name with a quotation mark in it must not end the string.
	data := baton.AppendJSON([]byte(`{"user":`), user)
	data = baton.AppendJSON(append(data, `,"path":`...), path)
	return baton.Handoff{
		Target: "chat",
		Data:   append(data, '}'),
		// A variable would be there in the next request too; Carry comes back in later hooks of this one.
		Annotations: baton.Fields{{"user", user}},
	}
}

func setting(key, usual string) string {
	if value, ok := baton.Config(key); ok {
		return value
	}
	return usual
}

// bearer is the token of an Authorization field; the scheme's case does not matter (RFC 9110, 11.1).
func bearer(field string) (string, bool) {
	const scheme = "Bearer "
	// A field's value may hold any byte, and a Go string may too.
	if len(field) < len(scheme) || !strings.EqualFold(field[:len(scheme)], scheme) {
		return "", false
	}
	return field[len(scheme):], true
}

func respond(status int, body string, headers ...[2]string) baton.Decision {
	headers = append(headers, [2]string{"content-type", "text/plain; charset=utf-8"})
	return baton.Respond{Status: status, Headers: headers, Body: []byte(body)}
}
