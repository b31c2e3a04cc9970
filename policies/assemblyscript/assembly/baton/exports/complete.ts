import { bytesOf, collectNow, optionalStringOf, stringOf } from "../abi";
import { complete } from "../hooks";
import { Summary } from "../summary";

export function on_complete(
  id: usize, idLength: i32,
  action: usize, actionLength: i32,
  hasTarget: i32, target: usize, targetLength: i32,
  hasStatus: i32, status: i32,
  durationUs: u64, bytesIn: u64, bytesOut: u64,
  carry: usize, carryLength: i32,
): void {
  const summary = new Summary(
    stringOf(id, idLength), stringOf(action, actionLength), optionalStringOf(hasTarget, target, targetLength),
    hasStatus != 0 ? u16(status) : 0, durationUs, bytesIn, bytesOut,
  );
  complete(summary, bytesOf(carry, carryLength));
  collectNow();
}
