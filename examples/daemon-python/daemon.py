#!/usr/bin/env python3
"""A daemon that takes handed-over clients, and answers by the request's path. Standard library only."""

import argparse
import json
import logging
import signal
import sys
import threading
import time
import urllib.parse

from handoff import DIALECTS, Acceptor, ClientGone, Handoff, HandoffError, Revoked

TEXT = {"Content-Type": "text/plain"}
OCTETS = {"Content-Type": "application/octet-stream"}


def stream(handoff: Handoff, interval: float) -> None:
    """Ten events, one after the other."""
    handoff.start(200, {"Content-Type": "text/event-stream", "Cache-Control": "no-store"})
    for n in range(1, 11):
        text = handoff.data.decode(errors="replace") if n == 1 else "hello"
        handoff.write(b"data: %s\n\n" % json.dumps({"n": n, "text": text}, separators=(",", ":")).encode())
        if handoff.gone(interval):
            # The next write would say the same; nobody needs to be waited for until then.
            raise Revoked() if handoff.revoked() else ClientGone("the client has left")
    handoff.write(b"event: done\ndata: {}\n\n")
    handoff.finish(200)


def answer(handoff: Handoff, interval: float) -> None:
    path, _, query = handoff.target.partition("?")
    asked = dict(urllib.parse.parse_qsl(query))
    if path == "/hello":
        handoff.respond(200, TEXT, b"hello\n")
        handoff.finish(200)
    elif path == "/return":
        handoff.respond(200, TEXT, b"returned\n", keep_alive=True)
        handoff.give_back(200)
    elif path == "/echo":
        handoff.respond(200, OCTETS, handoff.body.read(), keep_alive=True)
        handoff.give_back(200)
    elif path == "/unread":
        handoff.respond(200, TEXT, b"unread\n", keep_alive=True)
        handoff.give_back(200)
    elif path == "/refuse":
        after = asked.get("retry_after")
        handoff.refuse(asked.get("reason", "overloaded"), int(after) if after else None, "as asked")
    elif path == "/env":
        variables = {name: value.encode(errors="surrogateescape").decode(errors="replace")
                     for name, value in handoff.env().items()}
        handoff.respond(200, {"Content-Type": "application/json"}, json.dumps(variables).encode(), keep_alive=True)
        handoff.give_back(200)
    elif path == "/meta":
        metadata = json.dumps(handoff.metadata).encode()
        handoff.respond(200, {"Content-Type": "application/json"}, metadata, keep_alive=True)
        handoff.give_back(200)
    elif path == "/data":
        handoff.respond(200, OCTETS, handoff.data, keep_alive=True)
        handoff.give_back(200)
    elif path == "/hold":
        handoff.start(200, TEXT)
        handoff.write(b"held\n")
        handoff.gone()
        handoff.finish(200, "revoked" if handoff.revoked() else "client-gone")
    elif path == "/fail":
        handoff.respond(500, TEXT, b"failed\n")
        handoff.finish(500, "error", "as asked")
    elif path == "/large":
        handoff.start(200, OCTETS)
        left = int(asked.get("bytes", "0"))
        while left > 0:
            left -= handoff.write(b"a" * min(left, 1 << 16))
        handoff.finish(200)
    elif path == "/drop":
        handoff.take()
    elif path == "/late":
        time.sleep(3)
        handoff.respond(200, TEXT, b"hello\n")
        handoff.finish(200)
    else:
        stream(handoff, interval)


def serve(handoff: Handoff, interval: float) -> None:
    try:
        # A client that leaves, stalls or is revoked ends the block, and is reported by it.
        with handoff:
            answer(handoff, interval)
    except (HandoffError, ValueError) as error:
        print("client:", error, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="daemon", description=__doc__)
    parser.add_argument("socket")
    parser.add_argument("dialect", nargs="?", choices=DIALECTS, default="baton")
    parser.add_argument("--interval", type=int, default=100, metavar="MS")
    parser.add_argument("--in-flight-max", type=int, default=100, metavar="N")
    options = parser.parse_args()
    logging.basicConfig(format="daemon: %(message)s")
    try:
        acceptor = Acceptor(options.socket, options.dialect, in_flight_max=options.in_flight_max, name="daemon-python")
    except (OSError, ValueError) as error:
        parser.error(str(error))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: acceptor.stop())
    print("ready", options.socket, flush=True)
    for handoff in acceptor:
        threading.Thread(target=serve, args=(handoff, options.interval / 1000), daemon=True).start()
        del handoff  # the thread's alone: what it drops is then dropped
    acceptor.drain(30)


if __name__ == "__main__":
    main()
