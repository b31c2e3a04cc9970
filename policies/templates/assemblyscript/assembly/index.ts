// Hands clients over to the daemon `chat` when they carry the token, and answers the others.

import { Decision, bytes, config, json, log, onRequest, request } from "./baton";

// The functions that the gateway calls. There is a file for each further hook (`./baton/exports/configure`, …); a hook
// that is not exported here is never called.
export * from "./baton/exports";

onRequest((): Decision => {
  // What arrives as null may be anything's absence: compare with `===`, `!value` is also true for an empty string.
  const path = request.path();
  if (!path.startsWith("/v1/")) return Decision.pass();

  const authorization = request.header("authorization");
  if (authorization === null || authorization.substring(0, 7).toLowerCase() != "bearer ") {
    const decision = Decision.respond(401, "a bearer token is required\n");
    decision.header("www-authenticate", "Bearer");
    decision.header("content-type", "text/plain; charset=utf-8");
    return decision;
  }

  // There is no `??` in AssemblyScript.
  let token = config.get("token");
  if (token === null) token = "open-sesame";
  if (authorization.substring(7) != token) {
    log.info("refused a token", [["path", path]]);
    const decision = Decision.respond(403, "this token opens nothing here\n");
    decision.header("content-type", "text/plain; charset=utf-8");
    return decision;
  }

  let user = config.get("user");
  if (user === null) user = "alice";
  // What a client wrote goes through `json.quote`, or it could write JSON of its own.
  const data = `{"user":${json.quote(user)},"path":${json.quote(path)}}`;
  const decision = Decision.handoff("chat", bytes(data));
  decision.annotate("user", user);
  return decision;
});
