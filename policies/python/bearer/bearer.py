"""Hands a client over when it carries a known bearer token (RFC 6750), and answers 401 when it does not.

Knows nothing of WebAssembly. The token is taken from the `Authorization` field alone. The `access_token` parameter of
RFC 6750 §2.3 is deliberately not looked at: a query stands in access logs, in browser histories, in `Referer` fields and
in the handoff's data, and RFC 9700 §4.3.2 forbids it.
"""

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass

from config import Config


@dataclass(frozen=True)
class Request:
    """What the daemon is told of it. The query is None where the target had no question mark."""

    method: str
    path: str
    query: str | None


@dataclass(frozen=True)
class Handover:
    user: str
    data: bytes


@dataclass(frozen=True)
class Refusal:
    """An answer to a client that is not let through; `error` is one of RFC 6750 §3.1."""

    status: int
    title: str
    detail: str
    error: str | None

    def challenge(self, realm: str) -> bytes:
        """The value of `WWW-Authenticate`."""
        error = "" if self.error is None else f', error="{self.error}"'
        return f'Bearer realm="{realm}"{error}'.encode()

    def body(self) -> bytes:
        """Problem details (RFC 9457)."""
        return to_json({"title": self.title, "status": self.status, "detail": self.detail})


# No credentials at all, or of another scheme: the challenge carries no error then (RFC 6750 §3).
NO_TOKEN = Refusal(401, "Unauthorized", "a bearer token is required", None)
MALFORMED = Refusal(
    400, "Bad Request", "there must be one Authorization field with one bearer token", "invalid_request"
)
UNKNOWN_TOKEN = Refusal(401, "Unauthorized", "the bearer token is not valid", "invalid_token")

# `Bearer` 1*SP b64token (RFC 6750 §2.1); the scheme's case does not matter (RFC 9110 §11.1).
CREDENTIALS = re.compile(rb"bearer +([A-Za-z0-9._~+/-]+=*)", re.IGNORECASE)


def decide(config: Config, authorization: list[bytes], read_request: Callable[[], Request]) -> Handover | Refusal:
    """Decides on the values of all `Authorization` fields."""
    if not authorization:
        return NO_TOKEN
    # Which of them counts would be a guess, and the daemon might guess differently.
    if len(authorization) > 1:
        return MALFORMED
    scheme, _, _ = authorization[0].partition(b" ")
    if scheme.lower() != b"bearer":
        return NO_TOKEN
    credentials = CREDENTIALS.fullmatch(authorization[0])
    if credentials is None:
        return MALFORMED
    user = user_of(config, credentials[1])
    if user is None:
        return UNKNOWN_TOKEN
    request = read_request()
    data = {"user": user, "method": request.method, "path": request.path, "query": request.query}
    return Handover(user, to_json(data))


def user_of(config: Config, token: bytes) -> str | None:
    """Whose token this is.

    It is looked up by its digest: the time that takes may tell something of digests near to that of a guess, of which
    nobody can choose one, and so nothing of tokens.
    """
    return config.tokens.get(hashlib.sha256(token).digest())


def to_json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
