import { lowerConfigured, stringOf } from "../abi";
import { configure as hook } from "../hooks";

export { collect as configure_post } from "../abi";

export function configure(address: usize, length: i32): usize {
  return lowerConfigured(hook(stringOf(address, length)));
}
