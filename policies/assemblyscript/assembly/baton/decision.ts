// What a policy can answer.

/** When a handoff may be a pair of sockets that the gateway translates between. */
export enum Relay {
  Never,
  IfNeeded,
  Always,
}

/** Shared by all that carry nothing: no byte is in it to be written to. */
const NOTHING = new ArrayBuffer(0);

export abstract class Decision {
  /** Handed unchanged to later hooks of this request; at most 64 KiB. */
  carry: ArrayBuffer = NOTHING;
  annotations: string[][] = [];

  /** No opinion: the next policy decides, then the route's default. */
  static pass(): Pass {
    return new Pass();
  }

  /** The client goes to a named target; the data arrives with its socket. */
  static handoff(target: string, data: ArrayBuffer): Handoff {
    return new Handoff(target, data);
  }

  /** The request goes on to an upstream of the configuration. */
  static proxy(upstream: string): Proxy {
    return new Proxy(upstream);
  }

  /** The client is answered here. */
  static respond(status: u16, body: string): Respond {
    return new Respond(status, body);
  }

  /** The connection is closed without an answer. */
  static abort(): Abort {
    return new Abort();
  }

  /** Adds to the access log; the last value of a key wins. */
  annotate(key: string, value: string): void {
    this.annotations.push([key, value]);
  }
}

export class Pass extends Decision {
  removed: string[] = [];
  replaced: string[][] = [];
  appended: string[][] = [];

  /** Takes a field out of the request; removal happens first. */
  remove(name: string): void {
    this.removed.push(name);
  }

  /** Puts a field into the request in place of all of its name. */
  set(name: string, value: string): void {
    this.replaced.push([name, value]);
  }

  /** Adds a field behind those of its name. */
  append(name: string, value: string): void {
    this.appended.push([name, value]);
  }
}

export class Handoff extends Decision {
  /** Travels in the native dialect only. */
  metadata: string[][] = [];
  /** 0: nothing is written to the client before the handoff. */
  responseStatus: u16 = 0;
  responseHeaders: string[][] = [];
  /** First bytes of the body, behind that head. */
  responseBody: ArrayBuffer = NOTHING;
  /** Deliver the request's head exactly as it was received. */
  includeHead: bool = false;
  relay: Relay = Relay.IfNeeded;
  /** 0: the target's own. */
  timeoutMs: u32 = 0;
  /** Tried in order when the target did not take the client. */
  alternates: string[] = [];

  constructor(
    public target: string,
    public data: ArrayBuffer,
  ) {
    super();
  }
}

export class Proxy extends Decision {
  /** Replaces path and query; null: they stay. */
  pathAndQuery: string | null = null;
  /** Edits of the request: `request.set("x-user", user)`. */
  request: Pass = new Pass();
  /** 0: the upstream's own. */
  timeoutMs: u32 = 0;
  /** Whether `onResponse` is asked about the answer. */
  inspectResponse: bool = false;

  constructor(public upstream: string) {
    super();
  }
}

export class Respond extends Decision {
  headers: string[][] = [];
  body: ArrayBuffer;

  constructor(
    public status: u16,
    body: string,
  ) {
    super();
    this.body = String.UTF8.encode(body);
  }

  /** Names are written in lower case. */
  header(name: string, value: string): void {
    this.headers.push([name, value]);
  }
}

export class Abort extends Decision {}
