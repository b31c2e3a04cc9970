import { collectNow } from "../abi";
import { tick } from "../hooks";

export function on_tick(): void {
  tick();
  collectNow();
}
