// Memory of this node, shared by all instances and generations of the policy. What lives longer than a request belongs
// here, and not into a global: there are many instances.

import { RETURNED, optionalEntryAt, storedAt } from "./abi";
import { Result } from "./result";

export enum StoreError {
  /** The policy's store is full. */
  Full,
  /** The value is. */
  TooLarge,
  /** Another version is there, or a number was expected. */
  Conflict,
}

export class Entry {
  constructor(
    public value: ArrayBuffer,
    public version: u64,
  ) {}
}

// @ts-ignore: decorator
@external("baton:policy/store@0.1.0", "get")
declare function importGet(key: usize, length: i32, returned: usize): void;
// @ts-ignore: decorator
@external("baton:policy/store@0.1.0", "set")
declare function importSet(
  key: usize, length: i32, value: usize, valueLength: i32, hasTtl: i32, ttlMs: u64, returned: usize,
): void;
// @ts-ignore: decorator
@external("baton:policy/store@0.1.0", "compare-and-set")
declare function importCompareAndSet(
  key: usize, length: i32, version: u64, value: usize, valueLength: i32, hasTtl: i32, ttlMs: u64, returned: usize,
): void;
// @ts-ignore: decorator
@external("baton:policy/store@0.1.0", "delete")
declare function importDelete(key: usize, length: i32): void;
// @ts-ignore: decorator
@external("baton:policy/store@0.1.0", "increment")
declare function importIncrement(key: usize, length: i32, delta: i64, hasTtl: i32, ttlMs: u64, returned: usize): void;
// @ts-ignore: decorator
@external("baton:policy/store@0.1.0", "take")
declare function importTake(key: usize, length: i32, ratePerS: f64, burst: f64, cost: f64): bool;

/** Null when the key is not there, or its time is over. */
export function get(key: string): Entry | null {
  importGet(changetype<usize>(key), key.length, RETURNED);
  return optionalEntryAt(RETURNED);
}

/** Yields the new version. A time of 0 is for ever. */
export function set(key: string, value: ArrayBuffer, ttlMs: u64 = 0): Result<u64, StoreError> {
  importSet(
    changetype<usize>(key), key.length, changetype<usize>(value), value.byteLength, i32(ttlMs != 0), ttlMs, RETURNED,
  );
  return storedAt<u64>(RETURNED);
}

/** Sets only when the version is still this one; 0: when the key is not there. */
export function compareAndSet(
  key: string, version: u64, value: ArrayBuffer, ttlMs: u64 = 0,
): Result<u64, StoreError> {
  importCompareAndSet(
    changetype<usize>(key), key.length, version, changetype<usize>(value), value.byteLength, i32(ttlMs != 0), ttlMs,
    RETURNED,
  );
  return storedAt<u64>(RETURNED);
}

/** `delete` of the contract; here that word is the language's. */
export function remove(key: string): void {
  importDelete(changetype<usize>(key), key.length);
}

/** Adds to a number that starts at 0, at once for everybody, and yields the new one. */
export function increment(key: string, delta: i64 = 1, ttlMs: u64 = 0): Result<i64, StoreError> {
  importIncrement(changetype<usize>(key), key.length, delta, i32(ttlMs != 0), ttlMs, RETURNED);
  return storedAt<i64>(RETURNED);
}

/** Takes tokens out of a bucket that fills at a rate, up to a burst; false when there are not as many. */
export function take(key: string, ratePerSecond: f64, burst: f64, cost: f64 = 1): bool {
  return importTake(changetype<usize>(key), key.length, ratePerSecond, burst, cost);
}
