"""Lets in whoever has the token, and hands them over to the target `chat`."""

import json

from wit_world import exports
from wit_world.imports import config, log, request
from wit_world.imports.types import (
    Action_Handoff,
    Action_Pass,
    Action_Respond,
    Decision,
    Edits,
    Field,
    Handoff,
    RelayMode,
    Respond,
)

SCHEME = b"bearer "


class RequestHook(exports.RequestHook):
    def on_request(self) -> Decision:
        path = request.path()
        if not path.startswith("/v1/"):
            return Decision(Action_Pass(Edits(remove=[], set=[], append=[])), carry=b"", annotations=[])

        # Bytes, not str: what a client sends need not be UTF-8.
        field = request.header("authorization") or b""
        if field[: len(SCHEME)].lower() != SCHEME:
            return answer(401, "a bearer token is required\n", Field("www-authenticate", b"Bearer"))

        if field[len(SCHEME) :] != setting("token", "open-sesame").encode():
            # Never the token itself: logs are read by more people than secrets are for.
            log.write(log.Level.INFO, "refused a token", [("path", path)])
            return answer(403, "this token opens nothing here\n")

        user = setting("user", "alice")
        # Without these arguments there are spaces behind commas, and \u00eb instead of ë.
        data = json.dumps({"user": user, "path": path}, separators=(",", ":"), ensure_ascii=False).encode()
        handoff = Handoff(
            target="chat",
            data=data,
            metadata=[],
            response_head=None,
            include_head=False,
            relay=RelayMode.IF_NEEDED,
            timeout_ms=None,
            alternates=[],
            response_body=b"",
        )
        return Decision(Action_Handoff(handoff), carry=b"", annotations=[("user", user)])


def setting(key: str, usual: str) -> str:
    value = config.get(key)
    # Not `or`: an empty setting is a setting.
    return usual if value is None else value


def answer(status: int, body: str, *headers: Field) -> Decision:
    fields = [*headers, Field("content-type", b"text/plain; charset=utf-8")]
    return Decision(Action_Respond(Respond(status, fields, body.encode())), carry=b"", annotations=[])
