#!/usr/bin/env python3
"""A daemon of baton/1 after examples/PROTOCOL.md alone, correct but for the one fault that it is asked for.

What the checks of this folder are worth is shown on it: without a fault it passes all of them, and each fault has a check
that must catch it (faults.rs).
"""

import array
import base64
import json
import os
import signal
import socket
import stat
import struct
import sys
import threading
import time
from urllib.parse import parse_qsl

HELLO, HANDOFF, TAKEN, REFUSED, DONE, RETURN, LOAD, DRAINING, REVOKE, PING, PONG = range(1, 12)
PACKET_BYTES_MAX = 1 << 17
DATA_BYTES_MAX = 1 << 20
DROPPED_BYTES_MAX = 1 << 16
BODY, DATA, PREREAD = 1, 2, 4
FAULT = ""
KEPT = []


class Broken(Exception):
    """The peer's doing: the channel ends."""


class Cut(Exception):
    """A body that ends before its end: the client has left."""


class Malformed(Exception):
    """A body that is none."""


class Revoked(Exception):
    """The gateway asked for the end."""


def fault(name):
    return FAULT == name


def frame(kind, payload=b"", id=0, flags=0):
    return struct.pack("<BBBBIQ", 0xB7, 1, kind, flags, len(payload), id) + payload


def as_json(value):
    return json.dumps(value, separators=(",", ":")).encode()


def section(part):
    return struct.pack("<I", len(part)) + part


def parse_object(payload):
    try:
        value = json.loads(payload)
    except ValueError as error:
        raise Broken("no JSON") from error
    if not isinstance(value, dict):
        raise Broken("no object")
    return value


def sections(payload, count):
    parts, at = [], 0
    for _ in range(count):
        if len(payload) < at + 4:
            raise Broken("sections")
        length, = struct.unpack_from("<I", payload, at)
        at += 4
        if len(payload) < at + length:
            raise Broken("sections")
        parts.append(payload[at:at + length])
        at += length
    if at != len(payload):
        raise Broken("sections")
    return parts


def split(packet):
    """All frames of a packet as (type, flags, id, payload)."""
    frames = []
    while packet:
        if len(packet) < 16:
            raise Broken("short")
        magic, version, kind, flags, length, id = struct.unpack_from("<BBBBIQ", packet)
        if magic != 0xB7 and not fault("any-magic"):
            raise Broken("magic")
        if version != 1 and not fault("any-version"):
            raise Broken("version")
        if len(packet) < 16 + length:
            if fault("short-payloads"):
                length = len(packet) - 16
            else:
                raise Broken("length")
        frames.append((kind, flags, id, packet[16:16 + length]))
        packet = packet[16 + length:]
        if fault("one-frame-a-packet"):
            break
        if fault("ignores-trailing-bytes") and len(packet) < 16:
            break
    return frames


class Daemon:
    def __init__(self, path, interval, in_flight_max):
        self.path, self.interval, self.in_flight_max = path, interval, in_flight_max
        self.lock, self.say_lock = threading.Condition(), threading.Lock()
        # Those of whom nothing final was said, and those who are being served: DONE is sent in between.
        self.in_flight, self.served, self.stopped, self.channels = 0, 0, False, []
        self.uids = self.allowed()

    @staticmethod
    def allowed():
        listed = os.environ.get("BATON_GATEWAY_UIDS")
        if listed is None:
            return {os.geteuid(), 0}
        uids = [uid.strip() for uid in listed.split(",")]
        if all(uid.isdigit() and int(uid) < 1 << 32 for uid in uids):
            return set(map(int, uids))
        if fault("unreadable-list-is-everybody"):
            return {os.geteuid(), 0}
        sys.exit("BATON_GATEWAY_UIDS is no list of numbers")

    def listen(self):
        if os.path.exists(self.path):
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
                try:
                    probe.connect(self.path)
                    if not fault("takes-a-live-socket"):
                        sys.exit("somebody listens there")
                except ConnectionRefusedError:
                    if fault("keeps-a-stale-socket"):
                        sys.exit("it is in use")
                os.unlink(self.path)
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        os.umask(0 if fault("open-to-all") else 0o117)
        self.listener.bind(self.path)
        self.listener.listen(128)
        self.file = os.stat(self.path)
        print("ready", self.path, flush=True)
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            connection, _ = self.listener.accept()
            _, uid, _ = struct.unpack("iII", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            if uid not in self.uids and not fault("believes-everybody"):
                connection.close()
                continue
            channel = Channel(self, connection)
            with self.lock:
                self.channels.append(channel)
            if fault("one-channel-at-a-time"):
                channel.run()
            else:
                threading.Thread(target=channel.run, daemon=True).start()

    def stop(self):
        with self.lock:
            self.stopped = True
            channels = list(self.channels)
        if not fault("drains-in-silence"):
            for channel in channels[:1] if fault("drains-one-channel") else channels:
                channel.say(frame(DRAINING))
        if fault("cuts-at-the-end"):
            os._exit(0)
        with self.lock:
            self.lock.wait_for(lambda: self.served == 0, timeout=30)
        if not fault("leaves-its-file"):
            here = os.stat(self.path)
            is_own = (here.st_dev, here.st_ino) == (self.file.st_dev, self.file.st_ino)
            if is_own or fault("takes-its-successors-file"):
                os.unlink(self.path)
        os._exit(1 if fault("ends-with-1") else 0)


class Channel:
    def __init__(self, daemon, connection):
        self.daemon, self.connection = daemon, connection
        self.lock = daemon.say_lock if fault("one-lock") else threading.Lock()
        self.handoffs, self.greeted, self.lives = {}, False, True
        self.answers = threading.Lock()

    def say(self, packet, descriptors=()):
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        with self.lock:
            if not self.lives:
                return False
            try:
                self.connection.sendmsg([packet], rights, socket.MSG_NOSIGNAL)
                return True
            except OSError:
                return False

    def run(self):
        if not fault("waits-for-hello"):
            self.greet()
        try:
            while self.receive():
                pass
        except (Broken, OSError) as error:
            print("channel ended:", error, file=sys.stderr, flush=True)
        with self.lock:
            self.lives = False
            handoffs = list(self.handoffs.values())
        if fault("keeps-ended-channels"):
            KEPT.append(self.connection)
        else:
            self.connection.close()
        if fault("ends-clients-with-their-channel"):
            for handoff in handoffs:
                handoff.client.shutdown(socket.SHUT_RDWR)
        with self.daemon.lock:
            self.daemon.channels.remove(self)

    def greet(self):
        hello = {"versions": [1], "name": "faulty", "pid": os.getpid(), "in_flight_max": self.daemon.in_flight_max,
                 "data_bytes_max": DATA_BYTES_MAX}
        if fault("hello-without-credits"):
            del hello["in_flight_max"]
        if fault("hello-says-100"):
            hello["in_flight_max"] = 100
        if fault("load-before-hello"):
            self.say(frame(LOAD, as_json({"in_flight": 0, "load": 0.0})))
        self.say(frame(HELLO, as_json(hello)))

    def receive(self):
        room = socket.CMSG_SPACE(4 if fault("room-for-one") else 253 * 4)
        packet, ancillary, flags, _ = self.connection.recvmsg(PACKET_BYTES_MAX, room, socket.MSG_CMSG_CLOEXEC)
        numbers = array.array("i")
        for level, kind, data in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                numbers.frombytes(data[:len(data) // 4 * 4])
        descriptors = list(numbers)[:1 if fault("room-for-one") else None]
        try:
            if not packet:
                return False
            if flags & socket.MSG_CTRUNC or flags & socket.MSG_TRUNC and not fault("takes-cut-packets"):
                raise Broken("cut")
            self.judge(packet, descriptors)
            return True
        finally:
            if not fault("leaks"):
                for number in filter(None, descriptors):
                    os.close(number)

    def judge(self, packet, descriptors):
        """Looks at the whole packet, then acts on each of its frames. Who takes a descriptor leaves None in its place."""
        self.descriptors = descriptors
        frames = split(packet)
        needed = 0
        actions = []
        begun = set()
        for kind, flags, id, payload in frames:
            if fault("one-by-one") and actions:
                for action in actions:
                    action()
                actions = []
            if not self.greeted and kind != HELLO and not fault("nothing-needs-hello"):
                raise Broken("before HELLO")
            if kind == HELLO:
                if self.greeted and not fault("greets-twice") or id and not fault("hello-with-id"):
                    raise Broken("HELLO")
                versions = parse_object(payload).get("versions")
                if fault("any-hello"):
                    versions = [1]
                if not isinstance(versions, list) or 1 not in versions:
                    raise Broken("versions")
                if fault("waits-for-hello"):
                    self.greet()
                self.greeted = True
            elif kind == HANDOFF:
                if id == 0 and not fault("any-id") or (id in self.handoffs or id in begun) and not fault("ids-again"):
                    raise Broken("id")
                begun.add(id)
                metadata, data, preread = sections(payload + b"\0\0\0\0" * fault("two-sections"), 3)
                metadata = parse_object(metadata) if not fault("any-metadata") else {}
                if (flags & DATA and data or flags & PREREAD and preread) and not fault("both-places"):
                    raise Broken("both")
                count = 1 + sum(1 for flag in (BODY, DATA, PREREAD) if flags & flag)
                first = needed
                needed += count
                if len(descriptors) < needed and not fault("any-count"):
                    raise Broken("descriptors")
                actions.append(lambda id=id, flags=flags, metadata=metadata, data=data, preread=preread, first=first,
                               count=count: self.handoff(id, flags, metadata, data, preread, first, count))
                # Judged here, so that nothing of the packet is acted on.
                if not fault("any-descriptor"):
                    for number in descriptors[first:first + 1]:
                        self.is_client(number)
            elif kind == REVOKE:
                if id == 0 and not fault("any-id"):
                    raise Broken("id")
                reason = parse_object(payload)
                actions.append(lambda id=id, reason=reason: self.revoke(id))
            elif kind == PING:
                answer = b"" if fault("empty-pongs") else payload
                if not fault("no-pong"):
                    actions.append(lambda answer=answer: self.pong(answer))
            elif kind == PONG:
                pass
            elif kind <= PONG and kind:
                if not fault("daemons-frames"):
                    raise Broken("a daemon's frame")
            elif not flags & 0x80 and not fault("any-type") or fault("no-type"):
                raise Broken("type")
        if needed != len(descriptors) and not fault("any-count"):
            raise Broken("descriptors")
        for action in actions:
            action()

    @staticmethod
    def is_client(number):
        if not stat.S_ISSOCK(os.fstat(number).st_mode):
            raise Broken("no socket")
        with socket.socket(fileno=os.dup(number)) as probe:
            if probe.type & 0xF != socket.SOCK_STREAM:
                raise Broken("no stream")

    def pong(self, payload):
        # A slow one: behind whoever is served.
        if fault("pongs-wait"):
            with self.daemon.lock:
                self.daemon.lock.wait_for(lambda: self.daemon.in_flight == 0)
        self.say(frame(PONG, payload))

    def revoke(self, id):
        handoff = self.handoffs.get(id)
        if handoff is None:
            if fault("revoke-must-exist"):
                raise Broken("REVOKE")
        elif not fault("never-revoked"):
            handoff.revoked.set()

    def handoff(self, id, flags, metadata, data, preread, first, count):
        mine, self.descriptors[first:first + count] = self.descriptors[first:first + count], [None] * count
        if not mine:
            return
        client, files = socket.socket(fileno=mine[0]), mine[1:]
        if fault("hoards"):
            KEPT.append(bytearray(1024))
        contents = {}
        for flag in (BODY, DATA, PREREAD):
            if flags & flag and files:
                file = files.pop(0)
                size = os.fstat(file).st_size
                contents[flag] = b"".join(iter(lambda: os.read(file, 1 << 16), b"")) if fault("reads-from-position") \
                    else os.pread(file, size, 0) if size else b""
                if not fault("keeps-memfds"):
                    os.close(file)
        data, preread = contents.get(DATA, data), contents.get(PREREAD, preread)
        if fault("swaps-memfds") and DATA in contents and BODY in contents:
            data, contents[BODY] = contents[BODY], data
        if fault("says-data"):
            print("data:", data, file=sys.stderr, flush=True)
        if fault("says-headers"):
            print("metadata:", metadata, file=sys.stderr, flush=True)
        handoff = Handoff(self, id, metadata, data, preread, contents.get(BODY), client)
        if len(data) > DATA_BYTES_MAX and not fault("any-data"):
            return handoff.refuse("unsupported")
        with self.daemon.lock:
            if self.daemon.stopped and not fault("never-drains"):
                return handoff.refuse("overloaded" if fault("drains-with-another-word") else "draining")
            full = self.daemon.in_flight >= self.daemon.in_flight_max
            if fault("counts-by-channel"):
                full = len(self.handoffs) >= self.daemon.in_flight_max
            if full and not fault("no-credits"):
                return handoff.refuse("overloaded")
            if not handoff.is_readable() and not fault("any-framing"):
                return handoff.refuse("unsupported")
            self.daemon.in_flight += 1
            self.daemon.served += 1
        self.handoffs[id] = handoff
        threading.Thread(target=handoff.run, daemon=True).start()


class Handoff:
    def __init__(self, channel, id, metadata, data, preread, body, client):
        self.channel, self.id, self.metadata, self.data, self.body, self.client = \
            channel, id, metadata, data, body, client
        request, framing = metadata.get("request", {}), metadata.get("body", {})
        self.request = request
        self.target = request.get("target", "/")
        head_bytes, self.preread_bytes = request.get("head_bytes", 0), len(preread)
        self.preread = preread[0 if fault("head-is-body") or not isinstance(head_bytes, int) else head_bytes:]
        self.framing, self.remaining = framing.get("framing", "none"), framing.get("remaining", 0)
        if self.framing == "length" and fault("remaining-behind-preread") and isinstance(self.remaining, int):
            self.remaining += len(self.preread)
        self.head_sent = metadata.get("response", {}).get("head_sent", False) and not fault("two-heads")
        self.revoked, self.bytes_out, self.taken_at, self.is_read = threading.Event(), 0, None, False
        self.continues = True

    def is_readable(self):
        head_bytes = self.request.get("head_bytes", 0)
        return (self.framing in ("none", "length", "chunked", "memfd") and (self.framing == "memfd") == (self.body is not None)
                and isinstance(self.remaining, int) and self.remaining >= 0
                and isinstance(head_bytes, int) and 0 <= head_bytes <= self.preread_bytes)

    def makes_room(self):
        """Before the last word on it is sent: the next client can be here at once."""
        with self.channel.daemon.lock:
            if self.channel.handoffs.pop(self.id, None) is self:
                self.channel.daemon.in_flight -= 1
                self.channel.daemon.lock.notify_all()

    def ended(self):
        if not fault("keeps-credits"):
            self.makes_room()
        with self.channel.daemon.lock:
            self.channel.daemon.served -= 1
            self.channel.daemon.lock.notify_all()

    # --- what is said of it ---
    def refuse(self, reason, retry_after_s=None, message=None):
        refusal = {"reason": reason}
        if retry_after_s is not None and not fault("forgets-retry-after"):
            refusal["retry_after_s"] = str(retry_after_s) if fault("retry-after-as-text") else retry_after_s
        if message is not None:
            refusal["message"] = message
        if fault("writes-and-refuses"):
            self.client.send(b"no")
        if fault("shuts-and-refuses"):
            self.client.shutdown(socket.SHUT_RDWR)
        if fault("refuses-and-keeps"):
            KEPT.append(self.client)
        else:
            self.client.close()
        if not fault("keeps-credits"):
            self.makes_room()
        if not fault("refuses-in-silence"):
            self.channel.say(frame(REFUSED, as_json(refusal), self.id))

    def take(self):
        self.taken_at = time.monotonic()
        if fault("never-taken"):
            return True
        if fault("takes-late"):
            self.late = frame(TAKEN, b"", self.id)
            return True
        sent = self.channel.say(frame(TAKEN, b"", self.id))
        if fault("takes-twice"):
            self.channel.say(frame(TAKEN, b"", self.id))
        return sent or fault("takes-regardless")

    def report(self, status, result, message):
        us = int((time.monotonic() - self.taken_at) * 1e6)
        report = {"bytes_out": self.bytes_out + fault("miscounts"),
                  "duration_us": us // 1000 if fault("milliseconds") else us,
                  "result": "okay" if fault("another-word") else result}
        if status is not None and not (self.metadata.get("response", {}).get("head_sent") and not fault("says-status")):
            report["status"] = status
        if message is not None:
            report["message"] = message
        return as_json(report)

    def done(self, status=None, result="ok", message=None):
        if fault("done-first"):
            self.channel.say(frame(DONE, self.report(status, result, message), self.id))
        if not fault("plain-close"):
            self.close_gracefully()
        self.client.close()
        if fault("done-in-silence") or fault("done-first"):
            return
        if not fault("keeps-credits"):
            self.makes_room()
        packet = frame(DONE, self.report(status, result, message), self.id)
        self.channel.say(self.late + packet if fault("takes-late") else packet)
        if fault("done-twice"):
            self.channel.say(packet)

    def close_gracefully(self):
        try:
            self.client.shutdown(socket.SHUT_WR)
            end = time.monotonic() + 2
            while (left := end - time.monotonic()) > 0:
                self.client.settimeout(left)
                if not self.client.recv(1 << 16):
                    break
        except OSError:
            pass

    def give_back(self, status):
        if self.head_sent or fault("never-back"):
            return self.done(status)
        if not self.is_read and self.waits_for_100() and not fault("waits-for-what-nobody-sends"):
            return self.done(status)
        if not self.is_read and not fault("unread-body-back"):
            limit = 10 ** 9 if fault("reads-any-rest") else DROPPED_BYTES_MAX - fault("reads-less")
            dropped = 0
            try:
                for part in self.read():
                    dropped += len(part)
                    if dropped > limit:
                        return self.done(status)
            except (Cut, Malformed):
                return self.done(status, "client-gone")
        unread = b"" if fault("forgets-preread") else self.preread
        if fault("reads-ahead") or fault("eats-the-next"):
            self.client.settimeout(0)
            try:
                ahead = self.client.recv(1 << 12)
            except OSError:
                ahead = b""
            unread += ahead if fault("reads-ahead") else b""
        if fault("head-goes-back"):
            unread = b"x" * self.request.get("head_bytes", 0) + unread
        if fault("cuts-what-goes-back"):
            unread = unread[:PACKET_BYTES_MAX - 4096]
        payload = section(self.report(status, "ok", None)) + section(unread)
        if 16 + len(payload) > PACKET_BYTES_MAX:
            return self.done(status)
        client = self.client
        if fault("another-socket"):
            client = socket.socketpair()[0]
        if not fault("keeps-credits"):
            self.makes_room()
        said = self.channel.say(frame(RETURN, payload, self.id), [client.fileno()])
        if not said:
            self.close_gracefully()
        if fault("returns-and-keeps") or not said and fault("returns-to-nobody"):
            KEPT.append(self.client)
        else:
            self.client.close()

    # --- the client ---
    def take_from_stream(self, most):
        """At most so many bytes; none at the end."""
        if self.preread and not (fault("skips-preread")):
            part, self.preread = self.preread[:most], self.preread[most:]
            return part
        self.client.settimeout(30)
        if fault("preread-last") and self.preread:
            part, self.preread = self.preread[:most], self.preread[most:]
            return part
        return self.client.recv(most)

    def line(self):
        line = b""
        while not line.endswith(b"\n"):
            part = self.take_from_stream(1)
            if not part:
                raise Cut("a line")
            line += part
            if len(line) > 4096:
                raise Malformed("a line")
        return line

    def exactly(self, count):
        while count:
            part = self.take_from_stream(min(count, 1 << 16))
            if not part:
                if fault("cut-is-whole"):
                    return
                raise Cut("a body")
            count -= len(part)
            yield part

    def read(self):
        if self.request.get("version") and self.framing in ("length", "chunked") and self.waits_for_100():
            self.client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            self.bytes_out += 25
        self.is_read = True
        if self.framing == "length":
            yield from self.exactly(self.remaining)
        elif self.framing == "chunked":
            if fault("chunks-as-they-are"):
                yield self.take_from_stream(1 << 16)
                return
            while True:
                size = self.line().split(b";")[0].strip()
                is_long = len(size) > 16 and not fault("seventeen-digits")
                if not size or is_long or size.strip(b"0123456789abcdefABCDEF"):
                    raise Malformed("a chunk's size")
                if int(size, 16) == 0:
                    break
                yield from self.exactly(int(size, 16))
                if self.line().strip():
                    raise Malformed("a chunk's end")
            if not fault("leaves-trailers"):
                while self.line().strip():
                    pass
        elif self.framing == "memfd":
            yield self.body or b""
        elif fault("reads-without-body") and self.framing == "none":
            yield self.take_from_stream(1 << 16)

    def waits_for_100(self):
        return any(name == "expect" for name, _ in self.request.get("headers", []))

    def write(self, data):
        at = 0
        self.client.settimeout(1 if fault("impatient") else 30)
        while at < len(data):
            if self.revoked.is_set():
                raise Revoked
            if fault("one-send"):
                self.bytes_out += len(data)
                self.client.setblocking(False)
                try:
                    self.client.send(data)
                except BlockingIOError:
                    pass
                return
            count = self.client.send(data[at:at + (1 << 16)])
            at += count
            self.bytes_out += count

    def respond(self, status, kind, body, back=True):
        reason = {200: "OK", 500: "Internal Server Error"}[status]
        length = len(body) + fault("wrong-length")
        head = f"HTTP/1.1 {status} {reason}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n"
        if not back or self.head_sent or fault("always-close"):
            head += "Connection: close\r\n"
        is_head = self.request.get("method") == "HEAD" and not fault("body-to-head")
        head = b"" if self.head_sent else (head + "\r\n").encode()
        self.write(head + (b"" if is_head else body))

    def start(self, kind, more=""):
        if not self.head_sent:
            self.write(f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\n{more}Connection: close\r\n\r\n".encode())

    def run(self):
        try:
            self.serve()
        except Revoked:
            self.done(200, "error" if fault("revoked-is-an-error") else "revoked")
        except (BrokenPipeError, ConnectionResetError):
            self.done(200, "ok" if fault("gone-is-ok") else "client-gone")
        except Cut:
            self.done(None, "error" if fault("cut-is-an-error") else "client-gone")
        except Malformed:
            self.done(None, "error")
        except TimeoutError:
            self.done(200, "timeout")
        finally:
            self.ended()

    def serve(self):
        path, _, query = self.target.partition("?")
        query = dict(parse_qsl(query, keep_blank_values=True))
        if path == "/refuse":
            retry_after = query.get("retry_after")
            reason = "overloaded" if fault("one-reason") else query.get("reason", "overloaded")
            return self.refuse(reason, None if retry_after is None else int(retry_after), "as asked")
        if path == "/late":
            time.sleep(3)
            path = "/hello"
        if fault("writes-before-taken"):
            self.client.send(b"H")
        if fault("reads-before-taken"):
            self.client.setblocking(False)
            try:
                self.client.recv(1)
            except OSError:
                pass
        if not self.take():
            if fault("shuts-what-is-not-its-own"):
                self.client.setblocking(True)
                self.client.send(b"HTTP/1.1 503 Service Unavailable\r\n\r\n")
            return self.client.close()
        text = "text/plain"
        if path == "/hello":
            self.respond(200, text, b"hello\n", back=False)
            self.done(200)
        elif path == "/return":
            self.respond(200, text, b"returned\n")
            self.give_back(200)
        elif path == "/unread":
            self.respond(200, text, b"unread\n")
            self.give_back(200)
        elif path == "/echo":
            body = b"".join(self.read())
            self.respond(200, "application/octet-stream", body)
            self.give_back(200)
        elif path == "/env":
            self.respond(200, "application/json", as_json(self.env()))
            self.give_back(200)
        elif path == "/meta":
            metadata = dict(self.metadata)
            if fault("decodes-headers"):
                metadata["request"] = dict(self.request, headers=[
                    [name, base64.b64decode(v["base64"]).decode(errors="replace") if isinstance(v, dict) else v]
                    for name, v in self.request.get("headers", [])])
            self.respond(200, "application/json", as_json(metadata))
            self.give_back(200)
        elif path == "/data":
            data = self.data.split(b"\0")[0] if fault("data-is-text") else self.data
            self.respond(200, "application/octet-stream", data)
            self.give_back(200)
        elif path == "/fail":
            self.respond(500, text, b"failed\n", back=False)
            self.done(500, "ok" if fault("errors-are-ok") else "error", "as asked")
        elif path == "/large":
            self.start("application/octet-stream")
            left = int(query["bytes"])
            while left:
                count = min(left, 1 << 16)
                self.write(b"a" * count)
                left -= count
            self.done(200)
        elif path == "/drop":
            if fault("drops-in-silence"):
                return self.client.close()
            self.client.close()
            self.makes_room()
            self.channel.say(frame(DONE, self.report(None, "error", "not finished"), self.id))
        elif path == "/hold":
            self.start(text)
            self.write(b"held\n")
            while not self.revoked.wait(0.01):
                if self.client_gone() and not fault("never-gone"):
                    return self.done(200, "client-gone")
            raise Revoked
        else:
            self.stream()

    def client_gone(self):
        self.client.settimeout(0)  # with another, Python waits for something to read
        try:
            return not self.client.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def stream(self):
        self.start("text/event-stream", "Cache-Control: no-store\r\n")
        for n in range(1, 10 if fault("nine-events") else 11):
            text = self.data.decode(errors="replace") if n == 1 and not fault("no-data") else "hello"
            self.write(b"data: %s\n\n" % as_json({"n": n, "text": text}))
            if self.revoked.wait(self.channel.daemon.interval):
                raise Revoked
            if fault("streams-end-with-channel") and not self.channel.lives:
                return self.client.close()
        self.write(b"event: done\ndata: {}\n\n")
        self.done(200)

    def env(self):
        request, client, server = (self.metadata.get(name, {}) for name in ("request", "client", "server"))
        authority = request.get("authority")
        variables = {
            "GATEWAY_INTERFACE": "CGI/1.1", "REQUEST_METHOD": request.get("method"),
            "REQUEST_URI": request.get("target"), "QUERY_STRING": self.target.partition("?")[2],
            "SERVER_PROTOCOL": "HTTP/" + request["version"] if "version" in request else None,
            "REMOTE_ADDR": client.get("ip"), "REMOTE_PORT": client.get("port"),
            "SERVER_NAME": authority.rsplit(":", 1)[0] if authority else server.get("ip"),
            "SERVER_PORT": server.get("port"), "HTTPS": "on" if request.get("scheme") == "https" else None,
            "HANDOFF_DATA": self.data.decode(errors="replace") if b"\0" not in self.data else None,
            "HANDOFF_ID": self.metadata.get("id"), "HANDOFF_ROLE": self.metadata.get("metadata", {}).get("role", "responder"),
            "HANDOFF_HEAD_SENT": "1" if self.head_sent else None,
        }
        if self.framing == "length":
            variables["CONTENT_LENGTH"] = self.remaining
        if self.framing == "memfd":
            variables["CONTENT_LENGTH"] = len(self.body)
        fields = {}
        for name, value in request.get("headers", []):
            if isinstance(value, dict):
                value = base64.b64decode(value["base64"]).decode(errors="replace")
            if name != "proxy" and "_" not in name:
                fields.setdefault(name.upper().replace("-", "_"), []).append(value)
        for name, values in fields.items():
            if name == "CONTENT_TYPE":
                variables[name] = values[0]
            elif name != "CONTENT_LENGTH":
                variables["HTTP_" + name] = (values[-1] if fault("last-header-wins") else ", ".join(values))
        if fault("no-role"):
            del variables["HANDOFF_ROLE"]
        return {name: str(value) for name, value in variables.items() if value is not None}


def main():
    global FAULT
    arguments, options = [], {"--interval": "100", "--in-flight-max": "100", "--fault": ""}
    rest = sys.argv[1:]
    while rest:
        argument = rest.pop(0)
        if argument in options and rest:
            options[argument] = rest.pop(0)
        else:
            arguments.append(argument)
    FAULT = options["--fault"]
    if len(arguments) != 2 or arguments[1] != "baton":
        sys.exit(0 if fault("no-usage") else 2)
    daemon = Daemon(arguments[0], int(options["--interval"]) / 1000, int(options["--in-flight-max"]))
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    daemon.listen()
    signal.sigwait([signal.SIGTERM])
    daemon.stop()


if __name__ == "__main__":
    main()
