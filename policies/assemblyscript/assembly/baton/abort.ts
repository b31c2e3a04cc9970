// What a failed assertion, an index out of range or an exhausted memory ends in: a line in the log and a trap, which
// the gateway answers by the policy's `on_error`.

import { debug, error } from "./log";

let aborting: bool = false;

export function abort(message: string | null, file: string | null, line: u32, column: u32): void {
  // Making the line takes memory, and having none may be why we are here.
  if (!aborting) {
    aborting = true;
    error((message === null ? "aborted" : message) + " at " + (file === null ? "?" : file) + ":" + line.toString());
  }
  unreachable();
}

/** AssemblyScript's own `trace`: a line at level debug. */
export function trace(message: string, n: i32 = 0, a0: f64 = 0, a1: f64 = 0, a2: f64 = 0, a3: f64 = 0, a4: f64 = 0): void {
  const values: f64[] = [a0, a1, a2, a3, a4];
  debug(n > 0 ? message + " " + values.slice(0, n).join(" ") : message);
}
