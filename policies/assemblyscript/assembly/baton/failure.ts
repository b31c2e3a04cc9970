// What the failure hook is asked about.

export enum Stage {
  Resolve,
  Connect,
  Send,
  Acknowledge,
  Rejected,
  Upstream,
}

export class Failure {
  constructor(
    /** Target or upstream that failed last. */
    public target: string,
    public stage: Stage,
    /** Of Linux; 0 when there is none. */
    public errno: i32,
    public message: string,
    /** 1 the first time that the hook is asked about a request; at most 3. */
    public attempt: u32,
    /** When it is false, only `pass` and `abort` are honoured. */
    public retryable: bool,
  ) {}
}
