// What the connection hook is asked about, and what it answers: before TLS and HTTP, and before a byte is read.

import { Handoff } from "./decision";
import { Peer } from "./request";

export class Connection {
  constructor(
    public listener: string,
    public peer: Peer,
    public localAddress: string,
    /** From the TLS client hello, when the listener looks at it. */
    public sni: string | null,
    public alpn: string[],
  ) {}
}

export enum Verdict {
  Accept,
  Reject,
  HandOver,
}

export class ConnectionAction {
  private constructor(
    public verdict: Verdict,
    public handoff: Handoff | null,
  ) {}

  static accept(): ConnectionAction {
    return new ConnectionAction(Verdict.Accept, null);
  }

  /** Closed without an answer. */
  static reject(): ConnectionAction {
    return new ConnectionAction(Verdict.Reject, null);
  }

  /** The untouched socket goes to a target: `Decision.handoff(target, data)`. */
  static handOver(handoff: Handoff): ConnectionAction {
    return new ConnectionAction(Verdict.HandOver, handoff);
  }
}
