// What time it is. `Date.now()` would import something that the gateway does not have.

/** Milliseconds since 1970 (UTC); can be set, forwards and backwards. */
// @ts-ignore: decorator
@external("baton:policy/clock@0.1.0", "wall-ms")
export declare function wallMs(): u64;

/** Microseconds of a clock that is never set; its zero means nothing. */
// @ts-ignore: decorator
@external("baton:policy/clock@0.1.0", "monotonic-us")
export declare function monotonicUs(): u64;
