"""A client of OpenAI-compatible APIs: one question, and the answer's pieces as they come. Standard library only."""

import asyncio
import contextlib
import email.utils
import json
import ssl
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

HEAD_BYTES_MAX = 64 * 1024
LINE_BYTES_MAX = 1 << 20
CONNECT_SECONDS = 5
RETRY_AFTER_DEFAULT, RETRY_AFTER_MAX = 5, 3600


class ModelError(Exception):
    """Why there is no answer, or no more of it: what the client is told, and for the log what the model's side said."""

    def __init__(self, status, error, message, detail="", retry_after=None):
        super().__init__(detail or message)
        self.status, self.error, self.message, self.retry_after = status, error, message, retry_after


def failed(detail):
    return ModelError(502, "model-failed", "The model could not answer.", detail)


def silent(detail):
    return ModelError(504, "model-silent", "The model did not answer in time.", detail)


@dataclass
class Piece:
    """Some of the answer, or at its end why it ended (`stop`, `length`, `content_filter` …)."""

    text: str = ""
    finish_reason: str | None = None


class Model:
    """An API's address, the key for it, and the model's name there. `silence` bounds each wait for a sign of life, in seconds."""

    def __init__(self, base_url, key, name, silence):
        url = urlsplit(base_url)
        if url.scheme not in ("http", "https") or not url.hostname:
            raise ValueError(f"OPENAI_BASE_URL is no http:// or https:// address: {base_url!r}")
        self.host, self.netloc, self.path = url.hostname, url.netloc.rpartition("@")[2], url.path.rstrip("/")
        self.tls = ssl.create_default_context() if url.scheme == "https" else None
        self.port = url.port or (443 if self.tls else 80)
        self.key, self.name, self.silence = key, name, silence

    async def answer(self, messages):
        """Yields pieces. When it is closed or cancelled, so is the connection: the model stops at once.

        Raises ModelError."""
        async with self._connection() as (reader, writer):
            try:
                writer.write(self._request(messages))
                async with asyncio.timeout(self.silence):
                    await writer.drain()
                    status, fields = await head(reader)
                    if status != 200:
                        raise await refused(status, fields, reader)
                async for piece in pieces(lines(reader, fields), self.silence):
                    yield piece
            except TimeoutError:
                raise silent(f"silent for {self.silence:g} s") from None
            except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError) as error:
                raise failed(f"{type(error).__name__}: {error}") from error

    @contextlib.asynccontextmanager
    async def _connection(self):
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                reader, writer = await asyncio.open_connection(self.host, self.port, ssl=self.tls, limit=LINE_BYTES_MAX)
        except TimeoutError:
            raise silent(f"no connection within {CONNECT_SECONDS} s") from None
        except OSError as error:
            raise failed(f"no connection: {error}") from error
        try:
            yield reader, writer
        finally:
            writer.transport.abort()  # whatever is still to come is for nobody

    def _request(self, messages):
        body = json.dumps({"model": self.name, "messages": messages, "stream": True}).encode()
        fields = {"Host": self.netloc, "Content-Type": "application/json", "Content-Length": len(body),
                  "Accept": "text/event-stream", "Connection": "close"}
        if self.key:
            fields["Authorization"] = f"Bearer {self.key}"
        text = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        return f"POST {self.path}/chat/completions HTTP/1.1\r\n{text}\r\n".encode("latin-1") + body


async def head(reader):
    """Status and fields of an answer; what announces it (1xx) is passed over."""
    while True:
        raw = await reader.readuntil(b"\r\n\r\n")
        if len(raw) > HEAD_BYTES_MAX:
            raise ValueError("the answer's head is too long")
        first, *rest = raw.decode("latin-1").split("\r\n")
        version, status, *_ = first.split(" ") + [""]
        if not version.startswith("HTTP/1.") or not status.isdecimal():
            raise ValueError(f"no HTTP answer: {first[:80]!r}")
        fields = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in rest) if name}
        if int(status) >= 200:
            return int(status), fields


async def refused(status, fields, reader):
    """What an answer without an answer means. Its text is for the log: it may tell what no user should know."""
    text = b""
    with contextlib.suppress(TimeoutError, OSError, ValueError, asyncio.IncompleteReadError):
        async with asyncio.timeout(1):
            async for line in lines(reader, fields):
                text += line
                if len(text) > 500:
                    break
    detail = f"status {status}: {' '.join(text[:500].decode(errors='replace').split())}"
    if status in (429, 503):
        wait = retry_after(fields.get("retry-after", ""))
        return ModelError(503, "model-busy", "The model is busy.", detail, wait)
    return failed(detail)


def retry_after(value):
    """Seconds from a number or a date (RFC 9110 10.2.3)."""
    if value.isdecimal() and len(value) < 10:
        wait = int(value)
    else:
        try:
            wait = round(email.utils.parsedate_to_datetime(value).timestamp() - time.time())
        except (TypeError, ValueError):
            wait = RETRY_AFTER_DEFAULT
    return min(max(wait, 1), RETRY_AFTER_MAX)


async def lines(reader, fields):
    """The lines of a body in any framing, as they come. A chunk may end anywhere in a line."""
    if fields.get("transfer-encoding", "").lower() != "chunked":
        length = fields.get("content-length")
        left = int(length) if length is not None else None
        while left != 0 and (line := await reader.readline()):
            yield line
            left = None if left is None else max(left - len(line), 0)
        if left:
            raise ValueError(f"cut {left} bytes before its end")
        return
    rest = b""
    while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
        if size > LINE_BYTES_MAX:
            raise ValueError("a chunk is too long")
        *whole, rest = (rest + (await reader.readexactly(size + 2))[:-2]).split(b"\n")
        if len(rest) > LINE_BYTES_MAX:
            raise ValueError("a line is too long")
        for line in whole:
            yield line + b"\n"
    if rest:
        yield rest


async def pieces(lines, silence):
    """The pieces in a stream of events, up to `[DONE]`. One that ends without having said why was cut."""
    reason = None
    while True:
        async with asyncio.timeout(silence):
            line = await anext(lines, None)
        if line is None:
            break
        if not line.startswith(b"data:"):
            continue
        data = line[5:].strip()
        if data == b"[DONE]":
            break
        event = json.loads(data)
        if not isinstance(event, dict):
            raise ValueError("an event is no object")
        if event.get("error"):
            raise failed(f"in the stream: {json.dumps(event['error'])[:500]}")
        for choice in (event.get("choices") or [])[:1]:
            text = (choice.get("delta") or {}).get("content")
            if text:
                yield Piece(text)
            reason = choice.get("finish_reason") or reason
    if reason is None:
        raise failed("the stream was cut")
    yield Piece(finish_reason=reason)
