// Bindings of `baton:policy@0.1.0` for AssemblyScript. A policy is a file like this:
//
//   export { baton_utf16, cabi_realloc, on_request_post } from "../baton/exports";
//   import { Decision, request } from "../baton";
//
//   export function on_request(): usize {
//     if (request.path() == "/secret") return Decision.respond(403, "no\n").lower();
//     return Decision.pass().lower();
//   }

import * as config from "./config";
import * as json from "./json";
import * as log from "./log";
import * as request from "./request";

export { argument } from "./abi";
export { Abort, Decision, Handoff, Pass, Relay, Respond } from "./decision";
export { configured, refused, tested } from "./lifecycle";
export { config, json, log, request };
