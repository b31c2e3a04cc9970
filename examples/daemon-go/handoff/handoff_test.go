package handoff

import (
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"testing/iotest"
)

// bodyOf is a body in chunks of which everything came along.
func bodyOf(preread string) *Handoff {
	listener := &Listener{}
	h := listener.newHandoff()
	h.taken, h.preread = true, []byte(preread)
	h.body.framing, h.body.at = "chunked", inSize
	near, far := net.Pipe()
	far.Close()
	h.in, h.out = near, near
	return h
}

func TestChunks(t *testing.T) {
	for _, test := range []struct {
		sent, body, rest string
		err              error
	}{
		{"0\r\n\r\n", "", "", nil},
		{"5\r\nhello\r\n0\r\n\r\nGET /", "hello", "GET /", nil},
		{"5;a=\"b\" \r\nhello\r\n00A \r\n, you all.\r\n0\r\nX: y\r\nZ:\r\n\r\n", "hello, you all.", "", nil},
		{"5\r\nhello", "hello", "", io.ErrUnexpectedEOF},
		{"5\r\nhello\r\n0\r\n", "hello", "", io.ErrUnexpectedEOF},
		{"5\nhello\r\n0\r\n\r\n", "", "", ErrChunks},
		{"5\r\nhelloX", "hello", "", ErrChunks},
		{"\r\n", "", "", ErrChunks},
		{"-5\r\n", "", "", ErrChunks},
		{"0x5\r\nhello", "", "", ErrChunks},
		{"5\rX", "", "", ErrChunks},
		{"FFFFFFFFFFFFFFFFF\r\n", "", "", ErrChunks},
		{";\r\n", "", "", ErrChunks},
		{"5;" + strings.Repeat("x", lineBytesMax-2) + "\r\nhello\r\n0\r\n\r\n", "hello", "", nil},
		{"5;" + strings.Repeat("x", lineBytesMax-1) + "\r\nhello\r\n0\r\n\r\n", "", "", ErrChunks},
		{"0\r\n" + strings.Repeat("x", trailerBytesMax-4) + "\r\n\r\n", "", "", nil},
		{"0\r\n" + strings.Repeat("x", trailerBytesMax-3) + "\r\n\r\n", "", "", ErrChunks},
	} {
		for name, reader := range map[string]func(io.Reader) io.Reader{
			"whole": func(r io.Reader) io.Reader { return r }, "byte by byte": iotest.OneByteReader,
		} {
			h := bodyOf(test.sent)
			body, err := io.ReadAll(reader(h.Body()))
			if string(body) != test.body || !errors.Is(err, test.err) || (err == nil) != (test.err == nil) {
				t.Errorf("%.40q, %s: %q, %v", test.sent, name, body, err)
			}
			rest := make([]byte, 16)
			if rest = rest[:h.readAhead(rest)]; err == nil && string(rest) != test.rest {
				t.Errorf("%.40q, %s: left %q", test.sent, name, rest)
			}
		}
	}
}

func TestWhoMayHandOver(t *testing.T) {
	for listed, expected := range map[string]int{"0": 1, "1, 2 ,3": 3, "4294967294": 1, "": 0, "a": 0, "1,": 0, "-1": 0, "4294967295": 0} {
		t.Setenv("BATON_GATEWAY_UIDS", listed)
		l, err := newListener(Options{})
		if (err == nil) != (expected > 0) || expected > 0 && len(l.uids) != expected {
			t.Errorf("%q: %v", listed, err)
		}
	}
	if l, err := newListener(Options{AllowGIDs: []uint32{7}}); err != nil || len(l.uids) != 0 {
		t.Error("with groups alone, no user may hand over by itself")
	}
}

// TestMain is the program of the test below where it is started for one client.
func TestMain(m *testing.M) {
	if os.Getenv("HANDOFF_TEST_INHERITS") == "" {
		os.Exit(m.Run())
	}
	listener, err := Inherit(Options{})
	if err != nil {
		os.Exit(3)
	}
	for {
		h, err := listener.Accept()
		if err != nil {
			return
		}
		body, _ := io.ReadAll(h.Body())
		os.Stdout.WriteString("not for the client\n")
		h.Respond(200, nil, append([]byte(h.Method()+" "), body...), true)
		h.GiveBack(200)
	}
}

func TestOneClientOnly(t *testing.T) {
	run := func(client *os.File, input io.Reader, variables ...string) (string, error) {
		command := exec.Command(os.Args[0])
		command.Env = append(os.Environ(), append(variables, "HANDOFF_TEST_INHERITS=1")...)
		if client == nil {
			command.Stdin = input
			said, err := command.Output()
			return string(said), err
		}
		command.Stdin, command.Stdout = client, client
		return "", command.Run()
	}
	if _, err := run(nil, nil); err == nil {
		t.Error("it started without a client")
	}
	said, err := run(nil, strings.NewReader("body!"), "GATEWAY_INTERFACE=CGI/1.1", "REQUEST_METHOD=PUT", "CONTENT_LENGTH=4")
	if err != nil || !strings.HasPrefix(said, "not for the client\nStatus: 200 OK\r\n") || !strings.HasSuffix(said, "\r\n\r\nPUT body") {
		t.Errorf("as CGI: %q, %v", said, err)
	}
	for _, variables := range [][]string{nil, {"GATEWAY_INTERFACE=CGI/1.1", "REQUEST_METHOD=PUT", "CONTENT_LENGTH=4"}} {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		far, err := net.Dial("tcp", listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		near, err := listener.Accept()
		if err != nil {
			t.Fatal(err)
		}
		listener.Close()
		client, err := near.(*net.TCPConn).File()
		if err != nil {
			t.Fatal(err)
		}
		near.Close()
		far.Write([]byte("body"))
		done := make(chan error)
		go func() { _, err := run(client, nil, variables...); client.Close(); done <- err }()
		answer, err := io.ReadAll(far)
		far.Close()
		expected := " "
		if variables != nil {
			expected = "PUT body"
		}
		if err != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 200 OK\r\n") || !strings.HasSuffix(string(answer), "\r\n\r\n"+expected) {
			t.Errorf("with %v: %q, %v", variables, answer, err)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}
