// Takes the component that componentize-qjs has packed into another one out again: node unnest.js FROM TO
//
// componentize-qjs 0.4 puts the policy into an outer component, beside a small one that would load further modules at
// build time and only traps afterwards. The gateway writes what `configure` leaves in memory into the module itself, and
// can do that for one level of component only. So the inner one is taken out, and what the loader would have answered is
// replaced by a call that never returns: a dynamic `import()` of something that is not built in is a trap, as before.
//
// Nothing here knows an index by heart: instances and functions are found by their names, and whatever is not found once,
// and only once, is an error. Sections and their numbers: the component model's design/mvp/Binary.md.

import { readFileSync, writeFileSync } from "node:fs";

const LOADER = "local:init/module-loader";
const SECTION = { coreInstance: 2, component: 4, instance: 5, alias: 6, canon: 8, import: 10 };
const PREAMBLE = 8;

class Reader {
  at = 0;

  constructor(bytes) {
    this.bytes = bytes;
  }

  get ended() {
    return this.at >= this.bytes.length;
  }

  byte() {
    return this.bytes[this.at++];
  }

  /** Unsigned LEB128. */
  number() {
    let value = 0;
    for (let shift = 1; ; shift *= 128) {
      const byte = this.byte();
      value += (byte & 0x7f) * shift;
      if (byte < 0x80) return value;
    }
  }

  take(length) {
    return this.bytes.subarray(this.at, (this.at += length));
  }

  name() {
    return new TextDecoder().decode(this.take(this.number()));
  }
}

function number(value) {
  const bytes = [];
  do {
    bytes.push((value & 0x7f) | (value > 0x7f ? 0x80 : 0));
    value = Math.floor(value / 128);
  } while (value > 0);
  return bytes;
}

const name = (text) => [...number(text.length), ...new TextEncoder().encode(text)];

function sections(component) {
  const reader = new Reader(component);
  const found = [];
  reader.take(PREAMBLE);
  while (!reader.ended) {
    const id = reader.byte();
    found.push({ id, content: reader.take(reader.number()) });
  }
  return found;
}

/** One of these in a section, as `content`. */
const single = (...bytes) => Uint8Array.from([1, ...bytes]);
const COMPONENT_FUNCTION = 0x01, CORE_FUNCTION = [0x00, 0x00], OF_INSTANCE = 0x00, OF_CORE_INSTANCE = 0x01;

/** Index of the core instance that offers the loader's functions to the interpreter, beside which others follow. */
class CoreInstances {
  count = 0;
  loader = null;

  read(content) {
    const reader = new Reader(content);
    for (let left = reader.number(); left > 0; left--, this.count++) {
      const isInstantiation = reader.byte() === 0x00;
      if (isInstantiation) reader.number();
      const names = [];
      for (let items = reader.number(); items > 0; items--) {
        names.push(reader.name());
        reader.byte();
        reader.number();
      }
      if (!isInstantiation && names.join() === "resolve,load") this.loader = this.count;
    }
  }
}

/** The alias of a function of an instance, when that is all that a section holds. */
function aliasedFunction(content) {
  const reader = new Reader(content);
  if (reader.number() !== 1 || reader.byte() !== COMPONENT_FUNCTION || reader.byte() !== OF_INSTANCE) return null;
  return { instance: reader.number(), name: reader.name() };
}

function unnest(component) {
  const core = new CoreInstances();
  let instances = 0, loader = null, other = null, lowered = null;
  const counts = { import: 0, alias: 0, lower: 0 };
  const changed = sections(component).map(({ id, content }) => {
    if (id === SECTION.coreInstance) core.read(content);
    if (id === SECTION.import) {
      const reader = new Reader(content);
      if (reader.number() !== 1 || reader.byte() !== 0x00) throw new Error("an import section of another shape");
      const isLoader = reader.name() === LOADER;
      if (isLoader) {
        loader = instances;
        counts.import++;
      }
      if (reader.byte() === 0x05) instances++;
      // An instance of nothing, in the loader's place, so that all others keep their numbers.
      if (isLoader) return { id: SECTION.instance, content: single(0x01, 0) };
    }
    if (id === SECTION.alias) {
      const alias = aliasedFunction(content);
      if (alias !== null && alias.instance === loader) {
        counts.alias++;
        lowered = alias.name;
        // Any function: it keeps a number, and nobody calls it.
        return { id, content: single(COMPONENT_FUNCTION, OF_INSTANCE, ...number(other.instance), ...name(other.name)) };
      }
      if (alias !== null && alias.instance < loader) other ??= alias;
    }
    if (id === SECTION.canon && lowered !== null) {
      if (content[0] !== 1 || content[1] !== 0x01) throw new Error("a canon section of another shape");
      counts.lower++;
      // What the interpreter was given before the real function was known: called, it calls itself until the stack ends.
      const alias = single(...CORE_FUNCTION, OF_CORE_INSTANCE, ...number(core.loader), ...name(lowered));
      lowered = null;
      return { id: SECTION.alias, content: alias };
    }
    return { id, content };
  });
  if (counts.import !== 1 || counts.alias !== 2 || counts.lower !== 2) {
    throw new Error(`componentize-qjs packs differently now: found ${JSON.stringify(counts)}`);
  }
  return Buffer.concat([
    component.subarray(0, PREAMBLE),
    ...changed.flatMap(({ id, content }) => [Uint8Array.from([id, ...number(content.length)]), content]),
  ]);
}

const [from, to] = process.argv.slice(2);
const inner = sections(readFileSync(from)).find(({ id }) => id === SECTION.component);
writeFileSync(to, unnest(inner.content));
