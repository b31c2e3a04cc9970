// The upstream's response head: to be called inside `onResponse` only.

import { RETURNED, fieldsAt, optionalBytesAt, stringAt } from "./abi";
import { Field } from "./request";
import { text } from "./text";

// @ts-ignore: decorator
@external("baton:policy/response@0.1.0", "status")
declare function importStatus(): i32;
// @ts-ignore: decorator
@external("baton:policy/response@0.1.0", "header")
declare function importHeader(name: usize, length: i32, returned: usize): void;
// @ts-ignore: decorator
@external("baton:policy/response@0.1.0", "headers")
declare function importHeaders(returned: usize): void;
// @ts-ignore: decorator
@external("baton:policy/response@0.1.0", "upstream")
declare function importUpstream(returned: usize): void;
// @ts-ignore: decorator
@external("baton:policy/response@0.1.0", "elapsed-us")
declare function importElapsedUs(): u64;

export function status(): u16 {
  return u16(importStatus());
}

/** First value of a field, read as UTF-8; null when there is none. */
export function header(name: string): string | null {
  const bytes = headerBytes(name);
  return bytes === null ? null : text(bytes);
}

/** First value of a field, as it was received. */
export function headerBytes(name: string): ArrayBuffer | null {
  importHeader(changetype<usize>(name), name.length, RETURNED);
  return optionalBytesAt(RETURNED);
}

/** All fields. */
export function headers(): Field[] {
  importHeaders(RETURNED);
  return fieldsAt(RETURNED);
}

/** Who answered. */
export function upstream(): string {
  importUpstream(RETURNED);
  return stringAt(RETURNED);
}

/** How long it took. */
export function elapsedUs(): u64 {
  return importElapsedUs();
}
