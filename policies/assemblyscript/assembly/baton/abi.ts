// How values cross between the gateway and a policy: the canonical ABI of WebAssembly components, for
// `baton:policy@0.1.0`. Everything that knows a byte offset of the contract stands in this file.
//
// Strings. The gateway reads and writes UTF-16, AssemblyScript's own form, because the module exports `baton_utf16`. A
// string argument is its address and its number of code units; nothing is converted and nothing is copied.
//
// Memory. What the gateway writes into the policy it asks room for by `cabi_realloc`, which makes managed objects: a
// string that arrives is a `string`, bytes that arrive are an `ArrayBuffer`, and a list is an `ArrayBuffer` too.
// Nothing is collected while a hook runs, so addresses may stand in plain memory meanwhile; when the gateway has read
// the answer it calls `on_request_post`, and every sixteenth time, or when memory had to grow, that collects everything
// that the policy does not hold in a global. A hook without an answer does so at its own end.
//
// Layouts (offset: field), as wit-parser gives them for wasm32; `tests/assemblyscript.rs` compares them:
//
//   string                0: address   4: code units
//   list                  0: address   4: number of elements
//   option                0: u8, 1 when there is one; the value behind it, at its own alignment: 1, 2, 4, or 8
//   result                0: u8, 1 for an error; either value at the larger alignment of the two
//   tuple<string, string> 0: first   8: second   (16 bytes)
//
//   field                 0: name   8: value   (16 bytes)
//   tcp-peer              0: ip   8: port   (12 bytes)
//   unix-peer             0: uid   4: gid   8: pid   (16 bytes)
//   peer-address          4: payload   (20 bytes)
//   tls-info              0: version   8: cipher   16: sni   28: alpn   40: client-verified   (44 bytes)
//   response-head         0: status   4: headers   (12 bytes)
//   handoff               0: target   8: data   16: metadata   24: response-head   40: include-head   41: relay
//                         44: timeout-ms   52: alternates   60: response-body   (68 bytes)
//   edits                 0: remove   8: set   16: append   (24 bytes)
//   proxy                 0: upstream   8: path-and-query   20: request   44: timeout-ms   52: inspect-response
//                         (56 bytes)
//   respond               0: status   4: headers   12: body   (20 bytes)
//   action                4: payload   (72 bytes)
//   decision              0: action   72: carry   80: annotations   (88 bytes)
//   connection-action     4: payload   (72 bytes)
//   requirements          0: max-reuse   4: tick-interval-ms   8: targets   (16 bytes)
//   entry                 0: value   8: version   (16 bytes)
//   target-status         0: name   8: health   12: in-flight   16: load   32: last-error   (48 bytes)
//   answer                0: status   4: headers   12: body   (20 bytes)
//   call-error            4: payload   (12 bytes)

import { Answer, CallError, CallErrorKind } from "./callout";
import { ConnectionAction, Verdict } from "./connection";
import { Abort, Decision, Handoff, Pass, Proxy, Respond } from "./decision";
import { Configured } from "./lifecycle";
import { BodyError, Field, Peer, TlsInfo } from "./request";
import { Result } from "./result";
import { Entry, StoreError } from "./store";
import { Health, TargetStatus } from "./targets";

/** Tells the gateway that strings are UTF-16. */
export const baton_utf16: i32 = 1;

/** Makes room for what the gateway writes: a string (the only thing in the contract with alignment 2), or bytes. */
export function cabi_realloc(old: usize, oldSize: usize, align: usize, size: usize): usize {
  if (old) return __renew(old, size);
  return __new(size, align == 2 ? idof<string>() : idof<ArrayBuffer>());
}

/** To look at everything that is held costs more than a decision, so several leave behind what they will together. */
const HOOKS_BETWEEN = 16;
let hooks = 0;
let pages = 0;

/**
 * Frees what hooks left behind: after some of them, and at once when memory had to grow for the last one. No reference is
 * on the stack between hooks, so every collection is safe here.
 */
export function collect(answer: usize): void {
  collectNow();
}

/** The same behind a hook without an answer: to be called last, when nothing of it is needed any more. */
export function collectNow(): void {
  if (++hooks < HOOKS_BETWEEN && memory.size() == pages) return;
  __collect();
  hooks = 0;
  pages = memory.size();
}

/** Where imports write what does not fit into a WebAssembly value: the largest is an optional target-status. */
export const RETURNED: usize = memory.data(56, 8);

export function stringAt(at: usize): string {
  const length = load<i32>(at, 4);
  return length == 0 ? "" : changetype<string>(load<usize>(at));
}

export function bytesAt(at: usize): ArrayBuffer {
  const length = load<i32>(at, 4);
  return length == 0 ? new ArrayBuffer(0) : changetype<ArrayBuffer>(load<usize>(at));
}

export function optionalStringAt(at: usize): string | null {
  return load<u8>(at) == 0 ? null : stringAt(at + 4);
}

export function optionalBytesAt(at: usize): ArrayBuffer | null {
  return load<u8>(at) == 0 ? null : bytesAt(at + 4);
}

export function bytesListAt(at: usize): ArrayBuffer[] {
  const first = load<usize>(at);
  const list = new Array<ArrayBuffer>(load<i32>(at, 4));
  for (let i = 0; i < list.length; i++) list[i] = bytesAt(first + i * 8);
  return list;
}

export function optionalBytesListAt(at: usize): (ArrayBuffer | null)[] {
  const first = load<usize>(at);
  const list: (ArrayBuffer | null)[] = [];
  for (let i = 0, n = load<i32>(at, 4); i < n; i++) list.push(optionalBytesAt(first + i * 12));
  return list;
}

export function fieldsAt(at: usize): Field[] {
  const first = load<usize>(at);
  const list: Field[] = [];
  for (let i = 0, n = load<i32>(at, 4); i < n; i++) {
    list.push(new Field(stringAt(first + i * 16), bytesAt(first + i * 16 + 8)));
  }
  return list;
}

/** An optional number of 64 bits; `none` when there is none. */
export function optionalI64At(at: usize, none: i64): i64 {
  return load<u8>(at) == 0 ? none : load<i64>(at, 8);
}

export function bodyPrefixAt(at: usize): Result<ArrayBuffer, BodyError> {
  if (load<u8>(at) == 0) return new Result<ArrayBuffer, BodyError>(true, bytesAt(at + 4), 0);
  return new Result<ArrayBuffer, BodyError>(false, new ArrayBuffer(0), load<u8>(at, 4));
}

export function peerAt(at: usize): Peer {
  if (load<u8>(at) == 0) return Peer.tcp(stringAt(at + 4), load<u16>(at, 12));
  return Peer.unix(load<u32>(at, 4), load<u32>(at, 8), load<u8>(at, 12) == 0 ? -1 : i64(load<u32>(at, 16)));
}

export function optionalTlsAt(at: usize): TlsInfo | null {
  if (load<u8>(at) == 0) return null;
  const tls = at + 4;
  return new TlsInfo(
    stringAt(tls), stringAt(tls + 8), optionalStringAt(tls + 16), optionalStringAt(tls + 28), load<u8>(tls, 40) != 0,
  );
}

export function optionalEntryAt(at: usize): Entry | null {
  return load<u8>(at) == 0 ? null : new Entry(bytesAt(at + 8), load<u64>(at, 16));
}

export function storedAt<T>(at: usize): Result<T, StoreError> {
  if (load<u8>(at) == 0) return new Result<T, StoreError>(true, load<T>(at, 8), 0);
  return new Result<T, StoreError>(false, 0, load<u8>(at, 8));
}

function targetStatusAt(at: usize): TargetStatus {
  const health: Health = load<u8>(at, 8);
  const load_ = load<u8>(at, 16) == 0 ? NaN : load<f64>(at, 24);
  return new TargetStatus(stringAt(at), health, load<u32>(at, 12), load_, optionalStringAt(at + 32));
}

export function optionalTargetStatusAt(at: usize): TargetStatus | null {
  return load<u8>(at) == 0 ? null : targetStatusAt(at + 8);
}

export function targetStatusesAt(at: usize): TargetStatus[] {
  const first = load<usize>(at);
  const list: TargetStatus[] = [];
  for (let i = 0, n = load<i32>(at, 4); i < n; i++) list.push(targetStatusAt(first + i * 48));
  return list;
}

export function answeredAt(at: usize): Result<Answer, CallError> {
  if (load<u8>(at) == 0) {
    const answer = new Answer(load<u16>(at, 4), fieldsAt(at + 8), bytesAt(at + 16));
    return new Result<Answer, CallError>(true, answer, new CallError(0, ""));
  }
  const kind: CallErrorKind = load<u8>(at, 4);
  const reason = kind == CallErrorKind.Unreachable ? stringAt(at + 8) : "";
  const nothing = new Answer(0, [], new ArrayBuffer(0));
  return new Result<Answer, CallError>(false, nothing, new CallError(kind, reason));
}

// Arguments of hooks come as WebAssembly values, one for each that an item is made of.

export function stringOf(address: usize, length: i32): string {
  return length == 0 ? "" : changetype<string>(address);
}

export function optionalStringOf(some: i32, address: usize, length: i32): string | null {
  return some == 0 ? null : stringOf(address, length);
}

export function bytesOf(address: usize, length: i32): ArrayBuffer {
  return length == 0 ? new ArrayBuffer(0) : changetype<ArrayBuffer>(address);
}

export function stringsOf(address: usize, length: i32): string[] {
  const list: string[] = [];
  for (let i = 0; i < length; i++) list.push(stringAt(address + i * 8));
  return list;
}

/** A variant has the values of its longest case; what a case has no use for is 0. */
export function peerOf(kind: i32, first: usize, second: i32, third: i32, fourth: i32): Peer {
  if (kind == 0) return Peer.tcp(stringOf(first, second), u16(third));
  return Peer.unix(u32(first), u32(second), third == 0 ? -1 : i64(u32(fourth)));
}

export function putString(at: usize, text: string): void {
  store<usize>(at, changetype<usize>(text));
  store<i32>(at, text.length, 4);
}

export function putBytes(at: usize, bytes: ArrayBuffer): void {
  store<usize>(at, changetype<usize>(bytes));
  store<i32>(at, bytes.byteLength, 4);
}

/** A list of nothing needs no room; most of those in a decision are. */
function putNothing(at: usize): void {
  store<usize>(at, 0);
  store<i32>(at, 0, 4);
}

export function putStrings(at: usize, list: string[]): void {
  if (list.length == 0) return putNothing(at);
  const room = new ArrayBuffer(list.length * 8);
  for (let i = 0; i < list.length; i++) putString(changetype<usize>(room) + i * 8, list[i]);
  store<usize>(at, changetype<usize>(room));
  store<i32>(at, list.length, 4);
}

export function putPairs(at: usize, list: string[][]): void {
  if (list.length == 0) return putNothing(at);
  const room = new ArrayBuffer(list.length * 16);
  for (let i = 0; i < list.length; i++) {
    const pair = changetype<usize>(room) + i * 16;
    putString(pair, list[i][0]);
    putString(pair + 8, list[i][1]);
  }
  store<usize>(at, changetype<usize>(room));
  store<i32>(at, list.length, 4);
}

function putOptionalString(at: usize, text: string | null): void {
  store<u8>(at, u8(text !== null));
  if (text !== null) putString(at + 4, text);
}

/** Milliseconds, 0 for none. */
function putOptionalTimeout(at: usize, ms: u32): void {
  store<u8>(at, u8(ms != 0));
  store<u32>(at, ms, 4);
}

function putEdits(at: usize, edits: Pass): void {
  putStrings(at, edits.removed);
  putFields(at + 8, edits.replaced);
  putFields(at + 16, edits.appended);
}

/** Header fields: the values leave as UTF-8. */
export function putFields(at: usize, list: string[][]): void {
  if (list.length == 0) return putNothing(at);
  const room = new ArrayBuffer(list.length * 16);
  for (let i = 0; i < list.length; i++) {
    const field = changetype<usize>(room) + i * 16;
    putString(field, list[i][0]);
    putBytes(field + 8, String.UTF8.encode(list[i][1]));
  }
  store<usize>(at, changetype<usize>(room));
  store<i32>(at, list.length, 4);
}

function putHandoff(at: usize, handoff: Handoff): void {
  putString(at, handoff.target);
  putBytes(at + 8, handoff.data);
  putPairs(at + 16, handoff.metadata);
  if (handoff.responseStatus != 0) {
    store<u8>(at, 1, 24);
    store<u16>(at, handoff.responseStatus, 28);
    putFields(at + 32, handoff.responseHeaders);
  }
  store<u8>(at, u8(handoff.includeHead), 40);
  store<u8>(at, u8(handoff.relay), 41);
  putOptionalTimeout(at + 44, handoff.timeoutMs);
  putStrings(at + 52, handoff.alternates);
  putBytes(at + 60, handoff.responseBody);
}

const DECISION: usize = memory.data(88, 4);

/** Writes a decision for the gateway to read, and returns where it stands. */
export function lower(decision: Decision): usize {
  memory.fill(DECISION, 0, 88);
  const payload = DECISION + 4;
  if (decision instanceof Pass) {
    putEdits(payload, decision as Pass);
  } else if (decision instanceof Handoff) {
    store<u8>(DECISION, 1);
    putHandoff(payload, decision as Handoff);
  } else if (decision instanceof Proxy) {
    const proxy = decision as Proxy;
    store<u8>(DECISION, 2);
    putString(payload, proxy.upstream);
    putOptionalString(payload + 8, proxy.pathAndQuery);
    putEdits(payload + 20, proxy.request);
    putOptionalTimeout(payload + 44, proxy.timeoutMs);
    store<u8>(payload, u8(proxy.inspectResponse), 52);
  } else if (decision instanceof Respond) {
    const respond = decision as Respond;
    store<u8>(DECISION, 3);
    store<u16>(payload, respond.status);
    putFields(payload + 4, respond.headers);
    putBytes(payload + 12, respond.body);
  } else {
    assert(decision instanceof Abort);
    store<u8>(DECISION, 4);
  }
  putBytes(DECISION + 72, decision.carry);
  putPairs(DECISION + 80, decision.annotations);
  return DECISION;
}

const CONNECTED: usize = memory.data(72, 4);

export function lowerConnectionAction(action: ConnectionAction): usize {
  memory.fill(CONNECTED, 0, 72);
  store<u8>(CONNECTED, u8(action.verdict));
  if (action.verdict == Verdict.HandOver) putHandoff(CONNECTED + 4, assert(action.handoff));
  return CONNECTED;
}

const CONFIGURED: usize = memory.data(20, 4);

export function lowerConfigured(configured: Configured): usize {
  store<u8>(CONFIGURED, u8(configured.faults.length != 0));
  if (configured.faults.length != 0) {
    putStrings(CONFIGURED + 4, configured.faults);
  } else {
    store<u32>(CONFIGURED, configured.maxReuse, 4);
    store<u32>(CONFIGURED, configured.tickIntervalMs, 8);
    putStrings(CONFIGURED + 12, configured.targets);
  }
  return CONFIGURED;
}

const TESTED: usize = memory.data(12, 4);

export function lowerTested(fault: string | null): usize {
  store<u8>(TESTED, u8(fault !== null));
  if (fault !== null) putString(TESTED + 4, fault);
  return TESTED;
}
