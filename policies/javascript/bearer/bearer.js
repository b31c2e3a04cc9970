// Hands a client over when it carries a known bearer token (RFC 6750), and answers 401 when it does not.
//
// Knows nothing of WebAssembly. The token is taken from the `Authorization` field alone. The `access_token` parameter of
// RFC 6750 §2.3 is deliberately not looked at: a query stands in access logs, in browser histories, in `Referer` fields
// and in the handoff's data, and RFC 9700 §4.3.2 forbids it.

import { sha256 } from "@noble/hashes/sha2.js";
import { bytesToHex } from "@noble/hashes/utils.js";

/** An answer to a client that is not let through; `error` is one of RFC 6750 §3.1. */
class Refusal {
  constructor(status, title, detail, error) {
    Object.assign(this, { status, title, detail, error });
  }

  /** The value of `WWW-Authenticate`. */
  challenge(realm) {
    return `Bearer realm="${realm}"` + (this.error === null ? "" : `, error="${this.error}"`);
  }

  /** Problem details (RFC 9457). */
  body() {
    return JSON.stringify({ title: this.title, status: this.status, detail: this.detail });
  }
}

/** No credentials at all, or of another scheme: the challenge carries no error then (RFC 6750 §3). */
const NO_TOKEN = new Refusal(401, "Unauthorized", "a bearer token is required", null);
const MALFORMED = new Refusal(
  400, "Bad Request", "there must be one Authorization field with one bearer token", "invalid_request",
);
const UNKNOWN_TOKEN = new Refusal(401, "Unauthorized", "the bearer token is not valid", "invalid_token");

/** `Bearer` 1*SP b64token (RFC 6750 §2.1); the scheme's case does not matter (RFC 9110 §11.1). */
const CREDENTIALS = /^bearer +([A-Za-z0-9._~+/-]+=*)$/i;

/** Decides on the values of all `Authorization` fields. */
export function decide(config, authorization, readRequest) {
  if (authorization.length === 0) return NO_TOKEN;
  // Which of them counts would be a guess, and the daemon might guess differently.
  if (authorization.length > 1) return MALFORMED;

  // Byte by byte: what is beyond ASCII stays beyond it, and so is no token.
  const value = latin1(authorization[0]);
  if (value.split(" ", 1)[0].toLowerCase() !== "bearer") return NO_TOKEN;
  const credentials = CREDENTIALS.exec(value);
  if (credentials === null) return MALFORMED;

  const token = authorization[0].subarray(value.length - credentials[1].length);
  // By digest: what the time of it tells is near to a digest that nobody can choose, and so nothing of tokens.
  const user = config.tokens[bytesToHex(sha256(token))];
  if (user === undefined) return UNKNOWN_TOKEN;
  const { method, path, query } = readRequest();
  return { user, data: JSON.stringify({ user, method, path, query }) };
}

/** In pieces: a call has room for some thousand arguments. */
function latin1(bytes) {
  let text = "";
  for (let at = 0; at < bytes.length; at += 1024) text += String.fromCharCode(...bytes.subarray(at, at + 1024));
  return text;
}
