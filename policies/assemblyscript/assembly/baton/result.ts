// What a call yields that can fail: look at `ok` first.

export class Result<T, E> {
  constructor(
    public ok: bool,
    /** Without meaning when it failed. */
    public value: T,
    /** Without meaning when it did not. */
    public error: E,
  ) {}
}
