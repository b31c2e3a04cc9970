package batontest_test

import (
	"errors"
	"reflect"
	"testing"
	"time"

	"baton"
	"baton/batontest"
	"baton/complete"
	"baton/connection"
	"baton/failure"
	"baton/response"
)

func TestRequestIsReadAsItCame(t *testing.T) {
	gateway := batontest.New(t)
	baton.OnRequest(func(req *baton.Request) baton.Decision {
		query, _ := req.Query()
		room, _ := req.QueryParam("room")
		cookie, _ := req.Cookie("sid")
		body, err := req.BodyPrefix(3)
		if err != nil {
			t.Error(err)
		}
		return baton.Handoff{
			Target: "chat",
			Data: []byte(req.Method() + " " + req.Path() + " " + query + " " + room + " " + cookie + " " + string(body) + " " +
				req.Authority()),
			Annotations: baton.Fields{{"agent", req.Header("user-agent")}, {"none", req.Header("x-none")}},
		}
	})
	got := gateway.Ask("POST /v1/chat?room=a%20b HTTP/1.1\r\nHost: Example.org\r\nUser-Agent: x\r\n" +
		"Cookie: a=1; sid=s7\r\nContent-Length: 5\r\n\r\nhello")
	wanted := baton.Handoff{
		Target:      "chat",
		Data:        []byte("POST /v1/chat room=a%20b a b s7 hel example.org"),
		Annotations: baton.Fields{{"agent", "x"}, {"none", ""}},
	}
	if !reflect.DeepEqual(got, wanted) {
		t.Errorf("got %+v, wanted %+v", got, wanted)
	}
}

func TestNoDecisionIsPass(t *testing.T) {
	gateway := batontest.New(t)
	baton.OnRequest(func(*baton.Request) baton.Decision { return nil })
	if got := gateway.Ask("GET / HTTP/1.1\r\n\r\n"); !reflect.DeepEqual(got, baton.Pass{}) {
		t.Errorf("got %+v", got)
	}
}

func TestEveryFaultIsTold(t *testing.T) {
	gateway := batontest.New(t)
	baton.Configure(func(config string) (baton.Requirements, error) {
		if config == "{}" {
			return baton.Requirements{Targets: []string{"chat"}}, nil
		}
		return baton.Requirements{}, errors.Join(errors.New("a"), errors.Join(errors.New("b"), errors.New("c")))
	})
	if _, faults := gateway.Configure("[]"); !reflect.DeepEqual(faults, []string{"a", "b", "c"}) {
		t.Errorf("got %q", faults)
	}
	if requirements, faults := gateway.Configure("{}"); faults != nil || requirements.Targets[0] != "chat" {
		t.Errorf("got %+v %q", requirements, faults)
	}
}

func TestOtherHooksAreAsked(t *testing.T) {
	gateway := batontest.New(t)
	connection.OnConnect(func(c connection.Connection) connection.Action {
		if c.Peer.IP == "192.0.2.66" {
			return connection.Reject{}
		}
		return nil
	})
	response.OnResponse(func(_ *baton.Request, res *response.Response, carry []byte) baton.Decision {
		return baton.Respond{Status: res.Status(), Body: carry}
	})
	failure.OnHandoffFailed(func(req *baton.Request, failure *failure.Failure, _ []byte) baton.Decision {
		return baton.Handoff{Target: "spare", Data: []byte(failure.Target + req.Path())}
	})
	var outcome string
	complete.OnComplete(func(summary complete.Summary, _ []byte) { outcome = summary.Outcome })

	bad := connection.Connection{Peer: baton.Peer{IP: "192.0.2.66"}}
	if got := gateway.Connect(bad); got != (connection.Reject{}) {
		t.Errorf("got %+v", got)
	}
	if got := gateway.Connect(connection.Connection{}); got != (connection.Accept{}) {
		t.Errorf("got %+v", got)
	}
	gateway.Response.Status = 207
	if got := gateway.Respond([]byte("x")).(baton.Respond); got.Status != 207 || string(got.Body) != "x" {
		t.Errorf("got %+v", got)
	}
	if got := gateway.Fail(&failure.Failure{Target: "chat"}, nil).(baton.Handoff); string(got.Data) != "chat/" {
		t.Errorf("got %+v", got)
	}
	if gateway.Complete(complete.Summary{Outcome: "handed-off"}, nil); outcome != "handed-off" {
		t.Errorf("got %q", outcome)
	}
}

func TestServicesKeepWhatTheyAreGiven(t *testing.T) {
	gateway := batontest.New(t)
	baton.Log.Info("m", "n", 7, "s", "x", "odd")
	if line := gateway.Log[0]; !reflect.DeepEqual(line.Fields, [][2]string{{"n", "7"}, {"s", "x"}, {"odd", ""}}) {
		t.Errorf("got %+v", line)
	}
	version, err := baton.Store.Set("k", []byte("v"), time.Second)
	if _, again := baton.Store.CompareAndSet("k", 0, nil, 0); err != nil || version != 1 || !errors.Is(again, baton.ErrStoreConflict) {
		t.Errorf("got %v %v %v", version, err, again)
	}
	if !baton.Store.Take("t", 1, 2, 2) || baton.Store.Take("t", 1, 2, 1) {
		t.Error("a bucket of two has two")
	}
	baton.Metrics.Count("asked", 2, [2]string{"by", "me"})
	if gateway.Metrics[`asked{by="me"}`] != 2 {
		t.Errorf("got %v", gateway.Metrics)
	}
	gateway.Targets["chat"] = []batontest.Member{{Name: "a", InFlight: 2}, {Name: "b"}, {Name: "c", Health: uint8(baton.HealthDown)}}
	if name, ok := baton.Targets.Pick("chat", baton.LeastInFlight, ""); name != "b" || !ok {
		t.Errorf("got %v", name)
	}
	if _, err := baton.Fetch(baton.Call{Upstream: "auth"}); !errors.Is(err, baton.ErrCalloutNotAllowed) {
		t.Errorf("got %v", err)
	}
}

func TestThereIsNoGatewayWithoutOne(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("it answered")
		}
	}()
	baton.Config("token")
}
