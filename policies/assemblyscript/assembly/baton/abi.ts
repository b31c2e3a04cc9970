// How values cross between the gateway and a policy: the canonical ABI of WebAssembly components, for
// `baton:policy@0.1.0`. Everything that knows a byte offset of the contract stands in this file.
//
// Strings. The gateway reads and writes UTF-16, AssemblyScript's own form, because the module exports `baton_utf16`. A
// string argument is its address and its number of code units; nothing is converted and nothing is copied.
//
// Memory. What the gateway writes into the policy it asks room for by `cabi_realloc`, which makes managed objects: a
// string that arrives is a `string`, bytes that arrive are an `ArrayBuffer`. Nothing is collected while a hook runs, so
// addresses may stand in plain memory meanwhile; when the gateway has read the answer it calls `on_request_post`, and
// that collects everything that the policy does not hold in a global.
//
// Layouts (offset: field), as wit-parser gives them for wasm32:
//
//   string                0: address   4: code units
//   list                  0: address   4: number of elements
//   option                0: u8, 1 when there is one; the value at 4, or at 8 when it is an u64
//   tuple<string, string> 0: first   8: second   (16 bytes)
//   field                 0: name   8: value, list<u8>   (16 bytes)
//   response-head         0: u16 status   4: headers   (12 bytes)
//   edits                 0: remove   8: set   16: append   (24 bytes)
//   respond               0: u16 status   4: headers   12: body   (20 bytes)
//   handoff               0: target   8: data   16: metadata   24: option<response-head>   40: u8 include-head
//                         41: u8 relay   44: option<u32> timeout-ms   52: alternates   60: response-body   (68 bytes)
//   action                0: u8 case (0 pass, 1 handoff, 2 proxy, 3 respond, 4 abort)   4: its payload   (72 bytes)
//   decision              0: action   72: carry   80: annotations   (88 bytes)
//   requirements          0: u32 max-reuse   4: u32 tick-interval-ms   8: targets   (16 bytes)
//   result of configure   0: u8, 1 for an error   4: requirements, or list<string>   (20 bytes)
//   result of self-test   0: u8, 1 for an error   4: string   (12 bytes)

import { Abort, Decision, Handoff, Pass, Respond } from "./decision";

/** Tells the gateway that strings are UTF-16. */
export const baton_utf16: i32 = 1;

/** Makes room for what the gateway writes: a string (the only thing in the contract with alignment 2), or bytes. */
export function cabi_realloc(old: usize, oldSize: usize, align: usize, size: usize): usize {
  if (old) return __renew(old, size);
  return __new(size, align == 2 ? idof<string>() : idof<ArrayBuffer>());
}

/** Frees what a hook left behind; no reference is on the stack between hooks, so every collection is safe here. */
export function collect(answer: usize): void {
  __collect();
}

/** Where imports write what does not fit into a WebAssembly value: 16 bytes hold the largest that is used here. */
export const RETURNED: usize = memory.data(16, 8);

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
  const list: ArrayBuffer[] = [];
  for (let i = 0, n = load<i32>(at, 4); i < n; i++) list.push(bytesAt(first + i * 8));
  return list;
}

/** The configuration, as `configure` is called with it. */
export function argument(address: usize, length: i32): string {
  return length == 0 ? "" : changetype<string>(address);
}

export function putString(at: usize, text: string): void {
  store<usize>(at, changetype<usize>(text));
  store<i32>(at, text.length, 4);
}

export function putBytes(at: usize, bytes: ArrayBuffer): void {
  store<usize>(at, changetype<usize>(bytes));
  store<i32>(at, bytes.byteLength, 4);
}

export function putStrings(at: usize, list: string[]): void {
  const room = new ArrayBuffer(list.length * 8);
  for (let i = 0; i < list.length; i++) putString(changetype<usize>(room) + i * 8, list[i]);
  store<usize>(at, changetype<usize>(room));
  store<i32>(at, list.length, 4);
}

export function putPairs(at: usize, list: string[][]): void {
  const room = new ArrayBuffer(list.length * 16);
  for (let i = 0; i < list.length; i++) {
    const pair = changetype<usize>(room) + i * 16;
    putString(pair, list[i][0]);
    putString(pair + 8, list[i][1]);
  }
  store<usize>(at, changetype<usize>(room));
  store<i32>(at, list.length, 4);
}

/** Header fields: the values leave as UTF-8. */
export function putFields(at: usize, list: string[][]): void {
  const room = new ArrayBuffer(list.length * 16);
  for (let i = 0; i < list.length; i++) {
    const field = changetype<usize>(room) + i * 16;
    putString(field, list[i][0]);
    putBytes(field + 8, String.UTF8.encode(list[i][1]));
  }
  store<usize>(at, changetype<usize>(room));
  store<i32>(at, list.length, 4);
}

const DECISION: usize = memory.data(88, 4);

/** Writes a decision for the gateway to read, and returns where it stands. */
export function lower(decision: Decision): usize {
  memory.fill(DECISION, 0, 88);
  const payload = DECISION + 4;
  if (decision instanceof Pass) {
    const edits = decision as Pass;
    putStrings(payload, edits.removed);
    putFields(payload + 8, edits.replaced);
    putFields(payload + 16, edits.appended);
  } else if (decision instanceof Handoff) {
    const handoff = decision as Handoff;
    store<u8>(DECISION, 1);
    putString(payload, handoff.target);
    putBytes(payload + 8, handoff.data);
    putPairs(payload + 16, handoff.metadata);
    if (handoff.responseStatus != 0) {
      store<u8>(payload, 1, 24);
      store<u16>(payload, handoff.responseStatus, 28);
      putFields(payload + 32, handoff.responseHeaders);
    }
    store<u8>(payload, u8(handoff.includeHead), 40);
    store<u8>(payload, u8(handoff.relay), 41);
    if (handoff.timeoutMs != 0) {
      store<u8>(payload, 1, 44);
      store<u32>(payload, handoff.timeoutMs, 48);
    }
    putStrings(payload + 52, handoff.alternates);
    putBytes(payload + 60, handoff.responseBody);
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

const CONFIGURED: usize = memory.data(20, 4);

export function lowerRequirements(maxReuse: u32, tickIntervalMs: u32, targets: string[]): usize {
  store<u8>(CONFIGURED, 0);
  store<u32>(CONFIGURED, maxReuse, 4);
  store<u32>(CONFIGURED, tickIntervalMs, 8);
  putStrings(CONFIGURED + 12, targets);
  return CONFIGURED;
}

export function lowerFaults(faults: string[]): usize {
  store<u8>(CONFIGURED, 1);
  putStrings(CONFIGURED + 4, faults);
  return CONFIGURED;
}

const TESTED: usize = memory.data(12, 4);

export function lowerTested(fault: string | null): usize {
  store<u8>(TESTED, u8(fault !== null));
  if (fault !== null) putString(TESTED + 4, fault);
  return TESTED;
}
