// The request hook, which every policy has, and what the gateway needs of any module. Behind each answer it calls the
// function with `_post`, where memory is collected; to have one file for each hook is to forget neither.

import { lower } from "../abi";
import { decide } from "../hooks";

export { baton_utf16, cabi_realloc, collect as on_request_post } from "../abi";

// Not exported: named by `use` in asconfig.json, and to be found they must be part of the program.
import "../abort";
import "../random";

export function on_request(): usize {
  return lower(decide());
}
