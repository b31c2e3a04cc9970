// What `onConfigure` returns.

export class Configured {
  /** Any, and the configuration is refused. */
  faults: string[] = [];
  /** Requests that one instance may serve; 0: a fresh one for each. */
  maxReuse: u32 = u32.MAX_VALUE;
  /** 0: no ticks. */
  tickIntervalMs: u32 = 0;
  /** The targets and upstreams that the policy wants to name. */
  targets: string[] = [];
}

/** The configuration is good, and these are the targets and upstreams that the policy wants to name. */
export function configured(targets: string[], maxReuse: u32 = u32.MAX_VALUE, tickIntervalMs: u32 = 0): Configured {
  const configured = new Configured();
  configured.targets = targets;
  configured.maxReuse = maxReuse;
  configured.tickIntervalMs = tickIntervalMs;
  return configured;
}

/** The configuration is refused for these faults, and the policy that runs goes on. */
export function refused(faults: string[]): Configured {
  const configured = new Configured();
  configured.faults = faults;
  if (faults.length == 0) faults.push("refused without a reason");
  return configured;
}
