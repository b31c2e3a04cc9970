// Figures in the gateway's `/metrics`: `count("refused")` of the policy `auth` is `baton_policy_refused{policy="auth"}`.
// Names are made of lower-case letters, digits and `_`; labels are pairs of name and value. A series appears when it is
// first used, and the gateway bounds their number: never put into a label what a client chose.

import { putPairs } from "./abi";

// @ts-ignore: decorator
@external("baton:policy/metrics@0.1.0", "count")
declare function importCount(name: usize, length: i32, labels: usize, labelCount: i32, delta: u64): void;
// @ts-ignore: decorator
@external("baton:policy/metrics@0.1.0", "gauge")
declare function importGauge(name: usize, length: i32, labels: usize, labelCount: i32, value: f64): void;
// @ts-ignore: decorator
@external("baton:policy/metrics@0.1.0", "observe")
declare function importObserve(name: usize, length: i32, labels: usize, labelCount: i32, value: f64): void;

const LIST: usize = memory.data(8, 4);

/** Adds to a number that only grows. */
export function count(name: string, delta: u64 = 1, labels: string[][] = []): void {
  putPairs(LIST, labels);
  importCount(changetype<usize>(name), name.length, load<usize>(LIST), labels.length, delta);
}

/** Sets a number that goes up and down. */
export function gauge(name: string, value: f64, labels: string[][] = []): void {
  putPairs(LIST, labels);
  importGauge(changetype<usize>(name), name.length, load<usize>(LIST), labels.length, value);
}

/** Adds an observation to a histogram. */
export function observe(name: string, value: f64, labels: string[][] = []): void {
  putPairs(LIST, labels);
  importObserve(changetype<usize>(name), name.length, load<usize>(LIST), labels.length, value);
}
