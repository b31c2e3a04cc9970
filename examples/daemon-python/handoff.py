"""Receives HTTP clients that a gateway hands over: the client's own socket, with what is known of its request.

    from handoff import Acceptor

    with Acceptor("/run/hello.sock") as acceptor:
        for handoff in acceptor:
            with handoff:
                handoff.respond(200, {"Content-Type": "text/plain"}, b"hello\\n")
                handoff.finish()

The standard library is enough, and Linux is needed. A thread of the acceptor's serves the gateways' channels, so that
they are answered while your own threads are busy. With asyncio it is `async for handoff in acceptor`, and each method
that may wait is awaited.

Until a handoff is *taken*, which the first read or write does, it is lent, and `refuse` gives it back untouched. From
then on the client is this process's: `finish` ends it, `give_back` returns it to the gateway for its next request. Leaving
the `with` block otherwise ends it too, and reports why.
"""

from __future__ import annotations

import array
import asyncio
import base64
import errno
import fcntl
import http
import io
import json
import logging
import math
import os
import select
import socket
import stat
import struct
import sys
import termios
import threading
import time
import uuid
from collections import deque
from typing import (Any, AsyncIterator, Callable, Deque, Dict, Generator, Iterable, Iterator, List, Mapping,
                    NamedTuple, Optional, Sequence, Set, Tuple, TypeVar, Union)

__all__ = ["Acceptor", "AsyncHandoff", "BodyError", "ChannelGone", "ClientGone", "Ended", "Handoff", "HandoffError",
           "Revoked", "Timeout"]

log = logging.getLogger("handoff")

DIALECTS = {"baton": socket.SOCK_SEQPACKET, "seqpacket": socket.SOCK_SEQPACKET, "stream": socket.SOCK_STREAM,
            "fdpass": socket.SOCK_STREAM, "datagram": socket.SOCK_DGRAM}
REASONS = {"denied": 403, "draining": 503, "overloaded": 503, "unsupported": 501}
RESULTS = ("ok", "client-gone", "error", "timeout", "revoked")

MAGIC, VERSION = 0xB7, 1
HELLO, HANDOFF, TAKEN, REFUSED, DONE, RETURN, LOAD, DRAINING, REVOKE, PING, PONG = range(1, 12)
FLAG_BODY, FLAG_DATA, FLAG_PREREAD, FLAG_OPTIONAL = 0x01, 0x02, 0x04, 0x80
HEADER = struct.Struct("<BBBBIQ")
PACKET_BYTES_MAX = 128 << 10
# As many as can come in one message: in a smaller buffer, strays would leak.
DESCRIPTORS_MAX = 253
ANCILLARY_BYTES = socket.CMSG_SPACE(DESCRIPTORS_MAX * 4) + socket.CMSG_SPACE(12)
# Frames that a gateway has not read, at most: one that asks and never reads is dropped.
UNSENT_FRAMES_MAX = 4096
# Connections whose message has not arrived yet, at most; more wait in the backlog.
INCOMING_MAX = 64
# From the connection to a message that is whole, or a channel's HELLO.
RECEIVE_TIMEOUT_S = 5.0
# How long a finished client may take to read the rest and to close.
CLOSE_PATIENCE_S = 2.0
# A handler that waits for its client looks as often whether it was revoked.
REVOKED_LOOK_S = 0.2
# After descriptors have run out, nothing is received for so long.
EXHAUSTED_PAUSE_S = 0.05
# What is read of a body to give a client back; a longer rest ends the connection instead.
DISCARDED_BYTES_MAX = 64 << 10
PREREAD_BYTES_MAX = 16 << 20
CHUNK_LINE_BYTES_MAX = 16 << 10
TRAILER_BYTES_MAX = 16 << 10
READ_BYTES = 64 << 10
# execve(2) takes strings of 128 KiB, the name, `=` and the final NUL included.
VARIABLE_BYTES_MAX = (128 << 10) - len("HANDOFF_DATA=\0")

T = TypeVar("T")
Headers = Union[Mapping[str, str], Iterable[Tuple[str, str]]]
# What waits is written once, as a generator that yields (descriptor or -1, poll events, seconds) and is told whether it
# is ready: threads poll for it, asyncio waits.
Steps = Generator[Tuple[int, int, float], bool, T]


class HandoffError(OSError):
    """Something about a handoff failed."""


class BodyError(HandoffError):
    """The request's body is not framed as announced."""


class Ended(HandoffError):
    """The handoff is over, and there is nothing left to do. A `with` block reports it and goes on behind the block."""

    result = "error"


class ClientGone(Ended):
    """The client has left."""

    result = "client-gone"


class Timeout(Ended):
    """The client neither read nor wrote for too long."""

    result = "timeout"


class Revoked(Ended):
    """The gateway asked to end it."""

    result = "revoked"


class ChannelGone(Ended):
    """The gateway left before the handoff was taken: the client is not ours and was not touched."""


# --- frames: bytes to values and back ---


class ProtocolError(Exception):
    """Nothing behind it on this channel can be trusted."""


class Frame(NamedTuple):
    kind: int
    flags: int
    id: int
    payload: bytes

    def descriptors(self) -> int:
        if self.kind != HANDOFF:
            return 0
        return 1 + sum(bool(self.flags & flag) for flag in (FLAG_BODY, FLAG_DATA, FLAG_PREREAD))


def encode(kind: int, handoff_id: int = 0, payload: bytes = b"") -> bytes:
    return HEADER.pack(MAGIC, VERSION, kind, 0, len(payload), handoff_id) + payload


def encode_json(kind: int, handoff_id: int, **members: Any) -> bytes:
    present = {name: value for name, value in members.items() if value is not None}
    return encode(kind, handoff_id, json.dumps(present, separators=(",", ":")).encode())


def decode(packet: bytes) -> List[Frame]:
    """All frames of a packet, one or more; their lengths add up to it."""
    frames: List[Frame] = []
    start = 0
    while start < len(packet) or not frames:
        if len(packet) - start < HEADER.size:
            raise ProtocolError(f"{len(packet) - start} bytes, which are no header")
        magic, version, kind, flags, length, handoff_id = HEADER.unpack_from(packet, start)
        start += HEADER.size
        if magic != MAGIC:
            raise ProtocolError(f"a frame that begins with {magic:#04x}")
        if version != VERSION:
            raise ProtocolError(f"version {version}")
        if length > len(packet) - start:
            raise ProtocolError(f"{len(packet) - start} bytes behind a header that says {length}")
        frames.append(Frame(kind, flags, handoff_id, packet[start:start + length]))
        start += length
    return frames


def decode_sections(payload: bytes, count: int) -> List[bytes]:
    """Exactly so many, each a length of four bytes and so many bytes."""
    sections, start = [], 0
    for _ in range(count):
        if len(payload) - start < 4:
            raise ProtocolError(f"a payload of {len(payload)} bytes that is not {count} sections")
        end = start + 4 + int.from_bytes(payload[start:start + 4], "little")
        if end > len(payload):
            raise ProtocolError(f"a section that ends {end - len(payload)} bytes behind its frame")
        sections.append(payload[start + 4:end])
        start = end
    if start != len(payload):
        raise ProtocolError(f"{len(payload) - start} bytes behind the last section")
    return sections


def decode_object(payload: bytes) -> Dict[str, Any]:
    try:
        value = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"no JSON: {error}") from None
    if not isinstance(value, dict):
        raise ProtocolError("no JSON object")
    return value


def text_of(value: Any) -> str:
    """A header's value: text, or `{"base64":..}` where it is not UTF-8; its bytes are kept as the file system's are."""
    if isinstance(value, dict):
        try:
            return os.fsdecode(base64.b64decode(value["base64"]))
        except (KeyError, TypeError, ValueError):
            return ""
    return value if isinstance(value, str) else ""


def cut_text(text: Optional[str]) -> Optional[str]:
    """What is for people may be as long as a frame bears."""
    return None if text is None else text.encode("utf-8", "replace")[:1024].decode("utf-8", "ignore")


# --- descriptors ---


class Received(NamedTuple):
    bytes: bytes
    descriptors: List[int]
    is_truncated: bool
    uid: Optional[int]
    gid: Optional[int]


def receive(connection: socket.socket, bytes_max: int) -> Received:
    """Receives once, and adopts every descriptor before anything is judged."""
    data, ancillary, flags, _ = connection.recvmsg(bytes_max, ANCILLARY_BYTES,
                                                   socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT)
    descriptors, uid, gid = array.array("i"), None, None
    for level, kind, value in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            descriptors.frombytes(value[:len(value) // 4 * 4])
        elif (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS) and len(value) >= 12:
            _, uid, gid = struct.unpack("iII", value[:12])
    return Received(data, list(descriptors), bool(flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC)), uid, gid)


def close_all(descriptors: Iterable[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def is_stream_socket(descriptor: int) -> bool:
    try:
        borrowed = socket.socket(fileno=descriptor)
    except OSError:
        return False
    try:
        return borrowed.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE) == socket.SOCK_STREAM
    finally:
        borrowed.detach()


def bytes_of_memfd(descriptor: int, bytes_max: int) -> Optional[bytes]:
    """All of it, unless it is longer. The gateway may hold the same open file: its position is left alone."""
    size = os.fstat(descriptor).st_size
    if size > bytes_max:
        return None
    data = bytearray()
    while len(data) < size:
        part = os.pread(descriptor, size - len(data), len(data))
        if not part:
            raise ProtocolError("a memfd that shrinks")
        data += part
    return bytes(data)


def bytes_written(client: socket.socket) -> Optional[int]:
    """What the kernel has ever taken for this connection: acknowledged, and still queued. Only TCP knows."""
    try:
        info = client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 128)
        acknowledged = struct.unpack_from("Q", info, 120)[0]
        queued = struct.unpack("i", fcntl.ioctl(client, termios.TIOCOUTQ, b"\0" * 4))[0]
    except (OSError, struct.error):
        return None
    return acknowledged + queued


# --- waiting ---


def run(steps: Steps[T]) -> T:
    """Lets this thread wait."""
    try:
        descriptor, events, seconds = next(steps)
        while True:
            poll = select.poll()
            if descriptor >= 0:
                poll.register(descriptor, events)
            descriptor, events, seconds = steps.send(bool(poll.poll(math.ceil(seconds * 1000))))
    except StopIteration as end:
        return end.value


async def run_async(steps: Steps[T]) -> T:
    """Lets the event loop wait. When the task is cancelled, the steps are closed where they are."""
    try:
        descriptor, events, seconds = next(steps)
        while True:
            descriptor, events, seconds = steps.send(await ready(descriptor, events, seconds))
    except StopIteration as end:
        return end.value
    finally:
        steps.close()


async def ready(descriptor: int, events: int, seconds: float) -> bool:
    if descriptor < 0:
        await asyncio.sleep(seconds)
        return False
    loop = asyncio.get_running_loop()
    add, remove = ((loop.add_writer, loop.remove_writer) if events & select.POLLOUT
                   else (loop.add_reader, loop.remove_reader))
    is_ready = asyncio.Event()
    add(descriptor, is_ready.set)
    try:
        await asyncio.wait_for(is_ready.wait(), seconds)
        return True
    except asyncio.TimeoutError:
        return False
    finally:
        # A registration belongs to the open file, which others may hold on: it must not outlive the wait.
        remove(descriptor)


# --- one client ---


class Exchange:
    """A client and all that is known of it; `Handoff` and `AsyncHandoff` are its two faces."""

    LENT, OURS, OVER = range(3)

    def __init__(self, acceptor: Acceptor, client: Optional[socket.socket], *, channel: Optional[Channel] = None,
                 number: int = 0, metadata: Optional[Dict[str, Any]] = None, data: bytes = b"", preread: bytes = b"",
                 body: Optional[int] = None, head_sent: bool = False, source: Optional[int] = None,
                 output: Optional[int] = None, environment: Optional[Dict[str, str]] = None) -> None:
        self.acceptor, self.client, self.channel, self.number = acceptor, client, channel, number
        # Where a program was started for one client, the body may come, and the answer may go, another way.
        self.source, self.output, self.environment = source, output, environment
        self.metadata: Dict[str, Any] = metadata if metadata is not None else {}
        self.data, self.memfd = data, body
        self.id = str(self.metadata.get("id") or uuid.uuid4().hex)
        self.request = self.section("request")
        headers = self.request.get("headers")
        self.headers = [(str(pair[0]), text_of(pair[1])) for pair in (headers if isinstance(headers, list) else ())
                        if isinstance(pair, list) and len(pair) == 2]
        self.head_sent = head_sent or self.section("response").get("head_sent") is True
        # What stands before the socket's bytes; the head, where it was included, is known from the rest.
        head_bytes = self.request.get("head_bytes")
        self.is_head_known = head_bytes is None or isinstance(head_bytes, int) and 0 <= head_bytes <= len(preread)
        self.unread = bytearray(preread[head_bytes if head_bytes and self.is_head_known else 0:])
        framing = self.section("body")
        self.framing = framing.get("framing", "none")
        self.length = framing.get("remaining", 0) if self.framing == "length" else 0
        self.remaining = self.length
        self.memfd_read = 0
        self.chunk_state = "size"
        self.wants_continue = ("100-continue" in (self.header("expect") or "").lower()
                               and self.framing in ("length", "chunked") and self.request.get("version") != "1.0")
        self.patience = CLOSE_PATIENCE_S
        self.state, self.revoked_for = Exchange.LENT, None  # type: int, Optional[str]
        self.taken_at, self.bytes_out, self.bytes_before = 0.0, 0, None  # type: float, int, Optional[int]
        self.status: Optional[int] = None
        self.is_whole = self.keeps_alive = self.is_head_only = self.is_released = False

    def is_framing_known(self) -> bool:
        return (self.is_head_known and self.framing in ("none", "length", "chunked", "memfd") and isinstance(self.length, int)
                and self.length >= 0 and (self.framing == "memfd") == (self.memfd is not None))

    def section(self, name: str) -> Dict[str, Any]:
        value = self.metadata.get(name)
        return value if isinstance(value, dict) else {}

    def header(self, name: str, default: Optional[str] = None) -> Optional[str]:
        name = name.lower()
        return next((value for key, value in self.headers if key == name), default)

    def role(self) -> str:
        role = self.section("metadata").get("role")
        return role if isinstance(role, str) else ""

    # --- owning ---

    def take(self) -> Steps[None]:
        if self.state == Exchange.OURS:
            return
        if self.state == Exchange.OVER:
            raise HandoffError("the handoff is over")
        if self.channel is not None:
            frame, end = encode(TAKEN, self.number), time.monotonic() + self.acceptor.write_timeout
            # It must be known to have been sent before the client is touched.
            while not (is_sent := self.channel.send_now(frame)):
                if is_sent is False or time.monotonic() > end:
                    self.over()
                    raise ChannelGone("the gateway has left")
                yield -1, 0, 0.01
        self.state, self.taken_at = Exchange.OURS, time.monotonic()

    def refuse(self, reason: str, retry_after_s: Optional[int], message: Optional[str]) -> Steps[None]:
        if reason not in REASONS:
            raise ValueError(f"{reason!r} is none of {', '.join(REASONS)}")
        if self.state != Exchange.LENT:
            raise HandoffError("only a handoff that was not taken can be refused")
        if self.channel is not None:
            # Our copy first: once the gateway hears of it, there is no other.
            self.close()
            self.acceptor.release(self)
            self.channel.send(encode_json(REFUSED, self.number, reason=reason, retry_after_s=retry_after_s,
                                          message=cut_text(message)))
            self.over()
            return
        self.state, self.taken_at = Exchange.OURS, time.monotonic()
        try:
            if not self.head_sent:
                retry_after = str(1 if retry_after_s is None else retry_after_s)
                fields = {"Retry-After": retry_after} if REASONS[reason] == 503 else {}
                yield from self.respond(REASONS[reason], fields, b"", False)
            yield from self.finish(None, "ok" if self.is_whole else "error", None)
        except Ended:
            pass
        finally:
            self.over()

    def abandon(self) -> None:
        """Ends what nobody finished."""
        self.patience = 0.0
        if self.state == Exchange.LENT:
            run(self.refuse("overloaded", None, None))
        else:
            self.end(None, "error", "not finished")

    def close(self) -> None:
        client, self.client = self.client, None
        if client is not None:
            client.close()
        memfd, self.memfd = self.memfd, None
        if memfd is not None:
            os.close(memfd)

    def over(self) -> None:
        """Closes what is left and gives the credit back, once."""
        self.close()
        if self.state != Exchange.OVER:
            self.state = Exchange.OVER
            self.acceptor.release(self)
            self.acceptor.forget(self)

    # --- reading ---

    def look(self) -> None:
        if self.revoked_for is not None:
            raise Revoked(self.revoked_for or "the gateway asked to end it")

    def wait(self, events: int, seconds: float, what: str) -> Steps[None]:
        end = time.monotonic() + seconds
        way = self.output if events & select.POLLOUT else self.source
        descriptor = self.open().fileno() if way is None else way
        while True:
            self.look()
            left = end - time.monotonic()
            if left <= 0:
                raise Timeout(f"{what} for {seconds:g} s")
            if (yield descriptor, events, min(left, REVOKED_LOOK_S)):
                return

    def open(self) -> socket.socket:
        if self.client is None:
            raise HandoffError("there is no socket")
        return self.client

    def arrive(self, bytes_max: int) -> Steps[bytes]:
        """Some of what the client sent; nothing at its end."""
        if self.unread:
            data = bytes(self.unread[:bytes_max])
            del self.unread[:bytes_max]
            return data
        if self.wants_continue:
            self.wants_continue = False
            if self.bytes_out == 0 and not self.head_sent:
                yield from self.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        while True:
            try:
                if self.source is not None:
                    yield from self.wait(select.POLLIN, self.acceptor.body_timeout, "nothing of the body arrived")
                    return os.read(self.source, bytes_max)
                return self.open().recv(bytes_max, socket.MSG_DONTWAIT)
            except BlockingIOError:
                yield from self.wait(select.POLLIN, self.acceptor.body_timeout, "nothing of the body arrived")
            except OSError as error:
                if isinstance(error, HandoffError):
                    raise
                raise ClientGone(f"within the body: {error}") from None

    def read(self, bytes_max: int) -> Steps[bytes]:
        """Some of the body, its framing taken off; nothing at its end."""
        yield from self.take()
        self.look()
        if self.framing == "memfd":
            data = os.pread(self.memfd, bytes_max, self.memfd_read) if self.memfd is not None else b""
            self.memfd_read += len(data)
            return data
        if self.framing == "chunked":
            return (yield from self.read_chunked(bytes_max))
        if self.framing == "until-end":
            return (yield from self.arrive(bytes_max))
        if self.remaining == 0:
            return b""
        return (yield from self.read_counted(bytes_max))

    def read_counted(self, bytes_max: int) -> Steps[bytes]:
        data = yield from self.arrive(min(bytes_max, self.remaining))
        if not data:
            raise ClientGone(f"the body ends {self.remaining} bytes early")
        self.remaining -= len(data)
        return data

    def read_chunked(self, bytes_max: int) -> Steps[bytes]:
        while self.chunk_state != "end":
            if self.chunk_state == "size":
                line = yield from self.line(CHUNK_LINE_BYTES_MAX)
                digits = line.split(b";")[0].strip(b" \t")
                if not 0 < len(digits) <= 16 or digits.strip(b"0123456789abcdefABCDEF"):
                    raise BodyError(f"a chunk's size {digits[:20]!r}")
                self.remaining = int(digits, 16)
                self.chunk_state = "data" if self.remaining else "trailer"
            elif self.chunk_state == "data":
                data = yield from self.read_counted(bytes_max)
                if self.remaining == 0:
                    self.chunk_state = "data's end"
                return data
            elif self.chunk_state == "data's end":
                if (yield from self.line(0)):
                    raise BodyError("a chunk that is longer than its size")
                self.chunk_state = "size"
            else:
                bytes_left = TRAILER_BYTES_MAX
                while line := (yield from self.line(bytes_left)):
                    bytes_left -= len(line)
                self.chunk_state = "end"
        return b""

    def line(self, bytes_max: int) -> Steps[bytes]:
        """A line without its end. What was read behind it stays in `unread`."""
        while (end := self.unread.find(b"\n")) < 0:
            if len(self.unread) > bytes_max + 1:
                raise BodyError(f"a line of more than {bytes_max} bytes between chunks")
            known, self.unread = self.unread, bytearray()
            try:
                more = yield from self.arrive(READ_BYTES)
            finally:
                self.unread[:0] = known
            if not more:
                raise ClientGone("the body ends between chunks")
            self.unread += more
        line = bytes(self.unread[:end])
        line = line[:-1] if line.endswith(b"\r") else line
        if len(line) > bytes_max:
            raise BodyError(f"a line of more than {bytes_max} bytes between chunks")
        del self.unread[:end + 1]
        return line

    def is_read(self) -> bool:
        return self.framing in ("none", "memfd") or (
            self.chunk_state == "end" if self.framing == "chunked" else self.remaining == 0)

    def client_gone(self) -> bool:
        if self.state == Exchange.OVER:
            return True
        client = self.open().fileno() if self.output is None else self.output
        poll = select.poll()
        poll.register(client, select.POLLIN | select.POLLRDHUP)
        events = poll.poll(0)
        if not events:
            return False
        if events[0][1] & (select.POLLERR | select.POLLHUP | select.POLLNVAL):
            return True
        # With bytes unread, the client is still talking. They are counted, not peeked at: it may be the gateway's yet.
        if self.unread or not events[0][1] & select.POLLRDHUP:
            return False
        return fcntl.ioctl(client, termios.FIONREAD, b"\0" * 4) == b"\0" * 4

    def gone(self, seconds: Optional[float]) -> Steps[bool]:
        """Waits until there is nobody to write to any more: the client left, or it was revoked."""
        end = math.inf if seconds is None else time.monotonic() + seconds
        while not (self.client_gone() or self.revoked_for is not None):
            left = end - time.monotonic()
            if left <= 0:
                return False
            yield -1, 0, min(left, REVOKED_LOOK_S / 4)
        return True

    # --- writing ---

    def write(self, data: Any) -> Steps[None]:
        yield from self.take()
        if self.is_whole:
            raise HandoffError("the response is whole")
        if self.is_head_only:
            return
        left = memoryview(data).cast("B")
        while left:
            self.look()
            try:
                if self.output is not None:
                    yield from self.wait(select.POLLOUT, self.acceptor.write_timeout, "the client took nothing")
                    sent = os.write(self.output, left[:4096])
                else:
                    sent = self.open().send(left, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            except BlockingIOError:
                yield from self.wait(select.POLLOUT, self.acceptor.write_timeout, "the client took nothing")
                continue
            except HandoffError:
                raise
            except OSError as error:
                raise ClientGone(str(error)) from None
            self.bytes_out += sent
            left = left[sent:]

    def may_keep_alive(self) -> bool:
        connection = (self.header("connection") or "").lower()
        return ("close" not in connection and self.request.get("version") != "1.0" and self.can_return()
                and not self.wants_continue and (self.framing == "chunked" or self.remaining <= DISCARDED_BYTES_MAX))

    def can_return(self) -> bool:
        is_alive = self.channel is not None and not self.channel.has_ended
        return is_alive and not self.head_sent and self.client is not None

    def head(self, status: int, headers: Headers, *own: Tuple[str, str]) -> bytes:
        try:
            phrase = http.HTTPStatus(status).phrase
        except ValueError:
            phrase = ""
        if not 200 <= status <= 599:
            raise ValueError(f"{status} is no final status")
        lines = [f"HTTP/1.1 {status} {phrase}"]
        taken = {name.lower() for name, _ in own}
        for name, value in (*(headers.items() if isinstance(headers, Mapping) else headers), *own):
            if any(c in f"{name}{value}" for c in "\r\n\0") or not name or ":" in name or " " in name:
                raise ValueError(f"{name!r} cannot be a header")
            if name.lower() in taken and (name, value) not in own:
                raise ValueError(f"{name} is written by this library")
            lines.append(f"{name}: {value}")
        return "\r\n".join((*lines, "", "")).encode("utf-8", "surrogateescape")

    def respond(self, status: int, headers: Headers, body: bytes, keep_alive: bool) -> Steps[None]:
        yield from self.take()
        self.begin(status)
        keeps_alive = keep_alive and self.may_keep_alive()
        has_body = status not in (204, 304)
        own = [("Content-Length", str(len(body)))] if has_body else []
        own.append(("Connection", "keep-alive" if keeps_alive else "close"))
        head = b"" if self.head_sent else self.head(status, headers, *own)
        self.keeps_alive = keeps_alive
        yield from self.write(head + (bytes(body) if has_body and self.request.get("method") != "HEAD" else b""))
        self.is_whole = True

    def start(self, status: int, headers: Headers) -> Steps[None]:
        yield from self.take()
        self.begin(status)
        if not self.head_sent:
            yield from self.write(self.head(status, headers, ("Connection", "close")))
            self.is_head_only = self.request.get("method") == "HEAD" or status in (204, 304)

    def begin(self, status: int) -> None:
        if self.status is not None or self.is_whole:
            raise HandoffError("the response was begun before")
        # The answer is final: the client need not be told to send its body.
        self.status = status

    # --- ending ---

    def finish(self, status: Optional[int], result: str, message: Optional[str]) -> Steps[None]:
        if result not in RESULTS:
            raise ValueError(f"{result!r} is none of {', '.join(RESULTS)}")
        yield from self.take()
        try:
            # What ends with the connection must not look whole when it is not.
            if self.client is not None and (self.is_whole or result in ("ok", "revoked")):
                self.count()
                yield from self.close_gracefully()
        finally:
            self.end(status, result, message)

    def close_gracefully(self) -> Steps[None]:
        """Bytes unread at a close reset the connection, which can destroy the answer: so it reads for a moment."""
        try:
            client = self.open()
            client.shutdown(socket.SHUT_WR)
            end = time.monotonic() + self.patience
            while True:
                try:
                    if not client.recv(READ_BYTES, socket.MSG_DONTWAIT):
                        return
                except BlockingIOError:
                    if not (yield client.fileno(), select.POLLIN, max(0.0, end - time.monotonic())):
                        return
                if time.monotonic() >= end:
                    return
        except OSError:
            pass

    def count(self) -> None:
        """Where the program wrote to the socket itself, only the kernel knows how much."""
        if self.bytes_before is not None and self.client is not None:
            now = bytes_written(self.client)
            if now is not None:
                self.bytes_out, self.bytes_before = max(self.bytes_out, now - self.bytes_before), None

    def report(self, status: Optional[int], result: str, message: Optional[str]) -> Dict[str, Any]:
        status = None if self.head_sent else status if status is not None else self.status
        return {"status": status, "bytes_out": self.bytes_out, "result": result, "message": cut_text(message),
                "duration_us": round((time.monotonic() - self.taken_at) * 1e6)}

    def end(self, status: Optional[int], result: str, message: Optional[str]) -> None:
        """Closes, then says so."""
        if self.state == Exchange.OVER:
            return
        self.count()
        is_cut = (self.bytes_out or self.head_sent) and not self.is_whole and result not in ("ok", "revoked")
        if is_cut and self.client is not None:
            try:
                self.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            except OSError:
                pass
        self.close()
        self.acceptor.release(self)
        if self.channel is not None:
            self.channel.send(encode_json(DONE, self.number, **self.report(status, result, message)))
        self.over()

    def give_back(self, status: Optional[int]) -> Steps[None]:
        yield from self.take()
        if not (self.is_whole and self.keeps_alive and self.can_return() and (yield from self.discard())):
            yield from self.finish(status, "ok", None)
            return
        report = json.dumps({key: value for key, value in self.report(status, "ok", None).items() if value is not None},
                            separators=(",", ":")).encode()
        payload = b"".join(struct.pack("<I", len(part)) + part for part in (report, bytes(self.unread)))
        client, self.client = self.client, None
        self.acceptor.release(self)
        assert self.channel is not None, "can_return was asked"
        self.channel.send(encode(RETURN, self.number, payload), client)
        self.over()

    def discard(self) -> Steps[bool]:
        """Reads the rest of the body, so that the next request is what follows; not when that is too much."""
        discarded = 0
        try:
            while not self.is_read() and discarded <= DISCARDED_BYTES_MAX:
                discarded += len((yield from self.read(READ_BYTES)))
        except HandoffError:
            return False
        return self.is_read() and len(self.unread) <= PACKET_BYTES_MAX - 4096

    # --- describing ---

    def env(self) -> Dict[str, str]:
        """What is known of the client as CGI variables (RFC 3875)."""
        if self.environment is not None:
            return dict(self.environment)
        variables = {"GATEWAY_INTERFACE": "CGI/1.1", "SERVER_SOFTWARE": "baton", "HANDOFF_ID": self.id,
                     "HANDOFF_ROLE": self.role() or "responder"}
        if self.head_sent:
            variables["HANDOFF_HEAD_SENT"] = "1"
        if self.request:
            self.env_of_request(variables)
        client, server = self.section("client"), self.section("server")
        addresses = {"REMOTE_ADDR": client.get("ip"), "REMOTE_PORT": client.get("port"),
                     "SERVER_NAME": server.get("ip"), "SERVER_PORT": server.get("port")}
        if not self.metadata:
            addresses = self.env_of_socket()
        for name, value in addresses.items():
            if value is not None and variables.get(name) is None:
                variables[name] = f"[{value}]" if name == "SERVER_NAME" and ":" in str(value) else str(value)
        if len(self.data) <= VARIABLE_BYTES_MAX and b"\0" not in self.data:
            variables["HANDOFF_DATA"] = os.fsdecode(self.data)
        return variables

    def env_of_request(self, variables: Dict[str, str]) -> None:
        request = {name: value if isinstance(value, str) else text_of(value) for name, value in self.request.items()}
        target = request.get("target", "")
        variables.update(REQUEST_METHOD=request.get("method", ""), REQUEST_URI=target,
                         QUERY_STRING=target.partition("?")[2], SERVER_PROTOCOL=f"HTTP/{request.get('version', '1.1')}")
        if request.get("scheme") == "https" or self.section("tls"):
            variables["HTTPS"] = "on"
        host = request.get("authority", "")
        if not host.endswith("]"):
            host = host.rpartition(":")[0] if ":" in host else host
        if host:
            variables["SERVER_NAME"] = host
        if self.memfd is not None:
            variables["CONTENT_LENGTH"] = str(os.fstat(self.memfd).st_size)
        elif self.framing == "length":
            variables["CONTENT_LENGTH"] = str(self.length)
        for name, value in self.headers:
            if name == "content-type":
                variables.setdefault("CONTENT_TYPE", value)
            elif name == "content-length":
                variables.setdefault("CONTENT_LENGTH", value)
            elif name != "proxy" and "_" not in name:  # HTTP_PROXY is what programs ask for their own proxy
                name = "HTTP_" + name.upper().replace("-", "_")
                joint = "; " if name == "HTTP_COOKIE" else ", "
                variables[name] = variables[name] + joint + value if name in variables else value

    def env_of_socket(self) -> Dict[str, Any]:
        try:
            client = self.open()
            remote, local = client.getpeername(), client.getsockname()
        except OSError:
            return {}
        if client.family not in (socket.AF_INET, socket.AF_INET6):
            return {}
        plain = [address[0][7:] if address[0].startswith("::ffff:") and "." in address[0] else address[0]
                 for address in (remote, local)]
        return {"REMOTE_ADDR": plain[0], "REMOTE_PORT": remote[1], "SERVER_NAME": plain[1], "SERVER_PORT": local[1]}


# --- the two faces of a client ---


class Described:
    """What both faces tell without waiting."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    def __del__(self) -> None:
        exchange = getattr(self, "_exchange", None)
        if exchange is not None and exchange.state != Exchange.OVER:
            exchange.acceptor.abandon(exchange)

    @property
    def id(self) -> str:
        """The gateway's name for this request; made up where it has sent none."""
        return self._exchange.id

    @property
    def data(self) -> bytes:
        """What the policy or the application sent along; in the dialect `datagram` the request's head."""
        return self._exchange.data

    @property
    def metadata(self) -> Dict[str, Any]:
        """All that the gateway told; empty but in the dialect `baton`."""
        return self._exchange.metadata

    @property
    def role(self) -> str:
        """What the policy wants this daemon to be, or nothing."""
        return self._exchange.role()

    @property
    def method(self) -> str:
        """The request's, empty where it is not known."""
        return text_of(self._exchange.request.get("method"))

    @property
    def target(self) -> str:
        """The request's path and query as the client sent them, empty where it is not known."""
        return text_of(self._exchange.request.get("target"))

    @property
    def headers(self) -> List[Tuple[str, str]]:
        """In order, with repeats, names in lower case; what is not UTF-8 is as `os.fsdecode` has it."""
        return list(self._exchange.headers)

    def header(self, name: str, default: Optional[str] = None) -> Optional[str]:
        """The first header of that name."""
        return self._exchange.header(name, default)

    @property
    def head_sent(self) -> bool:
        """Whether the gateway has written the response's head, so that what is written now is its body."""
        return self._exchange.head_sent

    def env(self) -> Dict[str, str]:
        """CGI variables (RFC 3875) and HANDOFF_DATA, HANDOFF_ID, HANDOFF_ROLE: a dictionary of your own."""
        return self._exchange.env()

    @property
    def bytes_out(self) -> int:
        """Written to the client so far."""
        return self._exchange.bytes_out

    def client_gone(self) -> bool:
        """Whether the client has left, without writing. One that only ended its sending side looks the same; one with
        bytes unread is not gone."""
        return self._exchange.client_gone()

    def revoked(self) -> bool:
        """Whether the gateway asked to end it; then the next write fails."""
        return self._exchange.revoked_for is not None

    @property
    def socket(self) -> socket.socket:
        """The client's own socket, non-blocking as the gateway had it; taken by asking for it."""
        run(self._exchange.take())
        client = self._exchange.open()
        if self._exchange.bytes_before is None:
            written = bytes_written(client)
            self._exchange.bytes_before = None if written is None else written - self._exchange.bytes_out
        return client


class Handoff(Described):
    """A client that was handed over, for threads."""

    def __init__(self, exchange: Exchange) -> None:
        super().__init__(exchange)
        self._body: Optional[io.BufferedReader] = None

    def __enter__(self) -> Handoff:
        return self

    def __exit__(self, kind: Any, error: Any, _traceback: Any) -> bool:
        if self._exchange.state == Exchange.OVER:
            return isinstance(error, Ended)
        if error is None or self._exchange.state == Exchange.LENT:
            self._exchange.abandon()
        else:
            self._exchange.end(None, *outcome(error))
        return isinstance(error, Ended)

    def refuse(self, reason: str = "overloaded", retry_after_s: Optional[int] = None,
               message: Optional[str] = None) -> None:
        """Gives it back untouched; only before it was taken. Other dialects than `baton` cannot: there the client is
        answered 503, or 403 for `denied`, 501 for `unsupported`."""
        run(self._exchange.refuse(reason, retry_after_s, message))

    def take(self) -> None:
        """Takes it, as the first read or write does. Raises `ChannelGone` when that is too late."""
        run(self._exchange.take())

    @property
    def body(self) -> io.BufferedReader:
        """The request's body, decoded: reads end with it. A body that is cut raises `ClientGone`."""
        if self._body is None:
            self._body = io.BufferedReader(Body(self._exchange), READ_BYTES)
        return self._body

    def write(self, data: Any) -> int:
        """Writes all of it. Raises `ClientGone`, `Timeout` or `Revoked`."""
        run(self._exchange.write(data))
        return len(data)

    def respond(self, status: int, headers: Headers = (), body: bytes = b"", keep_alive: bool = False) -> None:
        """Writes a whole response. `keep_alive` is for those that are given back; it says `close` where they cannot be."""
        run(self._exchange.respond(status, headers, body, keep_alive))

    def start(self, status: int, headers: Headers = ()) -> None:
        """Writes a response's head. The body is what is written until the end."""
        run(self._exchange.start(status, headers))

    def gone(self, timeout: Optional[float] = None) -> bool:
        """Waits until the client left or the handoff is revoked; whether that came in time."""
        return run(self._exchange.gone(timeout))

    def finish(self, status: Optional[int] = None, result: str = "ok", message: Optional[str] = None) -> None:
        """Closes the client so that it gets everything that was written, and reports to the gateway. With another result
        than `ok` and `revoked`, a response that is not whole is reset, so that it does not look whole."""
        run(self._exchange.finish(status, result, message))

    def give_back(self, status: Optional[int] = None) -> None:
        """Returns the client to the gateway for its next request, or finishes where that cannot be."""
        run(self._exchange.give_back(status))


def outcome(error: BaseException) -> Tuple[str, str]:
    return (error.result if isinstance(error, Ended) else "error"), str(error) or type(error).__name__


class Body(io.RawIOBase):
    """A body's bytes for `io.BufferedReader`."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = run(self._exchange.read(len(buffer)))
        buffer[:len(data)] = data
        return len(data)


class AsyncHandoff(Described):
    """A client that was handed over, for asyncio: what is said at `Handoff` goes for each method."""

    async def __aenter__(self) -> AsyncHandoff:
        return self

    async def __aexit__(self, kind: Any, error: Any, traceback: Any) -> bool:
        return Handoff.__exit__(self, kind, error, traceback)  # type: ignore[arg-type]

    async def refuse(self, reason: str = "overloaded", retry_after_s: Optional[int] = None,
                     message: Optional[str] = None) -> None:
        await run_async(self._exchange.refuse(reason, retry_after_s, message))

    async def take(self) -> None:
        await run_async(self._exchange.take())

    @property
    def body(self) -> AsyncBody:
        return AsyncBody(self._exchange)

    async def write(self, data: Any) -> int:
        await run_async(self._exchange.write(data))
        return len(data)

    async def respond(self, status: int, headers: Headers = (), body: bytes = b"", keep_alive: bool = False) -> None:
        await run_async(self._exchange.respond(status, headers, body, keep_alive))

    async def start(self, status: int, headers: Headers = ()) -> None:
        await run_async(self._exchange.start(status, headers))

    async def gone(self, timeout: Optional[float] = None) -> bool:
        return await run_async(self._exchange.gone(timeout))

    async def finish(self, status: Optional[int] = None, result: str = "ok", message: Optional[str] = None) -> None:
        await run_async(self._exchange.finish(status, result, message))

    async def give_back(self, status: Optional[int] = None) -> None:
        await run_async(self._exchange.give_back(status))


class AsyncBody:
    """`await body.read()` is all of it, `async for part in body` what arrives."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    async def read(self, size: int = -1) -> bytes:
        if size >= 0:
            return await run_async(self._exchange.read(size))
        return b"".join([part async for part in self])

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while part := await run_async(self._exchange.read(READ_BYTES)):
            yield part


# --- gateways ---


class Channel:
    """A gateway's connection in the dialect `baton`. Its lock is held for system calls that do not wait."""

    def __init__(self, acceptor: Acceptor, connection: socket.socket) -> None:
        self.acceptor, self.connection = acceptor, connection
        self.lock = threading.RLock()
        self.unsent: Deque[Tuple[bytes, Optional[socket.socket]]] = deque()
        self.lent: Dict[int, Exchange] = {}
        self.is_greeted = self.has_ended = self.is_sending = False
        self.deadline = time.monotonic() + RECEIVE_TIMEOUT_S

    def send(self, frame: bytes, descriptor: Optional[socket.socket] = None) -> None:
        """Sends now or as soon as the gateway reads. Where the channel has ended, it is dropped and its client closed."""
        with self.lock:
            if not self.has_ended:
                self.unsent.append((frame, descriptor))
                self.flush()
            elif descriptor is not None:
                descriptor.close()

    def send_now(self, frame: bytes) -> Optional[bool]:
        """Whether it was sent: `None` when the gateway has to read before."""
        with self.lock:
            self.flush()
            if self.has_ended or self.unsent:
                return False if self.has_ended else None
            return self.try_send(frame, None)

    def flush(self) -> None:
        # A handoff that is collected as garbage meanwhile may come here in the same thread.
        if self.is_sending:
            return
        self.is_sending = True
        try:
            while self.unsent and not self.has_ended and self.try_send(*self.unsent[0]):
                _, descriptor = self.unsent.popleft()
                if descriptor is not None:
                    descriptor.close()
        finally:
            self.is_sending = False
        if len(self.unsent) > UNSENT_FRAMES_MAX:
            self.end()
        if self.unsent:
            self.acceptor.wake()

    def try_send(self, frame: bytes, descriptor: Optional[socket.socket]) -> Optional[bool]:
        rights = [] if descriptor is None else [
            (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor.fileno()]))]
        try:
            self.connection.sendmsg([frame], rights, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            return True
        except BlockingIOError:
            return None
        except OSError:
            self.end()
            return False

    def end(self) -> None:
        """Nothing is sent any more; the acceptor's thread clears up."""
        with self.lock:
            self.has_ended = True
            while self.unsent:
                _, descriptor = self.unsent.popleft()
                if descriptor is not None:
                    descriptor.close()
        self.acceptor.wake()

    def read(self) -> None:
        """Reads what is there. Whatever breaks the protocol ends the channel, and nobody else notices."""
        try:
            for _ in range(64):
                if self.has_ended or not self.acceptor.has_room() or not self.read_packet():
                    return
        except ProtocolError as error:
            log.warning("a gateway's channel ends: %s", error)
            self.end()
        except OSError:
            self.end()

    def read_packet(self) -> bool:
        try:
            received = receive(self.connection, PACKET_BYTES_MAX)
        except BlockingIOError:
            return False
        try:
            if received.is_truncated:
                raise ProtocolError("a packet or its descriptors were cut off")
            if not received.bytes:
                if received.descriptors:
                    raise ProtocolError("descriptors without a frame")
                self.end()
                return False
            frames = decode(received.bytes)
            count = sum(frame.descriptors() for frame in frames)
            if count != len(received.descriptors):
                raise ProtocolError(f"{len(received.descriptors)} descriptors where {count} belong")
            # All of it is checked before any of it counts.
            left, known = deque(received.descriptors), set(self.lent)
            acts = [self.check(frame, [left.popleft() for _ in range(frame.descriptors())], known) for frame in frames]
        except BaseException:
            close_all(received.descriptors)
            raise
        for act in acts:
            act()
        return True

    def check(self, frame: Frame, descriptors: List[int], known: Set[int]) -> Callable[[], None]:
        """What is to be done about a frame, once the whole packet is known to be right."""
        kind = frame.kind
        if not self.is_greeted and kind != HELLO:
            raise ProtocolError(f"type {kind} before HELLO")
        if kind in (HELLO, HANDOFF, REVOKE) and (kind == HELLO) != (frame.id == 0):
            raise ProtocolError(f"type {kind} with id {frame.id}")
        if kind == HELLO:
            versions = decode_object(frame.payload).get("versions")
            if self.is_greeted or not isinstance(versions, list) or VERSION not in versions:
                raise ProtocolError("a second HELLO" if self.is_greeted else "no version in common")
            self.is_greeted = True
        elif kind == HANDOFF:
            return self.check_handoff(frame, descriptors, known)
        elif kind == REVOKE:
            reason = decode_object(frame.payload).get("reason")
            return lambda: self.revoke(frame.id, reason if isinstance(reason, str) else "")
        elif kind == PING:
            return lambda: self.send(encode(PONG, frame.id, frame.payload))
        elif TAKEN <= kind <= DRAINING or kind != PONG and not frame.flags & FLAG_OPTIONAL:
            raise ProtocolError(f"type {kind}")
        return lambda: None

    def revoke(self, handoff_id: int, reason: str) -> None:
        exchange = self.lent.get(handoff_id)
        if exchange is not None:
            exchange.revoked_for = reason

    def check_handoff(self, frame: Frame, descriptors: List[int], known: Set[int]) -> Callable[[], None]:
        metadata, data, preread = decode_sections(frame.payload, 3)
        described = decode_object(metadata)
        if frame.id in known:
            raise ProtocolError(f"id {frame.id} twice")
        known.add(frame.id)
        if frame.flags & FLAG_DATA and data or frame.flags & FLAG_PREREAD and preread:
            raise ProtocolError("what is in a memfd is in the packet too")
        if not is_stream_socket(descriptors[0]):
            raise ProtocolError("a client that is no stream socket")
        if not all(stat.S_ISREG(os.fstat(memfd).st_mode) for memfd in descriptors[1:]):
            raise ProtocolError("something else than a memfd behind the client")
        memfds = iter(descriptors[1:])
        body, data_memfd, preread_memfd = [next(memfds) if frame.flags & flag else None
                                           for flag in (FLAG_BODY, FLAG_DATA, FLAG_PREREAD)]
        whole_data = data if data_memfd is None else bytes_of_memfd(data_memfd, self.acceptor.data_bytes_max)
        whole_preread = preread if preread_memfd is None else bytes_of_memfd(preread_memfd, PREREAD_BYTES_MAX)

        def act() -> None:
            close_all(memfd for memfd in (data_memfd, preread_memfd) if memfd is not None)
            exchange = Exchange(self.acceptor, socket.socket(fileno=descriptors[0]), channel=self, number=frame.id,
                                metadata=described, body=body, data=whole_data or b"", preread=whole_preread or b"")
            self.lent[frame.id] = exchange
            is_served = (whole_data is not None and whole_preread is not None and exchange.is_framing_known()
                         and len(whole_data) <= self.acceptor.data_bytes_max)
            self.acceptor.offer(exchange, None if is_served else "unsupported")

        return act


class Incoming:
    """A connection of one handoff, until its message is whole."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.data, self.descriptors = bytearray(), []  # type: bytearray, List[int]
        self.deadline = time.monotonic() + RECEIVE_TIMEOUT_S

    def close(self) -> None:
        self.connection.close()
        close_all(self.descriptors)
        self.descriptors = []

    def read(self, dialect: str, bytes_max: int) -> bool:
        """Reads what is there; whether the message is whole."""
        while True:
            try:
                received = receive(self.connection, bytes_max + 1)
            except BlockingIOError:
                return False
            self.descriptors += received.descriptors
            self.data += received.bytes
            if received.is_truncated or len(self.data) > bytes_max:
                raise ProtocolError("the message is larger than allowed")
            if len(self.descriptors) > 1:
                raise ProtocolError(f"{len(self.descriptors)} descriptors where one belongs")
            if dialect != "stream" or not received.bytes:
                return True

    def client(self, dialect: str) -> Tuple[socket.socket, bytes]:
        """The message, once it is whole."""
        if not self.descriptors:
            raise ProtocolError("no descriptor came with the message")
        if dialect == "fdpass" and self.data != b"\0":
            raise ProtocolError("a message where this dialect has none")
        if not is_stream_socket(self.descriptors[0]):
            raise ProtocolError("the descriptor is not a stream socket")
        # A datagram's bytes are the client's, whatever they are.
        is_empty = dialect != "datagram" and self.data == b"\0"
        return socket.socket(fileno=self.descriptors.pop()), b"" if is_empty else bytes(self.data)


class Acceptor:
    """Listens for clients that are handed over.

    `path` is where. A socket file that nobody listens on any more is replaced, a live one is not. Without a path it is
    what this process was started with: a listener (LISTEN_FDS of a service manager, or standard input), or one client (a
    connected socket on standard input, or GATEWAY_INTERFACE in the environment): then that one comes, and then the end.

    - `allow_uids`, `allow_gids`: whose handoffs are taken: those whose user or whose group is listed. By default the uids
      in BATON_GATEWAY_UIDS, separated by commas, or without it this process's own and root.
    - `in_flight_max`: clients at a time. Above it the dialect `baton` refuses, the others wait in the backlog.
    - `data_bytes_max`: of one handoff's data, in bytes.
    - `write_timeout`, `body_timeout`: seconds without progress.
    - `name`, `roles`: for people who look at the gateway.
    - `socket_mode`: of the file. Who may write to it may connect; the uids are asked after that.
    """

    def __init__(self, path: Union[str, os.PathLike, None] = None, dialect: str = "baton", *,
                 allow_uids: Optional[Sequence[int]] = None, allow_gids: Sequence[int] = (), in_flight_max: int = 100,
                 data_bytes_max: int = 1 << 20, write_timeout: float = 30.0, body_timeout: float = 30.0,
                 name: Optional[str] = None, roles: Sequence[str] = (), socket_mode: int = 0o660,
                 backlog: int = 128) -> None:
        if dialect not in DIALECTS:
            raise ValueError(f"{dialect!r} is none of {', '.join(DIALECTS)}")
        self.dialect, self.in_flight_max, self.data_bytes_max = dialect, in_flight_max, data_bytes_max
        self.write_timeout, self.body_timeout = write_timeout, body_timeout
        self.allow_uids = allowed_uids() if allow_uids is None else frozenset(allow_uids)
        self.allow_gids = frozenset(allow_gids)
        self.name, self.roles = name or f"python {os.path.basename(sys.argv[0])}", list(roles)
        self._changed = threading.Condition(threading.RLock())
        self._queue: Deque[Exchange] = deque()
        self._waiters: Dict[asyncio.Future, asyncio.AbstractEventLoop] = {}
        self._abandoned: Deque[Exchange] = deque()
        self._wanted = self._in_flight = 0
        self._open: set = set()
        self._channels: List[Channel] = []
        self._incoming: List[Incoming] = []
        self._load: Optional[float] = None
        self._listener: Optional[socket.socket] = None
        self._file: Optional[Tuple[str, int, int]] = None
        self._failure: Optional[BaseException] = None
        self._pause_until = 0.0
        self._stop_asked = self._has_stopped = self._close_asked = self._is_single = False
        self._thread: Optional[threading.Thread] = None
        self._wake_receiver, self._wake_sender = socket.socketpair()
        self._wake_receiver.setblocking(False)
        self._wake_sender.setblocking(False)
        try:
            if path is not None:
                self._bind(os.fspath(path), socket_mode, backlog)
            else:
                self._inherit()
        except BaseException:
            self._wake_receiver.close()
            self._wake_sender.close()
            raise
        if self._listener is not None:
            self._listener.setblocking(False)
        if self._listener is not None or self._channels or self._incoming:
            self._thread = threading.Thread(target=self._serve, name="handoff", daemon=True)
            self._thread.start()

    # --- for the program ---

    def accept(self) -> Optional[Handoff]:
        """Waits for the next client; `None` once stopped."""
        with self._changed:
            self._wanted += 1
            try:
                self.wake()
                while not self._queue and not self._has_stopped:
                    self._changed.wait()
            finally:
                self._wanted -= 1
            exchange = self._next()
        return None if exchange is None else Handoff(exchange)

    def __iter__(self) -> Iterator[Handoff]:
        return self

    def __next__(self) -> Handoff:
        handoff = self.accept()
        if handoff is None:
            raise StopIteration
        return handoff

    def __aiter__(self) -> Acceptor:
        return self

    async def __anext__(self) -> AsyncHandoff:
        loop = asyncio.get_running_loop()
        while True:
            with self._changed:
                if self._queue or self._has_stopped:
                    exchange = self._next()
                    if exchange is None:
                        raise StopAsyncIteration
                    return AsyncHandoff(exchange)
                changed = loop.create_future()
                self._waiters[changed] = loop
                self._wanted += 1
            try:
                self.wake()
                await changed
            finally:
                with self._changed:
                    self._waiters.pop(changed, None)
                    self._wanted -= 1

    def load(self, load: float) -> None:
        """Tells every gateway how busy this daemon is, from 0 to 1."""
        self._load = min(max(float(load), 0.0), 1.0)
        for channel in list(self._channels):
            channel.send(self._load_frame())

    @property
    def in_flight(self) -> int:
        """Clients that were handed over and are not finished, given back or refused."""
        return self._in_flight

    def stop(self) -> None:
        """Takes nobody any more: gateways are told, what still arrives is refused, `accept` gives the end. Those in flight
        go on. May be called from any thread and from a signal handler."""
        self._stop_asked = True
        if self._thread is None:
            self._has_stopped = True
            self._notify()
        self.wake()

    def drain(self, timeout: Optional[float] = 30.0) -> bool:
        """After `stop`: waits for those in flight and closes. Whether all have finished. In asyncio:
        `await asyncio.to_thread(acceptor.drain, 30)`."""
        self.stop()
        end = math.inf if timeout is None else time.monotonic() + timeout
        with self._changed:
            while not (is_empty := self._has_stopped and not self._open and not any(c.unsent for c in self._channels)):
                left = end - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(min(left, 0.5))
        self.close()
        return is_empty

    def close(self) -> None:
        """Closes the listener and every channel; the file is removed if it still is ours."""
        self._stop_asked = self._close_asked = True
        self.wake()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        self._has_stopped = True
        self._notify()
        self._wake_receiver.close()
        self._wake_sender.close()

    def __enter__(self) -> Acceptor:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    # --- for exchanges and channels ---

    def wake(self) -> None:
        try:
            self._wake_sender.send(b"\0", socket.MSG_DONTWAIT)
        except OSError:
            pass  # full: it will wake; closed: there is nobody

    def offer(self, exchange: Exchange, refused_for: Optional[str] = None) -> None:
        """Puts a client in the queue, or refuses it where the dialect can."""
        with self._changed:
            is_full = self._in_flight >= self.in_flight_max
            self._in_flight += 1
            self._open.add(exchange)
            reason = None
            if exchange.channel is not None:
                reason = "draining" if self._stop_asked else refused_for or ("overloaded" if is_full else None)
            if reason is None:
                self._queue.append(exchange)
                self._notify()
        if reason is not None:
            run(exchange.refuse(reason, None, None))

    def abandon(self, exchange: Exchange) -> None:
        """Ends what was dropped, which garbage collection may do within any thread and any lock: so another one does."""
        if self._thread is None or not self._thread.is_alive():
            exchange.abandon()
            return
        self._abandoned.append(exchange)
        self.wake()

    def has_room(self) -> bool:
        """Descriptors that find no room when they are received are closed by the kernel, clients and all."""
        spare = []
        try:
            for _ in range(4):
                spare.append(os.dup(self._wake_receiver.fileno()))
            return True
        except OSError:
            self._pause_until = time.monotonic() + EXHAUSTED_PAUSE_S
            return False
        finally:
            close_all(spare)

    def release(self, exchange: Exchange) -> None:
        """The client is gone from here; it is said to the gateway next, which may then send another."""
        with self._changed:
            if not exchange.is_released:
                exchange.is_released = True
                self._in_flight -= 1
        if exchange.channel is None:
            self.wake()

    def forget(self, exchange: Exchange) -> None:
        with self._changed:
            self._open.discard(exchange)
            if exchange.channel is not None:
                exchange.channel.lent.pop(exchange.number, None)
            self._notify()

    # --- how it listens ---

    def _bind(self, path: str, mode: int, backlog: int) -> None:
        kind = DIALECTS[self.dialect]
        remove_stale(path, kind)
        listener = socket.socket(socket.AF_UNIX, kind)
        try:
            # Who sends a datagram is told if it was asked before.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, int(self.dialect == "datagram"))
            # The file is made with no more than this, so that nobody slips in before it has its mode.
            os.fchmod(listener.fileno(), mode)
            listener.bind(path)
            found = os.lstat(path)
            self._file = (os.path.abspath(path), found.st_dev, found.st_ino)
            os.chmod(path, mode)
            if kind != socket.SOCK_DGRAM:
                listener.listen(backlog)
        except BaseException:
            listener.close()
            raise
        self._listener = listener

    def _inherit(self) -> None:
        if os.environ.get("LISTEN_PID") == str(os.getpid()) and os.environ.get("LISTEN_FDS", "0") != "0":
            if os.environ["LISTEN_FDS"] != "1":
                raise ValueError(f"LISTEN_FDS={os.environ['LISTEN_FDS']}: one listener is understood")
            self._adopt(socket.socket(fileno=3))
            return
        try:
            standard_input: Optional[socket.socket] = socket.socket(fileno=os.dup(0))
        except OSError:
            standard_input = None
        kind = standard_input and standard_input.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE)
        if standard_input is not None and kind == socket.SOCK_STREAM and not listens(standard_input):
            self._one(standard_input)
        elif standard_input is not None and "GATEWAY_INTERFACE" not in os.environ:
            self._adopt(standard_input)
        elif "GATEWAY_INTERFACE" in os.environ:
            self._one(None)
        else:
            raise ValueError("no path, and this process was started with neither a listener nor a client")

    def _adopt(self, inherited: socket.socket) -> None:
        kind = inherited.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE)
        if inherited.family != socket.AF_UNIX or kind != DIALECTS[self.dialect]:
            raise ValueError(f"the inherited socket is of another type than {self.dialect} has")
        os.set_inheritable(inherited.fileno(), False)
        if kind == socket.SOCK_DGRAM and not inherited.getsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED):
            # What was sent before it was asked for has no sender's name.
            raise ValueError("the inherited socket is not told who sends (SO_PASSCRED, PassCredentials=yes)")
        if kind == socket.SOCK_DGRAM or listens(inherited):
            self._listener = inherited
        else:
            # One gateway, and the end when it leaves.
            self._is_single = True
            self._begin(inherited)

    def _one(self, client: Optional[socket.socket]) -> None:
        """One client and then the end: what this process was started for."""
        self._has_stopped = True
        environment = {name: value for name, value in os.environ.items()
                       if name in CGI_NAMES or name.startswith(("HTTP_", "HANDOFF_"))}
        if "GATEWAY_INTERFACE" not in os.environ:
            self.offer(Exchange(self, client))
            return
        headers = [[name[5:].lower().replace("_", "-"), value] for name, value in environment.items()
                   if name.startswith("HTTP_")]
        headers += [[name.lower().replace("_", "-"), environment[name]] for name in ("CONTENT_TYPE", "CONTENT_LENGTH")
                    if environment.get(name)]
        length = environment.get("CONTENT_LENGTH", "")
        framing = {"framing": "length", "remaining": int(length)} if length.isascii() and length.isdigit() else {
            "framing": "none"}
        source = None
        if client is None:
            source, framing = 0, framing if length else {"framing": "until-end"}
        elif environment.get("HTTP_TRANSFER_ENCODING", "").lower() == "chunked":
            framing = {"framing": "chunked"}
        output = None
        if client is None:
            try:
                client = socket.socket(fileno=os.dup(1))
            except OSError:
                output = 1
        request = {"method": environment.get("REQUEST_METHOD", ""), "target": environment.get("REQUEST_URI", ""),
                   "version": environment.get("SERVER_PROTOCOL", "")[5:], "headers": headers}
        metadata = {"id": environment.get("HANDOFF_ID"), "request": request, "body": framing,
                    "metadata": {"role": environment.get("HANDOFF_ROLE", "")}}
        if "HANDOFF_DATA_FILE" in environment:
            with open(environment["HANDOFF_DATA_FILE"], "rb") as file:
                data = file.read(self.data_bytes_max + 1)
        else:
            data = os.fsencode(environment.get("HANDOFF_DATA", ""))
        if len(data) > self.data_bytes_max:
            raise ValueError(f"more than {self.data_bytes_max} bytes of data")
        self.offer(Exchange(self, client, metadata=metadata, data=data, source=source, output=output,
                            environment=environment, head_sent=environment.get("HANDOFF_HEAD_SENT") == "1"))

    # --- the acceptor's own thread ---

    def _serve(self) -> None:
        try:
            while not self._close_asked:
                if self._stop_asked and not self._has_stopped:
                    self._end_listening()
                self._wait_and_read()
        except BaseException as error:  # nobody would be told otherwise
            self._failure = error
            log.exception("the acceptor ends")
        finally:
            if not self._has_stopped:
                self._end_listening()
            self._clear()

    def _wait_and_read(self) -> None:
        poll, now = select.poll(), time.monotonic()
        poll.register(self._wake_receiver, select.POLLIN)
        is_paused = now < self._pause_until
        reads_messages = not is_paused and self._is_wanted()
        deadlines = [self._pause_until] if is_paused else []
        if self._listener is not None and not is_paused and (
                reads_messages if self.dialect != "baton" else True) and len(self._incoming) < INCOMING_MAX:
            poll.register(self._listener, select.POLLIN)
        for incoming in self._incoming if reads_messages else ():
            poll.register(incoming.connection, select.POLLIN)
            deadlines.append(incoming.deadline)
        for channel in self._channels:
            events = 0 if is_paused else select.POLLIN
            poll.register(channel.connection, events | (select.POLLOUT if channel.unsent else 0))
            if not channel.is_greeted:
                deadlines.append(channel.deadline)
        timeout = None if not deadlines else max(0, math.ceil((min(deadlines) - now) * 1000))
        ready_ones = {descriptor for descriptor, _ in poll.poll(timeout)}
        if self._wake_receiver.fileno() in ready_ones:
            try:
                self._wake_receiver.recv(4096)
            except BlockingIOError:
                pass
        if self._close_asked or self._stop_asked and not self._has_stopped:
            return
        if not is_paused:
            self._read_ready(ready_ones)
        self._end_abandoned()
        self._clear_ended()

    def _end_abandoned(self) -> None:
        while self._abandoned:
            exchange = self._abandoned.popleft()
            if exchange.state != Exchange.OVER:
                exchange.abandon()

    def _read_ready(self, ready_ones: set) -> None:
        if self._listener is not None and self._listener.fileno() in ready_ones:
            self._accept_some(self._listener)
        for channel in self._channels:
            if channel.connection.fileno() in ready_ones:
                with channel.lock:
                    channel.flush()
                channel.read()
        for incoming in list(self._incoming):
            if self._is_wanted() and self.has_room():
                self._read_incoming(incoming)

    def _is_wanted(self) -> bool:
        """In other dialects than `baton`, reading is taking: only what somebody waits for is read."""
        with self._changed:
            return self._wanted > len(self._queue) and self._in_flight < self.in_flight_max

    def _accept_some(self, listener: socket.socket) -> None:
        if self.dialect == "datagram":
            while self._is_wanted() and self.has_room() and self._read_datagram(listener):
                pass
            return
        try:
            connection, _ = listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionError):
            return
        except OSError as error:
            log.warning("accept: %s", error)
            self._pause_until = time.monotonic() + EXHAUSTED_PAUSE_S
            return
        self._begin(connection)

    def _begin(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        _, uid, gid = struct.unpack("iII", credentials)
        if not self._is_allowed(uid, gid):
            connection.close()
        elif self.dialect == "baton":
            channel = Channel(self, connection)
            members: Dict[str, Any] = {"versions": [VERSION], "name": self.name, "pid": os.getpid(),
                                       "in_flight_max": self.in_flight_max, "data_bytes_max": self.data_bytes_max}
            channel.send(encode_json(HELLO, 0, roles=self.roles or None, **members))
            if self._load is not None:
                channel.send(self._load_frame())
            self._channels.append(channel)
        else:
            self._incoming.append(Incoming(connection))

    def _is_allowed(self, uid: Optional[int], gid: Optional[int]) -> bool:
        is_allowed = uid in self.allow_uids or gid in self.allow_gids
        if not is_allowed:
            log.warning("uid %s may not hand over", uid)
        return is_allowed

    def _read_incoming(self, incoming: Incoming) -> None:
        try:
            if incoming.read(self.dialect, self.data_bytes_max):
                client, data = incoming.client(self.dialect)
                self.offer(Exchange(self, client, data=data, head_sent=self.dialect == "fdpass"))
            elif time.monotonic() < incoming.deadline:
                return
            else:
                log.warning("a message did not arrive in time")
        except (ProtocolError, OSError) as error:
            # An empty connection is how others ask whether somebody listens.
            if incoming.data or incoming.descriptors:
                log.warning("a message is dropped: %s", error)
        self._incoming.remove(incoming)
        incoming.close()

    def _read_datagram(self, listener: socket.socket) -> bool:
        try:
            received = receive(listener, self.data_bytes_max + 1)
        except BlockingIOError:
            return False
        incoming = Incoming(listener)
        incoming.data, incoming.descriptors = bytearray(received.bytes), received.descriptors
        try:
            if received.is_truncated or len(received.bytes) > self.data_bytes_max:
                raise ProtocolError("the message is larger than allowed")
            if self._is_allowed(received.uid, received.gid):
                if len(incoming.descriptors) > 1:
                    raise ProtocolError(f"{len(incoming.descriptors)} descriptors where one belongs")
                client, data = incoming.client(self.dialect)
                self.offer(Exchange(self, client, data=data))
        except ProtocolError as error:
            log.warning("a datagram is dropped: %s", error)
        finally:
            close_all(incoming.descriptors)
        return True

    def _end_listening(self) -> None:
        """What waits in the backlog goes back to its gateway when the listener is closed; datagrams would be lost."""
        listener, self._listener = self._listener, None
        file, self._file = self._file, None
        if file is not None:
            try:
                found = os.lstat(file[0])
                if (found.st_dev, found.st_ino) == file[1:]:
                    os.unlink(file[0])
            except OSError:
                pass
        if listener is not None:
            while self.dialect == "datagram" and self.has_room() and self._read_datagram(listener):
                pass
            listener.close()
        for incoming in self._incoming if self.dialect != "baton" else ():
            incoming.close()
        self._incoming = []
        with self._changed:
            self._stop_asked = True
            queued = [exchange for exchange in self._queue if exchange.channel is not None]
            for exchange in queued:
                self._queue.remove(exchange)
        for channel in self._channels:
            channel.send(encode(DRAINING))
        for exchange in queued:
            run(exchange.refuse("draining", None, None))
        with self._changed:
            self._has_stopped = True
            self._notify()

    def _clear_ended(self) -> None:
        now = time.monotonic()
        for channel in list(self._channels):
            if not channel.is_greeted and now > channel.deadline:
                log.warning("a gateway's channel ends: no HELLO")
                channel.end()
            if channel.has_ended:
                self._remove(channel)
        if self._is_single and not self._channels and not self._incoming:
            self._stop_asked = True
        if self._has_stopped:
            self._notify()

    def _remove(self, channel: Channel) -> None:
        self._channels.remove(channel)
        with self._changed:
            # Nobody has begun with these, and nobody may any more.
            queued = [exchange for exchange in self._queue if exchange.channel is channel]
            for exchange in queued:
                self._queue.remove(exchange)
        for exchange in queued:
            exchange.over()
        with channel.lock:
            channel.connection.close()

    def _clear(self) -> None:
        self._end_abandoned()
        for channel in list(self._channels):
            channel.read()
            channel.end()
            self._remove(channel)

    # --- small things ---

    def _next(self) -> Optional[Exchange]:
        if self._queue:
            return self._queue.popleft()
        if self._failure is not None:
            raise self._failure
        return None

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()
            waiters, self._waiters = self._waiters, {}
        for changed, loop in waiters.items():
            try:
                loop.call_soon_threadsafe(wake_waiter, changed)
            except RuntimeError:
                pass  # the loop has ended

    def _load_frame(self) -> bytes:
        return encode_json(LOAD, 0, in_flight=self._in_flight, load=self._load)


CGI_NAMES = {"AUTH_TYPE", "CONTENT_LENGTH", "CONTENT_TYPE", "GATEWAY_INTERFACE", "HTTPS", "PATH_INFO",
             "PATH_TRANSLATED", "QUERY_STRING", "REMOTE_ADDR", "REMOTE_HOST", "REMOTE_PORT", "REMOTE_USER",
             "REQUEST_METHOD", "REQUEST_URI", "SCRIPT_NAME", "SERVER_NAME", "SERVER_PORT", "SERVER_PROTOCOL",
             "SERVER_SOFTWARE"}


def wake_waiter(changed: asyncio.Future) -> None:
    if not changed.done():
        changed.set_result(None)


def listens(listener: socket.socket) -> bool:
    return listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1


def allowed_uids() -> frozenset:
    """Anything unclear is an error: rather nobody than the wrong one."""
    listed = os.environ.get("BATON_GATEWAY_UIDS")
    if listed is None:
        return frozenset((os.geteuid(), 0))
    uids = [uid.strip() for uid in listed.split(",")]
    if not all(uid.isascii() and uid.isdigit() and int(uid) < (1 << 32) - 1 for uid in uids):
        raise ValueError(f"BATON_GATEWAY_UIDS={listed!r} is no list of user ids separated by commas")
    return frozenset(map(int, uids))


def remove_stale(path: str, kind: int) -> None:
    """Makes way, unless somebody listens there."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, kind) as probe:
        probe.setblocking(False)
        try:
            if not stat.S_ISSOCK(found.st_mode):
                raise FileExistsError(f"{path} is no socket")
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except FileNotFoundError:
            return
        except (BlockingIOError, PermissionError):
            pass  # a full backlog, or one that talks to somebody else: alive
        except OSError as error:
            if error.errno != errno.EPROTOTYPE:
                raise
        raise OSError(errno.EADDRINUSE, f"somebody listens at {path}")
