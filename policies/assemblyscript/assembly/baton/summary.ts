// What the complete hook is told.

export class Summary {
  constructor(
    public requestId: string,
    /** An outcome, by the access log's names. */
    public action: string,
    public target: string | null,
    /** 0: nothing was answered. */
    public status: u16,
    public durationUs: u64,
    public bytesIn: u64,
    public bytesOut: u64,
  ) {}
}
