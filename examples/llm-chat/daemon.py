#!/usr/bin/env python3
"""The streaming daemon: takes clients that the application has let in, asks the model, and writes the answer to the client's own
socket, word by word, as server-sent events. Standard library, and the receiver in ../daemon-python/handoff.py.

The model is told by OPENAI_BASE_URL, OPENAI_API_KEY and OPENAI_MODEL. TERM: streams under way go on to their end, at most for
--drain-timeout; new ones are refused. What became of each client is said on standard error."""

import argparse
import asyncio
import contextlib
import json
import os
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "daemon-python"))
from handoff import Acceptor, ClientGone  # noqa: E402

from model import Model, ModelError  # noqa: E402

MESSAGES_MAX = 200
ROLES = ("user", "assistant")
OVERLOADED_RETRY_SECONDS = 3
DRAINING_RETRY_SECONDS = 1
WRITE_SECONDS = 30  # of a client that does not read
LOOK_SECONDS = 0.1  # how often a client is looked at that nothing is written to
STREAM_FIELDS = [("Content-Type", "text/event-stream"), ("Cache-Control", "no-store"), ("X-Content-Type-Options", "nosniff")]
JSON_FIELDS = [("Content-Type", "application/json"), ("Cache-Control", "no-store"), ("X-Content-Type-Options", "nosniff")]


class BadData(ValueError):
    """What the application handed over cannot be asked."""


def conversation(data):
    """Whose question it is, and the messages for the model. They came from a browser: nothing in them is believed."""
    try:
        told = json.loads(data)
        user, messages = told["user"], told["messages"]
    except (ValueError, TypeError, KeyError):
        raise BadData("The handoff's data is no conversation.") from None
    if not isinstance(user, str) or not user:
        raise BadData("The handoff's data names no user.")
    if not isinstance(messages, list) or not 1 <= len(messages) <= MESSAGES_MAX:
        raise BadData(f"A conversation has 1 to {MESSAGES_MAX} messages.")
    for message in messages:
        if not isinstance(message, dict) or set(message) != {"role", "content"}:
            raise BadData("A message has a role and a content.")
        if message["role"] not in ROLES or not isinstance(message["content"], str) or not message["content"].strip():
            raise BadData("A message is a text of the user or of the assistant.")
    if messages[-1]["role"] != "user":
        raise BadData("The last message is the user's.")
    return user, messages


class Client:
    """One handed-over client, from a coroutine: what may wait for its socket does so on a thread."""

    def __init__(self, handoff, threads):
        self.handoff, self.threads = handoff, threads

    async def call(self, method, *arguments, **named):
        return await asyncio.get_running_loop().run_in_executor(self.threads, lambda: method(*arguments, **named))

    async def event(self, value, name=None):
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
        lines = f"event: {name}\n" if name else ""
        await self.call(self.handoff.write, f"{lines}data: {text}\n\n".encode())

    async def fail(self, status, error, message, retry_after=None):
        """A whole answer, after which the client goes back to the gateway where it can."""
        body = {"error": error, "message": message}
        fields = list(JSON_FIELDS)
        if retry_after is not None:
            body["retry_after"] = retry_after
            fields.append(("Retry-After", str(retry_after)))
        await self.call(self.handoff.respond, status, fields, json.dumps(body).encode() + b"\n", keep_alive=True)
        await self.call(self.handoff.give_back, status)

    async def has_left(self):
        """Returns when the client has gone, or is to be let go."""
        while not (self.handoff.client_gone() or self.handoff.revoked()):
            await asyncio.sleep(LOOK_SECONDS)


class Chat:
    """The daemon: clients in progress, and how many there may be."""

    def __init__(self, acceptor, model, options):
        self.acceptor, self.model, self.options = acceptor, model, options
        # Each client needs one thread at a time; refusals need a few more.
        self.threads = ThreadPoolExecutor(options.clients_max + 4)
        self.active, self.refusals = set(), set()

    async def run(self):
        loop, over = asyncio.get_running_loop(), asyncio.Event()

        def accept():
            while (handoff := self.acceptor.accept()) is not None:
                loop.call_soon_threadsafe(self.begin, handoff)
            loop.call_soon_threadsafe(over.set)

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.acceptor.stop)
        threading.Thread(target=accept, name="accept").start()
        await over.wait()
        say(f"draining, {len(self.active)} under way")
        if self.active:
            _, late = await asyncio.wait(self.active, timeout=self.options.drain_timeout)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        await asyncio.gather(*self.refusals, return_exceptions=True)
        await loop.run_in_executor(self.threads, self.acceptor.drain, 1)
        self.acceptor.close()
        say("drained")

    def begin(self, handoff):
        """Takes the client, or says that there are too many."""
        is_full = len(self.active) >= self.options.clients_max
        tasks, what = (self.refusals, self.refuse) if is_full else (self.active, self.serve)
        task = asyncio.ensure_future(what(Client(handoff, self.threads)))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    async def refuse(self, client):
        """One too many: the native dialect asks another daemon, and otherwise the gateway answers; the others, we do."""
        say("refused, too many clients")
        with contextlib.suppress(OSError):
            if self.options.dialect == "baton":
                await client.call(client.handoff.refuse, "overloaded", OVERLOADED_RETRY_SECONDS, "too many conversations")
            else:
                await client.fail(503, "overloaded", "Too many people are chatting.", OVERLOADED_RETRY_SECONDS)

    async def serve(self, client):
        """One client from beginning to end."""
        began, handoff, told = time.monotonic(), client.handoff, "?"
        progress = Progress()
        try:
            handoff.take()
            told, messages = conversation(handoff.data)
            outcome = await self.until_left(client, self.answer(client, messages, progress))
        except BadData as error:
            outcome = f"400 {error}"
            await said(client.fail(400, "bad-data", str(error)))
        except ModelError as error:
            outcome = f"{error.status} {error.error}: {error}"
            if progress.head_sent:
                last = {"status": error.status, "error": error.error, "message": error.message}
                await said(client.event(last, "error"))
                await said(client.call(handoff.finish, 200, "error", error.error))
            else:
                await said(client.fail(error.status, error.error, error.message, error.retry_after))
        except ClientGone:
            outcome = "client-gone"
            await said(client.call(handoff.finish, progress.status, outcome))
        except OSError as error:  # it does not read, or the gateway is gone and the client was never ours
            outcome = f"error: {error}"
            await said(client.call(handoff.finish, progress.status, "error", str(error)))
        except asyncio.CancelledError:
            outcome = "cut, the drain took too long"
            await said(client.call(handoff.finish, progress.status, "error", outcome))
        except Exception as error:  # a fault of ours ends one client, not the daemon
            outcome = f"fault: {error!r}"
            await said(client.call(handoff.finish, progress.status, "error", "a fault of the daemon"))
        say(f"{handoff.id} {told}: {outcome}, {progress.pieces} pieces, {time.monotonic() - began:.1f} s")

    async def until_left(self, client, answer):
        """The answer; it is cancelled, and with it the question to the model, as soon as nobody listens any more."""
        answering, leaving = asyncio.ensure_future(answer), asyncio.ensure_future(client.has_left())
        try:
            await asyncio.wait((answering, leaving), return_when=asyncio.FIRST_COMPLETED)
            if answering.done():
                return answering.result()
            raise ClientGone
        finally:
            for task in (answering, leaving):
                task.cancel()
            await asyncio.gather(answering, leaving, return_exceptions=True)

    async def answer(self, client, messages, progress):
        """The model's answer to the client. Its head is written with the first word: what fails before has a status of its own."""
        if self.options.prompt:
            messages = [{"role": "system", "content": self.options.prompt}, *messages]
        try:
            async with asyncio.timeout(self.options.answer_timeout), contextlib.aclosing(self.model.answer(messages)) as answer:
                async for piece in answer:
                    if not progress.head_sent:
                        await client.call(client.handoff.start, 200, STREAM_FIELDS)
                        progress.head_sent = True
                    if piece.text:
                        progress.pieces += 1
                        await client.event({"text": piece.text})
                    if piece.finish_reason:
                        await client.event({"finish_reason": piece.finish_reason}, "done")
        except TimeoutError:
            raise ModelError(504, "too-long", "The answer took too long.") from None
        await client.call(client.handoff.finish, 200)
        return "ok"


class Progress:
    """How far an answer has come."""

    head_sent, pieces = False, 0

    @property
    def status(self):
        return 200 if self.head_sent else None


async def said(words):
    """Last words, which nobody may be there to hear."""
    with contextlib.suppress(OSError):
        await words


def say(what):
    print(what, file=sys.stderr, flush=True)


def main():
    parser = argparse.ArgumentParser(prog="daemon", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("socket")
    parser.add_argument("dialect", nargs="?", choices=("baton", "seqpacket", "stream"), default="baton")
    parser.add_argument("--clients-max", type=int, default=100, metavar="N", help="answers under way at a time (100)")
    parser.add_argument("--silence", type=float, default=30, metavar="S", help="how long the model may be silent (30)")
    parser.add_argument("--answer-timeout", type=float, default=600, metavar="S", help="of a whole answer (600)")
    parser.add_argument("--drain-timeout", type=float, default=30, metavar="S", help="for streams under way after TERM (30)")
    options = parser.parse_args()
    options.prompt = os.environ.get("CHAT_PROMPT", "")
    try:
        model = Model(os.environ.get("OPENAI_BASE_URL", "https://api.openai.com/v1"), os.environ.get("OPENAI_API_KEY", ""),
                      os.environ.get("OPENAI_MODEL", "gpt-4o-mini"), options.silence)
    except ValueError as error:
        parser.error(str(error))
    acceptor = Acceptor(options.socket, options.dialect, in_flight_max=options.clients_max, write_timeout=WRITE_SECONDS,
                        name="llm-chat")
    print("ready", options.socket, flush=True)
    asyncio.run(Chat(acceptor, model, options).run())


if __name__ == "__main__":
    main()
