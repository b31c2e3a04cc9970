"""WebSocket with the package `websockets`. `serve SOCKET` echoes every message, after the path that was asked for;
`ask URL` sends text and bytes of several sizes and ends in good order, and says what came back."""

import contextlib
import sys

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect
from websockets.sync.server import unix_serve


def echo(connection):
    connection.send(connection.request.path)
    with contextlib.suppress(ConnectionClosed):  # libwebsockets leaves without a word
        for message in connection:
            connection.send(message)


if sys.argv[1] == "serve":
    with unix_serve(echo, sys.argv[2], compression=None, max_size=None) as server:
        print("ready", flush=True)
        server.serve_forever()
with connect(sys.argv[2], compression=None, max_size=None) as connection:
    print(connection.recv())
    for message in ["hello", b"\0\xff", "x" * 125, b"y" * 70_000] + ([] if len(sys.argv) > 3 else [b"z" * 3_000_000]):
        connection.send(message)
        same = connection.recv() == message
        print(len(message), "same" if same else "another")
    latency = connection.ping().wait(10)
    print("pong" if latency else "no pong")
print(connection.close_code)
