// Chooses a target or an answer by path and header fields, as a table says; what no rule fits is left to the next policy
// and to the route.

import { Decision, bytes, configured, json, onConfigure, onRequest, refused, request, text } from "../baton";
import { Config, Rule } from "./config";

export * from "../baton/exports";
export * from "../baton/exports/configure";

/** Set once by `configure`; every later instance starts from the memory that it left. */
let config: Config | null = null;

onConfigure((text) => {
  const read = new Config(text);
  if (read.faults.length > 0) return refused(read.faults);
  config = read;
  return configured(read.targets());
});

onRequest((): Decision => {
  const path = request.path();
  const rules = assert(config).rules;
  for (let i = 0; i < rules.length; i++) {
    if (fitsPath(rules[i], path) && fitsHeaders(rules[i])) return decide(rules[i], i, path);
  }
  return Decision.pass();
});

/** A prefix ends at a segment, as it does in the gateway's own routes. */
function fitsPath(rule: Rule, path: string): bool {
  if (rule.path.length == 0) return true;
  if (rule.isExact) return path == rule.path;
  if (!path.startsWith(rule.path)) return false;
  return path.length == rule.path.length || rule.path.endsWith("/") || path.charCodeAt(rule.path.length) == 0x2f;
}

/** Of a field that is there several times one value has to fit. */
function fitsHeaders(rule: Rule): bool {
  for (let i = 0; i < rule.headers.length; i++) {
    const values = request.headerAll(rule.headers[i][0]);
    let fits = false;
    for (let j = 0; j < values.length && !fits; j++) fits = text(values[j]) == rule.headers[i][1];
    if (!fits) return false;
  }
  return true;
}

function decide(rule: Rule, number: i32, path: string): Decision {
  const answer = rule.answer;
  if (answer !== null) {
    const decision = Decision.respond(answer.status, answer.body);
    decision.headers = answer.headers;
    decision.annotate("rule", number.toString());
    return decision;
  }
  const query = request.query();
  const data =
    '{"method":' + json.quote(request.method()) +
    ',"path":' + json.quote(path) +
    ',"query":' + (query === null ? "null" : json.quote(query)) + "}";
  const decision = Decision.handoff(assert(rule.target), bytes(data));
  decision.annotate("rule", number.toString());
  return decision;
}
