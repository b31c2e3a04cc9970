//! Streams that daemons hold: what each costs the gateway and the daemon's library, and what becomes of them when the
//! gateway is killed. As many as there may be descriptors, of which a stream takes one of this program's and one of the
//! daemon's, and none of the gateway's.
#![cfg(feature = "gateway")]

mod support;

use std::io::Write as _;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use support::load::{self, Got};
use support::{Client, Daemon, Gateway, Lines, eventually, example};

/// How many of them are being opened at a time.
const AT_ONCE: usize = 64;
/// Descriptors of a program beside those of streams.
const SPARE: usize = 500;
/// What may be measured of a stream; what it should be, the figures that are printed show: allocators ask for memory in
/// larger pieces than a stream's.
const GATEWAY_BYTES_MAX: f64 = 1024.0;
const DAEMON_BYTES_MAX: f64 = 3584.0;

/// As a browser sends it.
const REQUEST: &str = "GET /events?topic=news HTTP/1.1\r\nHost: www.example.org\r\n\
    User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/141.0.0.0 Safari/537.36\r\n\
    Accept: text/event-stream\r\nReferer: https://www.example.org/page\r\n\r\n";

/// Memory of a process that no file is behind (proc_pid_status(5)).
fn memory_bytes(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).expect("Linux says so");
    line.split_whitespace().nth(1).and_then(|kb| kb.parse::<u64>().ok()).expect("a number") * 1024
}

fn descriptors(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).expect("it runs").count()
}

/// This program's limit, raised to what is allowed; children have the same.
fn limit() -> usize {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("it is known");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("up to the hard limit");
    usize::try_from(hard).expect("no more than memory").min(60_000)
}

/// Opens streams until there are so many.
fn open(gateway: &Gateway, streams: &Mutex<Vec<Client>>, count: usize, greeting: &str) {
    let more = count - streams.lock().expect("no panic").len();
    load::clients(more, AT_ONCE, |_| {
        let mut client = gateway.client();
        client.send(REQUEST);
        client.until(greeting);
        streams.lock().expect("no panic").push(client);
        Got::Left
    });
}

/// One process, when so many were held.
struct Measured {
    held: usize,
    bytes: u64,
}

/// Bytes for each stream, from one count to the next.
fn slopes(measured: &[Measured]) -> Vec<f64> {
    let slope =
        |pair: &[Measured]| (pair[1].bytes as f64 - pair[0].bytes as f64) / (pair[1].held - pair[0].held) as f64;
    measured.windows(2).map(slope).collect()
}

/// Of all of them together.
fn overall(measured: &[Measured]) -> f64 {
    let (first, last) = (&measured[0], &measured[measured.len() - 1]);
    (last.bytes as f64 - first.bytes as f64) / (last.held - first.held) as f64
}

/// Holds more and more streams, and measures both; the gateway does nothing, and has nothing open, for any of them.
#[track_caller]
fn hold(gateway: &Gateway, daemon: u32, streams: &Mutex<Vec<Client>>, counts: &[usize], greeting: &str) -> [f64; 2] {
    let pids = [gateway.child.id(), daemon];
    let measure = |held| pids.map(|pid| Measured { held, bytes: memory_bytes(pid) });
    // What is there once is there by then, however many follow.
    let hello = "GET /hello HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    load::clients(2000, AT_ONCE, |_| load::ask(gateway.address(), hello));
    let begun = gateway.ledger();
    open(gateway, streams, AT_ONCE, greeting);
    let mut measured = vec![measure(AT_ONCE)];
    for &count in counts {
        open(gateway, streams, count, greeting);
        assert_eq!(streams.lock().expect("no panic").len(), count);
        eventually("the gateway has let go of them", || {
            let sockets = |ledger: &support::Ledger| ledger.get("socket").copied().unwrap_or(0);
            // Its channels to the daemon are there since.
            (sockets(&gateway.ledger()) <= sockets(&begun) + 2).then_some(())
        });
        assert!(descriptors(daemon) >= count, "the daemon has them");
        measured.push(measure(count));
    }
    let ticks = gateway.cpu_ticks();
    std::thread::park_timeout(Duration::from_secs(2));
    let ticks = gateway.cpu_ticks() - ticks;
    let [of_gateway, of_daemon]: [Vec<Measured>; 2] = {
        let (mut one, mut other) = (Vec::new(), Vec::new());
        for [gateway, daemon] in measured {
            one.push(gateway);
            other.push(daemon);
        }
        [one, other]
    };
    let of =
        |all: &[Measured]| (slopes(all).iter().map(|slope| slope.round()).collect::<Vec<_>>(), overall(all).round());
    println!(
        "{counts:?} streams: gateway 0 descriptors, {ticks} ticks in 2 s, {:?} bytes each; daemon {:?}",
        of(&of_gateway),
        of(&of_daemon)
    );
    assert!(ticks <= 5, "{ticks} ticks of 10 ms in 2 s");
    [overall(&of_gateway), overall(&of_daemon)]
}

/// `examples/broadcast`.
struct Broadcast {
    child: Child,
    said: Lines,
}

impl Broadcast {
    fn start(gateway: &Gateway) -> Self {
        let mut child = Command::new(example("broadcast"))
            .arg(gateway.path("d.sock"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("it starts");
        let said = Lines::read(child.stdout.take().expect("piped"));
        said.wait(0, &["ready"]);
        Self { child, said }
    }

    fn say(&mut self, line: &str) {
        writeln!(self.child.stdin.as_mut().expect("piped"), "{line}").expect("it reads");
    }
}

impl Drop for Broadcast {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn toml(dialect: &str) -> String {
    format!(
        "[gateway]\nLISTEN\n[handoff]\nconnect_timeout = \"60s\"\nack_timeout = \"60s\"\n\
         [target.chat]\nsockets = [\"DIR/d.sock\"]\ndialect = \"{dialect}\"\n\
         [[route]]\npath = \"/hello\"\ndefault = {{ respond = {{ body = \"hello\" }} }}\n\
         [[route]]\npath = \"/\"\ndefault = {{ handoff = \"chat\" }}\n"
    )
}

fn every_client_hears(streams: &Mutex<Vec<Client>>, line: &str) {
    let event = format!("data: {line}\n\n");
    for client in &mut *streams.lock().expect("no panic") {
        client.until(&event);
    }
}

/// Each takes all the descriptors that there may be.
static TURN: Mutex<()> = Mutex::new(());

#[test]
fn streams_cost_a_line_of_the_log_each_and_outlive_the_gateway() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let most = limit() - SPARE;
    let gateway = Gateway::start(&toml("baton"));
    let mut daemon = Broadcast::start(&gateway);
    let streams = Mutex::new(Vec::new());
    let counts: Vec<usize> = [5000, 10_000, most].into_iter().filter(|count| *count <= most).collect();
    let [of_gateway, of_daemon] = hold(&gateway, daemon.child.id(), &streams, &counts, ": welcome\n\n");
    assert!(of_gateway <= GATEWAY_BYTES_MAX, "{of_gateway} bytes of the gateway's for each stream");
    assert!(of_daemon <= DAEMON_BYTES_MAX, "{of_daemon} bytes of the daemon's for each stream");
    let begun = Instant::now();
    daemon.say("before");
    every_client_hears(&streams, "before");
    println!("everybody heard it within {:?}", begun.elapsed());
    assert_eq!(gateway.log().len(), 2000, "no line of a stream before its end");

    gateway.signal(Signal::SIGKILL);
    let count = streams.lock().expect("no panic").len();
    eventually("the gateway has gone", || (descriptors_of_dead(gateway.child.id()) == 0).then_some(()));
    daemon.say("after");
    every_client_hears(&streams, "after");
    // The next one finds the daemon where it was.
    let next = support::folder();
    let socket = gateway.path("d.sock").display().to_string();
    let next = Gateway::start_in(next, &toml("baton").replace("DIR/d.sock", &socket), |command| command);
    let mut client = next.client();
    client.get("/events");
    client.until(": welcome\n\n");
    daemon.say("then");
    client.until("data: then\n\n");
    every_client_hears(&streams, "then");
    daemon.said.wait(0, &[&format!("told {}", count + 1)]);
}

/// What a process that was killed and not waited for still has open: nothing, once it is gone.
fn descriptors_of_dead(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

#[test]
fn streams_of_daemons_that_say_nothing_cost_nothing() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let most = limit() - SPARE;
    let gateway = Gateway::start(&toml("seqpacket"));
    let daemon = Daemon::start(&gateway.path("d.sock"), "seqpacket", "hoard", &["backlog=1000"]);
    let streams = Mutex::new(Vec::new());
    let counts: Vec<usize> = [5000, 10_000, most].into_iter().filter(|count| *count <= most).collect();
    let [of_gateway, _] = hold(&gateway, daemon.child.id(), &streams, &counts, "from hoard\n");
    assert!(of_gateway <= GATEWAY_BYTES_MAX / 4.0, "{of_gateway} bytes of the gateway's for each stream");
}
