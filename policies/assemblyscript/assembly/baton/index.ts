// Bindings of `baton:policy@0.1.0` for AssemblyScript. A policy is a file like this:
//
//   import { Decision, onRequest, request } from "../baton";
//   export * from "../baton/exports";
//
//   onRequest(() => {
//     if (request.path() == "/secret") return Decision.respond(403, "no\n");
//     return Decision.pass();
//   });

import * as callout from "./callout";
import * as clock from "./clock";
import * as config from "./config";
import * as json from "./json";
import * as log from "./log";
import * as metrics from "./metrics";
import * as random from "./random";
import * as request from "./request";
import * as response from "./response";
import * as store from "./store";
import * as targets from "./targets";

export { Connection, ConnectionAction } from "./connection";
export { Abort, Decision, Handoff, Pass, Proxy, Relay, Respond } from "./decision";
export { Failure, Stage } from "./failure";
export {
  onComplete, onConfigure, onConnect, onHandoffFailed, onRequest, onResponse, onSelfTest, onTick,
} from "./hooks";
export { Configured, configured, refused } from "./lifecycle";
export { Field, Peer } from "./request";
export { Result } from "./result";
export { Summary } from "./summary";
export { bytes, text } from "./text";
export { callout, clock, config, json, log, metrics, random, request, response, store, targets };
