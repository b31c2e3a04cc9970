//! Nobody in, and nobody stalled: daemons and peers that do what they like, paths that change under way, secrets, and logs
//! that nobody reads or nobody has room for.
#![cfg(feature = "gateway")]

mod support;

use std::fs;
use std::io::{IoSlice, Read as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, connect, sendmsg, socket, socketpair,
};
use serde_json::{Value, json};
use support::load::{self, Got, configuration, last, targets};
use support::{Client, Daemon, Gateway, Lines, baton, eventually, folder};

// === Daemons ===

/// What a daemon may do with a message, and what its clients then get. Two hundred each, a hundred at a time.
#[test]
fn whatever_a_daemon_does_each_client_gets_one_answer_or_an_end_that_is_explained() {
    const COUNT: usize = 200;
    /// Mode and options; what the client gets; the outcome.
    const MODES: [(&str, &[&str], Got, &str); 6] = [
        ("shut", &[], Got::Gateway(503), "refused"),
        ("babble", &[], Got::Gateway(503), "refused"),
        ("peek", &[], Got::Gateway(503), "refused"),
        ("close", &[], Got::Closed, "handed-off"),
        ("close", &["keep=1"], Got::Closed, "handed-off"),
        ("pass-on", &["to=other.sock"], Got::Daemon, "handed-off"),
    ];
    for (kind, data) in
        [("seqpacket", ""), ("seqpacket", "x-data: 1\r\n"), ("stream", ""), ("stream", "x-data: 11\r\n")]
    {
        let handoff = "ack_timeout = \"60s\"\nretries = 0";
        let gateway = Gateway::start(&configuration("", handoff, &targets(&[("chat", kind)])));
        let before = gateway.ledger();
        let _other = Daemon::start(&gateway.path("other.sock"), kind, "serve", &["name=other"]);
        let to = format!("to={}", gateway.path("other.sock").display());
        for (round, (mode, options, wanted, outcome)) in MODES.into_iter().enumerate() {
            let options: Vec<_> = options.iter().map(|o| if o.starts_with("to=") { &*to } else { o }).collect();
            let options = [&options[..], &["backlog=1000"]].concat();
            let daemon = Daemon::start(&gateway.path("chat.sock"), kind, mode, &options);
            // Who never reads is waited for until then, who does as long as it takes.
            let timeout = if outcome == "refused" { "x-timeout-ms: 100\r\n" } else { "" };
            let fields = format!("{data}{timeout}");
            let tally = load::clients(COUNT, COUNT / 2, |_| load::ask(gateway.address(), &last(&fields)));
            assert_eq!(tally.of(wanted), COUNT, "{mode} {kind} {data:?}: {tally:?}");
            let all = (round + 1) * COUNT;
            let lines = eventually("their lines", || Some(gateway.log()).filter(|lines| lines.len() == all));
            let wrong: Vec<_> = lines[round * COUNT..].iter().filter(|line| line["outcome"] != outcome).collect();
            assert!(wrong.is_empty(), "{mode} {kind} {data:?}: {wrong:#?}");
            drop(daemon);
        }
        // What is opened once is open by now: the access log, nothing else.
        eventually("no socket is left", || (gateway.ledger().get("socket") == before.get("socket")).then_some(()));
        assert!(!gateway.stderr.all().iter().any(|line| line.contains("conflict") || line.contains("panicked")));
    }
}

// === Paths ===

/// The socket itself, and the folder it is in, are swapped for links to what is outside, as fast as it can be done, while
/// eight clients at a time are handed over.
#[test]
fn swaps_at_full_speed_let_nobody_outside_see_one_client() {
    let folder = folder();
    let dir = folder.path().to_owned();
    for name in ["ok", "ok/real", "out"] {
        fs::create_dir(dir.join(name)).expect("made");
    }
    let toml = configuration("", "allowed_prefixes = [\"DIR/ok/\"]\nretries = 0", "");
    let gateway = Gateway::start_in(folder, &toml, |command| command);
    let ledger = gateway.ledger();
    let out = Daemon::start(&dir.join("out/d.sock"), "seqpacket", "serve", &["name=out"]);
    let inside = Daemon::start(&dir.join("ok/real/d.sock"), "seqpacket", "serve", &["name=in"]);
    fs::hard_link(dir.join("ok/real/d.sock"), dir.join("ok/link.sock")).expect("linked");
    fs::create_dir(dir.join("ok/folder")).expect("made");
    fs::hard_link(dir.join("ok/real/d.sock"), dir.join("ok/folder/d.sock")).expect("linked");

    let (ends, swaps) = (AtomicBool::new(false), Mutex::new([0_usize; 2]));
    let until = Instant::now() + Duration::from_secs(4);
    let mut tally = load::Tally::default();
    std::thread::scope(|scope| {
        let swap = |at: usize, mut once: Box<dyn FnMut() + Send>| {
            let (ends, swaps) = (&ends, &swaps);
            scope.spawn(move || {
                while !ends.load(Ordering::Relaxed) {
                    once();
                    swaps.lock().expect("no panic")[at] += 1;
                }
            });
        };
        let root = dir.join("ok");
        swap(
            0,
            Box::new(move || {
                std::os::unix::fs::symlink("../out/d.sock", root.join("new")).expect("linked");
                fs::rename(root.join("new"), root.join("link.sock")).expect("renamed");
                fs::hard_link(root.join("real/d.sock"), root.join("new")).expect("linked");
                fs::rename(root.join("new"), root.join("link.sock")).expect("renamed");
            }),
        );
        let root = dir.join("ok");
        swap(
            1,
            Box::new(move || {
                fs::rename(root.join("folder"), root.join("away")).expect("renamed");
                std::os::unix::fs::symlink("../out", root.join("folder")).expect("linked");
                fs::remove_file(root.join("folder")).expect("removed");
                fs::rename(root.join("away"), root.join("folder")).expect("renamed");
            }),
        );
        let stop = scope.spawn(|| {
            while Instant::now() < until {
                std::thread::park_timeout(until.saturating_duration_since(Instant::now()));
            }
            ends.store(true, Ordering::Relaxed);
        });
        tally = load::clients_until(&ends, 8, |n| {
            let path = dir.join(["ok/link.sock", "ok/folder/d.sock"][n % 2]);
            load::ask(gateway.address(), &last(&format!("x-target: {}\r\n", path.display())))
        });
        stop.join().expect("no panic");
    });
    println!("{:?} swaps: {tally:?}", swaps.lock().expect("no panic"));
    for got in [Got::Daemon, Got::Gateway(403)] {
        assert!(tally.of(got) > 0, "{tally:?}");
    }
    assert_eq!(tally.total(), tally.of(Got::Daemon) + tally.of(Got::Gateway(403)) + tally.of(Got::Gateway(503)));
    assert!(out.events("accepted").is_empty(), "somebody was led outside");
    let taken = tally.of(Got::Daemon);
    eventually("the one inside had them all", || (inside.events("done").len() == taken).then_some(()));
    eventually("no socket is left", || (gateway.ledger().get("socket") == ledger.get("socket")).then_some(()));
    let paths = |ledger: &support::Ledger| ledger.keys().filter(|kind| kind.contains("/ok")).count();
    assert_eq!(paths(&gateway.ledger()), 0, "{:?}", gateway.ledger());
}

// === Who hands over to us ===

/// A message of so many bytes with those descriptors, on a connection of its own; given back, still open.
fn hand_over(path: &Path, bytes: &[u8], descriptors: &[i32]) -> Option<OwnedFd> {
    let connection = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).expect("a socket");
    connect(connection.as_raw_fd(), &UnixAddr::new(path).expect("short")).expect("it listens");
    let rights = [ControlMessage::ScmRights(descriptors)];
    let rights = if descriptors.is_empty() { &[][..] } else { &rights[..] };
    let sent =
        sendmsg::<UnixAddr>(connection.as_raw_fd(), &[IoSlice::new(bytes)], rights, MsgFlags::MSG_NOSIGNAL, None);
    // A receiver that has seen enough may have closed.
    sent.ok().map(|_| connection)
}

/// Everything wrong that can be sent, two thousand times, with good clients in between.
#[test]
fn a_flood_of_wrong_messages_costs_good_clients_nothing_and_leaves_nothing_open() {
    const COUNT: usize = 2000;
    let folder = folder();
    let path = folder.path().join("d.sock");
    let program = "printf 'HTTP/1.1 200 OK\\r\\nConnection: close\\r\\n\\r\\nfrom program\\n'";
    let mut receiver = baton()
        .args(["receive", path.to_str().expect("text"), "--", "/bin/sh", "-c", program])
        .env("TMPDIR", folder.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    let said = Lines::read(receiver.stderr.take().expect("piped"));
    said.wait(0, &["receiving on"]);
    let open = || fs::read_dir(format!("/proc/{}/fd", receiver.id())).expect("it runs").count();
    // A client, as a gateway has it; what comes out at the far end.
    let good = || {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let mut far = std::net::TcpStream::connect(listener.local_addr().expect("bound")).expect("it listens");
        let (near, _) = listener.accept().expect("connected");
        let connection = hand_over(&path, b"\0", &[near.as_raw_fd()]);
        assert!(connection.is_some());
        drop((near, connection));
        far.set_read_timeout(Some(support::patience())).expect("a socket");
        let mut text = String::new();
        far.read_to_string(&mut text).expect("an answer");
        assert!(text.ends_with("from program\n"), "{text}");
    };
    good();
    let before = eventually("it is at rest", || {
        let count = open();
        std::thread::park_timeout(Duration::from_millis(50));
        (open() == count).then_some(count)
    });
    let null = fs::File::open("/dev/null").expect("there is one");
    let (pipe, _keep) = std::io::pipe().expect("a pipe");
    let datagram = std::net::UdpSocket::bind("127.0.0.1:0").expect("a port");
    let (packet, _far) =
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).expect("a pair");
    let (stream, _far) = std::os::unix::net::UnixStream::pair().expect("a pair");
    let many: Vec<i32> = std::iter::repeat_n(stream.as_raw_fd(), 253).collect();
    let large = vec![b'x'; (1 << 20) + 1];
    let wrong: [(&[u8], &[i32]); 9] = [
        (b"\0", &[]),
        (b"\0", &[null.as_raw_fd()]),
        (b"\0", &[pipe.as_raw_fd()]),
        (b"\0", &[datagram.as_raw_fd()]),
        (b"\0", &[packet.as_raw_fd()]),
        (b"\0", &many[..2]),
        (b"\0", &many),
        (&large[..100_000], &[stream.as_raw_fd(), null.as_raw_fd()]),
        (b"", &[]),
    ];
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (wrong, path) = (&wrong, &path);
            scope.spawn(move || {
                for n in 0..COUNT / 4 {
                    let (bytes, descriptors) = wrong[(n + thread) % wrong.len()];
                    drop(hand_over(path, bytes, descriptors));
                }
            });
        }
        (0..20).for_each(|_| good());
    });
    good();
    eventually("everything that came is closed", || (open() <= before).then_some(()));
    assert!(receiver.try_wait().expect("ours").is_none());
    let dropped = eventually("each is reported", || {
        let count = said.all().iter().filter(|line| line.contains("dropped a handoff")).count();
        (count == COUNT).then_some(count)
    });
    println!("{dropped} dropped");
    drop(receiver.kill());
    drop(receiver.wait());
}

// === Secrets ===

#[test]
fn no_log_at_any_level_has_a_secret_in_it() {
    const SECRETS: [&str; 5] = ["5ecret-data", "5ecret-token", "5ecret-cookie", "5ecret-body", "5ecret-extra"];
    for format in ["text", "json"] {
        for level in ["error", "warn", "info", "debug", "trace"] {
            let names = [("taken", "seqpacket"), ("gone", "auto"), ("deaf", "stream")];
            let tables = format!("[limits]\nhandoff_data_bytes_max = \"400B\"\n{}", targets(&names));
            let toml = configuration("", "ack_timeout = \"30ms\"\nretries = 0", &tables);
            let gateway = Gateway::start_in(folder(), &toml, |command| {
                command.args(["--log-format", format, "--log-level", level])
            });
            let _daemons = [
                Daemon::start(&gateway.path("taken.sock"), "seqpacket", "serve", &["read=11"]),
                Daemon::start(&gateway.path("deaf.sock"), "stream", "deaf", &[]),
            ];
            let long = "5ecret-data".repeat(40);
            let fields = "Authorization: Bearer 5ecret-token\r\nCookie: id=5ecret-cookie\r\nX-Extra: 5ecret-extra\r\n\
                          Content-Length: 11\r\n";
            let mut statuses = Vec::new();
            for more in [
                "x-target: taken\r\nx-data: 5ecret-data\r\n",
                "x-target: taken\r\nx-head: 1\r\n",
                "x-target: gone\r\nx-data: 5ecret-data\r\n",
                "x-target: deaf\r\nx-data: 5ecret-data\r\n",
                "x-target: nobody\r\nx-data: 5ecret-data\r\n",
                &format!("x-target: taken\r\nx-data: {long}\r\n"),
                "x-head: 1\r\nx-data: 5ecret-data\r\n",
                "x-data: 5ecret-data\r\nbad field: 5ecret-extra\r\n",
                "Transfer-Encoding: 5ecret-extra\r\n",
            ] {
                let answer =
                    gateway.ask(&format!("{}{fields}\r\n5ecret-body", last(more).trim_end().to_owned() + "\r\n"));
                statuses.push(answer[9..12].to_owned());
            }
            assert_eq!(statuses, ["200", "200", "503", "503", "403", "500", "503", "400", "400"], "{level}");
            let lines = eventually("their lines", || Some(gateway.log()).filter(|lines| lines.len() >= 9));
            gateway.signal(Signal::SIGTERM);
            let mut gateway = gateway;
            gateway.wait();
            let said = gateway.stderr.all();
            assert!(level != "trace" || said.len() > 4, "it says something: {said:?}");
            let all = said.into_iter().chain(lines.iter().map(Value::to_string));
            for line in all {
                assert!(!SECRETS.iter().any(|secret| line.contains(secret)), "{format} {level}: {line}");
            }
        }
    }
}

// === Logs ===

/// Runs the gateway where `DIR/log` is a disk of its own of that many bytes, seen by nobody else. `None` where the system
/// does not allow that.
fn on_a_small_disk(bytes: usize, toml: &str) -> Option<Gateway> {
    let allowed = Command::new("unshare").args(["-Urm", "true"]).stderr(Stdio::null()).status();
    if !allowed.is_ok_and(|status| status.success()) {
        eprintln!("NOT SHOWN: no user namespaces here");
        assert!(std::env::var_os("CI").is_none(), "CI has them");
        return None;
    }
    let folder = folder();
    let log = folder.path().join("log");
    fs::create_dir(&log).expect("made");
    Some(Gateway::start_in(folder, toml, |command| {
        let script = format!("mount -t tmpfs -o size={bytes} none \"$0\" && exec \"$@\"");
        let mut unshare = Command::new("unshare");
        unshare.args(["-Urm", "sh", "-c", &script]).arg(&log);
        unshare.arg(command.get_program()).args(command.get_args());
        unshare.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        *command = unshare;
        command
    }))
}

/// Asks for `/hello`, and says how long the slowest took.
fn hello(client: &mut Client, count: usize) -> Duration {
    let mut slowest = Duration::ZERO;
    for _ in 0..count {
        let began = Instant::now();
        client.get("/hello");
        assert_eq!(client.answer().body, "hello");
        slowest = slowest.max(began.elapsed());
    }
    slowest
}

/// The disk is full, somebody makes room, and the log goes on: every line in it is whole, and what is missing was counted.
#[test]
fn a_full_disk_stalls_nobody_and_when_there_is_room_again_every_line_is_whole() {
    let toml = configuration("access_log = \"DIR/log/access.log\"", "", "");
    let Some(gateway) = on_a_small_disk(256 << 10, &toml) else { return };
    let disk = Path::new("/proc")
        .join(gateway.child.id().to_string())
        .join("root")
        .join(gateway.path("log").strip_prefix("/").expect("absolute"));
    let read = || fs::read_to_string(disk.join("access.log")).expect("the gateway's own");
    let mut client = gateway.client();
    for round in 0..3 {
        let from = gateway.stderr.count();
        fs::write(disk.join("ballast"), vec![0; 100 << 10]).expect("room for it");
        let mut asked = 0_usize;
        let slowest = eventually("the disk is full", || {
            asked += 200;
            let slowest = hello(&mut client, 200);
            let is_full = gateway.stderr.all()[from..].iter().any(|line| line.contains("access log cannot be written"));
            is_full.then_some(slowest)
        });
        let slowest = slowest.max(hello(&mut client, 1000));
        asked += 1000;
        println!("{round}: full after {asked}, the slowest then took {slowest:?}");
        assert!(slowest < Duration::from_secs(2), "{slowest:?}");
        fs::remove_file(disk.join("ballast")).expect("the gateway's own");
        eventually("the log goes on", || {
            hello(&mut client, 1);
            asked += 1;
            gateway.stderr.all()[from..]
                .iter()
                .any(|line| line.contains("access log can be written again"))
                .then_some(())
        });
        let said = gateway.stderr.wait(from, &["access log can be written again", "lines="]);
        let lost: usize = said.split_once("lines=").and_then(|(_, count)| count.trim().parse().ok()).expect("a number");
        eventually("each line is there or was counted", || (read().lines().count() + lost == asked).then_some(()));
        for line in read().lines() {
            assert!(serde_json::from_str::<Value>(line).is_ok(), "not whole: {line}");
        }
        fs::File::options()
            .write(true)
            .open(disk.join("access.log"))
            .and_then(|file| file.set_len(0))
            .expect("emptied");
    }
}

/// Nobody reads standard output for a while: nobody waits for it, and afterwards every line was written or counted.
#[test]
fn a_log_that_nobody_reads_stalls_nobody_and_its_lines_are_written_or_counted() {
    let toml = configuration("access_log = \"-\"", "", "");
    let mut gateway = Gateway::start_in(folder(), &toml, |command| command.stdout(Stdio::piped()));
    let stdout = gateway.child.stdout.take().expect("piped");
    let mut client = gateway.client();
    let slowest = hello(&mut client, 30_000);
    println!("30,000 requests, the slowest took {slowest:?}");
    assert!(slowest < Duration::from_secs(2), "{slowest:?}");
    let lines = Lines::read(stdout);
    let lost = || -> usize {
        let counts = gateway.stderr.all().into_iter().filter_map(|line| {
            line.split_once("lines=").map(|(_, count)| count.trim().parse::<usize>().expect("a number"))
        });
        counts.sum()
    };
    eventually("every line was written or counted", || {
        // The count is said when a line is written.
        std::thread::park_timeout(Duration::from_millis(20));
        (lines.count() + lost() == 30_000).then_some(())
    });
    println!("{} written, {} counted", lines.count(), lost());
    assert!(lost() > 0, "more than fits was asked for");
    for line in lines.all() {
        assert_eq!(serde_json::from_str::<Value>(&line).expect("whole")["target"], json!("/hello"));
    }
}
