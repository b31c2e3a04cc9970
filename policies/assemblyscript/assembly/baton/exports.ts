// What a module exports beside its hooks. For each hook that returns something, `HOOK_post` is called by the gateway
// when it has read the answer: a policy that does not export it grows until its memory limit ends it.

export { baton_utf16, cabi_realloc } from "./abi";
export { collect as configure_post, collect as on_request_post, collect as self_test_post } from "./abi";

// Not exported: named by `use` in asconfig.json, and to be found it must be part of the program.
import "./abort";
