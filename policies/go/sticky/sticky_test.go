package main

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"baton"
	"baton/batontest"
)

func start(t *testing.T, config string, daemons ...string) *batontest.Gateway {
	t.Helper()
	gateway := batontest.New(t)
	if _, faults := gateway.Configure(config); faults != nil {
		t.Fatal(faults)
	}
	if err := gateway.SelfTest(); err != nil {
		t.Fatal(err)
	}
	for _, name := range daemons {
		gateway.Targets["chat"] = append(gateway.Targets["chat"], batontest.Member{Name: name})
	}
	return gateway
}

type told struct {
	Session   string
	New       bool
	SetCookie string `json:"set_cookie"`
}

func ask(t *testing.T, gateway *batontest.Gateway, cookie string) (baton.Handoff, told) {
	t.Helper()
	field := ""
	if cookie != "" {
		field = "Cookie: " + cookie + "\r\n"
	}
	handoff, ok := gateway.Ask("GET / HTTP/1.1\r\nHost: x\r\n" + field + "\r\n").(baton.Handoff)
	var data told
	if err := json.Unmarshal(handoff.Data, &data); !ok || err != nil {
		t.Fatal(handoff, err)
	}
	return handoff, data
}

func TestASessionStaysWithItsDaemon(t *testing.T) {
	gateway := start(t, `{"target": "chat"}`, "a", "b", "c")
	first, data := ask(t, gateway, "")
	if wanted := "sid=" + data.Session + "; Path=/; HttpOnly; SameSite=Lax"; !data.New || data.SetCookie != wanted {
		t.Errorf("got %+v, wanted %s", data, wanted)
	}
	again, later := ask(t, gateway, "theme=dark; sid="+data.Session)
	if later.New || later.SetCookie != "" || later.Session != data.Session || again.Target != first.Target {
		t.Errorf("got %+v %+v", again, later)
	}
	if !reflect.DeepEqual(first.Alternates, again.Alternates) || len(first.Alternates) != 2 {
		t.Errorf("got %v and %v", first.Alternates, again.Alternates)
	}
}

func TestOnlySessionsOfALostDaemonMoveAndTheyComeBack(t *testing.T) {
	gateway := start(t, `{"target": "chat"}`, "a", "b", "c", "d")
	sessions, before := map[string]string{}, map[string]int{}
	for range 4000 {
		handoff, data := ask(t, gateway, "")
		sessions[data.Session] = handoff.Target
		before[handoff.Target]++
	}
	for name, count := range before {
		if count < 800 || count > 1200 {
			t.Errorf("%s has %d of 4000 sessions", name, count)
		}
	}
	for _, health := range []baton.Health{baton.HealthDown, baton.HealthDraining} {
		gateway.Targets["chat"][1].Health = uint8(health)
		moved := map[string]int{}
		for session, daemon := range sessions {
			handoff, _ := ask(t, gateway, "sid="+session)
			if daemon != "b" && handoff.Target != daemon || slices.Contains(handoff.Alternates, "b") {
				t.Fatalf("%s went from %s to %s", session, daemon, handoff.Target)
			}
			if daemon == "b" {
				moved[handoff.Target]++
			}
		}
		if len(moved) != 3 {
			t.Errorf("all went to %v", moved)
		}
	}
	gateway.Targets["chat"][1].Health = uint8(baton.HealthUp)
	for session, daemon := range sessions {
		if handoff, _ := ask(t, gateway, "sid="+session); handoff.Target != daemon {
			t.Fatalf("%s went to %s", session, handoff.Target)
		}
	}
}

func TestANameThatWeNeverGaveIsNoSession(t *testing.T) {
	gateway := start(t, `{"target": "chat"}`, "a")
	for _, name := range []string{"", "x", strings.Repeat("x", 21), strings.Repeat("x", 23), strings.Repeat("x", 21) + "\"",
		strings.Repeat("x", 21) + "é"[:1], strings.Repeat("\x00", 22)} {
		if _, data := ask(t, gateway, "sid="+name); !data.New || data.Session == name {
			t.Errorf("%q is taken", name)
		}
	}
}

func TestWithoutADaemonTheTargetDecides(t *testing.T) {
	gateway := start(t, `{"target": "chat"}`)
	if handoff, _ := ask(t, gateway, ""); handoff.Target != "chat" || handoff.Alternates != nil {
		t.Errorf("got %+v", handoff)
	}
}

func TestTheHeadHasTheCookieWhenTheGatewayWritesIt(t *testing.T) {
	gateway := start(t, `{"target": "chat", "cookie": "s", "max_age": 60,
		"response_head": {"status": 200, "headers": {"Content-Type": "text/event-stream"}}}`, "a")
	for range 2 {
		handoff, data := ask(t, gateway, "")
		wanted := baton.Fields{{"set-cookie", "s=" + data.Session + "; Path=/; HttpOnly; SameSite=Lax; Max-Age=60"},
			{"content-type", "text/event-stream"}}
		if handoff.ResponseHead.Status != 200 || !reflect.DeepEqual(handoff.ResponseHead.Headers, wanted) || data.SetCookie != "" {
			t.Errorf("got %+v %+v", handoff.ResponseHead, data)
		}
		handoff, _ = ask(t, gateway, "s="+data.Session)
		if !reflect.DeepEqual(handoff.ResponseHead.Headers, wanted[1:]) {
			t.Errorf("got %+v", handoff.ResponseHead)
		}
	}
}

func TestACookieOfTLSIsForTLS(t *testing.T) {
	config, err := parse(`{"target": "chat"}`)
	if got := config.setCookie("x", true); err != nil || !strings.HasSuffix(got, "; Secure") {
		t.Error(got, err)
	}
}

func TestEveryFaultOfAConfigurationIsTold(t *testing.T) {
	gateway := batontest.New(t)
	for config, wanted := range map[string]string{
		`{}`:                              "[target: missing]",
		`{"target": "chat", "cooky": ""}`: `[config: json: unknown field "cooky"]`,
		`{"cookie": "a b", "max_age": -1, "response_head": {"status": 199, "headers": {"x": "a\nb"}}}`: "[target: missing " +
			"cookie: must be a name that RFC 6265 allows: letters, digits and !#$%&'*+-.^_`|~ " +
			"max_age: must be seconds, 0 for as long as the browser runs " +
			"response_head.status: must be 200 to 599 " +
			`response_head.headers: "x" is no field that can be written]`,
	} {
		if _, faults := gateway.Configure(config); fmt.Sprint(faults) != wanted {
			t.Errorf("%s: got %v", config, faults)
		}
	}
}
