// A policy with every hook, which tells what each was called with, and asks for all that is not about the request.
package main

import (
	"errors"
	"fmt"
	"time"

	"baton"
	"baton/complete"
	"baton/connection"
	"baton/failure"
	"baton/response"
)

func init() {
	baton.OnRequest(onRequest)
	baton.OnTick(50*time.Millisecond, func() { _, _ = baton.Store.Increment("ticks", 1, 0) })
	connection.OnConnect(func(client connection.Connection) connection.Action {
		baton.Log.Info("connected", "listener", client.Listener, "ip", client.Peer.IP, "port", client.Peer.Port,
			"local", client.LocalAddress, "sni", client.SNI, "alpn", len(client.ALPN))
		switch client.Listener {
		case "closed":
			return connection.Reject{}
		case "raw":
			return connection.Handoff{Target: "chat", Data: []byte("untouched")}
		default:
			return nil
		}
	})
	response.OnResponse(func(_ *baton.Request, res *response.Response, carry []byte) baton.Decision {
		return baton.Respond{Status: res.Status(), Body: fmt.Appendf(nil, "%s %s %v %v %s", res.Upstream(), res.Header("x"),
			res.Headers(), res.Elapsed() > 0, carry)}
	})
	failure.OnHandoffFailed(func(req *baton.Request, f *failure.Failure, carry []byte) baton.Decision {
		return baton.Respond{Status: 200, Body: fmt.Appendf(nil, "%s %s %d %v %d %v %s", req.Path(), f.Target, f.Stage,
			f.Errno != 0 && f.Message != "", f.Attempt, f.Retryable, carry), Carry: []byte("failed")}
	})
	complete.OnComplete(func(summary complete.Summary, carry []byte) {
		baton.Log.Info("complete", "id", summary.RequestID, "outcome", summary.Outcome, "target", summary.Target,
			"status", summary.Status, "took", summary.Duration > 0, "in", summary.BytesIn > 0, "out", summary.BytesOut > 0,
			"carry", carry)
	})
}

func main() {}

func onRequest(req *baton.Request) baton.Decision {
	switch req.Path() {
	case "/down":
		return baton.Handoff{Target: "down", Carry: []byte("given")}
	case "/store":
		return store()
	case "/targets":
		status, ok := baton.Targets.Status("chat")
		_, none := baton.Targets.Status("none")
		picked, found := baton.Targets.Pick("chat", baton.Hash, "key")
		members := baton.Targets.Members("chat")
		return answer("%s %d %v %v %v %v %d %v %v", status.Name, status.Health, ok, none, found, picked != "", len(members),
			members[0].Load, baton.Targets.Revoke("unknown", "over"))
	case "/metrics":
		baton.Metrics.Count("asked", 2, [2]string{"by", "go"})
		baton.Metrics.Gauge("level", 1.5)
		baton.Metrics.Observe("took", 0.25, [2]string{"by", "go"})
		return answer("counted")
	case "/callout":
		_, err := baton.Fetch(baton.Call{Upstream: "nobody", Method: "GET", PathAndQuery: "/", Timeout: time.Second})
		got, asked := baton.Fetch(baton.Call{Upstream: "auth", Method: "POST", PathAndQuery: "/x?y", Body: []byte("body"),
			Headers: baton.Fields{{"x-asked", "1"}}, Timeout: 5 * time.Second})
		if asked != nil {
			return answer("%v %v", errors.Is(err, baton.ErrCalloutNotAllowed), asked)
		}
		return answer("%v %d %s %s", errors.Is(err, baton.ErrCalloutNotAllowed), got.Status, got.Header("x-answer"), got.Body)
	case "/ticks":
		ticks, err := baton.Store.Increment("ticks", 0, 0)
		return answer("%v %v", ticks > 0, err)
	default:
		return nil
	}
}

func store() baton.Decision {
	s := baton.Store
	s.Delete("k")
	_, before := s.Get("k")
	first, err := s.Set("k", []byte("one"), 0)
	entry, there := s.Get("k")
	_, conflict := s.CompareAndSet("k", first+1, []byte("never"), time.Minute)
	second, swapped := s.CompareAndSet("k", entry.Version, []byte("two"), time.Minute)
	_, again := s.CompareAndSet("k", 0, []byte("never"), 0)
	two, _ := s.Get("k")
	s.Delete("n")
	number, _ := s.Increment("n", -3, time.Minute)
	_, noNumber := s.Increment("k", 1, 0)
	_, fits := s.Set("large", make([]byte, 64<<10), 0)
	_, tooLarge := s.Set("larger", make([]byte, 64<<10+1), 0)
	s.Delete("bucket")
	taken := []bool{s.Take("bucket", 0.001, 2, 1), s.Take("bucket", 0.001, 2, 1), s.Take("bucket", 0.001, 2, 1)}
	large, held := s.Get("large")
	return answer("%v %v %s %v %v %v %v %s %d %v %v %v %v %d %v", before, err, entry.Value, there, first == entry.Version,
		errors.Is(conflict, baton.ErrStoreConflict) && errors.Is(again, baton.ErrStoreConflict), swapped == nil && second != first,
		two.Value, number, errors.Is(noNumber, baton.ErrStoreConflict), errors.Is(tooLarge, baton.ErrStoreTooLarge), fits,
		taken, len(large.Value), held)
}

func answer(format string, values ...any) baton.Decision {
	return baton.Respond{Status: 200, Body: fmt.Appendf(nil, format, values...)}
}
