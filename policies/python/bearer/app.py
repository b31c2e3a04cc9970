"""The joint between the gateway and the policy: it reads the request, and turns the answer into a decision."""

import hashlib

from wit_world import exports
from wit_world.exports.lifecycle import Requirements
from wit_world.imports import log, request
from wit_world.imports.log import Level
from wit_world.imports.types import (
    Action_Handoff,
    Action_Respond,
    Decision,
    Field,
    Handoff,
    RelayMode,
    Respond,
)
from componentize_py_types import Err

import bearer
from config import Config, Refused

# The bindings lose some 200 bytes with each decision: an instance goes before that is much.
REUSE_MAX = 1000

# Set once by `configure`; every later instance starts from the memory that it left.
config: Config


class Lifecycle(exports.Lifecycle):
    def configure(self, text: str) -> Requirements:
        global config
        try:
            config = Config.parse(text)
        except Refused as refused:
            raise Err(refused.faults)
        log.write(Level.INFO, "configured", [("realm", config.realm), ("tokens", str(len(config.tokens)))])
        # Once now, so that no instance does it for the first time.
        bearer.decide(config, [b"Bearer x"], lambda: bearer.Request("GET", "/", None))
        return Requirements(max_reuse=REUSE_MAX, tick_interval_ms=0, targets=[config.target])

    def on_tick(self) -> None:
        pass

    def self_test(self) -> None:
        """Proves the digest with a vector of FIPS 180-4: it is what everything rests on."""
        if hashlib.sha256(b"abc").hexdigest()[:8] != "ba7816bf":
            raise Err("SHA-256 of 3 bytes is wrong")


class RequestHook(exports.RequestHook):
    def on_request(self) -> Decision:
        answer = bearer.decide(config, request.header_all("authorization"), read_request)
        if isinstance(answer, bearer.Handover):
            handoff = Handoff(
                target=config.target,
                data=answer.data,
                metadata=[],
                response_head=None,
                include_head=False,
                relay=RelayMode.IF_NEEDED,
                timeout_ms=None,
                alternates=[],
                response_body=b"",
            )
            return Decision(Action_Handoff(handoff), carry=b"", annotations=[("user", answer.user)])
        # Never the token. The level is asked for first: an attacker decides how often this runs.
        if log.enabled(Level.DEBUG):
            log.write(Level.DEBUG, answer.detail, [])
        headers = [
            Field("www-authenticate", answer.challenge(config.realm)),
            Field("content-type", b"application/problem+json"),
        ]
        return Decision(Action_Respond(Respond(answer.status, headers, answer.body())), carry=b"", annotations=[])


def read_request() -> bearer.Request:
    return bearer.Request(request.method(), request.path(), request.query())
