// What the policy is told once, as JSON:
//
//   {"rules": [
//     {"path": "=/healthz", "respond": {"status": 200, "body": "ok\n"}},
//     {"path": "/v1/", "headers": {"x-version": "2"}, "target": "next"},
//     {"path": "/v1/", "target": "chat"}
//   ]}
//
// The first rule whose path and headers all fit decides.

import { json } from "../baton";

export class Answer {
  status: u16 = 0;
  body: string = "";
  headers: string[][] = [];
}

export class Rule {
  /** Empty: any. */
  path: string = "";
  /** The path and nothing below it. */
  isExact: bool = false;
  headers: string[][] = [];
  target: string | null = null;
  answer: Answer | null = null;
}

export class Config {
  rules: Rule[] = [];
  /** Every fault, not only the first: whoever has to mend it wants to go there once. */
  faults: string[] = [];

  constructor(text: string) {
    const value = json.parse(text);
    if (value === null) {
      this.faults.push("config: not JSON");
    } else if (value.kind != json.Kind.Object) {
      this.faults.push("config: must be an object");
    } else {
      this.readRules(value.members);
      this.readNothingElse("", value.members, ["rules"]);
    }
  }

  /** All targets that a rule names, each once. */
  targets(): string[] {
    const targets: string[] = [];
    for (let i = 0; i < this.rules.length; i++) {
      const target = this.rules[i].target;
      if (target !== null && !targets.includes(target)) targets.push(target);
    }
    return targets;
  }

  private readRules(members: Map<string, json.Value>): void {
    if (!members.has("rules")) {
      this.faults.push("rules: missing");
      return;
    }
    const value = members.get("rules");
    if (value.kind != json.Kind.Array || value.items.length == 0) {
      this.faults.push("rules: must be a list with at least one entry");
      return;
    }
    for (let i = 0; i < value.items.length; i++) this.readRule(`rules[${i}]`, value.items[i]);
  }

  private readRule(key: string, value: json.Value): void {
    const rule = new Rule();
    this.rules.push(rule);
    if (value.kind != json.Kind.Object) {
      this.faults.push(key + ": must be an object");
      return;
    }
    const members = value.members;
    if (members.has("path")) {
      const path = members.get("path");
      rule.isExact = path.text.startsWith("=");
      rule.path = rule.isExact ? path.text.substring(1) : path.text;
      if (path.kind != json.Kind.String || !rule.path.startsWith("/")) {
        this.faults.push(key + '.path: must be a string that begins with "/", or with "=/" for this path alone');
      }
    }
    if (members.has("headers")) rule.headers = this.headers(key + ".headers", members.get("headers"));
    if (members.has("target") == members.has("respond")) {
      this.faults.push(key + ": must have a target or an answer (respond), and not both");
    } else if (members.has("target")) {
      const target = members.get("target");
      if (target.kind != json.Kind.String || target.text.length == 0) {
        this.faults.push(key + ".target: must be a string, and not empty");
      }
      rule.target = target.text;
    } else {
      rule.answer = this.answer(key + ".respond", members.get("respond"));
    }
    this.readNothingElse(key + ".", members, ["path", "headers", "target", "respond"]);
  }

  private answer(key: string, value: json.Value): Answer {
    const answer = new Answer();
    const members = value.members;
    const status = members.has("status") ? members.get("status") : value;
    const number = status.kind == json.Kind.Number ? parseFloat(status.text) : 0;
    if (number < 200 || number > 599 || number != Math.floor(number)) {
      this.faults.push(key + ".status: must be a whole number from 200 to 599");
    } else {
      answer.status = u16(number);
    }
    if (members.has("body")) {
      if (members.get("body").kind != json.Kind.String) this.faults.push(key + ".body: must be a string");
      answer.body = members.get("body").text;
    }
    if (members.has("headers")) answer.headers = this.headers(key + ".headers", members.get("headers"));
    this.readNothingElse(key + ".", members, ["status", "body", "headers"]);
    return answer;
  }

  /** Names in lower case and their values, which can stand in a header field. */
  private headers(key: string, value: json.Value): string[][] {
    const pairs: string[][] = [];
    if (value.kind != json.Kind.Object) this.faults.push(key + ": must be an object of strings");
    const names = value.members.keys().sort();
    for (let i = 0; i < names.length; i++) {
      const field = value.members.get(names[i]);
      if (!isToken(names[i]) || field.kind != json.Kind.String || hasControls(field.text)) {
        this.faults.push(`${key}: "${names[i]}" must be the name of a field in lower case, and its value one line`);
      }
      pairs.push([names[i], field.text]);
    }
    return pairs;
  }

  private readNothingElse(prefix: string, members: Map<string, json.Value>, known: string[]): void {
    const keys = members.keys().sort();
    for (let i = 0; i < keys.length; i++) {
      if (!known.includes(keys[i])) this.faults.push(prefix + keys[i] + ": unknown key");
    }
  }
}

/** RFC 9110 §5.6.2, without capital letters. */
function isToken(text: string): bool {
  for (let i = 0; i < text.length; i++) {
    const unit = text.charCodeAt(i);
    const letter = unit >= 0x61 && unit <= 0x7a;
    const digit = unit >= 0x30 && unit <= 0x39;
    if (!letter && !digit && !"!#$%&'*+-.^_`|~".includes(text.charAt(i))) return false;
  }
  return text.length > 0;
}

function hasControls(text: string): bool {
  for (let i = 0; i < text.length; i++) {
    const unit = text.charCodeAt(i);
    if (unit < 0x20 || unit == 0x7f) return true;
  }
  return false;
}
