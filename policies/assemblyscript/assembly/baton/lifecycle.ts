// What `configure` and `self_test` return.

import { lowerFaults, lowerRequirements, lowerTested } from "./abi";

/** The configuration is good, and these are the targets that the policy wants to name. */
export function configured(targets: string[], maxReuse: u32 = u32.MAX_VALUE, tickIntervalMs: u32 = 0): usize {
  return lowerRequirements(maxReuse, tickIntervalMs, targets);
}

/** The configuration is refused, and the policy that runs goes on. */
export function refused(faults: string[]): usize {
  return lowerFaults(faults);
}

/** What the self-test found; null when all is well. */
export function tested(fault: string | null): usize {
  return lowerTested(fault);
}
