// The joint between the gateway and the policy: it reads the request, and turns the answer into a decision.

import { sha256 } from "@noble/hashes/sha2.js";
import * as log from "baton:policy/log@0.1.0";
import * as request from "baton:policy/request@0.1.0";

import { handoff, respond, utf8 } from "../baton.js";
import { decide } from "./bearer.js";
import { Config } from "./config.js";

const UNBOUNDED = 0xffff_ffff;

/** Set once by `configure`; every later instance starts from the memory that it left. */
let config;

export const lifecycle = {
  configure(text) {
    const read = Config.read(text);
    // What is thrown is the error of the contract's result.
    if (read.faults.length > 0) throw read.faults;
    config = read;
    const count = Object.keys(config.tokens).length;
    log.write("info", "configured", [["realm", config.realm], ["tokens", String(count)]]);
    return { maxReuse: UNBOUNDED, tickIntervalMs: 0, targets: [config.target] };
  },

  onTick() {},

  /** Proves the digest with a vector of FIPS 180-4: it is what everything rests on. */
  selfTest() {
    const start = sha256(utf8("abc")).subarray(0, 4);
    if (start.join() !== "186,120,22,191") throw "SHA-256 of 3 bytes is wrong";
  },
};

export const requestHook = {
  onRequest() {
    const answer = decide(config, request.headerAll("authorization"), () => ({
      method: request.method(),
      path: request.path(),
      query: request.query(),
    }));
    if ("user" in answer) return handoff(config.target, answer.data, { annotations: { user: answer.user } });
    // Never the token. The level is asked for first: an attacker decides how often this runs.
    if (log.enabled("debug")) log.write("debug", answer.detail, []);
    const headers = {
      "www-authenticate": answer.challenge(config.realm),
      "content-type": "application/problem+json",
    };
    return respond(answer.status, headers, answer.body());
  },
};
