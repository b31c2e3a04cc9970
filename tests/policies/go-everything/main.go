// A policy that asks for everything that the package baton has, and decides in every way that it can. The path says what.
package main

import (
	"crypto/rand"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"time"

	"baton"
)

func init() {
	baton.Configure(func(config string) (baton.Requirements, error) {
		if strings.Contains(config, "refuse") {
			return baton.Requirements{}, errors.Join(errors.New("one fault"), fmt.Errorf("another: %d", 2))
		}
		configured = config
		return baton.Requirements{MaxReuse: 1 << 30}, nil
	})
	baton.SelfTest(func() error {
		if strings.Contains(configured, "fail") {
			return errors.New("as it was told to")
		}
		return nil
	})
	baton.OnRequest(onRequest)
}

func main() {}

var configured string

func onRequest(req *baton.Request) baton.Decision {
	switch req.Path() {
	case "/getters":
		return getters(req)
	case "/body", "/body/past":
		limit := 32 << 10
		if req.Path() == "/body/past" {
			limit++
		}
		body, err := req.BodyPrefix(limit)
		return answer("%d %x %v", len(body), sum(body), err)
	case "/headers":
		return headers(req)
	case "/config":
		token, ok := baton.Config("token")
		_, none := baton.Config("none")
		_, secret := baton.Secret("none")
		return answer("%s %v %v %v %s", token, ok, none, secret, configured)
	case "/clock":
		began := time.Now()
		time.Sleep(time.Millisecond)
		var random [32]byte
		n, err := rand.Read(random[:])
		return answer("%d %v %d %v %v", began.Unix(), time.Since(began) >= time.Millisecond, n, err, random != [32]byte{})
	case "/log":
		baton.Log.Info("written", "text", "a b", "number", 7, "error", errors.New("x"), "odd")
		fmt.Println("printed")
		return answer("%v %v", baton.Log.Enabled(baton.LevelTrace), baton.Log.Enabled(baton.LevelError))
	case "/grind":
		return grind()
	case "/panic":
		panic("the policy itself")
	case "/recovered":
		return recovered()
	case "/goroutine":
		done := make(chan int)
		go func() { done <- 7 }()
		return answer("%d", <-done)
	case "/pass":
		return baton.Pass{
			Edits:       baton.Edits{Remove: []string{"x-remove"}, Set: baton.Fields{{"x-set", "s"}}, Append: baton.Fields{{"x-append", "a"}}},
			Annotations: baton.Fields{{"edited", "yes"}},
		}
	case "/nil":
		return nil
	case "/abort":
		return baton.Abort{Annotations: baton.Fields{{"why", "asked"}}}
	case "/handoff":
		return baton.Handoff{
			Target:       "chat",
			Data:         []byte("data"),
			Metadata:     baton.Fields{{"m", "1"}, {"n", "2"}},
			ResponseHead: &baton.ResponseHead{Status: 207, Headers: baton.Fields{{"x-head", "h"}}},
			ResponseBody: []byte("beginning"),
			Relay:        baton.RelayNever,
			Timeout:      1500 * time.Microsecond,
			Alternates:   []string{"other", "third"},
			Carry:        []byte("carried"),
			Annotations:  baton.Fields{{"a", "1"}},
		}
	case "/head":
		return baton.Handoff{Target: "chat", IncludeHead: true, Relay: baton.RelayAlways}
	case "/many":
		// More fields than the arena that stands ready has room for.
		fields := make(baton.Fields, 20_000)
		for i := range fields {
			fields[i] = [2]string{fmt.Sprint("x-", i), strings.Repeat("y", 8)}
		}
		return baton.Respond{Status: 200, Headers: fields[:50], Body: []byte("many"), Annotations: fields[:10], Carry: make([]byte, 64<<10)}
	default:
		return answer("unknown")
	}
}

func answer(format string, values ...any) baton.Decision {
	return baton.Respond{Status: 200, Headers: baton.Fields{{"x-by", "go"}}, Body: fmt.Appendf(nil, format, values...)}
}

func sum(bytes []byte) (sum uint32) {
	for _, b := range bytes {
		sum = sum*31 + uint32(b)
	}
	return sum
}

func getters(req *baton.Request) baton.Decision {
	query, hasQuery := req.Query()
	room, hasRoom := req.QueryParam("room")
	cookie, hasCookie := req.Cookie("sid")
	route, hasRoute := req.Route()
	_, hasParam := req.Param("none")
	_, hasNone := req.LookupHeader("x-none")
	peer := req.Peer()
	return answer(strings.Repeat("%v\n", 23),
		len(req.ID()), req.Method(), req.Target(), req.Path(), query, hasQuery, room, hasRoom, cookie, hasCookie,
		req.Authority(), req.Scheme(), req.Version() == baton.HTTP11, route, hasRoute, hasParam, hasNone,
		peer.IP == req.ClientIP() && peer.Port != 0 && peer.Unix == nil, req.LocalAddress() != "", req.Listener(),
		req.TLS() == nil && req.ClientCertificate() == nil, req.Passability() == baton.PassableDirect, req.ContentLength())
}

func headers(req *baton.Request) baton.Decision {
	many := req.HeaderMany("x-b", "x-none", "x-a")
	return answer("%q\n%q\n%q %v %q\n%q\n%q", req.Header("x-a"), req.HeaderValues("x-a"), *many[0], many[1], *many[2],
		req.Headers(), req.RawHeaders())
}

// Held from one request to the next, and replaced: the collector has something to find.
var kept [64][]byte
var ground int

// grind allocates what a thousand ordinary decisions would, while the collector runs.
func grind() baton.Decision {
	ground++
	for i := range 64 {
		kept[(ground+i)%len(kept)] = make([]byte, 1+(ground*7+i*13)%2048)
	}
	var memory runtime.MemStats
	if ground%1024 == 0 {
		runtime.ReadMemStats(&memory)
	}
	return baton.Respond{Status: 200, Body: fmt.Appendf(nil, "%d %d %d", ground, memory.NumGC, memory.HeapSys)}
}

func recovered() (decision baton.Decision) {
	defer func() { decision = answer("recovered: %v", recover()) }()
	var nothing *struct{ field int }
	nothing.field++
	return nil
}
