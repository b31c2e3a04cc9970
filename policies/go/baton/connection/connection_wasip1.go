package connection

import (
	"unsafe"

	"baton"
	"baton/internal/abi"
	"baton/internal/hook"
)

// 0 u8 action (0 accept, 1 reject, 2 handoff)   4 handoff   (72 bytes)
var answer [9]uint64

// What the answer points to, until the next question.
var held Action

// exportOnConnect is called with the fields of a connection one by one; those of both kinds of peers share their places.
//
//go:wasmexport on_connect
func exportOnConnect(listener, listenerLength, peerKind, peer0, peer1, peer2, peer3, local, localLength,
	hasSNI, sni, sniLength, alpn, alpnCount uint32) unsafe.Pointer {
	connection := Connection{
		Listener:     abi.String(listener, listenerLength),
		LocalAddress: abi.String(local, localLength),
		ALPN:         abi.List(alpn, alpnCount, 8, func(name abi.At) string { return name.String(0) }),
	}
	if peerKind == 0 {
		connection.Peer = baton.Peer{IP: abi.String(peer0, peer1), Port: uint16(peer2)}
	} else {
		unix := &baton.UnixPeer{UID: peer0, GID: peer1}
		if peer2 != 0 {
			unix.PID = peer3
		}
		connection.Peer.Unix = unix
	}
	if hasSNI != 0 {
		connection.SNI = abi.String(sni, sniLength)
	}
	abi.Begin()
	held = ask(connection)
	answer = [9]uint64{}
	room := abi.Place(unsafe.Pointer(&answer))
	switch action := held.(type) {
	case Reject:
		room.PutU8(0, 1)
	case Handoff:
		room.PutU8(0, 2)
		handoff := baton.Handoff(action)
		hook.Handoff(&handoff, room.Inside(4))
	}
	abi.End()
	return unsafe.Pointer(&answer)
}
