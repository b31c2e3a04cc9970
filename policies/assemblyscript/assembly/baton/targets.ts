// The daemons that take clients, as the gateway sees them.

import { RETURNED, optionalStringAt, optionalTargetStatusAt, targetStatusesAt } from "./abi";

export enum Health {
  Up,
  Draining,
  Down,
  Unknown,
}

export enum Strategy {
  RoundRobin,
  LeastInFlight,
  LeastLoad,
  Hash,
  RandomTwo,
}

export class TargetStatus {
  constructor(
    public name: string,
    public health: Health,
    /** Connections handed off and not yet reported finished. */
    public inFlight: u32,
    /** 0 to 1, as the target itself reports; NaN when it does not. */
    public load: f64,
    public lastError: string | null,
  ) {}
}

// @ts-ignore: decorator
@external("baton:policy/targets@0.1.0", "status")
declare function importStatus(name: usize, length: i32, returned: usize): void;
// @ts-ignore: decorator
@external("baton:policy/targets@0.1.0", "members")
declare function importMembers(group: usize, length: i32, returned: usize): void;
// @ts-ignore: decorator
@external("baton:policy/targets@0.1.0", "pick")
declare function importPick(
  group: usize, length: i32, strategy: i32, hasKey: i32, key: usize, keyLength: i32, returned: usize,
): void;
// @ts-ignore: decorator
@external("baton:policy/targets@0.1.0", "revoke")
declare function importRevoke(id: usize, length: i32, reason: usize, reasonLength: i32): bool;

/** Null when there is no such target, or the policy may not name it. */
export function status(name: string): TargetStatus | null {
  importStatus(changetype<usize>(name), name.length, RETURNED);
  return optionalTargetStatusAt(RETURNED);
}

/** One for each socket. Their names are good for a handoff. */
export function members(group: string): TargetStatus[] {
  importMembers(changetype<usize>(group), group.length, RETURNED);
  return targetStatusesAt(RETURNED);
}

/** The gateway's own choice among healthy members; `key` is what is hashed. */
export function pick(group: string, strategy: Strategy, key: string | null = null): string | null {
  importPick(
    changetype<usize>(group), group.length, strategy,
    i32(key !== null), changetype<usize>(key), key === null ? 0 : key.length,
    RETURNED,
  );
  return optionalStringAt(RETURNED);
}

/** Asks the daemon that has the client of a request to end it; true when it was asked. */
export function revoke(id: string, reason: string): bool {
  return importRevoke(changetype<usize>(id), id.length, changetype<usize>(reason), reason.length);
}
