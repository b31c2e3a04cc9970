// Runs the cases of ../../cases against the module as it was built, in this process: the imports that the policy uses
// are played here. What the gateway makes of the answers is tested with the gateway.

import assert from "node:assert/strict";
import { readFileSync, readdirSync } from "node:fs";
import test from "node:test";

const here = (path) => new URL(path, import.meta.url);
const json = (url) => JSON.parse(readFileSync(url, "utf8"));

class Policy {
  request = { method: "GET", path: "/", query: null, headers: [] };

  constructor(module) {
    const imports = {
      "baton:policy/request@0.1.0": {
        method: (at) => this.putString(at, this.request.method),
        path: (at) => this.putString(at, this.request.path),
        query: (at) => {
          this.view.setUint8(at, this.request.query === null ? 0 : 1);
          if (this.request.query !== null) this.putString(at + 4, this.request.query);
        },
        "header-all": (name, length, at) => {
          const wanted = this.string(name, length);
          const values = this.request.headers.filter((field) => field.name === wanted);
          const list = this.room(4, values.length * 8);
          values.forEach((field, i) => this.putBytes(list + i * 8, field.value));
          this.putList(at, list, values.length);
        },
      },
      "baton:policy/log@0.1.0": { enabled: () => 1, write: () => {} },
    };
    this.guest = new WebAssembly.Instance(module, imports).exports;
    this.guest._initialize();
  }

  // Fresh for every access: a view ends when the memory grows.
  get view() {
    return new DataView(this.guest.memory.buffer);
  }

  configure(config) {
    const text = JSON.stringify(config);
    const at = this.guest.configure(this.units(text), text.length);
    const faults = this.view.getUint8(at) === 1 ? this.list(at + 4, 8, (item) => this.stringAt(item)) : null;
    const targets = faults ?? this.list(at + 12, 8, (item) => this.stringAt(item));
    this.guest.configure_post(at);
    return { faults, targets };
  }

  selfTest() {
    const at = this.guest.self_test();
    const fault = this.view.getUint8(at) === 1 ? this.stringAt(at + 4) : null;
    this.guest.self_test_post(at);
    return fault;
  }

  decide(request) {
    this.request = request;
    const at = this.guest.on_request();
    const decision = this.decision(at);
    const annotations = this.list(at + 80, 16, (item) => [this.stringAt(item), this.stringAt(item + 8)]);
    if (annotations.length > 0) decision.annotations = Object.fromEntries(annotations);
    this.guest.on_request_post(at);
    return decision;
  }

  decision(at) {
    switch (this.view.getUint8(at)) {
      case 0:
        return { action: "pass" };
      case 1:
        return { action: "handoff", target: this.stringAt(at + 4), data: this.textAt(at + 12) };
      case 3: {
        const headers = this.list(at + 8, 16, (item) => [this.stringAt(item), this.textAt(item + 8)]);
        const status = this.view.getUint16(at + 4, true);
        return { action: "respond", status, headers: Object.fromEntries(headers), body: this.textAt(at + 16) };
      }
      default:
        throw new Error(`unexpected action ${this.view.getUint8(at)}`);
    }
  }

  u32(at) {
    return this.view.getUint32(at, true);
  }

  list(at, size, read) {
    return Array.from({ length: this.u32(at + 4) }, (_, i) => read(this.u32(at) + i * size));
  }

  string(address, length) {
    return new TextDecoder("utf-16le").decode(new Uint8Array(this.guest.memory.buffer, address, length * 2));
  }

  stringAt(at) {
    return this.string(this.u32(at), this.u32(at + 4));
  }

  textAt(at) {
    return new TextDecoder().decode(new Uint8Array(this.guest.memory.buffer, this.u32(at), this.u32(at + 4)));
  }

  room(align, size) {
    return this.guest.cabi_realloc(0, 0, align, size);
  }

  units(text) {
    const at = this.room(2, text.length * 2);
    for (let i = 0; i < text.length; i++) this.view.setUint16(at + i * 2, text.charCodeAt(i), true);
    return at;
  }

  putString(at, text) {
    this.putList(at, this.units(text), text.length);
  }

  putBytes(at, bytes) {
    const room = this.room(1, bytes.length);
    new Uint8Array(this.guest.memory.buffer).set(bytes, room);
    this.putList(at, room, bytes.length);
  }

  putList(at, address, length) {
    this.view.setUint32(at, address, true);
    this.view.setUint32(at + 4, length, true);
  }
}

/** What the gateway would have read from a raw request. */
function read(raw) {
  // Latin-1 keeps every byte as it is.
  const [line, ...fields] = raw.toString("latin1").split("\r\n\r\n", 1)[0].split("\r\n");
  const [method, target] = line.split(" ");
  const mark = target.indexOf("?");
  return {
    method,
    path: mark < 0 ? target : target.slice(0, mark),
    query: mark < 0 ? null : target.slice(mark + 1),
    headers: fields.map((field) => {
      const [, name, value] = /^([^:]+):[ \t]*(.*?)[ \t]*$/s.exec(field);
      return { name: name.toLowerCase(), value: Buffer.from(value, "latin1") };
    }),
  };
}

for (const policy of ["bearer", "router"]) {
  const module = new WebAssembly.Module(readFileSync(here(`../target/${policy}.wasm`)));
  const cases = (path) => here(`../../cases/${policy}/${path}`);
  const names = (path, extension) =>
    readdirSync(cases(path)).filter((file) => file.endsWith(extension)).map((file) => file.slice(0, -extension.length));

  const configured = new Policy(module);

  test(`${policy}: the configuration is taken`, () => {
    assert.equal(configured.configure(json(cases("config.json"))).faults, null);
    if (configured.guest.self_test !== undefined) assert.equal(configured.selfTest(), null);
  });

  for (const name of names("", ".http")) {
    test(`${policy}: ${name}`, () => {
      assert.deepEqual(configured.decide(read(readFileSync(cases(`${name}.http`)))), json(cases(`${name}.json`)));
    });
  }

  for (const name of names("refused", ".json")) {
    test(`${policy}: refused: ${name}`, () => {
      const { config, faults } = json(cases(`refused/${name}.json`));
      assert.deepEqual(new Policy(module).configure(config).faults, faults);
    });
  }

  test(`${policy}: memory does not grow`, () => {
    const requests = names("", ".http").map((name) => read(readFileSync(cases(`${name}.http`))));
    // What is left behind is collected after several decisions, so the first ones may need more.
    for (let i = 0; i < 1_000; i++) configured.decide(requests[i % requests.length]);
    const before = configured.guest.memory.buffer.byteLength;
    for (let i = 0; i < 50_000; i++) configured.decide(requests[i % requests.length]);
    assert.equal(configured.guest.memory.buffer.byteLength, before);
  });
}
