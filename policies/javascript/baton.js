// Decisions, for policies in JavaScript. What is read of a request stands in modules of the contract's own names:
//
//   import * as request from "baton:policy/request@0.1.0";
//   import { handoff, pass, respond } from "./baton.js";
//
//   export const requestHook = {
//     onRequest() {
//       if (request.header("x-deny") !== null) return respond(403, {}, "no\n");
//       return handoff("chat", "hello", { annotations: { why: "asked nicely" } });
//     },
//   };
//
// Header values and bodies are bytes, as on the wire: a Uint8Array, or a string that is written as UTF-8 here.

const NOTHING = new Uint8Array(0);

/** The interpreter has no TextEncoder. */
export function utf8(text) {
  // Every character beyond ASCII becomes its bytes, as characters.
  const bytes = unescape(encodeURIComponent(text));
  const encoded = new Uint8Array(bytes.length);
  for (let at = 0; at < bytes.length; at++) encoded[at] = bytes.charCodeAt(at);
  return encoded;
}

const bytes = (value) => (typeof value === "string" ? utf8(value) : value);
const fields = (headers) => Object.entries(headers).map(([name, value]) => ({ name, value: bytes(value) }));

function decision(tag, val, { annotations = {}, carry = NOTHING } = {}) {
  return { action: { tag, val }, carry: bytes(carry), annotations: Object.entries(annotations) };
}

/** No opinion: the next policy decides, then the route's default. First `remove` is done, then `set`, then `append`. */
export function pass({ remove = [], set = {}, append = {}, ...more } = {}) {
  return decision("pass", { remove, set: fields(set), append: fields(append) }, more);
}

/** The client goes to a target; the data arrives with its socket. `fields` are further ones of the contract's handoff. */
export function handoff(target, data, { fields = {}, ...more } = {}) {
  const handoff = {
    target,
    data: bytes(data),
    metadata: [],
    responseHead: null,
    includeHead: false,
    relay: "if-needed",
    timeoutMs: null,
    alternates: [],
    responseBody: NOTHING,
    ...fields,
  };
  return decision("handoff", handoff, more);
}

/** The client is answered here; names of headers are in lower case. */
export function respond(status, headers, body, more) {
  return decision("respond", { status, headers: fields(headers), body: bytes(body) }, more);
}

/** The connection is closed without an answer. */
export function abort(more) {
  return decision("abort", undefined, more);
}
