// The policy's own table of the gateway's configuration, key by key.

import { RETURNED, optionalStringAt } from "./abi";

// @ts-ignore: decorator
@external("baton:policy/config@0.1.0", "get")
declare function importGet(key: usize, length: i32, returned: usize): void;
// @ts-ignore: decorator
@external("baton:policy/config@0.1.0", "secret")
declare function importSecret(name: usize, length: i32, returned: usize): void;

/** A string as it is, any other value as JSON; null when the key is not there. */
export function get(key: string): string | null {
  importGet(changetype<usize>(key), key.length, RETURNED);
  return optionalStringAt(RETURNED);
}

/** A secret of the configuration; none while `configure` runs. */
export function secret(name: string): string | null {
  importSecret(changetype<usize>(name), name.length, RETURNED);
  return optionalStringAt(RETURNED);
}
