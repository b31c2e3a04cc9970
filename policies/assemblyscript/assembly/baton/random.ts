// Unpredictable bytes of the operating system.

import { RETURNED, bytesAt } from "./abi";

// @ts-ignore: decorator
@external("baton:policy/random@0.1.0", "bytes")
declare function importBytes(count: u32, returned: usize): void;

/** At most 64 KiB in one call. What is drawn in `onConfigure` is the same in every instance. */
export function bytes(count: u32): ArrayBuffer {
  importBytes(count, RETURNED);
  return bytesAt(RETURNED);
}

/** What AssemblyScript's own `Math.random` begins with; that is good enough to spread load, never for a secret. */
export function seed(): f64 {
  return reinterpret<f64>(load<u64>(changetype<usize>(bytes(8))));
}
