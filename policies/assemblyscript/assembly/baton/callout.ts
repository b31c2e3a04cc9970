// Asking an HTTP service. Only this instance waits; the gateway bounds size, number and time.

import { RETURNED, answeredAt, putFields } from "./abi";
import { Field } from "./request";
import { Result } from "./result";

/** What is to be asked: `new Call("auth", "GET", "/check")`, then `fetch(call)`. */
export class Call {
  headers: string[][] = [];
  body: ArrayBuffer = new ArrayBuffer(0);
  timeoutMs: u32 = 1000;

  constructor(
    /** An upstream of the configuration, not a free URL. */
    public upstream: string,
    public method: string,
    public pathAndQuery: string,
  ) {}

  /** Names are written in lower case. */
  header(name: string, value: string): void {
    this.headers.push([name, value]);
  }
}

export class Answer {
  constructor(
    public status: u16,
    public headers: Field[],
    public body: ArrayBuffer,
  ) {}

  /** First value of a field, read as UTF-8; null when there is none. */
  header(name: string): string | null {
    for (let i = 0; i < this.headers.length; i++) {
      if (this.headers[i].name == name) return this.headers[i].value;
    }
    return null;
  }
}

export enum CallErrorKind {
  /** The policy may not call this upstream, or not now. */
  NotAllowed,
  TimedOut,
  Unreachable,
  TooLarge,
  /** There were too many calls in this hook. */
  Budget,
}

export class CallError {
  constructor(
    public kind: CallErrorKind,
    /** Of an unreachable upstream; else empty. */
    public reason: string,
  ) {}
}

// @ts-ignore: decorator
@external("baton:policy/callout@0.1.0", "fetch")
declare function importFetch(
  upstream: usize, upstreamLength: i32, method: usize, methodLength: i32, path: usize, pathLength: i32,
  headers: usize, headerCount: i32, body: usize, bodyLength: i32, timeoutMs: u32, returned: usize,
): void;

const LIST: usize = memory.data(8, 4);

export function fetch(call: Call): Result<Answer, CallError> {
  putFields(LIST, call.headers);
  importFetch(
    changetype<usize>(call.upstream), call.upstream.length, changetype<usize>(call.method), call.method.length,
    changetype<usize>(call.pathAndQuery), call.pathAndQuery.length, load<usize>(LIST), call.headers.length,
    changetype<usize>(call.body), call.body.byteLength, call.timeoutMs, RETURNED,
  );
  return answeredAt(RETURNED);
}
