// Package handoff is the daemon's side of Baton: clients that a gateway hands over, one by one, each with its own socket.
//
//	listener, err := handoff.Listen("/run/hello.sock", handoff.Options{})
//	if err != nil {
//		log.Fatal(err)
//	}
//	listener.Serve(func(h *handoff.Handoff) {
//		h.Respond(200, nil, []byte("hello\n"), true)
//		h.GiveBack(200)
//	})
//
// # Who owns a client
//
// What [Listener.Accept] returns is lent: the gateway has a copy and may still take the client elsewhere. The first read or
// write, and [Handoff.Take], say TAKEN; from then on the client is this process's alone. Until then it may be refused, and
// another daemon gets it or the gateway answers. Each handoff ends in one of Finish, GiveBack, Refuse and Close; after the
// first of them the others do nothing, so that Close can be deferred.
//
// The request's head was read by the gateway. Its body is unread in the socket, but for what came along; [Handoff.Body] knows
// where everything is.
//
// # The protocol, baton/1
//
// SOCK_SEQPACKET, a channel that stays. A packet (128 KiB at most) has one or more frames of a header of 16 bytes and a
// payload; its descriptors belong to its frames in order. Integers are little-endian.
//
//	0  u8 magic 0xB7    1  u8 version 1    2  u8 type    3  u8 flags    4  u32 payload length    8  u64 handoff id
//
//	 1 HELLO     both      JSON {"versions":[1],"name","pid","in_flight_max","data_bytes_max","roles"}
//	 2 HANDOFF   gateway   sections: JSON metadata, data, preread; flags: body 1, data 2, preread 4 are in memfds, which come
//	                       in this order behind the client's descriptor
//	 3 TAKEN     daemon    the client is mine
//	 4 REFUSED   daemon    JSON {"reason","retry_after_s","message"}: my copy is closed, and I have written nothing
//	 5 DONE      daemon    JSON {"status","bytes_out","duration_us","result","message"}
//	 6 RETURN    daemon    sections: as DONE, then bytes that were read and not used; the client's descriptor
//	 7 LOAD      daemon    JSON {"in_flight","load"}
//	 8 DRAINING  daemon    no new clients
//	 9 REVOKE    gateway   JSON {"reason"}: please end this one
//	10 PING  11 PONG  both
//
// In the other dialects a socket carries one client, and reading the message is the acknowledgement; there is no metadata,
// TAKEN, RETURN or REVOKE. Seqpacket and Stream carry the data beside the client, Datagram the request's head, Fdpass one zero
// byte, the gateway having written the response's head.
package handoff

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unicode/utf8"
)

// A Dialect is how one kind of gateway hands over.
type Dialect string

// The dialects.
const (
	Baton     Dialect = "baton"
	Seqpacket Dialect = "seqpacket"
	Stream    Dialect = "stream"
	Fdpass    Dialect = "fdpass"
	Datagram  Dialect = "datagram"
)

// A Reason is why a client is refused.
type Reason string

// The reasons.
const (
	Overloaded  Reason = "overloaded"
	Draining    Reason = "draining"
	Unsupported Reason = "unsupported"
	Denied      Reason = "denied"
)

// A Result is how a client was served.
type Result string

// The results.
const (
	OK         Result = "ok"
	ClientGone Result = "client-gone"
	Failed     Result = "error"
	Timeout    Result = "timeout"
	Revoked    Result = "revoked"
)

var (
	// ErrStopped is what Accept returns once stopped.
	ErrStopped = errors.New("handoff: stopped")
	// ErrNotTaken says that the gateway has gone before TAKEN: the client is not ours, and nothing was written.
	ErrNotTaken = errors.New("handoff: the gateway has gone, the client is not ours")
	// ErrEnded says that the handoff has ended.
	ErrEnded = errors.New("handoff: it has ended")
	// ErrRevoked says that the gateway asked to end this one.
	ErrRevoked = errors.New("handoff: revoked")
	// ErrClientGone says that the client has left.
	ErrClientGone = errors.New("handoff: the client has left")
	// ErrTimeout says that the client took or sent no byte for too long.
	ErrTimeout = errors.New("handoff: the client stalls")
	// ErrChunks says that the body is not in chunks.
	ErrChunks = errors.New("handoff: no chunks where the body should be")
)

const (
	headerBytes      = 16
	packetBytesMax   = 128 << 10
	descriptorsMax   = 253                    // SCM_MAX_FD: in a smaller buffer, strays would leak
	incomingMax      = 64                     // peers whose message is not whole; more wait in the backlog
	receiveTimeout   = 5 * time.Second        // for a message to be whole, and for the first HELLO
	exhaustedPause   = 20 * time.Millisecond  // without descriptors: far less than a gateway waits
	linger           = 2 * time.Second        // for what is unread when a client is closed
	closing          = 250 * time.Millisecond // for gateways to close a channel that was drained
	unreadBytesMax   = 64 << 10               // of a body that nobody wanted, before its client is given back
	lineBytesMax     = 16 << 10               // a chunk's size line with its extensions
	trailerBytesMax  = 16 << 10
	textBytesMax     = 1024                               // of what is said for people
	dataVariableMax  = 128<<10 - len("HANDOFF_DATA=\x00") // execve(2) takes strings of 128 KiB
	continueResponse = "HTTP/1.1 100 Continue\r\n\r\n"
)

const (
	typeHello = iota + 1
	typeHandoff
	typeTaken
	typeRefused
	typeDone
	typeReturn
	typeLoad
	typeDraining
	typeRevoke
	typePing
	typePong
)

// Options say how a [Listener] listens and whom it believes. Zero, in each field, is the default.
type Options struct {
	// Dialect is Baton.
	Dialect Dialect
	// AllowUIDs and AllowGIDs are who may hand over, by SO_PEERCRED: one of these users or of these groups. With neither, the
	// numbers in the environment variable BATON_GATEWAY_UIDS, separated by commas; without that, the own user and root.
	AllowUIDs, AllowGIDs []uint32
	// InFlightMax is how many clients there are at a time, over all gateways: more are refused, or in the other dialects wait
	// in the backlog. 100.
	InFlightMax int
	// DataBytesMax bounds the data of one handoff. 1 MiB.
	DataBytesMax int
	// WriteTimeout is how long a client may take no byte. 30 s.
	WriteTimeout time.Duration
	// BodyTimeout is how long a client may send no byte of a body that is waited for. 30 s.
	BodyTimeout time.Duration
	// Name and Roles are for people.
	Name  string
	Roles []string
	// SocketMode is the permissions of the socket's file. 0660.
	SocketMode fs.FileMode
	// Report is told of every peer that was dropped. Nobody.
	Report func(error)
}

// A Listener is a socket that clients are handed over on. Its methods may be called from any goroutine.
type Listener struct {
	options    Options
	uids, gids []uint32
	connected  *net.UnixListener // nil in the dialect datagram
	datagrams  *net.UnixConn
	path       string
	file       fs.FileInfo
	incoming   chan struct{}
	buffers    sync.Pool

	mu       sync.Mutex
	changed  *sync.Cond
	channels map[*channel]struct{}
	queue    []*Handoff // arrived, not accepted
	inFlight int        // reserved or arrived, and not yet ended
	wanted   int        // Accepts that nobody is on the way for
	single   bool       // one client, no socket
	stopped  bool
	done     chan struct{} // closed when stopped
}

// A channel is one gateway worker's.
type channel struct {
	conn     *net.UnixConn
	greeted  bool
	handoffs map[uint64]*Handoff // by the listener's lock
	ended    bool                // likewise
}

func newListener(options Options) (*Listener, error) {
	if options.Dialect == "" {
		options.Dialect = Baton
	}
	if !slices.Contains([]Dialect{Baton, Seqpacket, Stream, Fdpass, Datagram}, options.Dialect) {
		return nil, fmt.Errorf("handoff: no dialect %q", options.Dialect)
	}
	defaultTo(&options.InFlightMax, 100)
	defaultTo(&options.DataBytesMax, 1<<20)
	defaultTo(&options.WriteTimeout, 30*time.Second)
	defaultTo(&options.BodyTimeout, 30*time.Second)
	defaultTo(&options.SocketMode, 0o660)
	if options.Name == "" {
		options.Name = filepath.Base(os.Args[0])
	}
	if options.Report == nil {
		options.Report = func(error) {}
	}
	l := &Listener{options: options, channels: map[*channel]struct{}{}, done: make(chan struct{})}
	l.incoming = make(chan struct{}, incomingMax)
	// One byte more, so that what is too large is seen to be.
	l.buffers.New = func() any { buffer := make([]byte, options.DataBytesMax+1); return &buffer }
	l.changed = sync.NewCond(&l.mu)
	return l, l.readAllowed()
}

func defaultTo[T int | time.Duration | fs.FileMode](option *T, value T) {
	if *option == 0 {
		*option = value
	}
}

// readAllowed finds out whom to believe. What is unclear is an error: rather nobody than the wrong one.
func (l *Listener) readAllowed() error {
	l.uids, l.gids = l.options.AllowUIDs, l.options.AllowGIDs
	if l.uids != nil || l.gids != nil {
		return nil
	}
	listed, isListed := os.LookupEnv("BATON_GATEWAY_UIDS")
	if !isListed {
		l.uids = []uint32{uint32(os.Geteuid()), 0}
		return nil
	}
	for _, text := range strings.Split(listed, ",") {
		uid, err := strconv.ParseUint(strings.TrimSpace(text), 10, 32)
		if err != nil || uid == 1<<32-1 {
			return errors.New("BATON_GATEWAY_UIDS is a list of user ids separated by commas")
		}
		l.uids = append(l.uids, uint32(uid))
	}
	return nil
}

func (l *Listener) isAllowed(peer *syscall.Ucred) bool {
	return peer != nil && (slices.Contains(l.uids, peer.Uid) || slices.Contains(l.gids, peer.Gid))
}

func socketType(dialect Dialect) int {
	switch dialect {
	case Datagram:
		return syscall.SOCK_DGRAM
	case Stream, Fdpass:
		return syscall.SOCK_STREAM
	}
	return syscall.SOCK_SEQPACKET
}

// Listen listens at a path of any length. A socket file that nobody listens on any more is replaced, a live one is not
// (EADDRINUSE). A list of users that cannot be read is an error: then nobody may hand over.
func Listen(path string, options Options) (*Listener, error) {
	l, err := newListener(options)
	if err != nil {
		return nil, err
	}
	kind := socketType(l.options.Dialect)
	address, release, err := addressOf(path)
	if err != nil {
		return nil, err
	}
	defer release()
	if err := removeStale(path, address, kind); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	fd, err := syscall.Socket(syscall.AF_UNIX, kind|syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	socket := os.NewFile(uintptr(fd), path)
	defer socket.Close()
	if kind == syscall.SOCK_DGRAM {
		// The kernel says who sent a datagram if it was asked to before that.
		err = syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_PASSCRED, 1)
	}
	// The file is made with no more than this, whatever the umask is, so that nobody slips in before it has its mode.
	mode := uint32(l.options.SocketMode.Perm())
	err = errors.Join(err, syscall.Fchmod(fd, mode))
	if err == nil {
		err = syscall.Bind(fd, address)
	}
	if err == nil {
		l.path = path
		l.file, err = os.Lstat(path)
	}
	if err == nil {
		err = os.Chmod(path, fs.FileMode(mode))
	}
	if err == nil && kind != syscall.SOCK_DGRAM {
		err = syscall.Listen(fd, 128)
	}
	if err == nil {
		err = l.start(socket)
	}
	if err != nil {
		l.removeFile()
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return l, nil
}

// addressOf is a path as an address; longer than an address can be, by way of its directory's descriptor.
func addressOf(path string) (*syscall.SockaddrUnix, func(), error) {
	if len(path) <= 107 {
		return &syscall.SockaddrUnix{Name: path}, func() {}, nil
	}
	directory, err := syscall.Open(filepath.Dir(path), 0x200000 /* O_PATH */ |syscall.O_DIRECTORY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", filepath.Dir(path), err)
	}
	name := fmt.Sprintf("/proc/self/fd/%d/%s", directory, filepath.Base(path))
	return &syscall.SockaddrUnix{Name: name}, func() { syscall.Close(directory) }, nil
}

// removeStale makes way at path, unless somebody listens there.
func removeStale(path string, address *syscall.SockaddrUnix, kind int) error {
	standing, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	if standing.Mode().Type() != fs.ModeSocket {
		return syscall.EADDRINUSE
	}
	probe, err := syscall.Socket(syscall.AF_UNIX, kind|syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer syscall.Close(probe)
	switch err := syscall.Connect(probe, address); err {
	case syscall.ECONNREFUSED:
		return os.Remove(path)
	case syscall.ENOENT:
		return nil
	case nil, syscall.EAGAIN, syscall.EPERM, syscall.EPROTOTYPE:
		// EAGAIN is a full backlog, EPROTOTYPE another type of socket, EPERM one that talks to somebody else: all alive.
		return syscall.EADDRINUSE
	default:
		return err
	}
}

// removeFile removes the socket's file, unless a successor has put its own in its place.
func (l *Listener) removeFile() {
	if standing, err := os.Lstat(l.path); err == nil && l.file != nil && os.SameFile(standing, l.file) {
		os.Remove(l.path)
	}
}

// start takes a copy of the socket and serves it.
func (l *Listener) start(socket *os.File) error {
	if l.options.Dialect == Datagram {
		conn, err := net.FilePacketConn(socket)
		if err != nil {
			return err
		}
		l.datagrams = conn.(*net.UnixConn)
		go l.readDatagrams()
		return nil
	}
	listener, err := net.FileListener(socket)
	if err != nil {
		return err
	}
	l.connected = listener.(*net.UnixListener)
	go l.acceptPeers()
	return nil
}

// Inherit takes what this process was started with: the listening socket of a service manager (LISTEN_FDS), one that is
// standard input, or else one client only: standard input is its socket (inetd, Accept=yes), or GATEWAY_INTERFACE is set
// (CGI). Then Accept gives that one and ends. ENOTSOCK when it is none of these.
func Inherit(options Options) (*Listener, error) {
	l, err := newListener(options)
	if err != nil {
		return nil, err
	}
	fd := 0
	isListed := os.Getenv("LISTEN_PID") == strconv.Itoa(os.Getpid()) && os.Getenv("LISTEN_FDS") != ""
	if isListed {
		fd = 3
		if count := os.Getenv("LISTEN_FDS"); count != "1" {
			return nil, fmt.Errorf("LISTEN_FDS=%s: one socket is wanted", count)
		}
	}
	kind, err := syscall.GetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_TYPE)
	listens, _ := syscall.GetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_ACCEPTCONN)
	isCGI := os.Getenv("GATEWAY_INTERFACE") != ""
	isOne := !isListed && listens == 0 && kind != syscall.SOCK_DGRAM && (err == nil && kind == syscall.SOCK_STREAM || isCGI)
	if isOne {
		h, err := l.theOne(isCGI)
		if err != nil {
			return nil, err
		}
		l.single = true
		l.inFlight++
		l.queue = append(l.queue, h)
		return l, nil
	}
	if err != nil {
		return nil, fmt.Errorf("descriptor %d: no socket that listens, and no client: %w", fd, err)
	}
	if kind == syscall.SOCK_STREAM && l.options.Dialect == Baton {
		l.options.Dialect = Stream
	}
	if kind == syscall.SOCK_DGRAM {
		l.options.Dialect = Datagram
		if told, _ := syscall.GetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_PASSCRED); told == 0 {
			return nil, fmt.Errorf("descriptor %d: a datagram socket that is not told who sends (PassCredentials=yes)", fd)
		}
	} else if listens == 0 {
		return nil, fmt.Errorf("descriptor %d: a socket that does not listen: %w", fd, syscall.EINVAL)
	}
	if kind != socketType(l.options.Dialect) {
		return nil, fmt.Errorf("descriptor %d: a socket that is not of the type of %s: %w", fd, l.options.Dialect, syscall.EPROTOTYPE)
	}
	syscall.CloseOnExec(fd)
	socket := os.NewFile(uintptr(fd), "inherited")
	defer func() {
		if isListed { // Standard input stays, whatever it is.
			socket.Close()
		}
	}()
	return l, l.start(socket)
}

// Accept waits for the next client; ErrStopped once stopped.
func (l *Listener) Accept() (*Handoff, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.wanted++
	l.changed.Broadcast()
	for len(l.queue) == 0 {
		if l.stopped || l.single {
			l.wanted--
			return nil, ErrStopped
		}
		l.changed.Wait()
	}
	h := l.queue[0]
	l.queue = l.queue[1:]
	if h.channel != nil || l.single {
		l.wanted-- // In the other dialects it was counted when somebody set out to read its message.
	}
	return h, nil
}

// Serve accepts until stopped, and calls serve on a goroutine for each client. A handoff that serve does not end is closed.
func (l *Listener) Serve(serve func(*Handoff)) {
	for {
		h, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer h.Close()
			serve(h)
		}()
	}
}

// Stop says DRAINING, refuses who waits, and ends Accept.
func (l *Listener) Stop() {
	l.mu.Lock()
	if l.stopped {
		l.mu.Unlock()
		return
	}
	l.stopped = true
	close(l.done)
	var waiting []*Handoff
	if l.options.Dialect == Baton && !l.single { // In the others they were read, and somebody waits for each.
		waiting, l.queue = l.queue, nil
	}
	channels := slices.Collect(maps.Keys(l.channels))
	l.changed.Broadcast()
	l.mu.Unlock()
	l.removeFile()
	if l.connected != nil {
		l.connected.Close()
	}
	if l.datagrams != nil {
		l.datagrams.Close()
	}
	if l.options.Dialect == Baton {
		l.sayToAll(channels, frame(nil, typeDraining, 0, nil))
	} else {
		for _, channel := range channels {
			channel.conn.SetReadDeadline(time.Unix(1, 0)) // Unread, its client is the gateway's.
		}
	}
	for _, h := range waiting {
		h.Refuse(Draining, 0, "about to end")
	}
}

// Drain waits, after Stop, for those in flight.
func (l *Listener) Drain(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { l.mu.Lock(); defer l.mu.Unlock(); l.changed.Broadcast() })
	defer stop()
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.inFlight > 0 {
		if ctx.Err() != nil {
			return fmt.Errorf("%d in flight: %w", l.inFlight, ctx.Err())
		}
		l.changed.Wait()
	}
	// A gateway closes a channel that is empty; until it has heard of it, it may have sent another client.
	isOver := false
	timer := time.AfterFunc(closing, func() { l.mu.Lock(); defer l.mu.Unlock(); isOver = true; l.changed.Broadcast() })
	defer timer.Stop()
	for len(l.channels) > 0 && !isOver && ctx.Err() == nil {
		l.changed.Wait()
	}
	return nil
}

// Close stops, and closes everything but the clients that were taken.
func (l *Listener) Close() error {
	l.Stop()
	l.mu.Lock()
	channels := slices.Collect(maps.Keys(l.channels))
	waiting := l.queue
	l.queue = nil
	l.mu.Unlock()
	for _, channel := range channels {
		l.endChannel(channel, nil)
	}
	for _, h := range waiting {
		h.Close()
	}
	return nil
}

// Load says how busy this daemon is, 0 to 1, to every gateway.
func (l *Listener) Load(load float64) {
	l.mu.Lock()
	payload, _ := json.Marshal(map[string]any{"in_flight": l.inFlight, "load": min(max(load, 0), 1)})
	channels := slices.Collect(maps.Keys(l.channels))
	l.mu.Unlock()
	if l.options.Dialect == Baton {
		l.sayToAll(channels, frame(nil, typeLoad, 0, payload))
	}
}

// sayToAll waits for those who do not read only for a moment.
func (l *Listener) sayToAll(channels []*channel, packet []byte) {
	var saying sync.WaitGroup
	for _, channel := range channels {
		saying.Add(1)
		go func() { defer saying.Done(); l.say(channel, packet, nil) }()
	}
	said := make(chan struct{})
	go func() { saying.Wait(); close(said) }()
	select {
	case <-said:
	case <-time.After(closing):
	}
}

// --- frames ---

func frame(to []byte, kind byte, id uint64, payload []byte) []byte {
	to = append(to, 0xB7, 1, kind, 0)
	to = binary.LittleEndian.AppendUint32(to, uint32(len(payload)))
	to = binary.LittleEndian.AppendUint64(to, id)
	return append(to, payload...)
}

func sections(parts ...[]byte) []byte {
	var to []byte
	for _, part := range parts {
		to = binary.LittleEndian.AppendUint32(to, uint32(len(part)))
		to = append(to, part...)
	}
	return to
}

// say sends one packet. A gateway that does not read is waited for like a client.
func (l *Listener) say(channel *channel, packet, rights []byte) error {
	deadline := time.Now().Add(l.options.WriteTimeout)
	for {
		channel.conn.SetWriteDeadline(deadline)
		_, _, err := channel.conn.WriteMsgUnix(packet, rights, nil)
		// Too many descriptors are on their way to the gateway, or the kernel has no memory: it passes.
		if passes := errors.Is(err, syscall.ETOOMANYREFS) || errors.Is(err, syscall.ENOBUFS); !passes || time.Now().After(deadline) {
			if err != nil {
				channel.conn.SetReadDeadline(time.Unix(1, 0)) // Whoever reads it ends it.
			}
			return err
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// --- receiving ---

// hasRoom says whether the descriptors of a client could be received. The kernel drops what does not fit into the process's
// table, and the message counts as read all the same.
func hasRoom(fd uintptr) bool {
	var spare [4]uintptr // the client and its memfds
	count := 0
	for ; count < len(spare); count++ {
		copied, _, errno := syscall.Syscall(syscall.SYS_FCNTL, fd, syscall.F_DUPFD_CLOEXEC, 0)
		if errno != 0 {
			break
		}
		spare[count] = copied
	}
	for _, copied := range spare[:count] {
		syscall.Close(int(copied))
	}
	return count == len(spare)
}

var errExhausted = errors.New("no descriptors")

// received is one packet or part. Its descriptors are adopted, whatever comes of it.
type received struct {
	bytes       []byte
	descriptors []int
	isCut       bool
	sender      *syscall.Ucred
}

func (r *received) closeAll() {
	for _, descriptor := range r.descriptors {
		if descriptor >= 0 {
			syscall.Close(descriptor)
		}
	}
}

// receiveNow reads what is there: EAGAIN if nothing is.
func receiveNow(fd uintptr, buffer, control []byte) (*received, error) {
	if !hasRoom(fd) {
		return nil, errExhausted
	}
	for {
		n, controlBytes, flags, _, err := syscall.Recvmsg(int(fd), buffer, control, syscall.MSG_CMSG_CLOEXEC|syscall.MSG_DONTWAIT)
		if err == syscall.EINTR {
			continue
		}
		if err != nil {
			return nil, err
		}
		r := &received{bytes: buffer[:n], isCut: flags&(syscall.MSG_TRUNC|syscall.MSG_CTRUNC) != 0}
		messages, _ := syscall.ParseSocketControlMessage(control[:controlBytes])
		for _, message := range messages {
			if rights, err := syscall.ParseUnixRights(&message); err == nil {
				r.descriptors = append(r.descriptors, rights...)
			} else if sender, err := syscall.ParseUnixCredentials(&message); err == nil {
				r.sender = sender
			}
		}
		return r, nil
	}
}

func newControl() []byte {
	return make([]byte, syscall.CmsgSpace(4*descriptorsMax)+syscall.CmsgSpace(syscall.SizeofUcred))
}

// acceptPeers accepts who connects, until stopped.
func (l *Listener) acceptPeers() {
	for {
		if l.options.Dialect != Baton && !l.waitForRoom() {
			return
		}
		conn, err := l.connected.AcceptUnix()
		switch {
		case err == nil:
			l.greet(conn)
		case errors.Is(err, net.ErrClosed):
			return
		default:
			time.Sleep(exhaustedPause)
		}
	}
}

// greet asks who has connected.
func (l *Listener) greet(conn *net.UnixConn) {
	var peer *syscall.Ucred
	raw, err := conn.SyscallConn()
	if err == nil {
		raw.Control(func(fd uintptr) {
			peer, err = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
		})
	}
	if err != nil || !l.isAllowed(peer) {
		conn.Close()
		l.options.Report(fmt.Errorf("a peer that may not hand over: %+v", peer))
		return
	}
	conn.SetReadDeadline(time.Now().Add(receiveTimeout))
	channel := &channel{conn: conn, handoffs: map[uint64]*Handoff{}}
	l.mu.Lock()
	l.channels[channel] = struct{}{}
	stopped := l.stopped
	l.mu.Unlock()
	if l.options.Dialect == Baton {
		go l.serveChannel(channel, raw, stopped)
		return
	}
	l.incoming <- struct{}{}
	go func() {
		defer func() { <-l.incoming }()
		l.endChannel(channel, l.readMessage(channel, raw))
	}()
}

// endChannel closes it. Who was not taken is the gateway's.
func (l *Listener) endChannel(channel *channel, err error) {
	if err != nil {
		l.options.Report(err)
	}
	l.mu.Lock()
	channel.ended = true
	delete(l.channels, channel)
	var gone []*Handoff
	l.queue = slices.DeleteFunc(l.queue, func(h *Handoff) bool {
		isGone := h.channel == channel && channel != nil
		if isGone {
			gone = append(gone, h)
		}
		return isGone
	})
	l.changed.Broadcast()
	l.mu.Unlock()
	for _, h := range gone {
		h.mu.Lock()
		h.end()
		h.closeFiles()
		h.mu.Unlock()
	}
	channel.conn.Close()
}

// reserve takes a place in flight for an Accept that nobody is on the way for.
func (l *Listener) reserve() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.wanted == 0 || l.inFlight >= l.options.InFlightMax || l.stopped {
		return false
	}
	l.wanted--
	l.inFlight++
	return true
}

func (l *Listener) unreserve() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.wanted++
	l.inFlight--
	l.changed.Broadcast()
}

// waitForRoom waits until there is one to reserve; false once stopped.
func (l *Listener) waitForRoom() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.wanted == 0 || l.inFlight >= l.options.InFlightMax {
		if l.stopped {
			return false
		}
		l.changed.Wait()
	}
	return !l.stopped
}

// readMessage reads one client's message in the dialects that have a connection for each. Reading takes the client: so it is
// read when somebody waits for one, not before.
func (l *Listener) readMessage(channel *channel, raw syscall.RawConn) error {
	buffer := l.buffers.Get().(*[]byte)
	defer l.buffers.Put(buffer)
	var message []byte
	client, control, isReserved := -1, newControl(), false
	defer func() {
		if client >= 0 {
			syscall.Close(client)
		}
		if isReserved {
			l.unreserve()
		}
	}()
	for {
		var part *received
		var err error
		waitErr := raw.Read(func(fd uintptr) bool {
			if !isReserved {
				if isReserved = l.reserve(); !isReserved {
					part, err = nil, nil
					return true
				}
			}
			part, err = receiveNow(fd, *buffer, control)
			if err == syscall.EAGAIN && client < 0 && len(message) == 0 {
				l.unreserve() // A peer that is silent keeps nobody's place.
				isReserved = false
			}
			return err != syscall.EAGAIN
		})
		switch {
		case waitErr != nil && errors.Is(waitErr, os.ErrDeadlineExceeded) && l.isStopped():
			return nil
		case waitErr != nil:
			return fmt.Errorf("a message that is not whole: %w", waitErr)
		case err == errExhausted:
			time.Sleep(exhaustedPause)
			continue
		case err != nil:
			return err
		case part == nil: // Others are served first.
			if !l.waitForRoom() {
				return nil
			}
			channel.conn.SetReadDeadline(time.Now().Add(receiveTimeout))
			continue
		}
		count := len(part.descriptors)
		if client >= 0 {
			count++
		}
		isStream, isEnd := l.options.Dialect == Stream, len(part.bytes) == 0
		switch {
		case part.isCut || len(message)+len(part.bytes) > l.options.DataBytesMax:
			err = errors.New("a message that was cut off, or is larger than DataBytesMax")
		case count > 1:
			err = fmt.Errorf("%d descriptors where one belongs", count)
		}
		if err != nil {
			part.closeAll()
			return err
		}
		if len(part.descriptors) == 1 {
			client = part.descriptors[0]
		}
		message = append(message, part.bytes...)
		if isStream && !isEnd {
			continue // Its end is EOF.
		}
		if isEnd && client < 0 && len(message) == 0 {
			return nil // Closing without a word is how others ask whether somebody listens here.
		}
		h, err := l.judge(client, message)
		if err != nil {
			return err
		}
		client, isReserved = -1, false
		l.enqueue(h)
		return nil
	}
}

func (l *Listener) isStopped() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.stopped
}

func (l *Listener) enqueue(h *Handoff) {
	l.mu.Lock()
	stopped := l.stopped
	if !stopped {
		l.queue = append(l.queue, h)
		l.changed.Broadcast()
	}
	l.mu.Unlock()
	if stopped { // Who waited for it has been told so.
		h.Refuse(Draining, 0, "about to end")
	}
}

func isStreamSocket(fd int) bool {
	kind, err := syscall.GetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_TYPE)
	return err == nil && kind == syscall.SOCK_STREAM
}

// judge makes a handoff of a message that is whole.
func (l *Listener) judge(client int, message []byte) (*Handoff, error) {
	switch {
	case client < 0:
		return nil, errors.New("a message without a client")
	case !isStreamSocket(client):
		return nil, errors.New("the descriptor is not a stream socket")
	case l.options.Dialect == Fdpass && string(message) != "\x00":
		return nil, errors.New("a message where fdpass has none")
	case l.options.Dialect != Datagram && string(message) == "\x00":
		message = nil // no data
	}
	h := l.newHandoff()
	h.file = os.NewFile(uintptr(client), "client")
	h.data = slices.Clone(message)
	h.metadata.Response.HeadSent = l.options.Dialect == Fdpass
	return h, nil
}

// readDatagrams reads from the one socket, whenever somebody waits for a client.
func (l *Listener) readDatagrams() {
	raw, err := l.datagrams.SyscallConn()
	if err != nil {
		return
	}
	buffer, control := make([]byte, l.options.DataBytesMax+1), newControl()
	for l.waitForRoom() {
		if !l.reserve() {
			continue
		}
		var part *received
		var err error
		if raw.Read(func(fd uintptr) bool {
			part, err = receiveNow(fd, buffer, control)
			return err != syscall.EAGAIN
		}) != nil {
			l.unreserve()
			return
		}
		var h *Handoff
		switch {
		case err == errExhausted:
			time.Sleep(exhaustedPause)
			err = nil
		case err != nil:
		case !l.isAllowed(part.sender):
			err = fmt.Errorf("a datagram from somebody who may not hand over: %+v", part.sender)
		case part.isCut || len(part.bytes) > l.options.DataBytesMax:
			err = errors.New("a datagram that was cut off, or is larger than DataBytesMax")
		case len(part.descriptors) != 1:
			err = fmt.Errorf("%d descriptors where one belongs", len(part.descriptors))
		default:
			h, err = l.judge(part.descriptors[0], part.bytes)
		}
		if h != nil {
			l.enqueue(h)
			continue
		}
		if part != nil {
			part.closeAll()
		}
		l.unreserve()
		if err != nil {
			l.options.Report(err)
		}
	}
}

// serveChannel speaks with one gateway worker until either side ends.
func (l *Listener) serveChannel(channel *channel, raw syscall.RawConn, stopped bool) {
	hello, _ := json.Marshal(map[string]any{
		"versions": []int{1}, "name": cut(l.options.Name), "pid": os.Getpid(), "roles": append([]string{}, l.options.Roles...),
		"in_flight_max": l.options.InFlightMax, "data_bytes_max": l.options.DataBytesMax,
	})
	first := frame(nil, typeHello, 0, hello)
	if stopped {
		first = frame(first, typeDraining, 0, nil)
	}
	err := l.say(channel, first, nil)
	buffer, control := make([]byte, packetBytesMax+1), newControl()
	for err == nil {
		var packet *received
		waitErr := raw.Read(func(fd uintptr) bool {
			packet, err = receiveNow(fd, buffer, control)
			return err != syscall.EAGAIN
		})
		switch {
		case waitErr != nil:
			err = waitErr
		case err == errExhausted:
			time.Sleep(exhaustedPause)
			err = nil
		case err == nil && len(packet.bytes) == 0:
			packet.closeAll()
			l.endChannel(channel, nil)
			return
		case err == nil:
			err = l.takePacket(channel, packet)
			packet.closeAll()
		}
	}
	if errors.Is(err, net.ErrClosed) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) {
		err = nil
	}
	l.endChannel(channel, err)
}

// descriptorsOf is how many belong to a frame.
func descriptorsOf(header []byte) int {
	if header[2] != typeHandoff {
		return 0
	}
	return 1 + int(header[3]&1) + int(header[3]>>1&1) + int(header[3]>>2&1)
}

func (l *Listener) takePacket(channel *channel, packet *received) error {
	if packet.isCut || len(packet.bytes) > packetBytesMax {
		return errors.New("a packet that was cut off")
	}
	// All headers before any frame: nothing of a packet that is broken is done.
	belong := 0
	for rest := packet.bytes; len(rest) > 0; {
		if len(rest) < headerBytes || rest[0] != 0xB7 || rest[1] != 1 {
			return errors.New("a frame of another protocol or version")
		}
		length := uint64(binary.LittleEndian.Uint32(rest[4:]))
		if length > uint64(len(rest)-headerBytes) {
			return errors.New("a packet that ends within a frame")
		}
		belong += descriptorsOf(rest)
		rest = rest[headerBytes+length:]
	}
	if belong != len(packet.descriptors) {
		return fmt.Errorf("%d descriptors where %d belong", len(packet.descriptors), belong)
	}
	// Nothing of a packet is done before all of it is understood.
	var todo []func() []byte
	ids := map[uint64]bool{}
	descriptors := packet.descriptors
	for rest := packet.bytes; len(rest) > 0; {
		end := headerBytes + int(binary.LittleEndian.Uint32(rest[4:]))
		count := descriptorsOf(rest)
		do, err := l.checkFrame(channel, rest[:end], descriptors[:count], ids)
		if err != nil {
			return err
		}
		if do != nil {
			todo = append(todo, do)
		}
		descriptors, rest = descriptors[count:], rest[end:]
	}
	var answer []byte // goes out once all is done, or no more fits
	for _, do := range todo {
		said := do()
		if len(answer)+len(said) > packetBytesMax {
			if err := l.say(channel, answer, nil); err != nil {
				return err
			}
			answer = nil
		}
		answer = append(answer, said...)
	}
	if len(answer) == 0 {
		return nil
	}
	return l.say(channel, answer, nil)
}

// checkFrame understands one frame. It returns what is to be done then, which returns what is to be answered.
func (l *Listener) checkFrame(channel *channel, bytes []byte, descriptors []int, ids map[uint64]bool) (func() []byte, error) {
	kind, flags, id, payload := bytes[2], bytes[3], binary.LittleEndian.Uint64(bytes[8:]), bytes[headerBytes:]
	if !channel.greeted && kind != typeHello {
		return nil, errors.New("a frame before HELLO")
	}
	switch kind {
	case typeHello:
		var hello struct{ Versions []float64 }
		if err := json.Unmarshal(payload, &hello); err != nil || id != 0 || channel.greeted || !slices.Contains(hello.Versions, 1) {
			return nil, fmt.Errorf("HELLO that is a second one, has an id, or no version 1: %v", err)
		}
		channel.greeted = true
		channel.conn.SetReadDeadline(time.Time{})
	case typeHandoff:
		if ids[id] {
			return nil, errors.New("HANDOFF with an id that is in flight")
		}
		ids[id] = true
		return l.arrive(channel, flags, id, payload, descriptors)
	case typeRevoke:
		var reason map[string]any
		if err := json.Unmarshal(payload, &reason); err != nil || reason == nil || id == 0 {
			return nil, fmt.Errorf("REVOKE that is not understood: %v", err)
		}
		return func() []byte {
			l.mu.Lock()
			h := channel.handoffs[id]
			l.mu.Unlock()
			if h != nil {
				h.revoke()
			}
			return nil
		}, nil
	case typePing:
		return func() []byte { return frame(nil, typePong, id, payload) }, nil
	case typePong:
	default:
		if known := kind >= typeHello && kind <= typePong; known || flags&0x80 == 0 {
			return nil, fmt.Errorf("a frame of type %d, which no gateway sends", kind)
		}
	}
	return nil, nil
}

// arrive makes a handoff of a frame, to be queued or refused. Descriptors that it takes become -1 then.
func (l *Listener) arrive(channel *channel, flags byte, id uint64, payload []byte, descriptors []int) (func() []byte, error) {
	var parts [3][]byte
	for i := range parts {
		if len(payload) < 4 || uint64(binary.LittleEndian.Uint32(payload)) > uint64(len(payload)-4) {
			return nil, errors.New("HANDOFF: a payload that is not three sections")
		}
		end := 4 + int(binary.LittleEndian.Uint32(payload))
		parts[i], payload = payload[4:end], payload[end:]
	}
	switch {
	case len(payload) > 0:
		return nil, errors.New("HANDOFF: a payload that is not three sections")
	case id == 0:
		return nil, errors.New("HANDOFF with id 0")
	case flags&2 != 0 && len(parts[1]) > 0 || flags&4 != 0 && len(parts[2]) > 0:
		return nil, errors.New("HANDOFF: what is in a memfd is in the packet too")
	case !isStreamSocket(descriptors[0]):
		return nil, errors.New("HANDOFF: the client is not a stream socket")
	}
	for _, descriptor := range descriptors[1:] {
		var status syscall.Stat_t
		if err := syscall.Fstat(descriptor, &status); err != nil || status.Mode&syscall.S_IFMT != syscall.S_IFREG {
			return nil, errors.New("HANDOFF: a memfd that is none")
		}
	}
	h := l.newHandoff()
	h.channel, h.wireID, h.preread, h.data = channel, id, slices.Clone(parts[2]), slices.Clone(parts[1])
	if err := h.readMetadata(slices.Clone(parts[0]), flags); err != nil {
		return nil, err
	}
	next := func() (int, *int) {
		descriptor := &descriptors[0]
		descriptors = descriptors[1:]
		return *descriptor, descriptor
	}
	var adopted []*int
	client, place := next()
	adopted = append(adopted, place)
	isTooLarge := len(h.data) > l.options.DataBytesMax
	if flags&1 != 0 {
		descriptor, place := next()
		h.bodyFile, adopted = newMemfd(descriptor), append(adopted, place)
		h.bodyLength = uint64(h.bodyFile.size)
	}
	if flags&2 != 0 {
		descriptor, _ := next() // closed with the packet
		file := memfd{fd: descriptor}.sized()
		if isTooLarge = file.size > int64(l.options.DataBytesMax); !isTooLarge {
			h.data = make([]byte, file.size)
			if n, _ := file.Read(h.data); n < len(h.data) {
				return nil, errors.New("HANDOFF: data in a memfd that cannot be read")
			}
		}
	}
	if flags&4 != 0 {
		descriptor, place := next()
		h.prereadFile, adopted = newMemfd(descriptor), append(adopted, place)
	}
	if err := h.readHead(); err != nil {
		return nil, err
	}
	l.mu.Lock()
	isKnown := channel.handoffs[id] != nil
	l.mu.Unlock()
	if isKnown {
		return nil, errors.New("HANDOFF with an id that is in flight")
	}
	if isTooLarge {
		h.refused = "the data is larger than data_bytes_max"
	}
	return func() []byte { return l.admit(h, client, adopted) }, nil
}

// admit queues a client, or refuses it.
func (l *Listener) admit(h *Handoff, client int, adopted []*int) []byte {
	refusal := refusal{}
	l.mu.Lock()
	switch {
	case h.refused != "":
		refusal = refusalOf(Unsupported, 0, h.refused)
	case l.stopped:
		refusal = refusalOf(Draining, 0, "about to end")
	case l.inFlight >= l.options.InFlightMax:
		refusal = refusalOf(Overloaded, 0, "in_flight_max")
	default:
		for _, place := range adopted {
			*place = -1
		}
		h.file = os.NewFile(uintptr(client), "client")
		h.channel.handoffs[h.wireID] = h
		l.inFlight++
		l.queue = append(l.queue, h)
		l.changed.Broadcast()
	}
	l.mu.Unlock()
	if refusal.Reason == "" {
		return nil
	}
	for _, place := range adopted { // The copy is closed first, then it is said.
		syscall.Close(*place)
		*place = -1
	}
	said, _ := json.Marshal(refusal)
	return frame(nil, typeRefused, h.wireID, said)
}

type refusal struct {
	Reason     Reason `json:"reason"`
	RetryAfter int64  `json:"retry_after_s,omitempty"`
	Message    string `json:"message,omitempty"`
}

func refusalOf(reason Reason, retryAfter time.Duration, message string) refusal {
	return refusal{reason, int64((max(retryAfter, 0) + time.Second - 1) / time.Second), cut(message)}
}

func cut(text string) string { return text[:min(len(text), textBytesMax)] }

// A memfd is read at places of its own: the file may be shared.
type memfd struct {
	fd       int
	at, size int64
}

func (m memfd) sized() *memfd {
	var status syscall.Stat_t
	if syscall.Fstat(m.fd, &status) == nil {
		m.size = status.Size
	}
	return &m
}

func newMemfd(fd int) *memfd { return memfd{fd: fd}.sized() }

func (m *memfd) Read(to []byte) (int, error) {
	n := 0
	for n < len(to) && m.at < m.size {
		count, err := syscall.Pread(m.fd, to[n:], m.at)
		if err == syscall.EINTR {
			continue
		}
		if err != nil {
			return n, err
		}
		if count == 0 {
			break
		}
		n, m.at = n+count, m.at+int64(count)
	}
	if n == 0 && len(to) > 0 {
		return 0, io.EOF
	}
	return n, nil
}

// --- a handoff ---

// A Field is a header's name and value; names that came are in lower case.
type Field struct{ Name, Value string }

// UnmarshalJSON reads a pair; what of a value is no UTF-8 comes in base64.
func (f *Field) UnmarshalJSON(bytes []byte) error {
	var pair []json.RawMessage
	if err := json.Unmarshal(bytes, &pair); err != nil || len(pair) != 2 {
		return fmt.Errorf("a header that is no pair: %v", err)
	}
	if err := json.Unmarshal(pair[0], &f.Name); err != nil {
		return err
	}
	if json.Unmarshal(pair[1], &f.Value) == nil {
		return nil
	}
	var binary struct{ Base64 []byte }
	if err := json.Unmarshal(pair[1], &binary); err != nil {
		return err
	}
	f.Value = string(binary.Base64)
	return nil
}

// Metadata is what a gateway knows of a request, as far as the protocol names it.
type Metadata struct {
	ID     string `json:"id"`
	Policy *struct {
		Name       string `json:"name"`
		Generation uint64 `json:"generation"`
	} `json:"policy"`
	Request struct {
		Method    string  `json:"method"`
		Target    string  `json:"target"`
		Version   string  `json:"version"`
		Scheme    string  `json:"scheme"`
		Authority string  `json:"authority"`
		Headers   []Field `json:"headers"`
		HeadBytes int     `json:"head_bytes"`
	} `json:"request"`
	Client struct {
		IP   string `json:"ip"`
		Port uint16 `json:"port"`
	} `json:"client"`
	Server struct {
		IP       string `json:"ip"`
		Port     uint16 `json:"port"`
		Listener string `json:"listener"`
	} `json:"server"`
	TLS *struct {
		Version        string `json:"version"`
		SNI            string `json:"sni"`
		ClientVerified bool   `json:"client_verified"`
	} `json:"tls"`
	Connection string `json:"connection"`
	Body       struct {
		Framing   string `json:"framing"`
		Remaining uint64 `json:"remaining"`
	} `json:"body"`
	Response struct {
		HeadSent bool `json:"head_sent"`
	} `json:"response"`
	DeadlineMS uint64 `json:"deadline_ms"`
	// Metadata is the policy's own.
	Metadata map[string]json.RawMessage `json:"metadata"`
	// Raw is all of it, as it came; "{}" in the other dialects.
	Raw json.RawMessage `json:"-"`
}

// A stream is a client as it is read or written: a socket, or standard input and output of CGI.
type stream interface {
	io.ReadWriteCloser
	SetReadDeadline(time.Time) error
	SetWriteDeadline(time.Time) error
}

// A Handoff is a client, and what was said of it. Its methods are one goroutine's, but for Revoked, Write and Body, of which
// reading and writing may be two's.
type Handoff struct {
	listener  *Listener
	channel   *channel // nil in the other dialects
	wireID    uint64
	id        string
	metadata  Metadata
	data      []byte
	head      []byte
	refused   string   // why it cannot be served, as soon as it arrives
	file      *os.File // the client, until it is taken
	isCGI     bool
	inherited map[string]string

	mu      sync.Mutex // taken, ended, deadlines
	in, out stream     // the client, once taken
	taken   bool
	ended   bool
	takenAt time.Time
	revoked chan struct{}

	preread               []byte
	bodyFile, prereadFile *memfd
	bodyLength            uint64
	body                  body

	begun              atomic.Bool
	started, keepAlive bool
	status             int
	writeErr           error
	bytesOut           atomic.Int64
}

var made atomic.Uint64

func (l *Listener) newHandoff() *Handoff {
	h := &Handoff{listener: l, revoked: make(chan struct{})}
	h.id = fmt.Sprintf("%d-%d", os.Getpid(), made.Add(1))
	h.metadata.Raw = json.RawMessage("{}")
	h.body.h = h
	return h
}

func (h *Handoff) readMetadata(raw []byte, flags byte) error {
	if err := json.Unmarshal(raw, &h.metadata); err != nil {
		return fmt.Errorf("HANDOFF: its metadata: %w", err)
	}
	if !bytes.HasPrefix(bytes.TrimLeft(raw, " \t\r\n"), []byte("{")) || !utf8.Valid(raw) {
		return errors.New("HANDOFF: its metadata is no JSON object")
	}
	h.metadata.Raw = raw
	if h.metadata.ID != "" {
		h.id = h.metadata.ID
	}
	h.body.framing = h.metadata.Body.Framing
	switch h.body.framing {
	case "":
		h.body.framing = "none"
	case "none", "memfd":
	case "length":
		h.body.remaining = h.metadata.Body.Remaining
		h.bodyLength = h.body.remaining
	case "chunked":
		h.body.at = inSize
	default:
		h.refused = "a body in a framing that is not known"
	}
	if (h.body.framing == "memfd") != (flags&1 != 0) && h.refused == "" {
		h.refused = "a memfd with another framing"
	}
	h.body.continueWanted = strings.EqualFold(h.Header("expect"), "100-continue") && h.metadata.Request.Version != "1.0"
	return nil
}

// readHead takes the head from the bytes that came along.
func (h *Handoff) readHead() error {
	count := h.metadata.Request.HeadBytes
	head := h.preread
	if count > 0 && h.prereadFile != nil && int64(count) <= h.prereadFile.size {
		head = make([]byte, count)
		n, _ := h.prereadFile.Read(head)
		h.head = head[:n]
		return nil
	}
	if count < 0 || count > len(head) {
		return errors.New("HANDOFF: a head that is longer than what came")
	}
	h.head, h.preread = head[:count:count], head[count:]
	return nil
}

// ID is the request's, as in the gateway's log; made up where the gateway did not tell.
func (h *Handoff) ID() string { return h.id }

// Data is what the policy or the application sent along; in the dialect datagram the request's head.
func (h *Handoff) Data() []byte { return h.data }

// Metadata is what the gateway knows of the request.
func (h *Handoff) Metadata() *Metadata { return &h.metadata }

// Role is "role" in the policy's own metadata.
func (h *Handoff) Role() string {
	var role string
	if h.isCGI {
		return h.inherited["HANDOFF_ROLE"]
	}
	if json.Unmarshal(h.metadata.Metadata["role"], &role) != nil {
		return ""
	}
	return role
}

// Method is the request's; empty where it is not known.
func (h *Handoff) Method() string { return h.metadata.Request.Method }

// Target is path and query, as the client wrote them.
func (h *Handoff) Target() string { return h.metadata.Request.Target }

// Headers are the request's, names in lower case, in order, with repeats.
func (h *Handoff) Headers() []Field { return h.metadata.Request.Headers }

// Header is the first of that name.
func (h *Handoff) Header(name string) string {
	for _, field := range h.metadata.Request.Headers {
		if strings.EqualFold(field.Name, name) {
			return field.Value
		}
	}
	return ""
}

// Head is the request's head, where a policy sent it along.
func (h *Handoff) Head() []byte { return h.head }

// HeadSent says that the gateway wrote the response's head: only the body is written here.
func (h *Handoff) HeadSent() bool { return h.metadata.Response.HeadSent }

// Env is what is known as CGI variables (RFC 3875).
func (h *Handoff) Env() map[string]string {
	if h.isCGI {
		return maps.Clone(h.inherited)
	}
	env := map[string]string{"GATEWAY_INTERFACE": "CGI/1.1", "SERVER_SOFTWARE": "baton", "HANDOFF_ID": h.id}
	set := func(name, value string) {
		if value != "" {
			env[name] = value
		}
	}
	if h.channel == nil {
		h.addressVariables(set)
	} else {
		h.requestVariables(env, set)
	}
	env["HANDOFF_ROLE"] = "responder"
	set("HANDOFF_ROLE", h.Role())
	if h.HeadSent() {
		env["HANDOFF_HEAD_SENT"] = "1"
	}
	if len(h.data) <= dataVariableMax && !slices.Contains(h.data, 0) {
		env["HANDOFF_DATA"] = string(h.data)
	}
	return env
}

func (h *Handoff) requestVariables(env map[string]string, set func(name, value string)) {
	m := &h.metadata
	set("REQUEST_METHOD", m.Request.Method)
	set("REQUEST_URI", m.Request.Target)
	_, env["QUERY_STRING"], _ = strings.Cut(m.Request.Target, "?")
	set("CONTENT_TYPE", h.Header("content-type"))
	if h.body.framing == "length" || h.body.framing == "memfd" {
		env["CONTENT_LENGTH"] = strconv.FormatUint(h.bodyLength, 10)
	}
	if m.Request.Version != "" {
		env["SERVER_PROTOCOL"] = "HTTP/" + m.Request.Version
	}
	if m.Request.Scheme == "https" {
		env["HTTPS"] = "on"
	}
	set("SERVER_NAME", bracketed(m.Server.IP))
	if host := m.Request.Authority; strings.HasPrefix(host, "[") {
		set("SERVER_NAME", host[:strings.IndexByte(host+"]", ']')+1])
	} else {
		name, _, _ := strings.Cut(host, ":")
		set("SERVER_NAME", name)
	}
	if m.Server.Port != 0 {
		env["SERVER_PORT"] = strconv.Itoa(int(m.Server.Port))
	}
	set("REMOTE_ADDR", m.Client.IP)
	if m.Client.Port != 0 {
		env["REMOTE_PORT"] = strconv.Itoa(int(m.Client.Port))
	}
	for _, field := range m.Request.Headers {
		name := strings.ToLower(field.Name)
		isPlain := strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-") == ""
		// Other names would be ambiguous, and Proxy would be taken for a setting by programs that know no better.
		if !isPlain || name == "" || name == "proxy" || name == "content-type" || name == "content-length" {
			continue
		}
		variable := "HTTP_" + strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
		if before, isRepeated := env[variable]; !isRepeated {
			env[variable] = field.Value
		} else if name == "cookie" {
			env[variable] = before + "; " + field.Value
		} else {
			env[variable] = before + ", " + field.Value
		}
	}
}

// bracketed is an address as it belongs into a URI (RFC 3875 4.1.14).
func bracketed(ip string) string {
	if strings.Contains(ip, ":") {
		return "[" + ip + "]"
	}
	return ip
}

// addressVariables asks the socket, where there is no metadata.
func (h *Handoff) addressVariables(set func(name, value string)) {
	h.withDescriptor(func(fd int) {
		remote, _ := syscall.Getpeername(fd)
		if ip, port, ok := internet(remote); ok {
			set("REMOTE_ADDR", ip)
			set("REMOTE_PORT", port)
		}
		local, _ := syscall.Getsockname(fd)
		if ip, port, ok := internet(local); ok {
			set("SERVER_NAME", bracketed(ip))
			set("SERVER_PORT", port)
		}
	})
}

func internet(address syscall.Sockaddr) (ip, port string, ok bool) {
	switch address := address.(type) {
	case *syscall.SockaddrInet4:
		return net.IP(address.Addr[:]).String(), strconv.Itoa(address.Port), true
	case *syscall.SockaddrInet6: // IPv4 that is mapped into IPv6 shows as itself.
		return net.IP(address.Addr[:]).String(), strconv.Itoa(address.Port), true
	}
	return "", "", false
}

// withDescriptor calls do with the client's descriptor, if it has one.
func (h *Handoff) withDescriptor(do func(fd int)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	var of any = h.out
	if h.file != nil {
		of = h.file
	}
	if conn, isConn := of.(syscall.Conn); isConn {
		if raw, err := conn.SyscallConn(); err == nil {
			raw.Control(func(fd uintptr) { do(int(fd)) })
		}
	}
}

// revoke is the channel's: it wakes whoever reads or writes.
func (h *Handoff) revoke() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.isRevoked() {
		return
	}
	close(h.revoked)
	if h.taken && !h.ended {
		h.in.SetReadDeadline(time.Unix(1, 0))
		h.out.SetWriteDeadline(time.Unix(1, 0))
	}
}

func (h *Handoff) isRevoked() bool {
	select {
	case <-h.revoked:
		return true
	default:
		return false
	}
}

// Revoked is closed when the gateway asks to end this one.
func (h *Handoff) Revoked() <-chan struct{} { return h.revoked }

// Take says TAKEN. ErrNotTaken when the gateway has gone: then the client is not ours.
func (h *Handoff) Take() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.take()
}

func (h *Handoff) take() error {
	switch {
	case h.ended:
		return ErrEnded
	case h.taken:
		return nil
	}
	if h.file != nil {
		if h.channel != nil && (h.isLost() || h.listener.say(h.channel, frame(nil, typeTaken, h.wireID, nil), nil) != nil) {
			return ErrNotTaken
		}
		// Not before: what net sets on a socket is the owner's to set. It makes a copy, for which there may be no descriptor.
		h.out = h.file
		if conn, err := net.FileConn(h.file); err == nil {
			h.file.Close()
			h.out = conn.(stream)
		}
		h.file = nil
		if h.in == nil { // of CGI it is standard input
			h.in = h.out
		}
	}
	h.taken, h.takenAt = true, time.Now()
	return nil
}

// isLost says that the channel has ended.
func (h *Handoff) isLost() bool {
	h.listener.mu.Lock()
	defer h.listener.mu.Unlock()
	return h.channel.ended
}

// patience sets a deadline, unless the gateway has asked to end this one.
func (h *Handoff) patience(set func(time.Time) error, timeout time.Duration) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.isRevoked() {
		return ErrRevoked
	}
	set(time.Now().Add(timeout))
	return nil
}

// told is an error of the client's socket in our words.
func (h *Handoff) told(err error) error {
	switch {
	case err == nil:
		return nil
	case h.isRevoked():
		return ErrRevoked
	case errors.Is(err, os.ErrDeadlineExceeded):
		return ErrTimeout
	case errors.Is(err, syscall.EPIPE), errors.Is(err, syscall.ECONNRESET):
		return ErrClientGone
	}
	return err
}

// Write writes all of it, or fails with ErrClientGone, ErrTimeout, ErrRevoked or ErrNotTaken; then there is nothing left but to
// finish. It writes bytes as they are: Start or Respond write a head.
func (h *Handoff) Write(bytes []byte) (int, error) {
	if err := h.Take(); err != nil {
		return 0, err
	}
	h.begun.Store(true)
	return h.write(bytes)
}

func (h *Handoff) write(bytes []byte) (int, error) {
	written, timeout := 0, h.listener.options.WriteTimeout
	for last := time.Now(); written < len(bytes) && h.writeErr == nil; {
		// A slice of the time at once, so that it is known when the client took its last byte.
		if h.writeErr = h.patience(h.out.SetWriteDeadline, timeout/32); h.writeErr != nil {
			break
		}
		n, err := h.out.Write(bytes[written:])
		written += n
		h.bytesOut.Add(int64(n))
		if n > 0 {
			last = time.Now()
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) || h.isRevoked() || time.Since(last) >= timeout {
			h.writeErr = h.told(err)
		}
	}
	return written, h.writeErr
}

// isBehindPipe says that a server of CGI reads what is written, and writes the status line itself.
func (h *Handoff) isBehindPipe() bool {
	_, isFile := h.out.(*os.File)
	return h.isCGI && isFile
}

// writeHead writes a head up to its last field.
func (h *Handoff) writeHead(status int, headers []Field, isWhole bool) ([]byte, error) {
	if status < 100 || status > 999 || isWhole && status < 200 {
		return nil, fmt.Errorf("handoff: status %d", status)
	}
	head := fmt.Appendf(nil, "HTTP/1.1 %d %s\r\n", status, http.StatusText(status))
	if h.isBehindPipe() {
		head = fmt.Appendf(nil, "Status: %d %s\r\n", status, http.StatusText(status))
	}
	hasConnection := false
	for _, field := range headers {
		isOurs := strings.EqualFold(field.Name, "content-length") || strings.EqualFold(field.Name, "transfer-encoding")
		isConnection := strings.EqualFold(field.Name, "connection")
		if strings.ContainsFunc(field.Name, isNoToken) || field.Name == "" || strings.ContainsAny(field.Value, "\r\n\x00") {
			return nil, fmt.Errorf("handoff: no header can be %q: %q", field.Name, field.Value)
		}
		if isWhole && (isOurs || isConnection) {
			return nil, fmt.Errorf("handoff: %s is added here", field.Name)
		}
		hasConnection = hasConnection || isConnection
		head = fmt.Appendf(head, "%s: %s\r\n", field.Name, field.Value)
	}
	if !isWhole && !hasConnection && !h.isBehindPipe() {
		head = append(head, "Connection: close\r\n"...)
	}
	return head, nil
}

func isNoToken(c rune) bool {
	isLetter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
	return !isLetter && !strings.ContainsRune("!#$%&'*+-.^_`|~", c)
}

// Respond writes a whole response, with its Content-Length. keepAlive: the client will be given back.
func (h *Handoff) Respond(status int, headers []Field, body []byte, keepAlive bool) error {
	response, err := h.writeHead(status, headers, true)
	if err != nil {
		return err
	}
	hasBody := status != 204 && status != 304
	h.keepAlive = keepAlive && h.mayReturn()
	h.status = status
	if hasBody {
		response = fmt.Appendf(response, "Content-Length: %d\r\n", len(body))
	}
	switch {
	case h.isBehindPipe():
	case h.keepAlive:
		response = append(response, "Connection: keep-alive\r\n"...)
	default:
		response = append(response, "Connection: close\r\n"...)
	}
	response = append(response, "\r\n"...)
	if h.HeadSent() { // The gateway has written one.
		response = nil
	}
	if hasBody && h.Method() != http.MethodHead {
		response = append(response, body...)
	}
	_, err = h.Write(response)
	return err
}

// Start writes a head, with Connection: close unless the headers have a Connection. The body is what is written until the end.
func (h *Handoff) Start(status int, headers []Field) error {
	head, err := h.writeHead(status, headers, false)
	if err != nil {
		return err
	}
	h.status, h.started = status, true
	if h.HeadSent() {
		head = nil
	} else {
		head = append(head, "\r\n"...)
	}
	_, err = h.Write(head)
	return err
}

// A conn is the client for whoever wants to speak something else than HTTP.
type conn struct {
	net.Conn
	h *Handoff
}

func (c conn) Read(to []byte) (int, error) {
	if n := c.h.readAhead(to); n > 0 {
		return n, nil
	}
	return c.Conn.Read(to)
}

func (c conn) Write(bytes []byte) (int, error) {
	n, err := c.Conn.Write(bytes)
	c.h.bytesOut.Add(int64(n))
	return n, err
}

// Conn is the client, taken: what came along is read first, what is written is counted. Deadlines are its user's, except that
// one in the past is set when the handoff is revoked. Closing it does not end the handoff.
func (h *Handoff) Conn() (net.Conn, error) {
	if err := h.Take(); err != nil {
		return nil, err
	}
	h.begun.Store(true)
	if c, isConn := h.out.(net.Conn); isConn {
		return conn{c, h}, nil
	}
	return nil, errors.New("handoff: a program of CGI has no connection")
}

// peek looks at the socket without taking anything from it: what recv says, EAGAIN where nothing is there.
func peek(fd int) (isGone bool, err error) {
	n, _, err := syscall.Recvfrom(fd, []byte{0}, syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
	if err == syscall.EAGAIN || err == syscall.EINTR {
		return false, err
	}
	if n > 0 { // Unread bytes; but behind a reset nobody is left who wants an answer to them.
		var state [4]byte
		value, err := syscall.GetsockoptInt(fd, syscall.IPPROTO_TCP, syscall.TCP_INFO)
		binary.NativeEndian.PutUint32(state[:], uint32(value))
		return err == nil && state[0] == 7 /* TCP_CLOSE */, nil
	}
	return true, nil
}

// ClientGone says whether the client has left, without writing. One that only ended its sending side looks the same; one with
// bytes unread, or that was not taken, has not left.
func (h *Handoff) ClientGone() bool {
	if h.writeErr == ErrClientGone {
		return true
	}
	isGone := false
	h.mu.Lock()
	isLent := h.channel != nil && !h.taken
	h.mu.Unlock()
	if isLent { // Nothing of it is looked at.
		return false
	}
	h.withDescriptor(func(fd int) { isGone, _ = peek(fd) })
	return isGone && !h.isBehindPipe() && !h.hasAhead()
}

// Wait waits until the client has left or is revoked, which is true, or the time is up. For whoever has nothing to write; it
// must not run beside a reader of the body.
func (h *Handoff) Wait(timeout time.Duration) bool {
	var raw syscall.RawConn
	conn, isConn := h.in.(syscall.Conn)
	if isConn && !h.isBehindPipe() {
		raw, _ = conn.SyscallConn()
	}
	if raw == nil || h.hasAhead() || h.patience(h.in.SetReadDeadline, timeout) != nil {
		select {
		case <-h.revoked:
			return true
		case <-time.After(timeout):
			return h.ClientGone()
		}
	}
	isGone := false
	raw.Read(func(fd uintptr) bool {
		isGone, _ = peek(int(fd))
		return isGone
	})
	return isGone || h.isRevoked()
}

// --- the body ---

const (
	inBody = iota
	inSize
	inChunkEnd
	inTrailer
	inEnd
)

// A body reads the request's body: what is in a memfd, what came along, the socket, by the framing.
type body struct {
	h              *Handoff
	framing        string
	remaining      uint64 // of a length, or of the chunk
	at             int
	ahead          []byte // read for the chunks' sake
	line           int    // bytes of the line
	trailers       int
	hasDigit       bool
	isExtension    bool
	hadCR          bool
	continueWanted bool
	err            error
}

// Body reads the request's body, decoded. It fails with io.ErrUnexpectedEOF where the client left within it, ErrChunks,
// ErrTimeout, ErrRevoked, ErrNotTaken. A client that waits for 100 Continue is told.
func (h *Handoff) Body() io.Reader { return &h.body }

func (h *Handoff) hasAhead() bool {
	return len(h.body.ahead) > 0 || len(h.preread) > 0 || h.prereadFile != nil
}

// readAhead reads of what was read before.
func (h *Handoff) readAhead(to []byte) int {
	for _, from := range []*[]byte{&h.body.ahead, &h.preread} {
		if n := copy(to, *from); n > 0 {
			*from = (*from)[n:]
			return n
		}
	}
	if h.prereadFile == nil {
		return 0
	}
	n, _ := h.prereadFile.Read(to)
	if n == 0 {
		syscall.Close(h.prereadFile.fd)
		h.prereadFile = nil
	}
	return n
}

// readRaw reads what comes next, undecoded.
func (b *body) readRaw(to []byte) (int, error) {
	h := b.h
	if n := h.readAhead(to); n > 0 {
		return n, nil
	}
	if b.continueWanted && !h.begun.Load() && !h.HeadSent() {
		var err error
		h.withDescriptor(func(fd int) { _, err = peek(fd) })
		if err == syscall.EAGAIN {
			if _, err := h.write([]byte(continueResponse)); err != nil {
				return 0, err
			}
		}
		b.continueWanted = false // or it has not waited
	}
	if err := h.patience(h.in.SetReadDeadline, h.listener.options.BodyTimeout); err != nil {
		return 0, err
	}
	n, err := h.in.Read(to)
	if n > 0 {
		b.continueWanted = false
		return n, nil
	}
	if err == nil || err == io.EOF {
		return 0, io.ErrUnexpectedEOF
	}
	return 0, h.told(err)
}

func (b *body) Read(to []byte) (n int, err error) {
	if err := b.h.Take(); err != nil {
		return 0, err
	}
	if b.err != nil || len(to) == 0 {
		return 0, b.err
	}
	if file := b.h.bodyFile; file != nil {
		if n, err = file.Read(to); n > 0 {
			return n, nil
		}
		syscall.Close(file.fd)
		b.h.bodyFile = nil
		if err != io.EOF {
			b.err = err
			return 0, err
		}
	}
	switch {
	case b.framing == "length" && b.remaining > 0:
		n, err = b.readRaw(to[:min(uint64(len(to)), b.remaining)])
		b.remaining -= uint64(n)
	case b.framing == "chunked":
		n, err = b.readChunked(to)
	case b.framing == "eof": // what standard input of CGI has
		n, err = b.readRaw(to)
		if err == io.ErrUnexpectedEOF {
			err = io.EOF
		}
	default:
		err = io.EOF
	}
	if err == io.EOF {
		b.at = inEnd
	}
	b.err = err
	return n, err
}

func (b *body) readChunked(to []byte) (int, error) {
	for b.at != inBody {
		if b.at == inEnd {
			return 0, io.EOF
		}
		if len(b.ahead) == 0 {
			part := make([]byte, 4096)
			n, err := b.readRaw(part)
			if err != nil {
				return 0, err
			}
			b.ahead = part[:n]
		}
		c := b.ahead[0]
		b.ahead = b.ahead[1:]
		if !b.takeByte(c) {
			return 0, ErrChunks
		}
	}
	n, err := b.readRaw(to[:min(uint64(len(to)), b.remaining)])
	b.remaining -= uint64(n)
	if b.remaining == 0 {
		b.at = inChunkEnd
	}
	return n, err
}

// takeByte takes one byte of a chunk's size line, of the line end behind its data, or of the trailers (RFC 9112 7.1).
func (b *body) takeByte(c byte) bool {
	isEnd := b.hadCR && c == '\n'
	if b.hadCR && !isEnd {
		return false
	}
	b.hadCR = c == '\r'
	if b.at == inTrailer {
		if b.trailers++; b.trailers > trailerBytesMax {
			return false
		}
	}
	if !isEnd {
		switch {
		case c == '\n':
			return false
		case c == '\r':
			return true
		case b.at == inChunkEnd || b.at == inSize && b.line >= lineBytesMax:
			return false
		}
		b.line++
		if b.at == inTrailer || b.isExtension {
			return true
		}
		digit := strings.IndexByte("0123456789abcdef", c|0x20)
		if c < '0' || digit < 0 || c > '9' && c < 'A' {
			b.isExtension = true
			return b.hasDigit && (c == ';' || c == ' ' || c == '\t')
		}
		if b.line > 16 || b.remaining > 1<<59 {
			return false
		}
		b.hasDigit = true
		b.remaining = b.remaining<<4 | uint64(digit)
		return true
	}
	b.hadCR = false
	switch {
	case b.at == inChunkEnd:
		b.at = inSize
	case b.at == inSize && !b.hasDigit:
		return false
	case b.at == inSize && b.remaining > 0:
		b.at = inBody
	case b.at == inSize:
		b.at = inTrailer
	case b.line == 0:
		b.at = inEnd
	}
	b.line, b.hasDigit, b.isExtension = 0, false, false
	return true
}

// isShort says whether what is left of the body may be read and dropped.
func (b *body) isShort() bool {
	switch {
	case b.framing == "none" || b.framing == "memfd" || b.at == inEnd || b.framing == "length" && b.remaining == 0:
		return true
	case b.err != nil || b.continueWanted:
		return false // Who still waits for 100 Continue may send its body behind a final answer, or its next request.
	}
	return b.framing == "chunked" || b.remaining <= unreadBytesMax
}

// --- the end of a client ---

// mayReturn says whether the client may come back for its next request.
func (h *Handoff) mayReturn() bool {
	if h.channel == nil || h.HeadSent() || h.isLost() || !h.body.isShort() {
		return false
	}
	isKept := h.metadata.Request.Version != "1.0"
	for _, field := range h.metadata.Request.Headers {
		if !strings.EqualFold(field.Name, "connection") {
			continue
		}
		for _, token := range strings.Split(field.Value, ",") {
			switch strings.ToLower(strings.TrimSpace(token)) {
			case "close":
				return false
			case "keep-alive":
				isKept = true
			}
		}
	}
	return isKept
}

// end counts it out: once the last frame is said, the gateway may send the next client, and there must be room for it.
func (h *Handoff) end() {
	l := h.listener
	h.ended = true
	l.mu.Lock()
	defer l.mu.Unlock()
	if h.channel != nil {
		delete(h.channel.handoffs, h.wireID)
	}
	l.inFlight--
	l.changed.Broadcast()
}

// closeFiles closes what is not the client's connection.
func (h *Handoff) closeFiles() {
	if h.file != nil {
		h.file.Close()
		h.file = nil
	}
	for _, file := range []**memfd{&h.bodyFile, &h.prereadFile} {
		if *file != nil {
			syscall.Close((*file).fd)
			*file = nil
		}
	}
}

// closeGracefully ends the writing side first, and drops what comes until the client has closed too, for a moment: a close with
// bytes unread makes the kernel send a reset, which can destroy the answer on its way (RFC 9112 9.6).
func (h *Handoff) closeGracefully() {
	isHalf := false
	h.withDescriptor(func(fd int) { isHalf = syscall.Shutdown(fd, syscall.SHUT_WR) == nil })
	if isHalf {
		h.in.SetReadDeadline(time.Now().Add(linger))
		io.Copy(io.Discard, h.in)
	}
	h.closeStreams()
}

func (h *Handoff) closeStreams() {
	if h.out != nil {
		h.out.Close()
	}
	if h.in != nil && h.in != h.out {
		h.in.Close()
	}
}

// reset is for what must not look whole: the client is told that something broke.
func (h *Handoff) reset() {
	if tcp, isTCP := h.out.(*net.TCPConn); isTCP {
		tcp.SetLinger(0)
	}
	h.closeStreams()
}

type report struct {
	Status   int    `json:"status,omitempty"`
	BytesOut int64  `json:"bytes_out"`
	Duration int64  `json:"duration_us"`
	Result   Result `json:"result"`
	Message  string `json:"message,omitempty"`
}

func (h *Handoff) report(status int, result Result, message string) []byte {
	if status == 0 {
		status = h.status
	}
	if h.HeadSent() || status < 100 || status > 599 {
		status = 0
	}
	said, _ := json.Marshal(report{status, h.bytesOut.Load(), time.Since(h.takenAt).Microseconds(), result, cut(message)})
	return said
}

// Finish ends the client so that the last bytes arrive, closes it and says DONE. Status 0 is that of Respond or Start. A write
// that has failed makes OK what it failed with; one that timed out is reset, so that no half looks whole.
func (h *Handoff) Finish(status int, result Result, message string) error {
	if result == OK && h.writeErr != nil {
		result = ResultOf(h.writeErr)
		if message == "" && result == Failed {
			message = h.writeErr.Error()
		}
	}
	return h.finish(status, result, message, h.writeErr == ErrTimeout)
}

// ResultOf is what Finish is to say of an error of Write or Body.
func ResultOf(err error) Result {
	switch {
	case err == nil:
		return OK
	case errors.Is(err, ErrTimeout):
		return Timeout
	case errors.Is(err, ErrRevoked):
		return Revoked
	case errors.Is(err, ErrClientGone), errors.Is(err, io.ErrUnexpectedEOF):
		return ClientGone
	}
	return Failed
}

func (h *Handoff) finish(status int, result Result, message string, isReset bool) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ended {
		return ErrEnded
	}
	if err := h.take(); err != nil { // The gateway has gone: the client was not touched.
		h.closeFiles()
		h.end()
		return err
	}
	if isReset {
		h.reset()
	} else {
		h.mu.Unlock() // A revocation does not wait for it.
		h.closeGracefully()
		h.mu.Lock()
	}
	h.closeFiles()
	said := h.report(status, result, message)
	isLost := h.channel == nil || h.isLost()
	h.end()
	if isLost { // Nobody is there who wants to know.
		return nil
	}
	return h.listener.say(h.channel, frame(nil, typeDone, h.wireID, said), nil)
}

// Refuse does not want this client; only before it was taken. Another daemon gets it, or in the other dialects it is answered
// here: 503, 403 when denied, 501 when unsupported. Without retryAfter nothing is said of it.
func (h *Handoff) Refuse(reason Reason, retryAfter time.Duration, message string) error {
	h.mu.Lock()
	ended, taken := h.ended, h.taken && !h.isCGI
	h.mu.Unlock()
	refusal := refusalOf(reason, retryAfter, message)
	switch {
	case ended:
		return ErrEnded
	case taken:
		return h.finish(0, Failed, "refused after it was taken", h.started || h.HeadSent())
	case h.channel == nil && h.HeadSent(): // It cannot be answered any more.
		return h.finish(0, Failed, message, true)
	case h.channel == nil:
		status := map[Reason]int{Denied: 403, Unsupported: 501}[reason]
		if status == 0 {
			status = 503
		}
		headers := []Field{{"Content-Type", "text/plain"}}
		if refusal.RetryAfter > 0 {
			headers = append(headers, Field{"Retry-After", strconv.FormatInt(refusal.RetryAfter, 10)})
		}
		h.Respond(status, headers, fmt.Appendf(nil, "%d %s\n", status, http.StatusText(status)), false)
		return h.Finish(status, OK, "")
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closeFiles() // first, then it is said
	isLost := h.isLost()
	h.end()
	if isLost {
		return nil
	}
	said, _ := json.Marshal(refusal)
	return h.listener.say(h.channel, frame(nil, typeRefused, h.wireID, said), nil)
}

// Close is for whoever does not finish, and does nothing where somebody did: not taken, the client is refused as overloaded;
// taken, it is closed and DONE says error.
func (h *Handoff) Close() error {
	h.mu.Lock()
	ended, taken := h.ended, h.taken
	h.mu.Unlock()
	switch {
	case ended:
		return nil
	case !taken:
		return h.Refuse(Overloaded, 0, "not taken")
	}
	// A body that goes to the end of the connection must not end as if it were whole.
	return h.finish(0, Failed, "not finished", h.started || h.HeadSent())
}

// dropBody reads the rest of the body. False when there is too much of it, or it breaks off.
func (h *Handoff) dropBody() bool {
	if h.body.framing == "none" || h.body.framing == "memfd" {
		return true
	}
	n, err := io.Copy(io.Discard, io.LimitReader(&h.body, unreadBytesMax+1))
	return err == nil && n <= unreadBytesMax
}

// GiveBack gives the client back for its next request. Where that cannot be (another dialect, the gateway gone, a body that
// goes on for more than 64 KiB, a response that says close), the same as Finish.
func (h *Handoff) GiveBack(status int) error {
	isAnswered := h.bytesOut.Load() > 0
	isClosing := h.started || h.status != 0 && !h.keepAlive
	h.mu.Lock()
	taken, ended := h.taken, h.ended
	h.mu.Unlock()
	switch {
	case ended:
		return ErrEnded
	case !isAnswered && h.writeErr == nil:
		return h.Finish(status, Failed, "given back without an answer")
	case !taken || isClosing || h.writeErr != nil || h.isRevoked() || !h.mayReturn() || !h.dropBody():
		return h.Finish(status, OK, "")
	}
	var unread []byte
	for part := make([]byte, 16<<10); len(unread) <= packetBytesMax; {
		n := h.readAhead(part)
		if n == 0 {
			break
		}
		unread = append(unread, part[:n]...)
	}
	packet := frame(nil, typeReturn, h.wireID, sections(h.report(status, OK, ""), unread))
	if len(packet) > packetBytesMax || !h.sendBack(packet) {
		return h.Finish(status, OK, "")
	}
	return nil
}

// sendBack is false where the gateway has gone in between: then the client is closed.
func (h *Handoff) sendBack(packet []byte) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	conn, isConn := h.out.(syscall.Conn)
	if !isConn || h.isLost() {
		return false
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return false
	}
	l := h.listener
	l.mu.Lock()
	l.inFlight-- // as in end, which counts it again if this fails
	l.mu.Unlock()
	said := errors.New("closed")
	raw.Control(func(fd uintptr) { said = l.say(h.channel, packet, syscall.UnixRights(int(fd))) })
	l.mu.Lock()
	l.inFlight++
	l.mu.Unlock()
	if said != nil {
		return false
	}
	h.closeStreams() // now that it is on its way
	h.closeFiles()
	h.end()
	return true
}

// --- one client only ---

// theOne is the client of a program that was started for it.
func (l *Listener) theOne(isCGI bool) (*Handoff, error) {
	h := l.newHandoff()
	from := -1
	if isStreamSocket(0) {
		from = 0
	} else if isCGI && isStreamSocket(1) {
		from = 1
	}
	open := func(fd int) (*os.File, error) { // Not as descriptor 1, whose EPIPE would end the program.
		copied, _, errno := syscall.Syscall(syscall.SYS_FCNTL, uintptr(fd), syscall.F_DUPFD_CLOEXEC, 3)
		if errno != 0 {
			return nil, fmt.Errorf("descriptor %d: %w", fd, errno)
		}
		return os.NewFile(copied, "client"), nil
	}
	var err error
	if from >= 0 {
		h.file, err = open(from)
	}
	if err == nil && from != 0 {
		h.in, err = open(0)
	}
	if err == nil && from < 0 {
		h.out, err = open(1)
	}
	if err != nil {
		return nil, err
	}
	h.data = []byte(os.Getenv("HANDOFF_DATA"))
	if name := os.Getenv("HANDOFF_DATA_FILE"); name != "" {
		if h.data, err = os.ReadFile(name); err != nil {
			return nil, err
		}
	}
	if isCGI {
		h.readEnvironment(from == 0)
	}
	if from < 0 {
		return h, nil
	}
	// The program's own words must not get to the client, and the connection must end with the handoff.
	nowhere, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer nowhere.Close()
	client, _ := h.file.Stat()
	for fd, standard := range []*os.File{os.Stdin, os.Stdout, os.Stderr} {
		if status, err := standard.Stat(); err == nil && os.SameFile(status, client) {
			syscall.Dup3(int(nowhere.Fd()), fd, 0)
		}
	}
	return h, nil
}

// readEnvironment takes what a server of CGI, or baton receive, has put into the environment.
func (h *Handoff) readEnvironment(isSocket bool) {
	begins := []string{"AUTH_", "CONTENT_", "GATEWAY_INTERFACE=", "HANDOFF_", "HTTPS=", "HTTP_", "PATH_INFO=", "QUERY_STRING=",
		"REMOTE_", "REQUEST_", "SCRIPT_", "SERVER_"}
	h.isCGI, h.inherited = true, map[string]string{}
	for _, variable := range os.Environ() {
		if slices.ContainsFunc(begins, func(begin string) bool { return strings.HasPrefix(variable, begin) }) {
			name, value, _ := strings.Cut(variable, "=")
			h.inherited[name] = value
			if header, isHeader := strings.CutPrefix(name, "HTTP_"); isHeader {
				field := Field{strings.ToLower(strings.ReplaceAll(header, "_", "-")), value}
				h.metadata.Request.Headers = append(h.metadata.Request.Headers, field)
			}
		}
	}
	if id := h.inherited["HANDOFF_ID"]; id != "" {
		h.id = id
	}
	h.metadata.Request.Method, h.metadata.Request.Target = h.inherited["REQUEST_METHOD"], h.inherited["REQUEST_URI"]
	h.metadata.Response.HeadSent = h.inherited["HANDOFF_HEAD_SENT"] == "1"
	length, err := strconv.ParseUint(h.inherited["CONTENT_LENGTH"], 10, 64)
	switch {
	case err == nil:
		h.body.framing, h.body.remaining = "length", length
	case !isSocket:
		h.body.framing = "eof"
	case strings.EqualFold(h.inherited["HTTP_TRANSFER_ENCODING"], "chunked"):
		h.body.framing, h.body.at = "chunked", inSize
	}
}
