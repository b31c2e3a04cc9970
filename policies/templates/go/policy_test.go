package main

import (
	"testing"

	"baton"
	"baton/batontest"
)

// What is decided can be tested without a gateway, and with a debugger. `make test` asks the module itself.

func TestTheTokenOpens(t *testing.T) {
	gateway := batontest.New(t)
	gateway.Config["token"] = "hush"
	got, ok := gateway.Ask("GET /v1/chat HTTP/1.1\r\nAuthorization: bearer hush\r\n\r\n").(baton.Handoff)
	if wanted := `{"user":"alice","path":"/v1/chat"}`; !ok || got.Target != "chat" || string(got.Data) != wanted {
		t.Errorf("got %+v, wanted %s", got, wanted)
	}
}

func TestAnotherTokenIsLoggedWithoutIt(t *testing.T) {
	gateway := batontest.New(t)
	got, ok := gateway.Ask("GET /v1/chat HTTP/1.1\r\nAuthorization: Bearer guess\r\n\r\n").(baton.Respond)
	if !ok || got.Status != 403 {
		t.Errorf("got %+v", got)
	}
	if len(gateway.Log) != 1 || gateway.Log[0].Message != "refused a token" || len(gateway.Log[0].Fields) != 1 {
		t.Errorf("got %+v", gateway.Log)
	}
}
