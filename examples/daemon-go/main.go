// A daemon that takes handed-over clients and answers each by its request's path: what the tests ask of a daemon in any
// language, and an example of package handoff.
//
//	daemon SOCKET [baton|seqpacket|stream|fdpass|datagram] [--interval MS] [--in-flight-max N]
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/url"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"example.org/daemon/handoff"
)

var interval = 100 * time.Millisecond

var (
	text   = []handoff.Field{{Name: "Content-Type", Value: "text/plain"}}
	object = []handoff.Field{{Name: "Content-Type", Value: "application/json"}}
	octets = []handoff.Field{{Name: "Content-Type", Value: "application/octet-stream"}}
	events = []handoff.Field{{Name: "Content-Type", Value: "text/event-stream"}, {Name: "Cache-Control", Value: "no-store"}}
)

func main() {
	options := handoff.Options{Dialect: handoff.Baton, Name: "daemon-go"}
	options.Report = func(err error) { log.Print("dropped a peer: ", err) }
	socket, isUnderstood := arguments(&options)
	if !isUnderstood {
		fmt.Fprintln(os.Stderr, "usage: daemon SOCKET [baton|seqpacket|stream|fdpass|datagram] [--interval MS] [--in-flight-max N]")
		os.Exit(2)
	}
	listener, err := handoff.Listen(socket, options)
	if err != nil {
		log.Fatal(err)
	}
	asked, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	context.AfterFunc(asked, listener.Stop)
	fmt.Println("ready", socket)
	listener.Serve(serve)
	patience, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := listener.Drain(patience); err != nil {
		log.Print(err)
	}
	listener.Close()
}

func arguments(options *handoff.Options) (socket string, isUnderstood bool) {
	for rest := os.Args[1:]; len(rest) > 0; rest = rest[1:] {
		switch argument := rest[0]; {
		case len(rest) > 1 && (argument == "--interval" || argument == "--in-flight-max"):
			number, err := strconv.Atoi(rest[1])
			if err != nil {
				return "", false
			}
			if argument == "--interval" {
				interval = time.Duration(number) * time.Millisecond
			} else {
				options.InFlightMax = number
			}
			rest = rest[1:]
		case socket == "":
			socket = argument
		default:
			switch options.Dialect = handoff.Dialect(argument); options.Dialect {
			case handoff.Baton, handoff.Seqpacket, handoff.Stream, handoff.Fdpass, handoff.Datagram:
			default:
				return "", false
			}
		}
	}
	return socket, socket != ""
}

func serve(h *handoff.Handoff) {
	path, query, _ := strings.Cut(h.Target(), "?")
	parameters, _ := url.ParseQuery(query)
	number := func(name string) int64 { n, _ := strconv.ParseInt(parameters.Get(name), 10, 64); return n }
	respond := func(body string) {
		h.Respond(200, text, []byte(body), false)
		h.Finish(200, handoff.OK, "")
	}
	giveBack := func(headers []handoff.Field, body []byte) {
		h.Respond(200, headers, body, true)
		h.GiveBack(200)
	}
	switch path {
	case "/hello":
		respond("hello\n")
	case "/return":
		giveBack(text, []byte("returned\n"))
	case "/unread":
		giveBack(text, []byte("unread\n"))
	case "/echo":
		body, err := io.ReadAll(h.Body())
		if err != nil {
			h.Finish(0, handoff.ResultOf(err), err.Error())
			return
		}
		giveBack(octets, body)
	case "/refuse":
		reason := handoff.Reason(parameters.Get("reason"))
		h.Refuse(reason, time.Duration(number("retry_after"))*time.Second, "as asked")
	case "/env":
		env, _ := json.Marshal(h.Env())
		giveBack(object, env)
	case "/meta":
		giveBack(object, h.Metadata().Raw)
	case "/data":
		giveBack(octets, h.Data())
	case "/hold":
		err := h.Start(200, text)
		if err == nil {
			_, err = h.Write([]byte("held\n"))
		}
		for err == nil && !h.Wait(time.Minute) {
		}
		finishEarly(h)
	case "/fail":
		h.Respond(500, text, []byte("failed\n"), false)
		h.Finish(500, handoff.Failed, "as asked")
	case "/large":
		err := h.Start(200, octets)
		part := bytes.Repeat([]byte("a"), 16<<10)
		for left := number("bytes"); err == nil && left > 0; left -= int64(len(part)) {
			_, err = h.Write(part[:min(left, int64(len(part)))])
		}
		h.Finish(200, handoff.OK, "")
	case "/drop":
		h.Take() // and Serve closes what is not finished
	case "/late":
		time.Sleep(3 * time.Second)
		respond("hello\n")
	default:
		stream(h)
	}
}

// stream sends ten events at an interval. A failed write says that the client has left or is revoked, and Finish tells the
// gateway.
func stream(h *handoff.Handoff) {
	data, _ := json.Marshal(string(h.Data()))
	err := h.Start(200, events)
	if err == nil {
		_, err = fmt.Fprintf(h, "data: {\"n\":1,\"text\":%s}\n\n", data)
	}
	for n := 2; n <= 10 && err == nil; n++ {
		if h.Wait(interval) {
			finishEarly(h)
			return
		}
		_, err = fmt.Fprintf(h, "data: {\"n\":%d,\"text\":\"hello\"}\n\n", n)
	}
	if err == nil {
		fmt.Fprint(h, "event: done\ndata: {}\n\n")
	}
	h.Finish(200, handoff.OK, "")
}

// finishEarly ends a client that left or is revoked.
func finishEarly(h *handoff.Handoff) {
	select {
	case <-h.Revoked():
		h.Finish(200, handoff.Revoked, "")
	default:
		h.Finish(200, handoff.ClientGone, "")
	}
}
