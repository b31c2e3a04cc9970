// Lines in the gateway's log. What the gateway is not told to show costs a call, so ask `enabled` before building a
// message for every request. The gateway bounds the number of lines per second.

import { putPairs } from "./abi";

export enum Level {
  Trace,
  Debug,
  Info,
  Warn,
  Error,
}

// @ts-ignore: decorator
@external("baton:policy/log@0.1.0", "enabled")
declare function importEnabled(level: i32): bool;
// @ts-ignore: decorator
@external("baton:policy/log@0.1.0", "write")
declare function importWrite(level: i32, message: usize, length: i32, fields: usize, fieldCount: i32): void;

export function enabled(level: Level): bool {
  return importEnabled(level);
}

const LIST: usize = memory.data(8, 4);

/** Writes a line; fields are pairs of name and value. */
export function write(level: Level, message: string, fields: string[][] = []): void {
  putPairs(LIST, fields);
  importWrite(level, changetype<usize>(message), message.length, load<usize>(LIST), load<i32>(LIST, 4));
}

export function debug(message: string, fields: string[][] = []): void {
  write(Level.Debug, message, fields);
}

export function info(message: string, fields: string[][] = []): void {
  write(Level.Info, message, fields);
}

export function warn(message: string, fields: string[][] = []): void {
  write(Level.Warn, message, fields);
}

export function error(message: string, fields: string[][] = []): void {
  write(Level.Error, message, fields);
}
