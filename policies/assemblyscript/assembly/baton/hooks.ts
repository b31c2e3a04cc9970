// What a policy does, hook by hook. `onRequest` gives the gateway the function to ask; the hook itself is among the
// files of `exports`, and has to be exported by the policy's own file, or the gateway does not know of it:
//
//   export * from "../baton/exports";
//   onRequest(() => Decision.pass());

import { Connection, ConnectionAction } from "./connection";
import { Decision } from "./decision";
import { Failure } from "./failure";
import { Configured } from "./lifecycle";
import { Summary } from "./summary";

// Each begins with a function that says what is missing: the trap has its text in the log.
export let decide: () => Decision = (): Decision => { throw new Error("no function was given to onRequest"); };
export let configure: (config: string) => Configured =
  (config: string): Configured => { throw new Error("no function was given to onConfigure"); };
export let selfTest: () => string | null =
  (): string | null => { throw new Error("no function was given to onSelfTest"); };
export let tick: () => void = (): void => { throw new Error("no function was given to onTick"); };
export let connect: (connection: Connection) => ConnectionAction =
  (connection: Connection): ConnectionAction => { throw new Error("no function was given to onConnect"); };
export let respond: (carry: ArrayBuffer) => Decision =
  (carry: ArrayBuffer): Decision => { throw new Error("no function was given to onResponse"); };
export let recover: (failure: Failure, carry: ArrayBuffer) => Decision =
  (failure: Failure, carry: ArrayBuffer): Decision => { throw new Error("no function was given to onHandoffFailed"); };
export let complete: (summary: Summary, carry: ArrayBuffer) => void =
  (summary: Summary, carry: ArrayBuffer): void => { throw new Error("no function was given to onComplete"); };

/** Asked once for each request, when its head has been read. Exported by `baton/exports`. */
export function onRequest(hook: () => Decision): void {
  decide = hook;
}

/**
 * Called once, before any request, with the configuration as JSON; what it leaves in globals is where every instance
 * starts. Exported by `baton/exports/configure`.
 */
export function onConfigure(hook: (config: string) => Configured): void {
  configure = hook;
}

/**
 * Called after `onConfigure` in an instance that is thrown away, with an empty `GET /` as the request; returns what is
 * wrong, or null. Exported by `baton/exports/self-test`.
 */
export function onSelfTest(hook: () => string | null): void {
  selfTest = hook;
}

/** Called every so often in an instance of its own, as `configured` asked for. Exported by `baton/exports/tick`. */
export function onTick(hook: () => void): void {
  tick = hook;
}

/** Asked about each connection of the listeners that name the policy. Exported by `baton/exports/connect`. */
export function onConnect(hook: (connection: Connection) => ConnectionAction): void {
  connect = hook;
}

/** Asked when the upstream's response head is there; `response` is about it. Exported by `baton/exports/response`. */
export function onResponse(hook: (carry: ArrayBuffer) => Decision): void {
  respond = hook;
}

/** Asked when no target took the client. Exported by `baton/exports/failure`. */
export function onHandoffFailed(hook: (failure: Failure, carry: ArrayBuffer) => Decision): void {
  recover = hook;
}

/** Told when the gateway has let go of the request. Exported by `baton/exports/complete`. */
export function onComplete(hook: (summary: Summary, carry: ArrayBuffer) => void): void {
  complete = hook;
}
