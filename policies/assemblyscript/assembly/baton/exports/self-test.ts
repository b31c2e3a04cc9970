import { lowerTested } from "../abi";
import { selfTest } from "../hooks";

export { collect as self_test_post } from "../abi";

export function self_test(): usize {
  return lowerTested(selfTest());
}
