"""As daemon.rs, with the library in Python: daemon.py SOCKET NAME REFUSED_PERCENT."""

import pathlib
import random
import signal
import sys
import threading
import time

sys.dont_write_bytecode = True
sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "examples/daemon-python"))

from handoff import Acceptor, HandoffError  # noqa: E402

TEXT = {"Content-Type": "text/plain"}


def answer(handoff, name):
    path, _, pause_ms = handoff.target.partition("?")
    kind, mark = path[1:].split("/")
    line = f"{name} {mark}"
    if kind == "stream":
        handoff.start(200, TEXT)
        for n in range(5):
            handoff.write(f"{line} {n}\n".encode())
            time.sleep(0.003)
        handoff.write(f"{line} end\n".encode())
        handoff.finish(200)
        return
    if kind == "late":
        time.sleep(int(pause_ms) / 1000)
    body = f"{line}\n".encode()
    if kind == "echo":
        body += handoff.body.read()
    handoff.respond(200, TEXT, body, keep_alive=kind != "last")
    if kind == "last":
        handoff.finish(200)
    else:
        handoff.give_back(200)


def serve(handoff, name, is_refused):
    try:
        with handoff:
            if is_refused:
                handoff.refuse("overloaded", None, "by chance")
            else:
                answer(handoff, name)
    except HandoffError as error:
        print("client:", error, file=sys.stderr, flush=True)


def main():
    socket, name, refused_percent = sys.argv[1:]
    acceptor = Acceptor(socket, "baton", in_flight_max=32, name=name)
    signal.signal(signal.SIGTERM, lambda *_: acceptor.stop())
    print("ready", socket, flush=True)
    for handoff in acceptor:
        is_refused = random.randrange(100) < int(refused_percent)
        threading.Thread(target=serve, args=(handoff, name, is_refused), daemon=True).start()
        del handoff
    acceptor.drain(30)


main()
