// Hands a client over when it carries a known bearer token (RFC 6750), and answers 401 when it does not.
//
// The token is taken from the `Authorization` field alone. The `access_token` parameter of RFC 6750 §2.3 is
// deliberately not looked at: a query stands in access logs, in browser histories, in `Referer` fields and in the
// handoff's data, and RFC 9700 §4.3.2 forbids it.

import { Decision, configured, json, log, onConfigure, onRequest, onSelfTest, refused, request } from "../baton";
import { Config } from "./config";
import { DIGEST_LENGTH, sha256 } from "./sha256";

export * from "../baton/exports";
export * from "../baton/exports/configure";
export * from "../baton/exports/self-test";

/** Set once by `configure`; every later instance starts from the memory that it left. */
let config: Config | null = null;

onConfigure((text) => {
  const read = new Config(text);
  if (read.faults.length > 0) return refused(read.faults);
  log.info("configured", [["realm", read.realm], ["tokens", read.users.length.toString()]]);
  config = read;
  return configured([read.target]);
});

/** Proves the digest with the vectors of FIPS 180-4, one block and two. */
onSelfTest(() => {
  const vectors = ["abc", "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"];
  const starts: u32[] = [0xba7816bf, 0x248d6a61];
  for (let i = 0; i < vectors.length; i++) {
    const message = String.UTF8.encode(vectors[i]);
    const digest = sha256(changetype<usize>(message), message.byteLength);
    if (bswap<u32>(load<u32>(changetype<usize>(digest))) != starts[i]) {
      return `SHA-256 of ${message.byteLength} bytes is wrong`;
    }
  }
  return null;
});

// A trap, if the gateway had not configured us; it then applies `on_error`.
onRequest(() => decide(assert(config), request.headerAll("authorization")));

/** Decides on the values of all `Authorization` fields. */
function decide(config: Config, authorization: ArrayBuffer[]): Decision {
  if (authorization.length == 0) return noToken(config);
  // Which of them counts would be a guess, and the daemon might guess differently.
  if (authorization.length > 1) return malformed(config);

  // `Bearer` 1*SP b64token (RFC 6750 §2.1); the scheme's case does not matter (RFC 9110 §11.1).
  const value = Uint8Array.wrap(authorization[0]);
  const schemeEnd = indexOfSpace(value);
  if (!isBearer(value, schemeEnd)) return noToken(config);
  let start = schemeEnd;
  while (start < value.length && value[start] == 0x20) start++;
  if (!isB64token(value, start)) return malformed(config);

  const user = userOf(config, value.dataStart + start, value.length - start);
  return user === null ? unknownToken(config) : handOver(config, user);
}

function handOver(config: Config, user: string): Decision {
  const query = request.query();
  const path = json.quote(request.path()), method = json.quote(request.method());
  const last = query === null ? "null" : json.quote(query);
  const data = `{"user":${json.quote(user)},"method":${method},"path":${path},"query":${last}}`;
  const decision = Decision.handoff(config.target, String.UTF8.encode(data));
  decision.annotate("user", user);
  return decision;
}

/** No credentials at all, or of another scheme: the challenge carries no error then (RFC 6750 §3). */
function noToken(config: Config): Decision {
  return refuse(config, 401, "Unauthorized", "a bearer token is required", "");
}

function malformed(config: Config): Decision {
  const detail = "there must be one Authorization field with one bearer token";
  return refuse(config, 400, "Bad Request", detail, ', error="invalid_request"');
}

function unknownToken(config: Config): Decision {
  return refuse(config, 401, "Unauthorized", "the bearer token is not valid", ', error="invalid_token"');
}

function refuse(config: Config, status: u16, title: string, detail: string, error: string): Decision {
  // Never the token. The level is asked for first: an attacker decides how often this runs.
  if (log.enabled(log.Level.Debug)) log.debug(detail);
  // Problem details (RFC 9457); the texts are ours and need no quoting.
  const decision = Decision.respond(status, `{"title":"${title}","status":${status},"detail":"${detail}"}`);
  decision.header("www-authenticate", `Bearer realm="${config.realm}"${error}`);
  decision.header("content-type", "application/problem+json");
  return decision;
}

function indexOfSpace(value: Uint8Array): i32 {
  const at = value.indexOf(0x20);
  return at < 0 ? value.length : at;
}

function isBearer(value: Uint8Array, end: i32): bool {
  const scheme = "bearer";
  if (end != scheme.length) return false;
  for (let i = 0; i < end; i++) {
    if ((value[i] | 0x20) != scheme.charCodeAt(i)) return false;
  }
  return true;
}

/** At least one of the characters, then any number of `=`. */
function isB64token(value: Uint8Array, start: i32): bool {
  let end = value.length;
  while (end > start && value[end - 1] == 0x3d) end--;
  for (let i = start; i < end; i++) {
    const byte = value[i];
    const letter = (byte | 0x20) >= 0x61 && (byte | 0x20) <= 0x7a;
    const digit = byte >= 0x30 && byte <= 0x39;
    if (!letter && !digit && !"-._~+/".includes(String.fromCharCode(byte))) return false;
  }
  return end > start;
}

/**
 * Whose token this is. Looks at every entry and at every byte of it, so that the time tells nothing of how near a guess
 * came.
 */
function userOf(config: Config, token: usize, length: i32): string | null {
  const digest = changetype<usize>(sha256(token, length));
  let known = changetype<usize>(config.digests);
  let found = -1;
  for (let i = 0; i < config.users.length; i++, known += DIGEST_LENGTH) {
    let difference: u64 = 0;
    for (let at = 0; at < DIGEST_LENGTH; at += 8) difference |= load<u64>(known + at) ^ load<u64>(digest + at);
    if (difference == 0) found = i;
  }
  return found < 0 ? null : config.users[found];
}
