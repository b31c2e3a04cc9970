// Uses every hook and every import, and says what it saw: ../../../../tests/assemblyscript.rs compares.

import {
  ConnectionAction, Decision, Peer, Relay, bytes, callout, clock, config, configured, log,
  metrics, onComplete, onConfigure, onConnect, onHandoffFailed, onRequest, onResponse, onSelfTest, onTick, random,
  request, response, store, targets, text,
} from "../../assembly/baton";

export * from "../../assembly/baton/exports";
export * from "../../assembly/baton/exports/complete";
export * from "../../assembly/baton/exports/configure";
export * from "../../assembly/baton/exports/connect";
export * from "../../assembly/baton/exports/failure";
export * from "../../assembly/baton/exports/response";
export * from "../../assembly/baton/exports/self-test";
export * from "../../assembly/baton/exports/tick";

onConfigure((text) => {
  log.info("configured", [["config", text]]);
  return configured(["chat", "nobody"], u32.MAX_VALUE, 20);
});

onSelfTest(() => (request.path() == "/" ? null : "no empty request"));

onTick(() => {
  store.increment("ticks");
});

onConnect((connection) => {
  log.info("connection", [
    ["listener", connection.listener],
    ["peer", peer(connection.peer)],
    ["local", connection.localAddress],
    ["sni", connection.sni === null ? "none" : connection.sni!],
    ["alpn", connection.alpn.join("+")],
  ]);
  if (connection.listener == "closed") return ConnectionAction.reject();
  if (connection.listener == "given") return ConnectionAction.handOver(Decision.handoff("chat", bytes("untouched")));
  return ConnectionAction.accept();
});

onResponse((carry) => {
  const decision = Decision.pass();
  decision.set("x-seen", `${response.status()} ${response.upstream()} ${response.headers().length} ${text(carry)}`);
  return decision;
});

onHandoffFailed((failure, carry) => {
  const decision = Decision.respond(
    502,
    `${failure.target} stage ${failure.stage} errno ${failure.errno} attempt ${failure.attempt} ` +
      `retryable ${failure.retryable} carry ${text(carry)}`,
  );
  // What the last hook leaves is what the next one finds.
  decision.carry = carry;
  return decision;
});

onComplete((summary, carry) => {
  const target = summary.target;
  log.info("complete", [
    ["id", summary.requestId],
    ["outcome", summary.action],
    ["to", target === null ? "none" : target],
    ["status", summary.status.toString()],
    ["took", (summary.durationUs > 0).toString()],
    ["bytes", `${summary.bytesIn} ${summary.bytesOut}`],
    ["carry", text(carry)],
  ]);
});

onRequest((): Decision => {
  const path = request.path();
  if (path == "/request") return Decision.respond(200, seen());
  if (path == "/handoff") return handoff("chat");
  if (path == "/nobody") return handoff("nobody");
  if (path == "/pass") {
    const decision = Decision.pass();
    decision.remove("x-gone");
    decision.set("x-set", "sät");
    decision.append("x-more", "more");
    return decision;
  }
  if (path == "/abort") return Decision.abort();
  if (path == "/fails") {
    const nothing: string[] = [];
    return Decision.respond(200, nothing[i32(path.length)]);
  }
  if (path == "/proxy") {
    const decision = Decision.proxy("app");
    decision.pathAndQuery = "/inside?x";
    decision.request.set("x-user", "alice");
    decision.timeoutMs = 1000;
    decision.inspectResponse = true;
    decision.carry = bytes("carried");
    return decision;
  }
  if (path == "/store") return Decision.respond(200, stored());
  if (path == "/ticks") return Decision.respond(200, store.increment("ticks", 0).value.toString());
  if (path == "/targets") return Decision.respond(200, aimed());
  if (path == "/callout") return Decision.respond(200, called());
  if (path == "/rest") return Decision.respond(200, rest());
  return Decision.respond(404, path);
});

function handoff(target: string): Decision {
  const decision = Decision.handoff(target, bytes('{"wörld":"🦀"}'));
  decision.alternates = target == "chat" ? [] : ["nobody"];
  decision.relay = Relay.Never;
  decision.timeoutMs = 2000;
  decision.carry = bytes("carried 🦀");
  decision.annotate("why", "asked");
  if (request.queryParam("head") !== null) {
    decision.responseStatus = 200;
    decision.responseHeaders = [["x-by", "policy"]];
    decision.responseBody = bytes("first ");
  }
  return decision;
}

/** Every getter, a line each. */
function seen(): string {
  const lines: string[] = [
    `id ${request.id().length}`,
    `method ${request.method()}`,
    `request-target ${request.requestTarget()}`,
    `path ${request.path()}`,
    `query ${or(request.query())}`,
    `authority ${request.authority()}`,
    `scheme ${request.scheme()}`,
    `version ${request.version()}`,
    `route ${or(request.route())}`,
    `param ${or(request.param("x"))}`,
    `header ${or(request.header("x-a"))} ${or(request.header("x-none"))}`,
    `header-all ${request.headerAll("x-a").map<string>((value) => text(value)).join("|")}`,
    `header-many ${request.headerMany(["x-a", "x-none", "host"]).map<string>((value) => value === null ? "none" : text(value)).join("|")}`,
    `headers ${request.headers().map<string>((field) => field.name + ":" + field.value).join("|")}`,
    `headers-raw ${request.headersRaw().byteLength}`,
    `cookie ${or(request.cookie("c"))}`,
    `query-param ${or(request.queryParam("q"))}`,
    `peer ${peer(request.peer())}`,
    `client-ip ${request.clientIp()}`,
    `local-address ${request.localAddress()}`,
    `listener ${request.listener()}`,
    `tls ${request.tls() === null ? "none" : request.tls()!.version}`,
    `client-certificate ${request.clientCertificate() === null ? "none" : "some"}`,
    `passability ${request.passability()}`,
    `content-length ${request.contentLength()}`,
  ];
  const prefix = request.bodyPrefix(5);
  lines.push(prefix.ok ? `body-prefix ${text(prefix.value)}` : `body-prefix error ${prefix.error}`);
  return lines.join("\n") + "\n";
}

function or(text: string | null): string {
  return text === null ? "none" : text;
}

function peer(peer: Peer): string {
  if (peer.isUnix) return `${peer.uid} ${peer.gid} ${peer.pid}`;
  return `${peer.ip} ${peer.port}`;
}

function stored(): string {
  store.remove("k");
  store.remove("n");
  const nothing = store.get("k") === null;
  const first = store.set("k", bytes("värde"), 60_000);
  const entry = store.get("k")!;
  const wrong = store.compareAndSet("k", entry.version + 1, bytes("x"));
  const right = store.compareAndSet("k", entry.version, bytes("y"));
  const three = store.increment("n", 3);
  const one = store.increment("n", -2, 60_000);
  const notANumber = store.increment("k");
  const bucket = request.id();
  const took = [store.take(bucket, 0.001, 2), store.take(bucket, 0.001, 2), store.take(bucket, 0.001, 2)];
  return (
    `${nothing} ${first.ok} ${first.value == entry.version} ${text(entry.value)} ` +
    `${wrong.ok} ${wrong.error} ${right.ok} ${text(store.get("k")!.value)} ` +
    `${three.value} ${one.value} ${notANumber.ok} ${notANumber.error} ${took.join("+")}`
  );
}

function aimed(): string {
  const status = targets.status("chat");
  const members = targets.members("chat");
  const picks = [
    targets.pick("chat", targets.Strategy.RoundRobin),
    targets.pick("chat", targets.Strategy.Hash, "alice"),
  ];
  return (
    `${status === null ? "none" : `${status.name} ${status.health} ${status.inFlight} ${status.load} ${or(status.lastError)}`}\n` +
    members.map<string>((member) => `${member.name} ${member.health}`).join("|") + "\n" +
    `${or(picks[0])} ${or(picks[1])}\n` +
    `${targets.status("none-such") === null} ${or(targets.pick("none-such", targets.Strategy.RandomTwo))} ` +
    `${targets.members("none-such").length} ${targets.revoke("no-request", "test")}`
  );
}

function called(): string {
  const call = new callout.Call("auth", "POST", "/check?q=%C3%BC");
  call.header("x-asked", "jä");
  call.body = bytes("höre");
  call.timeoutMs = 2000;
  const result = callout.fetch(call);
  if (!result.ok) return `error ${result.error.kind} ${result.error.reason}`;
  const answer = result.value;
  return `${answer.status} ${or(answer.header("x-user"))} ${or(answer.header("x-none"))} ${text(answer.body)}`;
}

function rest(): string {
  metrics.count("asked");
  metrics.count("asked", 2, [["why", "test"]]);
  metrics.gauge("level", -1.5, [["why", "test"]]);
  metrics.observe("took", 0.25);
  const began = clock.monotonicUs();
  const drawn = random.bytes(16);
  const other = random.bytes(16);
  const secret = config.secret("api");
  return (
    `${clock.wallMs()} ${clock.monotonicUs() >= began} ${drawn.byteLength} ${random.bytes(0).byteLength} ` +
    `${text(drawn) == text(other)} ${Math.random() < 1} ` +
    `${or(secret)} ${or(config.secret("none"))} ${or(config.get("realm"))} ${or(config.get("list"))} ${or(config.get("none"))} ` +
    `${log.enabled(log.Level.Error)}`
  );
}
