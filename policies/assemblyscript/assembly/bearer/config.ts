// What the policy is told once, as JSON:
//
//   {"target": "chat", "realm": "demo", "tokens": {"<SHA-256 of a token, in hex>": "alice"}}
//
// Tokens stand there as digests, so that neither the configuration nor its backups hold anything that opens a door.
// That is safe for tokens that a program made at random; words that people chose can be guessed from their digest.

import { json } from "../baton";
import { DIGEST_LENGTH } from "./sha256";

export class Config {
  target: string = "";
  realm: string = "";
  /** The digests of all tokens, one behind the other; whose they are stands at the same place in `users`. */
  digests: StaticArray<u8> = new StaticArray<u8>(0);
  users: string[] = [];
  /** Every fault, not only the first: whoever has to mend it wants to go there once. */
  faults: string[] = [];

  constructor(text: string) {
    const value = json.parse(text);
    if (value === null) {
      this.faults.push("config: not JSON");
    } else if (value.kind != json.Kind.Object) {
      this.faults.push("config: must be an object");
    } else {
      const members = value.members;
      this.target = this.printable(members, "target");
      this.realm = this.printable(members, "realm");
      this.readTokens(members);
      const keys = members.keys().sort();
      for (let i = 0; i < keys.length; i++) {
        const key = keys[i];
        if (key != "target" && key != "realm" && key != "tokens") this.faults.push(key + ": unknown key");
      }
    }
  }

  /** A string that can stand between the quotes of a header field as it is (RFC 9110 §5.6.4). */
  private printable(members: Map<string, json.Value>, key: string): string {
    if (!members.has(key)) {
      this.faults.push(key + ": missing");
      return "";
    }
    const value = members.get(key);
    if (value.kind == json.Kind.String && isPrintable(value.text)) return value.text;
    this.faults.push(key + ": must be a string of printable ASCII without quotes and backslashes");
    return "";
  }

  private readTokens(members: Map<string, json.Value>): void {
    if (!members.has("tokens")) {
      this.faults.push("tokens: missing");
      return;
    }
    const entries = members.get("tokens").members;
    if (entries.size == 0) {
      this.faults.push("tokens: must be an object with at least one entry");
      return;
    }
    const keys = entries.keys().sort();
    this.digests = new StaticArray<u8>(keys.length * DIGEST_LENGTH);
    for (let i = 0; i < keys.length; i++) {
      const key = keys[i];
      const value = entries.get(key);
      const goodKey = readDigest(key, changetype<usize>(this.digests) + this.users.length * DIGEST_LENGTH);
      const goodUser = value.kind == json.Kind.String && value.text.length > 0 && !hasControls(value.text);
      // A key that is no digest may be the token itself, put there by mistake: it is never repeated in a message.
      if (goodKey && goodUser) {
        this.users.push(value.text);
      } else if (goodUser) {
        this.faults.push(
          `tokens: the key of "${value.text}" must be 64 lower-case hexadecimal digits, the SHA-256 of the token`,
        );
      } else if (goodKey) {
        this.faults.push(
          `tokens: the user of ${key.substring(0, 8)}... must be a string without control characters, and not empty`,
        );
      } else {
        this.faults.push("tokens: an entry has neither a SHA-256 as its key nor a user");
      }
    }
  }
}

function isPrintable(text: string): bool {
  for (let i = 0; i < text.length; i++) {
    const unit = text.charCodeAt(i);
    if (unit < 0x20 || unit > 0x7e || unit == 0x22 || unit == 0x5c) return false;
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

/**
 * Reads 64 lower-case hexadecimal digits, as `sha256sum` prints them. One spelling only: two for one token would be two
 * entries.
 */
function readDigest(hex: string, to: usize): bool {
  if (hex.length != DIGEST_LENGTH * 2) return false;
  for (let i = 0; i < DIGEST_LENGTH; i++) {
    const high = nibble(hex.charCodeAt(2 * i));
    const low = nibble(hex.charCodeAt(2 * i + 1));
    if (high < 0 || low < 0) return false;
    store<u8>(to + i, u8((high << 4) | low));
  }
  return true;
}

function nibble(unit: i32): i32 {
  if (unit >= 0x30 && unit <= 0x39) return unit - 0x30;
  if (unit >= 0x61 && unit <= 0x66) return unit - 0x61 + 10;
  return -1;
}
