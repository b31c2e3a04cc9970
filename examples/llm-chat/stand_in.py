#!/usr/bin/env python3
"""A model that knows nothing, behind the API of those that do: `POST /v1/chat/completions` with `stream: true`.

The same question gets the same answer, a word every --pace milliseconds. What goes wrong with models goes wrong here when the
question begins with one of

    /error N    answers status N; 429 says Retry-After: 7
    /hang       accepts the question and is silent for ever
    /stall      is silent for ever after three words
    /cut        breaks off after three words
    /slow       a word a second
    /long       five hundred words

or for every question with --always COMMAND. It says on standard output what became of each. Standard library only."""

import argparse
import asyncio
import contextlib
import json

BODY_BYTES_MAX = 4 << 20
HEAD_SECONDS = 10


class Cut(Exception):
    """The answer breaks off."""


def answer_to(question, turn):
    """What it says: the question's own words, so that everybody sees whose answer it is."""
    return (f"You said “{question[:200]}”, and this is answer {turn} of our conversation. I am a stand-in: I know nothing, "
            "but I say it one word at a time, as a model would. The words come from a daemon that holds your connection "
            "itself; the server that you logged in at is long done with this request.")


async def serve(reader, writer, options, number):
    try:
        async with asyncio.timeout(HEAD_SECONDS):
            asked = await request(reader)
    except (TimeoutError, ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError) as error:
        say(number, f"no request: {error!r}")
        return await respond(writer, 400, {"error": {"message": "no request"}})
    path, fields, body = asked
    if path != "/v1/chat/completions" or not body.get("stream"):
        say(number, f"not served: {path}")
        return await respond(writer, 404, {"error": {"message": "POST /v1/chat/completions with stream only"}})
    if options.key and fields.get("authorization") != f"Bearer {options.key}":
        say(number, "a wrong key")
        return await respond(writer, 401, {"error": {"message": "wrong key"}})
    question = body["messages"][-1]["content"]
    command, _, argument = (options.always or question).partition(" ")
    words = Words()
    streaming = asyncio.ensure_future(play(writer, command, argument, question, body, options, words))
    leaving = asyncio.ensure_future(reader.read())  # its end is the client's
    await asyncio.wait((streaming, leaving), return_when=asyncio.FIRST_COMPLETED)
    left = not streaming.done()
    for task in (streaming, leaving):
        task.cancel()
    (result, _) = await asyncio.gather(streaming, leaving, return_exceptions=True)
    if left or isinstance(result, OSError):
        say(number, f"the client left after {words.count} words")
    else:
        say(number, "broke off" if isinstance(result, Cut) else f"{result or 'failed'}, {words.count} words")
        if isinstance(result, Exception) and not isinstance(result, Cut):
            raise result


class Words:
    count = 0


async def play(writer, command, argument, question, body, options, words):
    """Answers as the command says; returns what became of it."""
    if command == "/error":
        status = int(argument.split(" ")[0])
        more = "Retry-After: 7\r\n" if status == 429 else ""
        await respond(writer, status, {"error": {"message": "as asked", "type": "stand_in"}}, more)
        return f"status {status}"
    if command == "/hang":
        await asyncio.Event().wait()
    pace = 1 if command == "/slow" else options.pace / 1000
    text = answer_to(question, sum(message["role"] == "user" for message in body["messages"]))
    if command == "/long":
        text = " ".join(f"word{n}" for n in range(1, 501))
    await send(writer, b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n"
                       b"Connection: close\r\n\r\n")
    await event(writer, body, {"role": "assistant", "content": ""})
    for word in text.split(" "):
        if words.count == 3 and command == "/stall":
            await asyncio.Event().wait()
        if words.count == 3 and command == "/cut":
            writer.transport.abort()
            raise Cut
        await event(writer, body, {"content": word if words.count == 0 else " " + word})
        words.count += 1
        await asyncio.sleep(pace)
    await event(writer, body, {}, "stop")
    await chunk(writer, b"data: [DONE]\n\n")
    await send(writer, b"0\r\n\r\n")
    return "answered"


async def event(writer, body, delta, finish_reason=None):
    said = {"id": "chatcmpl-0", "object": "chat.completion.chunk", "created": 0, "model": body.get("model"),
            "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]}
    await chunk(writer, b"data: " + json.dumps(said).encode() + b"\n\n")


async def chunk(writer, data):
    await send(writer, b"%x\r\n%s\r\n" % (len(data), data))


async def send(writer, data):
    writer.write(data)
    await writer.drain()


async def respond(writer, status, body, fields=""):
    text = json.dumps(body).encode()
    head = (f"HTTP/1.1 {status} As Asked\r\nContent-Type: application/json\r\nContent-Length: {len(text)}\r\n{fields}"
            "Connection: close\r\n\r\n")
    with contextlib.suppress(OSError):
        await send(writer, head.encode() + text)


async def request(reader):
    """Path, fields and JSON body."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
    length = int(fields.get("content-length", 0))
    if length > BODY_BYTES_MAX:
        raise ValueError("a body that is too long")
    return head[0].split(" ")[1], fields, json.loads(await reader.readexactly(length) or b"{}")


def say(number, what):
    print(f"question {number}: {what}", flush=True)


async def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0, help="0, the default: any that is free")
    parser.add_argument("--pace", type=int, default=40, metavar="MS", help="between two words (40)")
    parser.add_argument("--always", metavar="COMMAND", help="answer every question so, for example '/error 500'")
    parser.add_argument("--key", help="the only key that is let in; absent: any, and none")
    options = parser.parse_args()
    count = 0

    async def connected(reader, writer):
        nonlocal count
        count += 1
        try:
            await serve(reader, writer, options, count)
        finally:
            writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", options.port)
    print(f"ready http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", flush=True)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main())
