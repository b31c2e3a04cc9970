"""An application that says what it was asked, as JSON. `python3 app.py ADDRESS [CERTIFICATE KEY]`; ADDRESS is the path of a
Unix socket, `@name` for an abstract one, or HOST:PORT."""

import json
import os
import socketserver
import ssl
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        said = {"method": self.command, "target": self.path, "fields": self.headers.items(), "body": body}
        said = json.dumps(said).encode()
        self.send_response(200)
        for name, value in (
            ("Content-Type", "application/json"),
            ("Content-Length", str(len(said))),
            ("ETag", '"one"'),
            ("Set-Cookie", "a=1"),
            ("X-Own", "kept"),
        ):
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(said)
        # Also where the other end asks for a close: behind one, libwebsockets 4.1 often loses the body.
        self.close_connection = False

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = answer

    def log_message(self, *_):
        pass


class UnixServer(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True


address = sys.argv[1]
if address.startswith(("/", "@")):
    if os.path.exists(address):
        os.unlink(address)
    server = UnixServer(address.replace("@", "\0", 1), Handler)
else:
    host, port = address.rsplit(":", 1)
    server = ThreadingHTTPServer((host, int(port)), Handler)
if len(sys.argv) > 2:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*sys.argv[2:4])
    server.socket = context.wrap_socket(server.socket, server_side=True)
name = server.socket.getsockname()
print("ready", name[1] if isinstance(name, tuple) else "", flush=True)
server.serve_forever()
