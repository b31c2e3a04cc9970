//! What one may write: the configuration file, key by key (TOML).
//!
//! Every field is what the user typed, or nothing. Defaults, names and paths are resolved in [`super::Config`]. Keys that
//! are known but not served by this version are read, so that they are refused by name and not as a typing error.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use super::units::{Size, Time};

/// The whole file.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ConfigFile {
    /// The process as a whole.
    pub gateway: GatewayFile,
    /// What bounds clients.
    pub limits: LimitsFile,
    /// Addresses that accept clients.
    pub listener: Vec<ListenerFile>,
    /// How clients are handed over, unless a target says otherwise.
    pub handoff: HandoffFile,
    /// Daemons that take clients.
    pub target: BTreeMap<String, TargetFile>,
    /// Servers that answer through us.
    pub upstream: BTreeMap<String, UpstreamFile>,
    /// Status and the file that replaces the built-in page, relative to this file.
    pub error_pages: BTreeMap<String, String>,
    /// WebAssembly that decides.
    pub policy: BTreeMap<String, PolicyFile>,
    /// Which policies and which default a request gets.
    pub route: Vec<RouteFile>,
}

/// `[gateway]`
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct GatewayFile {
    /// Threads that serve clients; 0: one per core. Default 0. A reload does not change it.
    pub workers: Option<usize>,
    /// How long requests under way may take after TERM. Default 30s.
    pub drain_timeout: Option<Time>,
    /// Whom to become after binding, when started as root. A reload does not change it.
    pub user: Option<String>,
    /// A file, or `-` for standard output; absent: none.
    pub access_log: Option<String>,
    /// `json` or `combined`. Default json.
    pub access_log_format: Option<LogFormat>,
    /// Addresses and networks whose `Forwarded` and `X-Forwarded-*` are believed and added to, and `unix` for whoever comes
    /// over a Unix socket. Default: nobody's.
    pub trusted_proxies: Vec<String>,
    /// Where the operator is answered: `127.0.0.1:9901`, or `unix:/run/baton/admin.sock`, which only root and our own
    /// user may use; absent: nowhere, and nothing is counted.
    pub admin: Option<String>,
}

/// How a line of the access log is written.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Apache's combined format.
    Combined,
    /// One JSON object a line.
    Json,
}

/// `[limits]`
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsFile {
    /// Clients that the gateway owns at a time. Default 10000.
    pub connections_max: Option<usize>,
    /// Request line and fields together. Default 32KiB.
    pub head_bytes_max: Option<Size>,
    /// Fields of a request. Default 100.
    pub headers_max: Option<usize>,
    /// From a head's first byte to its last. Default 10s.
    pub head_timeout: Option<Time>,
    /// From an answer, or the connection's beginning, to the next head's first byte. Default 60s.
    pub keep_alive_timeout: Option<Time>,
    /// Of a request's body that the gateway reads. Default 16MiB.
    pub body_bytes_max: Option<Size>,
    /// Without a byte of a body read, or of an answer written. Default 30s.
    pub body_timeout: Option<Time>,
    /// A second, of a body that the gateway reads, after its first 10 s. Default 500B.
    pub body_rate_min: Option<Size>,
    /// Data that travels with a client. Default 1MiB.
    pub handoff_data_bytes_max: Option<Size>,
}

/// `[[listener]]`
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ListenerFile {
    /// Its name in the log and to policies. Default: the address.
    pub name: Option<String>,
    /// `127.0.0.1:8080`, `[::]:80` or `unix:/run/baton/http.sock`.
    pub address: Option<String>,
    /// Policies that are asked, in this order, whether a client that has connected is served.
    pub policies: Vec<String>,
}

/// `[handoff]`
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct HandoffFile {
    /// Directories below which policies may name sockets by path. Default `/run/`.
    pub allowed_prefixes: Option<Vec<String>>,
    /// Until the daemon's socket is connected. Default 100ms.
    pub connect_timeout: Option<Time>,
    /// Until the message is sent. Default 200ms.
    pub send_timeout: Option<Time>,
    /// Until the daemon has read the message. Default 1s.
    pub ack_timeout: Option<Time>,
    /// Rounds over a target's sockets after the first. Default 2.
    pub retries: Option<u32>,
}

/// `[target.NAME]`
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TargetFile {
    /// Paths of Unix sockets; absolute, or relative to this file.
    pub sockets: Vec<String>,
    /// `baton` (the native one), `seqpacket`, `stream`, `fdpass`, `datagram` or `auto`, which is `seqpacket` or `stream`. Default
    /// auto.
    pub dialect: Option<String>,
    /// `least-in-flight`, `least-load`, `round-robin`, `random-two` or `hash`. Default least-in-flight.
    pub balance: Option<String>,
    /// Whether clients arrive blocking. Default false.
    pub blocking: Option<bool>,
    /// With `baton`: how long a client waits for a daemon that can bear it. Default 1 s.
    pub queue_timeout: Option<Time>,
    /// With `baton`: clients that wait, in all workers. Default 1000.
    pub queue_max: Option<usize>,
    /// Users (names or ids) whose daemons take clients; absent: any. Not with `datagram`, where the kernel does not tell.
    pub allow_uids: Option<Vec<User>>,
}

/// A user by name or by id.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(untagged)]
pub enum User {
    /// A numeric id.
    Id(u32),
    /// A name of the system's user database.
    Name(String),
}

/// `[upstream.NAME]`
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct UpstreamFile {
    /// `http://HOST:PORT`, `https://HOST:PORT`, `unix:/PATH`, `unix:/PATH:/INSIDE`, `+/PATH:/INSIDE`, `https+unix:/PATH`,
    /// `fcgi://HOST:PORT` or `fcgi+unix:/PATH`; or a list of them, asked in turn, those that are not there passed over.
    pub address: Option<AddressFile>,
    /// Until it is connected. Default 1s.
    pub connect_timeout: Option<Time>,
    /// Until the answer's head. Default 60s.
    pub head_timeout: Option<Time>,
    /// Without a byte of the answer's body. Default 60s.
    pub body_timeout: Option<Time>,
    /// Idle connections kept to each server, per worker. Default 32; with `fcgi` 0, and then in all workers together.
    pub keep_alive: Option<usize>,
    /// How long an idle connection is kept. Default 30s.
    pub keep_alive_timeout: Option<Time>,
    /// Of a WebSocket, without a byte in either direction. Default 1h.
    pub tunnel_timeout: Option<Time>,
    /// Of an answer. Default 2MiB.
    pub head_bytes_max: Option<Size>,
    /// Fields of an answer. Default 2000.
    pub headers_max: Option<usize>,
    /// Interim answers (1xx) before the answer. Default 100.
    pub interim_max: Option<usize>,
    /// What its servers are asked for as Host. Default: what the client asked for.
    pub host: Option<String>,
    /// Whether `X-Socket-Handoff` and `X-Handoff-Data` in its answers are acted on. Default false: they are removed only.
    pub handoff_headers: Option<bool>,
    /// Fields of its answer that are put into the data of such a handoff, where that is a JSON object, as
    /// `response_headers`.
    pub handoff_response_headers: Option<Vec<String>>,
    /// The address from which its servers are connected to over TCP. Default: the system's choice.
    pub source: Option<String>,
    /// With `https`: certificates of whom to trust (PEM). Default: the system's.
    pub ca: Option<String>,
    /// With `https`: the name that the server's certificate is for. Default: the address's host.
    pub server_name: Option<String>,
    /// With `fcgi`: the folder of the scripts, as the program sees it.
    pub root: Option<String>,
    /// With `fcgi`: the script of a path that ends in `/`. Default index.php.
    pub index: Option<String>,
    /// With `fcgi`: `responder`, `authorizer` or `filter`. Default responder.
    pub role: Option<String>,
    /// With `fcgi`: how the segment of a path ends that is a script; the rest is PATH_INFO. Default .php.
    pub split: Option<String>,
    /// With `fcgi`: the front controller, the script of every path, as `/index.php`. Default: none.
    pub script: Option<String>,
}

/// One address, or several.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum AddressFile {
    /// One.
    One(String),
    /// Several.
    Several(Vec<String>),
}

/// `secrets = { api = { env = "API_KEY" }, db = { file = "/run/secrets/db" } }`
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SecretFile {
    /// A variable of the environment.
    pub env: Option<String>,
    /// A file of up to 64 KiB, relative to this one; a line break at its end is left out.
    pub file: Option<String>,
}

/// `[policy.NAME]`
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PolicyFile {
    /// A component, a core module, or text; relative to this file.
    pub module: Option<String>,
    /// Handed to `configure`.
    #[schemars(with = "Option<serde_json::Value>")]
    pub config: Option<toml::Value>,
    /// `deny` or `pass`. Default deny.
    pub on_error: Option<OnErrorFile>,
    /// Guest time of one hook. Default 5ms.
    pub deadline: Option<Time>,
    /// Start, configure and self-test together. Default 5s.
    pub configure_deadline: Option<Time>,
    /// Of one instance. Default 32MiB.
    pub memory_max: Option<Size>,
    /// Requests that one instance serves; 0: a fresh one for each. Default 1000.
    pub reuse_max: Option<u32>,
    /// What its callouts may reach. Default: nothing.
    pub upstreams: Vec<String>,
    /// Targets that it may name; absent: all that are configured.
    pub targets: Option<Vec<String>>,
    /// Texts that `config.secret` gives by name, each read when the configuration is.
    pub secrets: BTreeMap<String, SecretFile>,
    /// Strings and lists of one decision together. Default 1MiB.
    pub decision_bytes_max: Option<Size>,
    /// Lines that it may log. Default 100.
    pub log_lines_per_second: Option<u32>,
    /// Series of its metrics; more are dropped. Default 1000.
    pub metric_series_max: Option<usize>,
    /// Of its store. Default 16MiB.
    pub store_bytes_max: Option<Size>,
    /// Callouts of one hook. Default 8.
    pub callouts_max: Option<u32>,
    /// Fields and body of one answer to a callout. Default 1MiB.
    pub callout_bytes_max: Option<Size>,
    /// When it fails too often, it is not asked for a while.
    pub breaker: Option<BreakerFile>,
}

/// `breaker = { failures = 10, within = "10s", pause = "5s" }`
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct BreakerFile {
    /// So many failures open it; 0: never. Default 10.
    pub failures: Option<u32>,
    /// Within this time. Default 10s.
    pub within: Option<Time>,
    /// How long it is not asked then. Default 5s.
    pub pause: Option<Time>,
}

/// What a policy's failure means.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum OnErrorFile {
    /// 503.
    Deny,
    /// As if it had no opinion.
    Pass,
}

/// `[[route]]`
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RouteFile {
    /// `example.org` or `*.example.org`; absent: any.
    pub host: Option<String>,
    /// A prefix at a segment's boundary, `/v1/`, or exact, `=/exact`.
    pub path: Option<String>,
    /// Absent: any. GET includes HEAD.
    pub methods: Option<Vec<String>>,
    /// Whether only other routes' answers lead here (`X-Accel-Redirect`). Default false.
    pub internal: Option<bool>,
    /// Policies, asked in this order until one decides.
    pub policies: Vec<String>,
    /// A FastCGI authorizer (an upstream's name) that is asked before the policies, and without whose word nobody gets on.
    pub authorizer: Option<String>,
    /// A FastCGI filter (an upstream's name) over what the default yields: a file, or a proxied answer of 200.
    pub filter: Option<String>,
    /// Whether a WebSocket may begin here; if not, an Upgrade is an ordinary request. Default true.
    pub upgrade: Option<bool>,
    /// What happens when every policy passes; absent: 404.
    pub default: Option<DefaultFile>,
}

/// What happens when every policy passes: one of these.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DefaultFile {
    /// A target's name.
    pub handoff: Option<String>,
    /// With `handoff`: the response's head, written here; the daemon writes the body. Default in the dialect fdpass: 200
    /// without fields; in the others: none, the daemon writes the head.
    pub response_head: Option<ResponseHeadFile>,
    /// An upstream's name.
    pub proxy: Option<String>,
    /// An answer made here.
    pub respond: Option<RespondFile>,
    /// A folder whose files are served, below the route's path; or one file. With `proxy` beside it, GET and HEAD get the file
    /// where there is one, and the upstream answers everything else; scripts of an `fcgi` upstream are never read as files.
    pub file: Option<String>,
}

/// `response_head = { status = 200, headers = { … } }`
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ResponseHeadFile {
    /// 200 to 599, but none that has no body (204, 205, 304). Default 200.
    pub status: Option<u16>,
    /// Fields by name.
    pub headers: BTreeMap<String, String>,
    /// First bytes of the body. Default: empty.
    pub body: Option<String>,
}

/// `respond = { status = 404, body = "…", headers = { … } }`
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RespondFile {
    /// 200 to 599. Default 200.
    pub status: Option<u16>,
    /// Default: empty.
    pub body: Option<String>,
    /// Fields by name.
    pub headers: BTreeMap<String, String>,
}
