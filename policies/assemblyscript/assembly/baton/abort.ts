// What a failed assertion, an index out of range or an exhausted memory ends in: a line in the log and a trap, which
// the gateway answers by the policy's `on_error`.

import { error } from "./log";

let aborting: bool = false;

export function abort(message: string | null, file: string | null, line: u32, column: u32): void {
  // Making the line takes memory, and having none may be why we are here.
  if (!aborting) {
    aborting = true;
    error((message === null ? "aborted" : message) + " at " + (file === null ? "?" : file) + ":" + line.toString());
  }
  unreachable();
}
