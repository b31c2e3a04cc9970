// JSON (RFC 8259), as far as a policy needs it: to read its configuration strictly, and to write data that stays JSON
// whatever a client put into it.

export enum Kind {
  Null,
  Bool,
  Number,
  String,
  Array,
  Object,
}

export class Value {
  /** Of a string its text, of a number and a truth value their spelling. */
  text: string = "";
  items: Value[];
  members: Map<string, Value>;

  constructor(public kind: Kind) {
    this.items = kind == Kind.Array ? [] : NO_ITEMS;
    this.members = kind == Kind.Object ? new Map() : NO_MEMBERS;
  }
}

// Shared by all values that have none and never written to: an empty map takes 200 bytes.
const NO_ITEMS: Value[] = [];
const NO_MEMBERS: Map<string, Value> = new Map();

/** Reads a text; null when it is not JSON. Of members with one name the last counts. */
export function parse(text: string): Value | null {
  const reader = new Reader(text);
  const value = reader.value(0);
  reader.space();
  return reader.failed || !reader.ended() ? null : value;
}

/** Writes a string in its quotes. */
export function quote(text: string): string {
  let escaped = "";
  let start = 0;
  for (let i = 0; i < text.length; i++) {
    const unit = text.charCodeAt(i);
    if (unit >= 0x20 && unit != 0x22 && unit != 0x5c) continue;
    escaped += text.substring(start, i) + escape(unit);
    start = i + 1;
  }
  return start == 0 ? `"${text}"` : `"${escaped}${text.substring(start)}"`;
}

function escape(unit: i32): string {
  switch (unit) {
    case 0x08: return "\\b";
    case 0x09: return "\\t";
    case 0x0a: return "\\n";
    case 0x0c: return "\\f";
    case 0x0d: return "\\r";
    case 0x22: return '\\"';
    case 0x5c: return "\\\\";
    default: return "\\u00" + (unit < 0x10 ? "0" : "") + unit.toString(16);
  }
}

/** Nesting is recursion, and recursion is stack. */
const DEPTH_MAX = 127;

class Reader {
  at: i32 = 0;
  failed: bool = false;

  constructor(private text: string) {}

  ended(): bool {
    return this.at >= this.text.length;
  }

  space(): void {
    for (;;) {
      const unit = this.peek();
      if (unit != 0x20 && unit != 0x09 && unit != 0x0a && unit != 0x0d) return;
      this.at++;
    }
  }

  value(depth: i32): Value {
    this.space();
    switch (this.peek()) {
      case 0x7b /* { */: return this.object(depth + 1);
      case 0x5b /* [ */: return this.array(depth + 1);
      case 0x22 /* " */: {
        const value = new Value(Kind.String);
        value.text = this.string();
        return value;
      }
      case 0x74 /* t */: return this.word("true", Kind.Bool);
      case 0x66 /* f */: return this.word("false", Kind.Bool);
      case 0x6e /* n */: return this.word("null", Kind.Null);
      default: return this.number();
    }
  }

  /** The next code unit; -1 at the end and after a failure, so that every loop ends. */
  private peek(): i32 {
    return this.failed || this.ended() ? -1 : this.text.charCodeAt(this.at);
  }

  private fail(): void {
    this.failed = true;
  }

  private eat(unit: i32): bool {
    if (this.peek() != unit) return false;
    this.at++;
    return true;
  }

  private object(depth: i32): Value {
    const value = new Value(Kind.Object);
    if (depth > DEPTH_MAX) this.fail();
    this.at++;
    this.space();
    if (this.eat(0x7d)) return value;
    do {
      this.space();
      const name = this.string();
      this.space();
      if (!this.eat(0x3a)) this.fail();
      value.members.set(name, this.failed ? value : this.value(depth));
      this.space();
    } while (this.eat(0x2c));
    if (!this.eat(0x7d)) this.fail();
    return value;
  }

  private array(depth: i32): Value {
    const value = new Value(Kind.Array);
    if (depth > DEPTH_MAX) this.fail();
    this.at++;
    this.space();
    if (this.eat(0x5d)) return value;
    do {
      if (!this.failed) value.items.push(this.value(depth));
      this.space();
    } while (this.eat(0x2c));
    if (!this.eat(0x5d)) this.fail();
    return value;
  }

  private word(word: string, kind: Kind): Value {
    const value = new Value(kind);
    value.text = word;
    if (this.text.substr(this.at, word.length) == word) this.at += word.length;
    else this.fail();
    return value;
  }

  private number(): Value {
    const value = new Value(Kind.Number);
    const start = this.at;
    this.eat(0x2d);
    // A zero in front stands alone.
    if (!this.eat(0x30)) this.digits();
    if (this.eat(0x2e)) this.digits();
    if (this.eat(0x65) || this.eat(0x45)) {
      if (!this.eat(0x2b)) this.eat(0x2d);
      this.digits();
    }
    value.text = this.text.substring(start, this.at);
    return value;
  }

  private digits(): void {
    const start = this.at;
    for (let unit = this.peek(); unit >= 0x30 && unit <= 0x39; unit = this.peek()) this.at++;
    if (this.at == start) this.fail();
  }

  private string(): string {
    if (!this.eat(0x22)) {
      this.fail();
      return "";
    }
    const parts: string[] = [];
    let start = this.at;
    for (let unit = this.peek(); unit != 0x22; unit = this.peek()) {
      if (unit < 0x20) {
        this.fail();
        return "";
      }
      if (unit == 0x5c) {
        parts.push(this.text.substring(start, this.at++));
        parts.push(this.escaped());
        start = this.at;
      } else {
        this.at++;
      }
    }
    parts.push(this.text.substring(start, this.at++));
    return parts.join("");
  }

  private escaped(): string {
    const unit = this.peek();
    this.at++;
    switch (unit) {
      case 0x22: return '"';
      case 0x5c: return "\\";
      case 0x2f: return "/";
      case 0x62: return "\b";
      case 0x66: return "\f";
      case 0x6e: return "\n";
      case 0x72: return "\r";
      case 0x74: return "\t";
      case 0x75: break;
      default: this.fail();
    }
    const first = this.hex4();
    if (first < 0xd800 || first > 0xdfff) return String.fromCharCode(first);
    // Above the first plane a character is written as two halves; one alone is no text.
    const second = this.eat(0x5c) && this.eat(0x75) ? this.hex4() : 0;
    if (first > 0xdbff || second < 0xdc00 || second > 0xdfff) this.fail();
    return String.fromCharCode(first) + String.fromCharCode(second);
  }

  private hex4(): i32 {
    let value = 0;
    for (let i = 0; i < 4; i++) {
      const unit = this.peek();
      const lower = unit | 0x20;
      if (unit >= 0x30 && unit <= 0x39) value = (value << 4) | (unit - 0x30);
      else if (lower >= 0x61 && lower <= 0x66) value = (value << 4) | (lower - 0x61 + 10);
      else this.fail();
      this.at++;
    }
    return value;
  }
}
