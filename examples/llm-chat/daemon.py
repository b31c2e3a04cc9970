#!/usr/bin/env python3
"""The streaming daemon: takes clients that the application has let in, asks the model, and writes the answer to the client's own
socket, word by word, as server-sent events. Standard library, and the receiver in ../daemon-python/handoff.py.

The model is told by OPENAI_BASE_URL, OPENAI_API_KEY and OPENAI_MODEL. TERM: streams under way go on to their end, at most for
--drain-timeout; new ones are refused. What became of each client is said on standard error."""

import argparse
import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "daemon-python"))
from handoff import Acceptor, Ended, HandoffError  # noqa: E402

from model import Model, ModelError  # noqa: E402

MESSAGES_MAX = 200
ROLES = ("user", "assistant")
OVERLOADED_RETRY_SECONDS = 3
REFUSALS_MAX = 16  # under way at a time, beside the clients that are served
WRITE_SECONDS = 30  # of a client that does not read
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


class Left(Exception):
    """Nobody listens any more."""


class Answer:
    """One client and how far its answer has come."""

    def __init__(self, handoff):
        self.handoff, self.head_sent, self.pieces, self.began = handoff, False, 0, time.monotonic()

    async def event(self, value, name=None):
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
        lines = f"event: {name}\n" if name else ""
        await self.handoff.write(f"{lines}data: {text}\n\n".encode())

    async def piece(self, piece):
        """The head is written with the first one: what fails before has a status of its own."""
        if not self.head_sent:
            self.head_sent = True
            await self.handoff.start(200, STREAM_FIELDS)
        if piece.text:
            self.pieces += 1
            await self.event({"text": piece.text})
        if piece.finish_reason:
            await self.event({"finish_reason": piece.finish_reason}, "done")

    async def fail(self, status, error, message, retry_after=None):
        """Says what went wrong, as a response of its own or as the stream's last event. The client goes back to the gateway
        for its next request where that can be."""
        body = {"status": status, "error": error, "message": message}
        if self.head_sent:
            await self.event(body, "error")
            return await self.handoff.finish(200, "ok", error)
        fields = [*JSON_FIELDS, *([("Retry-After", str(retry_after))] if retry_after is not None else [])]
        await self.handoff.respond(status, fields, json.dumps(body).encode() + b"\n", keep_alive=True)
        await self.handoff.give_back(status)

    async def end(self, result, message=None):
        """Whatever was written is all there is."""
        with contextlib.suppress(HandoffError):
            await self.handoff.finish(200 if self.head_sent else None, result, message)


class Chat:
    """The daemon: answers under way, and how many there may be."""

    def __init__(self, acceptor, model, options):
        self.acceptor, self.model, self.options = acceptor, model, options
        self.active, self.refusals = set(), set()

    async def run(self):
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        async for handoff in self.acceptor:
            self.begin(handoff)
        if self.active:
            _, late = await asyncio.wait(self.active, timeout=self.options.drain_timeout)
            for task in late:
                task.cancel()
        await asyncio.gather(*self.active, *self.refusals, return_exceptions=True)
        await asyncio.to_thread(self.acceptor.drain, 1)  # the last words to the gateway
        say("drained")

    def stop(self):
        say(f"draining, {len(self.active)} under way")
        self.acceptor.stop()

    def begin(self, handoff):
        # In the native dialect the gateway knows how many there may be, and sends no more.
        is_full = self.options.dialect != "baton" and len(self.active) >= self.options.clients_max
        tasks, what = (self.refusals, self.refuse) if is_full else (self.active, self.serve)
        task = asyncio.ensure_future(what(handoff))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    async def refuse(self, handoff):
        """One too many."""
        say(f"{handoff.id}: refused, {self.options.clients_max} answers are under way")
        with contextlib.suppress(HandoffError):
            await Answer(handoff).fail(503, "overloaded", "Too many people are asking.", OVERLOADED_RETRY_SECONDS)

    async def serve(self, handoff):
        """One client from beginning to end."""
        answer, user = Answer(handoff), "?"
        try:
            await handoff.take()
            user, messages = conversation(handoff.data)
            await self.until_left(answer, self.stream(answer, messages))
            await handoff.finish(200)
            outcome = "ok"
        except BadData as error:
            outcome = await self.failed(answer, 400, "bad-data", str(error), str(error))
        except ModelError as error:
            outcome = await self.failed(answer, error.status, error.error, str(error), error.message, error.retry_after)
        except Left:
            outcome = "revoked" if handoff.revoked() else "client-gone"
            await answer.end(outcome)
        except Ended as error:
            outcome = f"{error.result}: {error}"
            await answer.end(error.result, str(error))
        except asyncio.CancelledError:
            outcome = "cut: the drain took too long"
            await answer.end("error", outcome)
        except Exception as error:  # a fault of ours ends one client, not the daemon
            outcome = f"fault: {error!r}"
            logging.exception("fault")
            await answer.end("error", "a fault of the daemon")
        say(f"{handoff.id} {user}: {outcome}, {answer.pieces} pieces, {time.monotonic() - answer.began:.1f} s")

    async def failed(self, answer, status, error, detail, message, retry_after=None):
        try:
            await answer.fail(status, error, message, retry_after)
        except Ended as ended:
            await answer.end(ended.result, str(ended))
        return f"{status} {error}: {detail}"

    async def until_left(self, answer, streaming):
        """Streams; that is cancelled, and with it the question to the model, as soon as nobody listens any more."""
        tasks = [asyncio.ensure_future(streaming), asyncio.ensure_future(answer.handoff.gone())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if not tasks[0].done():
                raise Left
            tasks[0].result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def stream(self, answer, messages):
        """The model's answer to the client."""
        if self.options.prompt:
            messages = [{"role": "system", "content": self.options.prompt}, *messages]
        try:
            async with asyncio.timeout(self.options.answer_timeout), contextlib.aclosing(self.model.answer(messages)) as pieces:
                async for piece in pieces:
                    await answer.piece(piece)
        except TimeoutError:
            raise ModelError(504, "too-long", "The answer took too long.") from None


def say(what):
    with contextlib.suppress(OSError):  # nobody may listen any more
        print(what, file=sys.stderr, flush=True)


def main():
    parser = argparse.ArgumentParser(prog="daemon", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("socket", help="its path, or - for the listener that a service manager has opened")
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
    logging.basicConfig(format="%(message)s")
    in_flight_max = options.clients_max + (0 if options.dialect == "baton" else REFUSALS_MAX)
    with Acceptor(None if options.socket == "-" else options.socket, options.dialect, name="llm-chat",
                  in_flight_max=in_flight_max, write_timeout=WRITE_SECONDS) as acceptor:
        print("ready", options.socket, flush=True)
        asyncio.run(Chat(acceptor, model, options).run())


if __name__ == "__main__":
    main()
