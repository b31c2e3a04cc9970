import { bytesOf, lower } from "../abi";
import { respond } from "../hooks";

export { collect as on_response_post } from "../abi";

export function on_response(carry: usize, carryLength: i32): usize {
  return lower(respond(bytesOf(carry, carryLength)));
}
