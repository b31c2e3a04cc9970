//! `baton receive` behind the real gateway: any program as a daemon.

mod inherited;
mod native;
mod other_dialects;
mod prefork;
#[allow(dead_code, reason = "what only the library's tests ask of it")]
#[path = "../acceptor/scripted.rs"]
mod scripted;
mod stderr;
#[path = "../support/mod.rs"]
mod support;
mod times;
mod usage;

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::{Client, Gateway, Lines, baton, eventually, patience};

const KINDS: [&str; 2] = ["seqpacket", "stream"];
/// What a program begins its answer with.
const HEAD: &str = "printf 'HTTP/1.1 200 OK\\r\\nConnection: close\\r\\n\\r\\n'; ";
const ANSWERED: &str = "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n";

/// Every path goes to `d.sock`, with the data that the request's fields ask for.
fn gateway() -> Gateway {
    gateway_of("auto")
}

fn gateway_of(dialect: &str) -> Gateway {
    let policy = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/policies/handoff_by_fields.wat");
    Gateway::start(&format!(
        "LISTEN\n[[listener]]\nname = \"unix\"\naddress = \"unix:DIR/u.sock\"\n\
         [handoff]\nack_timeout = \"60s\"\n[target.chat]\nsockets = [\"DIR/d.sock\"]\ndialect = \"{dialect}\"\n\
         [policy.by-fields]\nmodule = \"{policy}\"\ndeadline = \"1s\"\n\
         [[route]]\npath = \"/\"\npolicies = [\"by-fields\"]\n"
    ))
}

/// `baton receive`, listening at the gateway's `d.sock`; its own files are in the gateway's `tmp`.
struct Receiver {
    child: Child,
    stderr: Lines,
}

impl Receiver {
    /// Runs `script` by a shell for each client.
    fn start(gateway: &Gateway, options: &[&str], script: &str) -> Self {
        Self::start_with(gateway, options, &["sh", "-c", script], |command| command)
    }

    fn start_with(
        gateway: &Gateway,
        options: &[&str],
        program: &[&str],
        change: impl FnOnce(&mut Command) -> &mut Command,
    ) -> Self {
        let mut command = baton();
        command.arg("receive").arg(gateway.path("d.sock")).args(options).arg("--").args(program);
        Self::spawn(gateway, change(&mut command))
    }

    fn spawn(gateway: &Gateway, command: &mut Command) -> Self {
        fs::create_dir_all(gateway.path("tmp")).unwrap();
        command.env("TMPDIR", gateway.path("tmp")).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("it starts");
        let stderr = Lines::read(child.stderr.take().expect("piped"));
        stderr.wait(0, &["receiving on", "d.sock"]);
        Self { child, stderr }
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).expect("it runs");
    }

    #[track_caller]
    fn wait(&mut self) -> ExitStatus {
        eventually("it ends", || self.child.try_wait().expect("ours"))
    }

    fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.child.id())).expect("it runs").count()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
        if thread::panicking() {
            eprintln!("it said: {:#?}", self.stderr.all());
        }
    }
}

fn get(fields: &str) -> String {
    format!("GET / HTTP/1.1\r\nHost: x\r\n{fields}\r\n")
}

/// The body of an answer that begins as [`HEAD`] says and does not end with a reset.
#[track_caller]
fn body(client: &mut Client) -> String {
    let mut answer = String::new();
    client.stream.read_to_string(&mut answer).expect("not reset");
    answer.strip_prefix(ANSWERED).unwrap_or_else(|| panic!("{answer:?}")).to_owned()
}

#[track_caller]
fn ask(gateway: &Gateway, fields: &str) -> String {
    let mut client = gateway.client();
    client.send(get(fields));
    body(&mut client)
}

/// Files in its folder for data.
fn data_files(gateway: &Gateway) -> Vec<PathBuf> {
    let list = |folder: &Path| fs::read_dir(folder).map_or(Vec::new(), |f| f.flatten().map(|e| e.path()).collect());
    list(&gateway.path("tmp")).iter().flat_map(|folder| list(folder)).collect()
}

#[test]
fn the_program_has_the_client_on_standard_input_and_output() {
    for kind in KINDS {
        let gateway = gateway();
        // Both ends wait: for the body in parts, and for a reader that takes its time over a megabyte.
        let script = format!("{HEAD} head -c 5; head -c 5; head -c 1000000 /dev/zero | tr '\\0' x");
        let _receiver = Receiver::start(&gateway, &["--dialect", kind], &script);
        let mut client = gateway.client();
        client.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\nx-data: 1\r\n\r\nhello");
        client.until("hello");
        client.send("world");
        let rest = client.rest();
        assert_eq!(rest.len(), 5 + 1_000_000);
        assert!(rest.starts_with("worldxxx") && rest.ends_with("xxx"));
    }
}

#[test]
fn the_environment_tells_what_is_known_and_nothing_of_others() {
    for kind in KINDS {
        let gateway = gateway();
        let program = format!("{HEAD} env");
        let _receiver = Receiver::start_with(&gateway, &["--dialect", kind], &["sh", "-c", &program], |command| {
            let stale = ["HANDOFF_DATA", "HANDOFF_HEAD_SENT", "REMOTE_ADDR", "SERVER_NAME"].map(|name| (name, "stale"));
            command.envs(stale).env("KEPT", "yes")
        });
        for data in ["{\"user\":\"J\u{f6}rg\"}", ""] {
            let field = if data.is_empty() { String::new() } else { format!("x-data: {data}\r\n") };
            let mut client = gateway.client();
            client.send(get(&field));
            let environment = body(&mut client);
            let value = |name: &str| environment.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix('='));
            assert_eq!(value("HANDOFF_DATA"), Some(data));
            assert_eq!(value("HANDOFF_ROLE"), Some("responder"));
            assert_eq!(value("GATEWAY_INTERFACE"), Some("CGI/1.1"));
            assert!(value("SERVER_SOFTWARE").is_some_and(|name| name.starts_with("baton/")));
            assert_eq!(value("REMOTE_ADDR"), Some("127.0.0.1"));
            assert_eq!(value("REMOTE_PORT"), Some(&*client.port().to_string()));
            assert_eq!(value("SERVER_NAME"), Some("127.0.0.1"));
            assert_eq!(value("SERVER_PORT"), Some(&*gateway.address().port().to_string()));
            assert_eq!(value("HANDOFF_HEAD_SENT"), None);
            assert_eq!(value("KEPT"), Some("yes"));
            assert!(value("HANDOFF_DATA_FILE").is_some());
        }
    }
}

#[test]
fn a_unix_client_is_served_without_addresses() {
    let gateway = gateway();
    let _receiver = Receiver::start(&gateway, &[], &format!("{HEAD} env | grep -c -E '^(REMOTE|SERVER_(NAME|PORT))'"));
    let mut client = UnixStream::connect(gateway.path("u.sock")).unwrap();
    client.set_read_timeout(Some(patience())).unwrap();
    client.write_all(get("").as_bytes()).unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, format!("{ANSWERED}0\n"));
}

#[test]
fn the_data_is_in_a_private_file_that_is_gone_afterwards() {
    for kind in KINDS {
        let gateway = gateway();
        let script = format!(
            "{HEAD} stat -c %a \"$HANDOFF_DATA_FILE\" \"$(dirname \"$HANDOFF_DATA_FILE\")\"; \
             echo \"$HANDOFF_DATA_FILE\"; echo ${{HANDOFF_DATA+set}}; cat \"$HANDOFF_DATA_FILE\""
        );
        let _receiver = Receiver::start(&gateway, &["--dialect", kind], &script);
        for (fields, data, is_set) in [
            ("x-data: {\"secret\":1}\r\n", "{\"secret\":1}".to_owned(), "set"),
            ("", String::new(), "set"),
            ("x-bytes: 131058\r\n", "d".repeat(131_058), "set"),
            // More than a variable can hold.
            ("x-bytes: 131059\r\n", "d".repeat(131_059), ""),
            ("x-bytes: 200000\r\n", "d".repeat(200_000), ""),
        ] {
            let answer = ask(&gateway, fields);
            let mut lines = answer.splitn(5, '\n');
            let mut next = || lines.next().expect("five lines");
            assert_eq!((next(), next()), ("600", "700"));
            let file = PathBuf::from(next());
            assert_eq!((next(), next()), (is_set, &*data));
            assert!(file.starts_with(gateway.path("tmp")));
            eventually("the file is gone", || (!file.exists()).then_some(()));
        }
        assert!(data_files(&gateway).is_empty());
    }
}

/// Whatever it was started with, and whatever else it has open at the time.
#[test]
fn programs_get_the_descriptors_0_1_and_2_only() {
    for kind in KINDS {
        let gateway = gateway();
        let mut command = Command::new("sh");
        let receive = "exec 7</dev/null 9</dev/null; exec \"$@\"";
        command.args(["-c", receive, "sh", env!("CARGO_BIN_EXE_baton"), "receive", "--dialect", kind]);
        command.arg(gateway.path("d.sock")).args(["--", "sh", "-c"]);
        command.arg(format!("{HEAD} ls /proc/$$/fd; read go; echo $go"));
        let _receiver = Receiver::spawn(&gateway, &mut command);
        let mut clients: Vec<_> = (0..5).map(|_| gateway.client()).collect();
        for client in &mut clients {
            client.send(get("x-data: 1\r\n"));
            assert_eq!(client.until("2\n"), format!("{ANSWERED}0\n1\n2\n"));
        }
        for client in &mut clients {
            client.send("go\n");
            assert_eq!(client.rest(), "go\n", "nothing between 2 and the end");
        }
    }
}

#[test]
fn a_program_that_writes_nothing_is_answered_for() {
    for kind in KINDS {
        for (program, said) in [
            (&["true"][..], None),
            (&["false"], Some("exit status 1")),
            (&["sh", "-c", "exit 7"], Some("exit status 7")),
            (&["sh", "-c", "kill -9 $$"], Some("signal 9")),
            (&["/nonexistent/program"], Some("cannot run /nonexistent/program")),
        ] {
            let gateway = gateway();
            let receiver = Receiver::start_with(&gateway, &["--dialect", kind], program, |command| command);
            let before = receiver.descriptors();
            for _ in 0..3 {
                let answer = gateway.ask("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nx-data: 1\r\n\r\nhello");
                let expected = "HTTP/1.1 502 Bad Gateway\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
                assert_eq!(answer, expected, "{program:?}");
            }
            if let Some(said) = said {
                receiver.stderr.wait(1, &[said]);
            }
            eventually("the descriptors are back", || (receiver.descriptors() <= before).then_some(()));
        }
    }
}

#[test]
fn a_program_that_fails_after_it_has_written_is_left_as_it_is() {
    let gateway = gateway();
    let receiver = Receiver::start(&gateway, &[], &format!("{HEAD} echo half; exit 3"));
    assert_eq!(ask(&gateway, ""), "half\n");
    receiver.stderr.wait(1, &["exit status 3"]);
}

#[test]
fn a_program_that_runs_too_long_is_cut_with_what_it_has_started() {
    for kind in KINDS {
        let gateway = gateway();
        let script = format!(
            "case $HANDOFF_DATA in written) {HEAD} echo half;; esac; sleep 1000 & echo $! >{}/pid; wait",
            gateway.folder.path().display()
        );
        let options = ["--dialect", kind, "--timeout", "300ms"];
        let receiver = Receiver::start(&gateway, &options, &script);
        let before = receiver.descriptors();
        let answer = gateway.ask(&get("x-data: silent\r\n"));
        assert_eq!(answer, "HTTP/1.1 504 Gateway Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
        receiver.stderr.wait(1, &["ran too long"]);
        // What it has started is gone, or waits to be collected by whoever adopted it.
        let child = fs::read_to_string(gateway.path("pid")).unwrap();
        eventually("the grandchild is dead", || {
            let stat = fs::read_to_string(format!("/proc/{}/stat", child.trim())).unwrap_or_default();
            stat.rsplit_once(") ").is_none_or(|(_, behind)| behind.starts_with('Z')).then_some(())
        });
        // Half an answer, which the end of the connection would make look whole.
        let mut client = gateway.client();
        client.send(get("x-data: written\r\n"));
        client.until("half\n");
        assert!(client.was_reset());
        eventually("the descriptors are back", || (receiver.descriptors() <= before).then_some(()));
    }
}

/// The programs of one moment take a lock, and say so when they meet.
fn most_at_once(clients_max: &str) -> usize {
    let gateway = gateway();
    let dir = gateway.folder.path().display();
    // Each waits for its client's word, so that all of them would run together.
    let script = format!("{HEAD} : >{dir}/run.$$; ls {dir} | grep -c '^run'; read word; rm {dir}/run.$$; echo done");
    let _receiver = Receiver::start(&gateway, &["--clients-max", clients_max], &script);
    let mut clients: Vec<_> = (0..6).map(|_| gateway.client()).collect();
    for client in &mut clients {
        client.send(get(""));
    }
    let serve = |mut client: Client| {
        client.until(ANSWERED);
        let count = client.until("\n").trim().parse::<usize>().unwrap();
        client.send("go\n");
        assert_eq!(client.rest(), "done\n");
        count
    };
    // Whoever is served first cannot be known: all are asked, each by a thread. A client that has its answer leaves.
    thread::scope(|scope| {
        let waiting: Vec<_> = clients.into_iter().map(|client| scope.spawn(move || serve(client))).collect();
        waiting.into_iter().map(|thread| thread.join().unwrap()).max().unwrap()
    })
}

#[test]
fn more_clients_than_clients_max_wait_in_the_backlog() {
    assert_eq!(most_at_once("1"), 1);
    assert!(most_at_once("3") <= 3);
}

#[test]
fn a_hundred_clients_are_served_together_without_being_told() {
    let gateway = gateway();
    let receiver = Receiver::start(&gateway, &[], &format!("{HEAD} echo here; read word; echo done"));
    let before = receiver.descriptors();
    let mut clients: Vec<_> = (0..100).map(|_| gateway.client()).collect();
    for client in &mut clients {
        client.send(get(""));
    }
    for client in &mut clients {
        client.until("here\n");
    }
    for client in &mut clients {
        client.send("go\n");
        assert_eq!(client.rest(), "done\n");
    }
    drop(clients);
    eventually("the descriptors are back", || (receiver.descriptors() <= before).then_some(()));
}

#[test]
fn an_unread_body_does_not_cost_the_answer() {
    let gateway = gateway();
    let _receiver = Receiver::start(&gateway, &[], &format!("{HEAD} echo whole"));
    let mut client = gateway.client();
    client.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 200000\r\n\r\n");
    let mut sender = client.stream.try_clone().unwrap();
    let sending = thread::spawn(move || sender.write_all(&[b'x'; 200_000]));
    assert_eq!(body(&mut client), "whole\n");
    sending.join().unwrap().expect("taken");
}

#[test]
fn a_client_that_leaves_ends_its_program_at_the_next_write() {
    let gateway = gateway();
    let receiver = Receiver::start(&gateway, &[], &format!("{HEAD} while echo tick; do sleep 0.01; done"));
    let before = receiver.descriptors();
    let mut client = gateway.client();
    client.send(get(""));
    client.until("tick\n");
    drop(client);
    eventually("its program has ended", || (receiver.descriptors() <= before).then_some(()));
}

#[test]
fn term_and_int_drain() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let gateway = gateway();
        let mut receiver = Receiver::start(&gateway, &[], &format!("{HEAD} echo here; read word; echo $word"));
        let mut client = gateway.client();
        client.send(get("x-data: 1\r\n"));
        client.until("here\n");
        receiver.signal(signal);
        // It does not listen any more, and the client goes on.
        eventually("the socket is gone", || (!gateway.path("d.sock").exists()).then_some(()));
        assert!(gateway.ask(&get("Connection: close\r\n")).starts_with("HTTP/1.1 503"));
        assert_eq!(receiver.child.try_wait().unwrap(), None);
        client.send("goodbye\n");
        assert_eq!(client.rest(), "goodbye\n");
        drop(client);
        assert_eq!(receiver.wait().code(), Some(0));
        assert_eq!(fs::read_dir(gateway.path("tmp")).unwrap().count(), 0, "nothing is left of it");
    }
}

#[test]
fn idle_it_stops_at_once() {
    let gateway = gateway();
    let mut receiver = Receiver::start(&gateway, &[], "true");
    receiver.signal(Signal::SIGTERM);
    assert_eq!(receiver.wait().code(), Some(0));
    assert!(!gateway.path("d.sock").exists());
}

#[test]
fn the_drains_end_and_a_second_signal_cut() {
    for (options, signals) in [(&["--drain-timeout", "200ms"][..], 1), (&[], 2)] {
        let gateway = gateway();
        let script = format!("case $HANDOFF_DATA in written) {HEAD} echo half;; esac; echo $$ >&2; sleep 1000");
        let mut receiver = Receiver::start(&gateway, options, &script);
        let mut silent = gateway.client();
        silent.send(get(""));
        let mut written = gateway.client();
        written.send(get("x-data: written\r\n"));
        written.until("half\n");
        eventually("both run", || (receiver.stderr.count() >= 3).then_some(()));
        receiver.signal(Signal::SIGTERM);
        eventually("it drains", || (!gateway.path("d.sock").exists()).then_some(()));
        if signals == 2 {
            receiver.signal(Signal::SIGINT);
        }
        let answer = silent.rest();
        assert_eq!(answer, "HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
        assert!(written.was_reset(), "half an answer");
        drop((silent, written));
        assert_eq!(receiver.wait().code(), Some(0));
        receiver.stderr.wait(0, &["cutting 2 clients"]);
        assert_eq!(fs::read_dir(gateway.path("tmp")).unwrap().count(), 0);
    }
}

/// A program owns its client: the receiver's death does not take it away.
#[test]
fn killed_it_leaves_its_programs_to_their_clients() {
    let gateway = gateway();
    let mut receiver = Receiver::start(&gateway, &[], &format!("{HEAD} echo here; read word; echo $word"));
    let mut client = gateway.client();
    client.send(get(""));
    client.until("here\n");
    receiver.signal(Signal::SIGKILL);
    receiver.wait();
    client.send("still\n");
    assert_eq!(client.rest(), "still\n");
    // What it has left behind is replaced.
    let _next = Receiver::start(&gateway, &[], &format!("{HEAD} echo next"));
    assert_eq!(ask(&gateway, ""), "next\n");
}

#[test]
fn who_may_hand_over_is_asked_before_anything_is_read() {
    let own = nix::unistd::geteuid().to_string();
    let group = nix::unistd::getegid().to_string();
    for (options, listed, is_allowed) in [
        (&["--allow-uid", "54321"][..], None, false),
        (&["--allow-uid", "54321", "--allow-uid", &own], None, true),
        (&[], Some("54321"), false),
        (&[], Some(&*own), true),
        (&["--allow-uid", &own], Some("54321"), true),
        (&["--allow-uid", "54321", "--allow-gid", "54321"], None, false),
        (&["--allow-uid", "54321", "--allow-gid", "54321", "--allow-gid", &group], None, true),
        (&[], None, true),
    ] {
        let gateway = gateway();
        let program = format!("{HEAD} echo in");
        let receiver = Receiver::start_with(&gateway, options, &["sh", "-c", &program], |command| match listed {
            Some(listed) => command.env("BATON_GATEWAY_UIDS", listed),
            None => command.env_remove("BATON_GATEWAY_UIDS"),
        });
        let answer = gateway.ask(&get("Connection: close\r\nx-data: 1\r\n"));
        if is_allowed {
            assert_eq!(answer, format!("{ANSWERED}in\n"));
        } else {
            assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
            receiver.stderr.wait(1, &[&format!("uid {own} may not hand over")]);
        }
    }
}

#[test]
fn the_socket_has_the_mode_that_was_asked_for() {
    for (options, mode) in [(&[][..], 0o660), (&["--socket-mode", "0600"], 0o600), (&["--socket-mode", "666"], 0o666)] {
        let gateway = gateway();
        let _receiver = Receiver::start(&gateway, options, "true");
        assert_eq!(fs::metadata(gateway.path("d.sock")).unwrap().permissions().mode() & 0o777, mode);
    }
}
