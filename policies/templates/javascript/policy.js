// Lets in whoever has the token, and hands them over to the target `chat`.

import * as config from "baton:policy/config@0.1.0";
import * as log from "baton:policy/log@0.1.0";
import * as request from "baton:policy/request@0.1.0";

import { handoff, pass, respond, utf8 } from "./baton.js";

const SCHEME = "bearer ";

export const requestHook = {
  onRequest() {
    const path = request.path();
    if (!path.startsWith("/v1/")) return pass();

    // Bytes, not a string: what a client sends need not be UTF-8. `null`, not `undefined`: there is no such field.
    const field = request.header("authorization");
    if (field === null || ascii(field.subarray(0, SCHEME.length)).toLowerCase() !== SCHEME) {
      return answer(401, "a bearer token is required\n", { "www-authenticate": "Bearer" });
    }

    const token = utf8(config.get("token") ?? "open-sesame");
    if (!equal(field.subarray(SCHEME.length), token)) {
      // Never the token itself: logs are read by more people than secrets are for.
      log.write("info", "refused a token", [["path", path]]);
      return answer(403, "this token opens nothing here\n", {});
    }

    const user = config.get("user") ?? "alice";
    return handoff("chat", JSON.stringify({ user, path }), { annotations: { user } });
  },
};

function answer(status, body, headers) {
  return respond(status, { ...headers, "content-type": "text/plain; charset=utf-8" }, body);
}

function ascii(bytes) {
  return String.fromCharCode(...bytes);
}

// `===` on two arrays of bytes asks whether they are the same array.
function equal(a, b) {
  return a.length === b.length && a.every((byte, at) => byte === b[at]);
}
