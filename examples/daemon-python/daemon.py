#!/usr/bin/env python3
"""A daemon that takes handed-over clients and streams to each. Standard library only."""

import argparse
import array
import json
import os
import socket
import threading
import time

KINDS = {"seqpacket": socket.SOCK_SEQPACKET, "stream": socket.SOCK_STREAM, "fdpass": socket.SOCK_STREAM,
         "datagram": socket.SOCK_DGRAM}
DATA_BYTES_MAX = 1 << 20
HEAD = (b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
        b"Cache-Control: no-store\r\nConnection: close\r\n\r\n")


def receive(connection, dialect):
    """The message's data and its one client; reading it is the acknowledgement."""
    data, descriptors, whole = b"", array.array("i"), False
    while not whole:
        # Room for all 253 descriptors that can come: in a smaller buffer, strays would leak. Python makes them
        # close-on-exec.
        part, ancillary, flags, _ = connection.recvmsg(DATA_BYTES_MAX, socket.CMSG_SPACE(253 * 4))
        for level, kind, numbers in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                descriptors.frombytes(numbers[:len(numbers) // 4 * 4])
        data += part
        broken = flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC) or len(data) > DATA_BYTES_MAX or len(descriptors) > 1
        whole = broken or dialect != "stream" or not part
    if broken or len(descriptors) != 1:
        for number in descriptors:
            os.close(number)
        raise ValueError(f"{len(descriptors)} descriptors, {len(data)} bytes")
    return (b"" if data == b"\0" else data), socket.socket(fileno=descriptors[0])


def serve(connection, dialect, interval):
    with connection:
        connection.settimeout(5)  # a silent peer must not keep this thread
        data, client = receive(connection, dialect)
    stream(data, client, dialect, interval)


def stream(data, client, dialect, interval):
    with client:
        # The client arrives non-blocking. sendall goes on after short writes, and Python ignores SIGPIPE.
        client.settimeout(30)
        client.sendall(b"" if dialect == "fdpass" else HEAD)  # which the gateway has written in that dialect
        for n in range(1, 11):
            text = data.decode(errors="replace") if n == 1 else "hello"
            client.sendall(b"data: %s\n\n" % json.dumps({"n": n, "text": text}, separators=(",", ":")).encode())
            time.sleep(interval)
        client.sendall(b"event: done\ndata: {}\n\n")
        # Some of the request's body may be unread; a plain close would reset the connection under the answer.
        client.shutdown(socket.SHUT_WR)
        end = time.monotonic() + 2
        while (left := end - time.monotonic()) > 0:
            client.settimeout(left)
            if not client.recv(1 << 16):
                break


def or_say(do, *arguments):
    try:
        return do(*arguments)
    except (OSError, ValueError) as error:
        print("client:", error, flush=True)


def main():
    parser = argparse.ArgumentParser(prog="daemon", description=__doc__)
    parser.add_argument("socket")
    parser.add_argument("dialect", nargs="?", choices=KINDS, default="seqpacket")
    parser.add_argument("--interval", type=int, default=100, metavar="MS")
    options = parser.parse_args()
    dialect, kind, interval = options.dialect, KINDS[options.dialect], options.interval / 1000
    if os.path.exists(options.socket):
        with socket.socket(socket.AF_UNIX, kind) as probe:
            try:
                probe.connect(options.socket)
                parser.error("somebody listens there")
            except ConnectionRefusedError:
                os.unlink(options.socket)  # stale
    with socket.socket(socket.AF_UNIX, kind) as listener:
        os.umask(0o117)  # who may connect may hand over: the file is 0660 from its beginning
        listener.bind(options.socket)
        if dialect != "datagram":
            listener.listen(128)
        print("ready", options.socket, flush=True)
        while True:
            if dialect == "datagram":  # nobody connects: each message is in the one socket's queue
                do, arguments = stream, or_say(receive, listener, dialect)
            else:
                do, arguments = serve, listener.accept()[:1]
            if arguments:
                threading.Thread(target=or_say, args=(do, *arguments, dialect, interval), daemon=True).start()


if __name__ == "__main__":
    main()
