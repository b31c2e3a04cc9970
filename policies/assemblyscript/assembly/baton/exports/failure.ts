import { bytesOf, lower, stringOf } from "../abi";
import { Failure } from "../failure";
import { recover } from "../hooks";

export { collect as on_handoff_failed_post } from "../abi";

export function on_handoff_failed(
  target: usize, targetLength: i32,
  stage: i32,
  hasErrno: i32, errno: i32,
  message: usize, messageLength: i32,
  attempt: u32,
  retryable: i32,
  carry: usize, carryLength: i32,
): usize {
  const failure = new Failure(
    stringOf(target, targetLength), stage, hasErrno != 0 ? errno : 0, stringOf(message, messageLength), attempt, retryable != 0,
  );
  return lower(recover(failure, bytesOf(carry, carryLength)));
}
