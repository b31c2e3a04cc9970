"""What the policy is told once, as JSON:

    {"target": "chat", "realm": "demo", "tokens": {"<SHA-256 of a token, in hex>": "alice"}}

Tokens stand there as digests, so that neither the configuration nor its backups hold anything that opens a door. That is
safe for tokens that a program made at random; words that people chose can be guessed from their digest.
"""

import json
import re
from dataclasses import dataclass

# What can stand between the quotes of a header field as it is (RFC 9110 §5.6.4).
PRINTABLE = re.compile(r'[ !#-\[\]-~]+')
# As `sha256sum` prints it. One spelling only: two for one token would be two entries.
DIGEST = re.compile(r"[0-9a-f]{64}")
USER = re.compile(r"[^\x00-\x1f\x7f]+")


class Refused(Exception):
    """Every fault, not only the first: whoever has to mend it wants to go there once."""

    def __init__(self, faults: list[str]):
        super().__init__("; ".join(faults))
        self.faults = faults


@dataclass(frozen=True)
class Config:
    target: str
    # Names the protected space in challenges (RFC 9110 §11.5).
    realm: str
    # Digest of each token, and whose it is.
    tokens: dict[bytes, str]

    @classmethod
    def parse(cls, text: str) -> "Config":
        try:
            value = json.loads(text, parse_constant=refuse_constant)
        except (ValueError, RecursionError):
            raise Refused(["config: not JSON"])
        if not isinstance(value, dict):
            raise Refused(["config: must be an object"])
        faults: list[str] = []
        target = printable(value, "target", faults)
        realm = printable(value, "realm", faults)
        tokens = read_tokens(value, faults)
        faults += [f"{key}: unknown key" for key in sorted(value.keys() - {"target", "realm", "tokens"})]
        if faults:
            raise Refused(faults)
        return cls(target, realm, tokens)


def refuse_constant(name: str) -> None:
    """Python reads NaN and Infinity; JSON has none."""
    raise ValueError(name)


def printable(value: dict, key: str, faults: list[str]) -> str:
    if key not in value:
        faults.append(f"{key}: missing")
    elif isinstance(value[key], str) and PRINTABLE.fullmatch(value[key]):
        return value[key]
    else:
        faults.append(f"{key}: must be a string of printable ASCII without quotes and backslashes")
    return ""


def read_tokens(value: dict, faults: list[str]) -> dict[bytes, str]:
    if "tokens" not in value:
        faults.append("tokens: missing")
        return {}
    entries = value["tokens"]
    if not isinstance(entries, dict) or not entries:
        faults.append("tokens: must be an object with at least one entry")
        return {}
    tokens = {}
    for key, user in sorted(entries.items(), key=lambda entry: entry[0]):
        good_key = DIGEST.fullmatch(key) is not None
        good_user = isinstance(user, str) and USER.fullmatch(user) is not None
        # A key that is no digest may be the token itself, put there by mistake: it is never repeated in a message.
        if good_key and good_user:
            tokens[bytes.fromhex(key)] = user
        elif good_user:
            faults.append(f'tokens: the key of "{user}" must be 64 lower-case hexadecimal digits, the SHA-256 of the token')
        elif good_key:
            faults.append(f"tokens: the user of {key[:8]}... must be a string without control characters, and not empty")
        else:
            faults.append("tokens: an entry has neither a SHA-256 as its key nor a user")
    return tokens
