//! `baton demo`: the main job in one command, with nothing to install.
//!
//! A gateway, a streaming daemon in a process of its own, a page, and a policy that can be edited while it runs. The files
//! are those of `examples/quickstart`.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::Context;

use crate::gateway::StartError;
use crate::handoff::{Acceptor, Dialect, Handoff, Options, close_on_exec_beyond_stderr};

const CONFIGURATION: &str = include_str!("../../examples/quickstart/baton.toml");
const PAGE: &str = include_str!("../../examples/quickstart/page.html");
const POLICY: &str = include_str!("../../examples/quickstart/policy.wat");

/// What the daemon tells, a word at a time.
const STORY: &str = "This text is written by the daemon, straight into your own socket. The gateway read the head of your \
    request, asked the policy, passed the socket on, and forgot you: it holds no memory, no descriptor and no thread for \
    this stream. Edit the policy file while it runs, ask again, and the next answer obeys.";

/// Shows a client handed to a streaming daemon by a policy that can be edited while it runs.
#[derive(Debug, clap::Args)]
pub struct Demo {
    /// Where to listen
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// Where to write the files, and leave them [default: a temporary folder, removed at the end]
    #[arg(long, value_name = "DIR")]
    folder: Option<PathBuf>,
}

/// The demo's daemon; `baton demo` begins it.
#[derive(Debug, clap::Args)]
pub struct Daemon {
    socket: PathBuf,
}

/// Runs the demo until it is told to end.
///
/// # Errors
/// What the system refuses.
pub fn run(args: Demo) -> anyhow::Result<ExitCode> {
    let folder = Folder::new(args.folder)?;
    let policy = folder.path.join("policy.wat");
    let file = folder.path.join("baton.toml");
    let socket = folder.path.join("daemon.sock");
    let quoted = |path: &Path| toml::Value::from(path.display().to_string()).to_string();
    let page = PAGE.replace("{{policy_path}}", &html(&policy.display().to_string()));
    let configuration = CONFIGURATION
        .replace("{{page}}", &page)
        .replace("{{listen}}", &args.listen.to_string())
        .replace("\"{{policy_path}}\"", &quoted(&policy))
        .replace("\"{{socket}}\"", &quoted(&socket));
    let write = |path: &Path, text: &str| std::fs::write(path, text).with_context(|| path.display().to_string());
    if !policy.exists() {
        write(&policy, POLICY)?;
    }
    write(&file, &configuration)?;

    let daemon = DaemonProcess::start(&socket)?;
    let (gateway_pid, daemon_pid) = (std::process::id(), daemon.child.id());
    super::run::serve(&file, |gateway| {
        let address = gateway.listening().next().map(|l| l.to_string()).unwrap_or_default();
        let url = address.split(' ').next().unwrap_or_default().to_owned();
        println!(
            "\n  The gateway is process {gateway_pid}, the streaming daemon is process {daemon_pid}.\n\n\
             \x20 try:   curl -N {url}/stream\n\
             \x20 or:    open {url}/ in a browser\n\
             \x20 edit:  {}\n\
             \x20        while it runs: what you save decides the next request\n\n\
             \x20 Ctrl-C ends it.\n",
            policy.display()
        );
    })
    .map_err(|error| match error.downcast() {
        // The configuration is ours, and gone by the time that its line could be looked up.
        Ok(StartError::Bind(fault)) => {
            anyhow::anyhow!("cannot listen on {}: {}; name another with --listen", args.listen, fault.message)
        }
        Ok(error) => error.into(),
        Err(error) => error,
    })
}

/// Text as it stands in a page.
fn html(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// The folder with the demo's files; a temporary one is removed when it is dropped.
struct Folder {
    path: PathBuf,
    temporary: bool,
}

impl Folder {
    fn new(named: Option<PathBuf>) -> anyhow::Result<Self> {
        use std::os::unix::fs::DirBuilderExt;
        let temporary = named.is_none();
        let path = named.unwrap_or_else(|| std::env::temp_dir().join(format!("baton-demo-{}", std::process::id())));
        // The parents of a named one too; a temporary one must be new, or somebody else made it.
        std::fs::DirBuilder::new()
            .recursive(!temporary)
            .mode(0o700)
            .create(&path)
            .with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self { path: std::path::absolute(path)?, temporary })
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if self.temporary {
            drop(std::fs::remove_dir_all(&self.path));
        }
    }
}

/// The daemon; ended and waited for when it is dropped.
struct DaemonProcess {
    child: Child,
}

impl DaemonProcess {
    fn start(socket: &Path) -> anyhow::Result<Self> {
        close_on_exec_beyond_stderr().context("cannot keep descriptors from the daemon")?;
        let mut child = Command::new(std::env::current_exe()?)
            .arg("demo-daemon")
            .arg(socket)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot begin the daemon")?;
        let mut ready = String::new();
        if let Some(output) = child.stdout.take() {
            BufReader::new(output).read_line(&mut ready)?;
        }
        let daemon = Self { child };
        anyhow::ensure!(ready.starts_with("ready"), "the daemon did not begin");
        Ok(daemon)
    }
}

impl Drop for DaemonProcess {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Runs the daemon: each client is told the story, in a thread of its own. Ends with its standard input, so that it never
/// outlives the demo.
///
/// # Errors
/// The socket cannot be listened on.
pub fn daemon(args: Daemon) -> anyhow::Result<ExitCode> {
    let mut acceptor = Acceptor::bind(&args.socket, Dialect::Seqpacket, Options::default())?;
    let stop = acceptor.stop_handle();
    std::thread::spawn(move || {
        drop(io::stdin().read_to_end(&mut Vec::new()));
        stop.stop();
    });
    println!("ready {}", args.socket.display());
    while let Some(handoff) = acceptor.accept()? {
        // The client may leave at any word; that ends its thread and nothing else.
        std::thread::spawn(move || drop(tell(handoff)));
    }
    Ok(ExitCode::SUCCESS)
}

/// Streams the story as server-sent events, at the pace that the policy's data asks for.
fn tell(handoff: Handoff) -> io::Result<()> {
    let data = serde_json::from_slice(handoff.data())
        .unwrap_or_else(|_| serde_json::Value::from(String::from_utf8_lossy(handoff.data())));
    // It arrives non-blocking; a thread of its own may wait.
    handoff.set_blocking(true)?;
    let mut client = handoff.into_stream();
    client.set_write_timeout(Some(Duration::from_secs(10)))?;
    let head =
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n";
    let first = serde_json::json!({"pid": std::process::id(), "data": data});
    write!(client, "{head}data: {first}\n\n")?;
    let per_second =
        data.get("words_per_second").and_then(serde_json::Value::as_f64).unwrap_or(10.0).clamp(0.1, 1000.0);
    let greeting = data.get("greeting").and_then(serde_json::Value::as_str).unwrap_or_default();
    for word in greeting.split_whitespace().chain(STORY.split_whitespace()) {
        let token = serde_json::json!({"token": format!("{word} ")});
        write!(client, "data: {token}\n\n")?;
        #[expect(
            clippy::disallowed_methods,
            reason = "the pace is what the demo shows; the thread is this client's own"
        )]
        std::thread::sleep(Duration::from_secs_f64(1.0 / per_second));
    }
    client.write_all(b"event: done\ndata: {}\n\n")?;
    // What the client sent and nobody read would turn the close into a reset: end first, then read it away.
    client.shutdown(std::net::Shutdown::Write)?;
    client.set_read_timeout(Some(Duration::from_secs(1)))?;
    io::copy(&mut client.take(1 << 20), &mut io::sink()).map(drop)
}
