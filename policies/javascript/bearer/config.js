// What the policy is told once, as JSON:
//
//   {"target": "chat", "realm": "demo", "tokens": {"<SHA-256 of a token, in hex>": "alice"}}
//
// Tokens stand there as digests, so that neither the configuration nor its backups hold anything that opens a door.
// That is safe for tokens that a program made at random; words that people chose can be guessed from their digest.

/** What can stand between the quotes of a header field as it is (RFC 9110 §5.6.4). */
const PRINTABLE = /^[ !#-[\]-~]+$/;
/** As `sha256sum` prints it. One spelling only: two for one token would be two entries. */
const DIGEST = /^[0-9a-f]{64}$/;
const USER = /^[^\x00-\x1f\x7f]+$/;

const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);
/** By code points, as the other languages sort; the language's own order is by halves of them. */
const ascending = (a, b) => {
  const [left, right] = [a, b].map((text) => Array.from(text, (c) => c.codePointAt(0)));
  const at = left.findIndex((c, i) => c !== right[i]);
  return at < 0 ? left.length - right.length : at >= right.length ? 1 : left[at] - right[at];
};

export class Config {
  target = "";
  realm = "";
  /** Whose each token is, by its digest in hex. No prototype: nothing is found in it that was not put there. */
  tokens = Object.create(null);
  /** Every fault, not only the first: whoever has to mend it wants to go there once. */
  faults = [];

  static read(text) {
    const config = new Config();
    let value;
    try {
      value = JSON.parse(text);
    } catch {
      config.faults.push("config: not JSON");
      return config;
    }
    if (!isObject(value)) {
      config.faults.push("config: must be an object");
      return config;
    }
    config.target = config.#printable(value, "target");
    config.realm = config.#printable(value, "realm");
    config.#readTokens(value);
    const unknown = Object.keys(value).filter((key) => !["target", "realm", "tokens"].includes(key));
    config.faults.push(...unknown.sort(ascending).map((key) => `${key}: unknown key`));
    return config;
  }

  #printable(value, key) {
    if (!Object.hasOwn(value, key)) {
      this.faults.push(`${key}: missing`);
    } else if (typeof value[key] === "string" && PRINTABLE.test(value[key])) {
      return value[key];
    } else {
      this.faults.push(`${key}: must be a string of printable ASCII without quotes and backslashes`);
    }
    return "";
  }

  #readTokens(value) {
    if (!Object.hasOwn(value, "tokens")) {
      this.faults.push("tokens: missing");
      return;
    }
    if (!isObject(value.tokens) || Object.keys(value.tokens).length === 0) {
      this.faults.push("tokens: must be an object with at least one entry");
      return;
    }
    for (const key of Object.keys(value.tokens).sort(ascending)) {
      const user = value.tokens[key];
      const goodKey = DIGEST.test(key);
      const goodUser = typeof user === "string" && USER.test(user);
      // A key that is no digest may be the token itself, put there by mistake: it is never repeated in a message.
      if (goodKey && goodUser) {
        this.tokens[key] = user;
      } else if (goodUser) {
        this.faults.push(
          `tokens: the key of "${user}" must be 64 lower-case hexadecimal digits, the SHA-256 of the token`,
        );
      } else if (goodKey) {
        this.faults.push(
          `tokens: the user of ${key.slice(0, 8)}... must be a string without control characters, and not empty`,
        );
      } else {
        this.faults.push("tokens: an entry has neither a SHA-256 as its key nor a user");
      }
    }
  }
}
