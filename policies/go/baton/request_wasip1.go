package baton

import (
	"runtime"
	"unsafe"

	"baton/internal/abi"
)

// Functions of the interface request, in the order of wit/policy.wit. No argument outlives its call, hence noescape. A
// string is passed as its address and its length.

//go:wasmimport baton:policy/request@0.1.0 id
//go:noescape
func importRequestID(result unsafe.Pointer)

func requestID() string {
	var result abi.Result
	abi.Room(0)
	importRequestID(result.Pointer())
	return result.At().String(0)
}

//go:wasmimport baton:policy/request@0.1.0 method
//go:noescape
func importRequestMethod(result unsafe.Pointer)

func requestMethod() string {
	var result abi.Result
	abi.Room(0)
	importRequestMethod(result.Pointer())
	return result.At().String(0)
}

//go:wasmimport baton:policy/request@0.1.0 request-target
//go:noescape
func importRequestTarget(result unsafe.Pointer)

func requestTarget() string {
	var result abi.Result
	abi.Room(0)
	importRequestTarget(result.Pointer())
	return result.At().String(0)
}

//go:wasmimport baton:policy/request@0.1.0 path
//go:noescape
func importRequestPath(result unsafe.Pointer)

func requestPath() string {
	var result abi.Result
	abi.Room(0)
	importRequestPath(result.Pointer())
	return result.At().String(0)
}

//go:wasmimport baton:policy/request@0.1.0 query
//go:noescape
func importRequestQuery(result unsafe.Pointer)

func requestQuery() (string, bool) {
	var result abi.Result
	abi.Room(0)
	importRequestQuery(result.Pointer())
	return result.At().OptionalString(0)
}

//go:wasmimport baton:policy/request@0.1.0 authority
//go:noescape
func importRequestAuthority(result unsafe.Pointer)

func requestAuthority() string {
	var result abi.Result
	abi.Room(0)
	importRequestAuthority(result.Pointer())
	return result.At().String(0)
}

//go:wasmimport baton:policy/request@0.1.0 scheme
//go:noescape
func importRequestScheme(result unsafe.Pointer)

func requestScheme() string {
	var result abi.Result
	abi.Room(0)
	importRequestScheme(result.Pointer())
	return result.At().String(0)
}

//go:wasmimport baton:policy/request@0.1.0 version
func importRequestVersion() uint32

func requestVersion() Version { return Version(importRequestVersion()) }

//go:wasmimport baton:policy/request@0.1.0 route
//go:noescape
func importRequestRoute(result unsafe.Pointer)

func requestRoute() (string, bool) {
	var result abi.Result
	abi.Room(0)
	importRequestRoute(result.Pointer())
	return result.At().OptionalString(0)
}

//go:wasmimport baton:policy/request@0.1.0 param
//go:noescape
func importRequestParam(name string, result unsafe.Pointer)

func requestParam(name string) (string, bool) {
	var result abi.Result
	abi.Room(0)
	importRequestParam(name, result.Pointer())
	return result.At().OptionalString(0)
}

//go:wasmimport baton:policy/request@0.1.0 header
//go:noescape
func importRequestHeader(name string, result unsafe.Pointer)

func requestHeader(name string) (string, bool) {
	var result abi.Result
	abi.Room(0)
	importRequestHeader(name, result.Pointer())
	return result.At().OptionalString(0)
}

//go:wasmimport baton:policy/request@0.1.0 header-all
//go:noescape
func importRequestHeaderAll(name string, result unsafe.Pointer)

func requestHeaderAll(name string) []string {
	var result abi.Result
	abi.Room(0)
	importRequestHeaderAll(name, result.Pointer())
	return abi.Elements(result.At(), 0, 8, func(value abi.At) string { return value.String(0) })
}

//go:wasmimport baton:policy/request@0.1.0 header-many
//go:noescape
func importRequestHeaderMany(names unsafe.Pointer, count uint32, result unsafe.Pointer)

func requestHeaderMany(names []string) []*string {
	var result abi.Result
	list, count := abi.Strings(names)
	abi.Room(answerBytes)
	importRequestHeaderMany(list, count, result.Pointer())
	runtime.KeepAlive(names)
	return abi.Elements(result.At(), 0, 12, func(value abi.At) *string {
		if text, ok := value.OptionalString(0); ok {
			return &text
		}
		return nil
	})
}

//go:wasmimport baton:policy/request@0.1.0 headers
//go:noescape
func importRequestHeaders(result unsafe.Pointer)

func requestHeaders() Fields {
	var result abi.Result
	abi.Room(answerBytes)
	importRequestHeaders(result.Pointer())
	return fieldsAt(result.At(), 0)
}

//go:wasmimport baton:policy/request@0.1.0 headers-raw
//go:noescape
func importRequestHeadersRaw(result unsafe.Pointer)

func requestHeadersRaw() []byte {
	var result abi.Result
	abi.Room(answerBytes)
	importRequestHeadersRaw(result.Pointer())
	return result.At().Bytes(0)
}

//go:wasmimport baton:policy/request@0.1.0 cookie
//go:noescape
func importRequestCookie(name string, result unsafe.Pointer)

func requestCookie(name string) (string, bool) {
	var result abi.Result
	abi.Room(0)
	importRequestCookie(name, result.Pointer())
	return result.At().OptionalString(0)
}

//go:wasmimport baton:policy/request@0.1.0 query-param
//go:noescape
func importRequestQueryParam(name string, result unsafe.Pointer)

func requestQueryParam(name string) (string, bool) {
	var result abi.Result
	abi.Room(0)
	importRequestQueryParam(name, result.Pointer())
	return result.At().OptionalString(0)
}

//go:wasmimport baton:policy/request@0.1.0 peer
//go:noescape
func importRequestPeer(result unsafe.Pointer)

func requestPeer() Peer {
	var result abi.Result
	abi.Room(0)
	importRequestPeer(result.Pointer())
	return peerAt(result.At())
}

// peerAt: u8 case (0 tcp, 1 unix); tcp: 4 ip   12 u16 port; unix: 4 uid   8 gid   12 option<u32> pid
func peerAt(at abi.At) Peer {
	if !at.Bool(0) {
		return Peer{IP: at.String(4), Port: at.U16(12)}
	}
	unix := &UnixPeer{UID: at.U32(4), GID: at.U32(8)}
	if at.Bool(12) {
		unix.PID = at.U32(16)
	}
	return Peer{Unix: unix}
}

//go:wasmimport baton:policy/request@0.1.0 client-ip
//go:noescape
func importRequestClientIP(result unsafe.Pointer)

func requestClientIP() string {
	var result abi.Result
	abi.Room(0)
	importRequestClientIP(result.Pointer())
	return result.At().String(0)
}

//go:wasmimport baton:policy/request@0.1.0 local-address
//go:noescape
func importRequestLocalAddress(result unsafe.Pointer)

func requestLocalAddress() string {
	var result abi.Result
	abi.Room(0)
	importRequestLocalAddress(result.Pointer())
	return result.At().String(0)
}

//go:wasmimport baton:policy/request@0.1.0 listener
//go:noescape
func importRequestListener(result unsafe.Pointer)

func requestListener() string {
	var result abi.Result
	abi.Room(0)
	importRequestListener(result.Pointer())
	return result.At().String(0)
}

//go:wasmimport baton:policy/request@0.1.0 tls
//go:noescape
func importRequestTLS(result unsafe.Pointer)

// requestTLS: option; 4 version   12 cipher   20 option sni   32 option alpn   44 client-verified
func requestTLS() *TLS {
	var result abi.Result
	abi.Room(0)
	importRequestTLS(result.Pointer())
	at := result.At()
	if !at.Bool(0) {
		return nil
	}
	tls := &TLS{Version: at.String(4), Cipher: at.String(12), ClientVerified: at.Bool(44)}
	tls.SNI, _ = at.OptionalString(20)
	tls.ALPN, _ = at.OptionalString(32)
	return tls
}

//go:wasmimport baton:policy/request@0.1.0 client-certificate
//go:noescape
func importRequestClientCertificate(result unsafe.Pointer)

func requestClientCertificate() []byte {
	var result abi.Result
	abi.Room(0)
	importRequestClientCertificate(result.Pointer())
	if at := result.At(); at.Bool(0) {
		return at.Bytes(4)
	}
	return nil
}

//go:wasmimport baton:policy/request@0.1.0 passability
func importRequestPassability() uint32

func requestPassability() Passable { return Passable(importRequestPassability()) }

//go:wasmimport baton:policy/request@0.1.0 content-length
//go:noescape
func importRequestContentLength(result unsafe.Pointer)

func requestContentLength() int64 {
	var result abi.Result
	importRequestContentLength(result.Pointer())
	if at := result.At(); at.Bool(0) {
		return int64(at.U64(8))
	}
	return -1
}

//go:wasmimport baton:policy/request@0.1.0 body-prefix
//go:noescape
func importRequestBodyPrefix(limit uint32, result unsafe.Pointer)

func requestBodyPrefix(limit int) ([]byte, error) {
	var result abi.Result
	limit = min(max(limit, 0), 1<<30)
	abi.Room(limit)
	importRequestBodyPrefix(uint32(limit), result.Pointer())
	at := result.At()
	if at.Bool(0) {
		return nil, bodyErrors[at.U8(4)]
	}
	return at.Bytes(4), nil
}

func fieldsAt(at abi.At, offset uintptr) Fields {
	return abi.Elements(at, offset, 16, func(field abi.At) [2]string { return [2]string{field.String(0), field.String(8)} })
}
