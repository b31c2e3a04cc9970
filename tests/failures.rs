//! Every way in which a handoff can fail, ten thousand times each, through the real gateway: each client gets one whole
//! answer of one party or an end that the log explains, and the gateway is left as it was: the same descriptors, and no
//! more memory.
#![cfg(feature = "gateway")]

mod support;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use support::load::{self, Got, Tally, configuration, last, targets};
use support::{Daemon, Gateway, Ledger, Lines, baton, eventually, example, folder};

/// So many of each.
const COUNT: usize = 10_000;
/// How many of them are under way at a time, where nothing else is said.
const AT_ONCE: usize = 64;
/// What the gateway may have grown by in `COUNT` requests: the allocator's doing, not anybody's list of clients. Ten
/// thousand forgotten ones would be more than that, at the least 4 KB each.
const GROWTH_BYTES_MAX: u64 = 8 << 20;

/// A gateway, what it had open and how large it was before what is counted.
struct Before<'a> {
    gateway: &'a Gateway,
    ledger: Ledger,
    bytes: u64,
    lines: usize,
}

impl<'a> Before<'a> {
    /// After the gateway has served so many at a time, so that what is allocated once is allocated by then.
    fn of(gateway: &'a Gateway, at_once: usize) -> Self {
        let hello = "GET /hello HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        let lines = gateway.log().len() + 2000;
        let warm = load::clients(2000, at_once, |_| load::ask(gateway.address(), hello));
        assert_eq!(warm.of(Got::Gateway(200)), 2000);
        eventually("all lines", || (gateway.log().len() == lines).then_some(()));
        eventually("all clients have left", || {
            let ledger = gateway.ledger();
            // Whoever is still there is a socket more than a moment later.
            std::thread::park_timeout(Duration::from_millis(50));
            (gateway.ledger() == ledger).then_some(())
        });
        Self { gateway, ledger: gateway.ledger(), bytes: gateway.resident_bytes(), lines }
    }

    /// Waits for `count` lines of the access log since.
    fn lines(&self, count: usize) -> Vec<Value> {
        let path = self.gateway.path("access.log");
        eventually(&format!("{count} lines of the access log"), || {
            let text = fs::read(&path).ok()?;
            (text.iter().filter(|byte| **byte == b'\n').count() >= self.lines + count).then_some(())
        });
        let mut lines = self.gateway.log();
        assert_eq!(lines.len(), self.lines + count, "a line for every request, and no other");
        lines.split_off(self.lines)
    }

    /// Nothing is left of what happened since.
    #[track_caller]
    fn is_restored(&self, what: &str) {
        self.gateway.ledger_is(&self.ledger);
        let bytes = self.gateway.resident_bytes();
        println!("{what}: {} to {} KB resident", self.bytes >> 10, bytes >> 10);
        assert!(bytes <= self.bytes + GROWTH_BYTES_MAX, "{what}: {} bytes became {bytes}", self.bytes);
        let said = self.gateway.stderr.all();
        for word in ["panicked", "conflict", "lines lost"] {
            assert!(!said.iter().any(|line| line.contains(word)), "{word}");
        }
    }
}

/// How many lines have which outcome and status.
fn outcomes(lines: &[Value]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for line in lines {
        let mut key = line["outcome"].as_str().expect("a word").to_owned();
        if let Some(status) = line["status"].as_u64() {
            write!(key, " {status}").expect("text");
        }
        *counts.entry(key).or_default() += 1;
    }
    counts
}

#[track_caller]
fn check_outcomes(lines: &[Value], expected: &[(&str, usize)]) {
    let expected: BTreeMap<String, usize> = expected.iter().map(|(key, count)| ((*key).to_owned(), *count)).collect();
    assert_eq!(outcomes(lines), expected);
}

#[track_caller]
fn check_tally(tally: &Tally, expected: &[(Got, usize)]) {
    let mut all = Tally::default();
    for (got, count) in expected {
        (0..*count).for_each(|_| all.add(*got));
    }
    assert_eq!(*tally, all);
}

#[test]
fn ten_thousand_are_taken() {
    let names = [("packet", "seqpacket"), ("kept", "seqpacket"), ("stream", "stream"), ("any", "auto")];
    let gateway = Gateway::start(&configuration("", "ack_timeout = \"60s\"", &targets(&names)));
    let start = |name: &str, kind, options: &[&str]| {
        Daemon::start(&gateway.path(&format!("{name}.sock")), kind, "serve", options)
    };
    // One keeps its end of the connection, so that only its reading tells.
    let daemons = [
        start("packet", "seqpacket", &[]),
        start("kept", "seqpacket", &["keep=1"]),
        start("stream", "stream", &[]),
        start("any", "stream", &[]),
    ];
    let before = Before::of(&gateway, AT_ONCE);
    let tally = load::clients(COUNT, AT_ONCE, |n| {
        let data = if n / 4 % 2 == 0 { "" } else { "x-data: some data\r\n" };
        load::ask(gateway.address(), &last(&format!("x-target: {}\r\n{data}", names[n % 4].0)))
    });
    check_tally(&tally, &[(Got::Daemon, COUNT)]);
    check_outcomes(&before.lines(COUNT), &[("handed-off", COUNT)]);
    before.is_restored("taken");
    for daemon in &daemons {
        daemon.wait("done", COUNT / 4);
        assert_eq!((daemon.events("got").len(), daemon.events("client-gone").len()), (COUNT / 4, 0));
    }
}

#[test]
fn ten_thousand_are_refused() {
    let names =
        [("gone", "auto"), ("stale", "seqpacket"), ("packet", "seqpacket"), ("byte", "stream"), ("stream", "stream")];
    let gateway = Gateway::start(&configuration("", "retries = 1\nack_timeout = \"60s\"", &targets(&names)));
    let socket = |name: &str| gateway.path(&format!("{name}.sock"));
    Daemon::start(&socket("stale"), "seqpacket", "absent", &[]).kill();
    let daemons = [("packet", "seqpacket"), ("byte", "stream"), ("stream", "stream")]
        .map(|(name, kind)| Daemon::start(&socket(name), kind, "drop", &[]));
    let before = Before::of(&gateway, AT_ONCE);
    let tally = load::clients(COUNT, AT_ONCE, |n| {
        let name = names[n % names.len()].0;
        let data = if name == "byte" { "" } else { "x-data: some data\r\n" };
        load::ask(gateway.address(), &last(&format!("x-target: {name}\r\n{data}")))
    });
    check_tally(&tally, &[(Got::Gateway(503), COUNT)]);
    let lines = before.lines(COUNT);
    check_outcomes(&lines, &[("refused 503", COUNT)]);
    assert!(lines.iter().all(|line| line["error"].is_string()), "each says why");
    // What was certainly not read was tried again.
    let twice = |line: &&Value| line["to"] != "stream" && line["attempts"] == 2;
    assert_eq!(lines.iter().filter(twice).count(), COUNT / 5 * 4);
    before.is_restored("refused");
    drop(daemons);
}

#[test]
fn ten_thousand_are_unread_at_the_deadline() {
    let names = [("packet", "seqpacket"), ("stream", "stream")];
    let handoff = "ack_timeout = \"50ms\"\nretries = 0";
    let gateway = Gateway::start(&configuration("", handoff, &targets(&names)));
    // It lets go when the client has been answered for long.
    let daemons = names.map(|(name, kind)| {
        Daemon::start(&gateway.path(&format!("{name}.sock")), kind, "late", &["after=500", "backlog=4096"])
    });
    let before = Before::of(&gateway, 4 * AT_ONCE);
    let tally = load::clients(COUNT, 4 * AT_ONCE, |n| {
        let data = if n / 2 % 2 == 0 { "" } else { "x-data: some data\r\n" };
        load::ask(gateway.address(), &last(&format!("x-target: {}\r\n{data}", names[n % 2].0)))
    });
    check_tally(&tally, &[(Got::Gateway(503), COUNT)]);
    let lines = before.lines(COUNT);
    check_outcomes(&lines, &[("refused 503", COUNT)]);
    let late = lines.iter().filter(|line| line["error"] == "unread at the deadline (ack_timeout)").count();
    // The rest are those for whom a busy daemon did not come to accept in time.
    assert!(late > COUNT * 9 / 10, "{late}");
    before.is_restored("unread at the deadline");
    drop(daemons);
}

/// The first fill the daemon's backlog and are sealed; who comes later finds no room. Woken up, it reads what is left of
/// everybody, and can harm nobody.
#[test]
fn ten_thousand_meet_a_stopped_daemon_and_its_full_backlog() {
    let handoff = "ack_timeout = \"50ms\"\nconnect_timeout = \"20ms\"\nretries = 0";
    let gateway = Gateway::start(&configuration("", handoff, &targets(&[("chat", "seqpacket")])));
    let daemon = Daemon::start(&gateway.path("chat.sock"), "seqpacket", "serve", &["backlog=3000"]);
    let before = Before::of(&gateway, 2 * AT_ONCE);
    daemon.stop();
    let tally = load::clients(COUNT, 2 * AT_ONCE, |n| {
        let data = if n % 2 == 0 { "" } else { "x-data: some data\r\n" };
        load::ask(gateway.address(), &last(data))
    });
    check_tally(&tally, &[(Got::Gateway(503), COUNT)]);
    let lines = before.lines(COUNT);
    check_outcomes(&lines, &[("refused 503", COUNT)]);
    let because = |error: &str| lines.iter().filter(|line| line["error"] == error).count();
    let sealed = because("unread at the deadline (ack_timeout)");
    let no_room = because("connect: no room until the deadline");
    println!("{sealed} sealed, {no_room} without room");
    // One more than its backlog, of which the system may allow less (net.core.somaxconn).
    assert!((1..=3001).contains(&sealed) && sealed + no_room == COUNT, "{sealed}, {no_room}");
    before.is_restored("stopped");
    daemon.signal(nix::sys::signal::Signal::SIGCONT);
    eventually("it has read every message", || (daemon.events("got").len() == sealed).then_some(()));
    daemon.wait("client-gone", sealed);
    assert!(daemon.events("done").is_empty(), "not one of them could be written to");
    assert_eq!(load::ask(gateway.address(), &last("")), Got::Daemon);
}

/// The limit of the configuration, and the kernel's.
#[test]
fn ten_thousand_have_more_data_than_can_be_sent() {
    let limits = "[limits]\nhandoff_data_bytes_max = \"4400000B\"\n";
    let names = [("chat", "seqpacket")];
    let gateway = Gateway::start(&configuration("", "", &format!("{limits}{}", targets(&names))));
    let daemon = Daemon::start(&gateway.path("chat.sock"), "seqpacket", "serve", &[]);
    // Few at a time, because each is large. The guest's memory grows with the first, and stays.
    let client = |n: usize| {
        let bytes = if n.is_multiple_of(2) { 4_300_000 } else { 4_400_001 };
        load::ask(gateway.address(), &last(&format!("x-bytes: {bytes}\r\n")))
    };
    load::clients(100, 8, client);
    eventually("their lines", || (gateway.log().len() == 100).then_some(()));
    let before = Before::of(&gateway, 8);
    let tally = load::clients(COUNT, 8, client);
    check_tally(&tally, &[(Got::Gateway(500), COUNT)]);
    let lines = before.lines(COUNT);
    check_outcomes(&lines, &[("refused 500", COUNT)]);
    for name in ["handoff_data_bytes_max", "net.core.wmem_max"] {
        let names_it = |line: &&Value| line["error"].as_str().is_some_and(|error| error.contains(name));
        assert_eq!(lines.iter().filter(names_it).count(), COUNT / 2, "{name}");
    }
    before.is_restored("too large");
    assert!(daemon.events("got").is_empty());
    assert_eq!(load::ask(gateway.address(), &last("")), Got::Daemon);
}

#[test]
fn ten_thousand_find_the_gateway_without_descriptors() {
    let gateway = Gateway::start(&configuration("", "retries = 0", &targets(&[("chat", "auto")])));
    let daemon = Daemon::start(&gateway.path("chat.sock"), "seqpacket", "serve", &[]);
    let before = Before::of(&gateway, AT_ONCE);
    let hello = "GET /hello HTTP/1.1\r\nHost: x\r\n\r\n";
    let mut clients: Vec<_> = (0..AT_ONCE).map(|_| gateway.client()).collect();
    for client in &mut clients {
        client.send(hello);
        assert_eq!(client.answer().body, "hello");
    }
    let none = lowest_free(&gateway);
    limit(&gateway, none);
    let each = COUNT.div_ceil(AT_ONCE);
    std::thread::scope(|scope| {
        for client in &mut clients {
            scope.spawn(move || {
                for _ in 0..each {
                    client.send("GET / HTTP/1.1\r\nHost: x\r\nx-data: 1\r\n\r\n");
                    let answer = client.answer();
                    assert_eq!((answer.status, answer.header("connection")), (503, None), "{answer:?}");
                }
            });
        }
    });
    let lines = before.lines(AT_ONCE + each * AT_ONCE);
    check_outcomes(&lines, &[("responded 200", AT_ONCE), ("refused 503", each * AT_ONCE)]);
    let because = |line: &&Value| line["error"].as_str().is_some_and(|error| error.contains("Too many open files"));
    assert_eq!(lines.iter().filter(because).count(), each * AT_ONCE);
    assert!(daemon.events("accepted").is_empty());

    // Room for a few: everybody comes to an answer, from whomever.
    drop(clients);
    gateway.ledger_is(&before.ledger);
    limit(&gateway, lowest_free(&gateway) + 12);
    let tally = load::clients(1000, AT_ONCE, |_| load::ask(gateway.address(), &last("")));
    println!("with room for a few: {tally:?}");
    assert_eq!(tally.of(Got::Daemon) + tally.of(Got::Gateway(503)), 1000, "{tally:?}");
    assert!(tally.of(Got::Daemon) > 0, "{tally:?}");
    limit(&gateway, 1000);
    assert_eq!(load::ask(gateway.address(), &last("")), Got::Daemon);
    before.is_restored("EMFILE");
}

/// Whether a datagram's receiver lives is asked without another descriptor: one that has read it owns the client, however
/// few the gateway has left, and is the only one that answers.
#[test]
fn a_datagram_that_is_read_while_the_gateway_has_no_descriptor_is_the_daemons() {
    let target = "[target.datagram]\nsockets = [\"DIR/datagram.sock\"]\ndialect = \"datagram\"\n\
                  [[route]]\npath = \"/datagram\"\ndefault = { handoff = \"datagram\" }\n";
    let gateway = Gateway::start(&configuration("", "ack_timeout = \"60s\"", target));
    let go = gateway.path("go");
    let answer =
        format!("until test -e {}; do sleep 0.01; done; printf 'HTTP/1.1 200 OK\\r\\n\\r\\nyes'", go.display());
    let mut daemon = baton()
        .arg("receive")
        .arg(gateway.path("datagram.sock"))
        .args(["--dialect", "datagram", "--", "sh", "-c", &answer])
        .stdin(Stdio::null())
        .spawn()
        .expect("it starts");
    let signal = |signal| kill(Pid::from_raw(daemon.id().cast_signed()), signal).expect("it runs");
    eventually("its socket", || gateway.path("datagram.sock").exists().then_some(()));
    signal(Signal::SIGSTOP);
    let before = gateway.descriptors();
    let mut client = gateway.client();
    client.send("GET /datagram HTTP/1.1\r\nHost: x\r\n\r\n");
    // The client, the socket that its message was sent on, and the file of the one that it was sent to.
    eventually("it is sent", || (gateway.descriptors() >= before + 3).then_some(()));
    limit(&gateway, lowest_free(&gateway));
    signal(Signal::SIGCONT);
    assert_eq!(gateway.log_line(1)["outcome"], "handed-off");
    fs::write(&go, "").expect("a folder");
    assert_eq!(client.rest(), "HTTP/1.1 200 OK\r\n\r\nyes");
    daemon.kill().expect("it runs");
    drop(daemon.wait());
}

/// The lowest number that no open descriptor has: the next one's.
fn lowest_free(gateway: &Gateway) -> usize {
    let folder = fs::read_dir(format!("/proc/{}/fd", gateway.child.id())).expect("it runs").flatten();
    let open: Vec<usize> = folder.map(|fd| fd.file_name().to_str().expect("text").parse().expect("a number")).collect();
    (0..).find(|number| !open.contains(number)).expect("numbers do not end")
}

fn limit(gateway: &Gateway, descriptors: usize) {
    let pid = gateway.child.id().to_string();
    let limit = format!("--nofile={descriptors}:");
    assert!(Command::new("prlimit").args(["--pid", &pid, &limit]).status().expect("util-linux").success());
}

/// A daemon of the library's that is out of descriptors leaves clients where they can be answered.
#[test]
fn ten_thousand_find_their_daemon_without_descriptors() {
    let gateway = Gateway::start(&configuration("", "ack_timeout = \"60s\"", &targets(&[("chat", "auto")])));
    let before = Before::of(&gateway, AT_ONCE);
    let mut daemon = Command::new("sh")
        .args(["-c", "ulimit -n 20; exec \"$0\" \"$@\""])
        .arg(example("daemon"))
        .arg(gateway.path("chat.sock"))
        .args(["--interval", "0"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    let (out, said) = (daemon.stdout.take().expect("piped"), daemon.stderr.take().expect("piped"));
    let (out, said) = (Lines::read(out), Lines::read(said));
    out.wait(0, &["ready"]);
    let tally = load::clients(COUNT, AT_ONCE, |_| {
        let mut client = gateway.client();
        client.send(last(""));
        let text = client.rest();
        match &*text {
            "" => Got::Closed,
            _ => {
                assert!(text.starts_with("HTTP/1.1 200 ") && text.ends_with("event: done\ndata: {}\n\n"), "{text}");
                Got::Daemon
            }
        }
    });
    let dropped = said.count();
    drop(daemon.kill());
    drop(daemon.wait());
    assert_eq!((tally.of(Got::Daemon), dropped), (COUNT, 0), "{tally:?}");
    check_outcomes(&before.lines(COUNT), &[("handed-off", COUNT)]);
    before.is_restored("EMFILE in the daemon");
}

/// Descriptors on their way count against their sender's limit (unix(7)): a daemon that reads nothing takes that room away
/// from the others, and gives it back when it ends.
#[test]
fn ten_thousand_find_too_many_descriptors_on_their_way() {
    let folder = folder();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("ours");
    let is_root = nix::unistd::geteuid().is_root();
    // Root is exempt from that limit.
    let user = if is_root { "user = \"nobody\"" } else { "" };
    let handoff = "ack_timeout = \"50ms\"\nsend_timeout = \"5ms\"\nretries = 0";
    let tables = targets(&[("deaf", "seqpacket"), ("packet", "seqpacket"), ("stream", "stream")]);
    let change = |command: &mut Command| {
        let mut shell = Command::new("sh");
        shell.args(["-c", "ulimit -n 250; exec \"$0\" \"$@\""]).arg(command.get_program()).args(command.get_args());
        shell.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        *command = shell;
    };
    let gateway = Gateway::start_in(folder, &configuration(user, handoff, &tables), |command| {
        change(command);
        command
    });
    let start = |name: &str, kind: &str, mode| {
        let socket = gateway.path(&format!("{name}.sock"));
        let daemon = Daemon::start(&socket, kind, mode, &["backlog=1000"]);
        fs::set_permissions(socket, fs::Permissions::from_mode(0o777)).expect("ours");
        daemon
    };
    let mut deaf = start("deaf", "seqpacket", "deaf");
    let _daemons = [start("packet", "seqpacket", "serve"), start("stream", "stream", "serve")];
    let before = Before::of(&gateway, AT_ONCE);
    // One more than the limit, because it is exceeded before it is enforced.
    let tally = load::clients(260, AT_ONCE, |_| load::ask(gateway.address(), &last("x-target: deaf\r\n")));
    check_tally(&tally, &[(Got::Gateway(503), 260)]);
    let tally = load::clients(COUNT, AT_ONCE, |n| {
        let target = ["packet", "stream"][n % 2];
        load::ask(gateway.address(), &last(&format!("x-target: {target}\r\nx-data: some data\r\n")))
    });
    check_tally(&tally, &[(Got::Gateway(503), COUNT)]);
    let lines = before.lines(260 + COUNT);
    check_outcomes(&lines, &[("refused 503", 260 + COUNT)]);
    let because = |line: &&Value| line["error"] == "send: no room until the deadline";
    let count = lines.iter().filter(because).count();
    assert!((COUNT..COUNT + 20).contains(&count), "{count}");
    deaf.kill();
    for name in ["packet", "stream"] {
        eventually("there is room again", || {
            let got = load::ask(gateway.address(), &last(&format!("x-target: {name}\r\n")));
            (got == Got::Daemon).then_some(())
        });
    }
    before.is_restored("ETOOMANYREFS");
}

#[test]
fn ten_thousand_clients_reset_in_the_middle_of_their_handoff() {
    let names = [("taken", "seqpacket"), ("late", "seqpacket"), ("stream", "stream"), ("gone", "auto")];
    let handoff = "ack_timeout = \"15ms\"\nretries = 1";
    let gateway = Gateway::start(&configuration("", handoff, &targets(&names)));
    let start = |name: &str, kind: &str, mode, options: &[&str]| {
        Daemon::start(&gateway.path(&format!("{name}.sock")), kind, mode, options)
    };
    let _daemons = [
        start("taken", "seqpacket", "serve", &[]),
        start("late", "seqpacket", "late", &["after=10", "backlog=1000"]),
        start("stream", "stream", "late", &["after=20", "backlog=1000"]),
    ];
    let before = Before::of(&gateway, AT_ONCE);
    let tally = load::clients(COUNT, AT_ONCE, |n| {
        let data = if n / 4 % 2 == 0 { "" } else { "x-data: some data\r\n" };
        let request = last(&format!("x-target: {}\r\n{data}", names[n % 4].0));
        // From at once to after the deadline.
        load::leave(gateway.address(), &request, Duration::from_millis((n / 8 % 20) as u64))
    });
    check_tally(&tally, &[(Got::Left, COUNT)]);
    before.is_restored("reset");
    // Who was reset before the gateway had looked at the head has no line.
    let lines = eventually("the lines", || {
        let count = gateway.log().len();
        std::thread::park_timeout(Duration::from_millis(100));
        (gateway.log().len() == count).then(|| gateway.log().split_off(before.lines))
    });
    let counts = outcomes(&lines);
    println!("reset in mid-handoff: {counts:?}");
    assert!(lines.len() <= COUNT && lines.len() > COUNT * 8 / 10, "{}", lines.len());
    for outcome in counts.keys() {
        let known = ["handed-off", "refused 503", "unanswered", "client-gone", "client-gone 503"];
        assert!(known.contains(&outcome.as_str()), "{counts:?}");
    }
    assert!(["handed-off", "refused 503"].iter().all(|outcome| counts.contains_key(*outcome)), "{counts:?}");
    assert_eq!(load::ask(gateway.address(), &last("x-target: taken\r\n")), Got::Daemon);
}

/// While they are with their daemon, the gateway has nothing of them.
#[test]
fn ten_thousand_streams_cost_the_gateway_nothing() {
    let count = usize::try_from(getrlimit(Resource::RLIMIT_NOFILE).expect("it is known").1)
        .map_or(COUNT, |hard| COUNT.min(hard - 500));
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("it is known");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("up to the hard limit");
    let names = [("chat", "seqpacket")];
    let handoff = "connect_timeout = \"60s\"\nack_timeout = \"60s\"";
    let gateway = Gateway::start(&configuration("", handoff, &targets(&names)));
    let wave = || {
        let daemon = Daemon::start(&gateway.path("chat.sock"), "seqpacket", "hoard", &["backlog=1000"]);
        let kept = std::sync::Mutex::new(Vec::new());
        let before = Before::of(&gateway, AT_ONCE);
        let tally = load::clients(count, AT_ONCE, |_| {
            let mut client = gateway.client();
            client.send(last(""));
            client.until("from hoard\n");
            kept.lock().expect("no panic").push(client);
            Got::Left
        });
        check_tally(&tally, &[(Got::Left, count)]);
        check_outcomes(&before.lines(count), &[("handed-off", count)]);
        before.is_restored("streams");
        let grown = gateway.resident_bytes().saturating_sub(before.bytes);
        drop((daemon, kept));
        grown
    };
    // The first wave may make the allocator ask for more, once.
    let (first, second) = (wave(), wave());
    println!("{count} streams: {first} bytes, then {second}");
    assert!(second <= 64 * count as u64, "{second} bytes for {count} streams");
}

/// Both dialects, without data and with some.
const KINDS: [(&str, &str); 4] =
    [("seqpacket", ""), ("seqpacket", "x-data: 11\r\n"), ("stream", ""), ("stream", "x-data: 11\r\n")];

/// Whatever the daemon was doing: who was not read is answered, who was read is its own.
#[test]
fn a_daemon_killed_at_any_moment_leaves_one_voice_or_an_end_that_is_explained() {
    let mut all = Tally::default();
    for (round, (kind, data)) in (0..5).flat_map(|round| KINDS.map(|case| (round, case))) {
        let gateway = Gateway::start(&configuration("", "ack_timeout = \"60s\"", &targets(&[("chat", kind)])));
        let mut daemon = Daemon::start(&gateway.path("chat.sock"), kind, "serve", &["backlog=1000"]);
        let before = gateway.sockets();
        let ends = AtomicBool::new(false);
        let tally = std::thread::scope(|scope| {
            let clients =
                scope.spawn(|| load::clients_until(&ends, AT_ONCE, |_| load::ask(gateway.address(), &last(data))));
            daemon.wait("got", 100 + 37 * round);
            daemon.kill();
            eventually("somebody meets nobody", || {
                gateway.log().iter().any(|line| line["outcome"] == "refused").then_some(())
            });
            ends.store(true, Ordering::Relaxed);
            clients.join().expect("one answer each, or none")
        });
        let lines = eventually("all lines", || Some(gateway.log()).filter(|lines| lines.len() == tally.total()));
        let counts = outcomes(&lines);
        let of = |outcome: &str| counts.get(outcome).copied().unwrap_or(0);
        assert_eq!(tally.of(Got::Gateway(503)), of("refused 503"), "{tally:?}, {counts:?}");
        let daemons = tally.of(Got::Daemon) + tally.of(Got::Closed) + tally.of(Got::Reset);
        assert_eq!(daemons, of("handed-off") + of("unanswered"), "{tally:?}, {counts:?}");
        assert!(kind == "stream" || of("unanswered") == 0, "{counts:?}");
        eventually("no socket is left", || (gateway.sockets() <= before).then_some(()));
        all += tally;
    }
    println!("twenty daemons killed: {all:?}");
}

/// Whatever the gateway was doing: nobody gets half an answer or two, and who is with the daemon stays there.
#[test]
fn a_gateway_killed_at_any_moment_leaves_one_voice_or_an_end() {
    let mut all = Tally::default();
    for (round, (kind, data)) in (0..5).flat_map(|round| KINDS.map(|case| (round, case))) {
        let mut gateway = Gateway::start(&configuration("", "ack_timeout = \"60s\"", &targets(&[("chat", kind)])));
        let daemon = Daemon::start(&gateway.path("chat.sock"), kind, "serve", &["backlog=1000"]);
        let (address, ends) = (gateway.address(), AtomicBool::new(false));
        let client = |n: usize| {
            let target = if n.is_multiple_of(8) { "x-target: nobody\r\n" } else { "" };
            load::ask_whoever_listens(address, &last(&format!("{data}{target}")))
        };
        let tally = std::thread::scope(|scope| {
            let clients = scope.spawn(|| load::clients_until(&ends, AT_ONCE, client));
            daemon.wait("got", 100 + 37 * round);
            gateway.signal(nix::sys::signal::Signal::SIGKILL);
            gateway.wait();
            ends.store(true, Ordering::Relaxed);
            clients.join().expect("one answer each, or none")
        });
        let taken = tally.of(Got::Daemon);
        eventually("who was read was served", || (daemon.events("done").len() >= taken).then_some(()));
        all += tally;
    }
    println!("twenty gateways killed: {all:?}");
}
