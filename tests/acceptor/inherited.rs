//! Daemons that are started with a socket, a connection or a request, as service managers, inetd and web servers do it: the
//! example, as a process.

use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use baton::handoff::native::frame::{Frame, Outcome};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket, socketpair};
use nix::unistd::Pid;

use crate::scripted::{Gateway, hello, request, tcp_client};
use crate::{Bench, eventually, whole};

/// What is built beside this test.
fn daemon() -> PathBuf {
    let path = std::env::current_exe().unwrap().parent().unwrap().with_file_name("examples").join("daemon");
    assert!(path.exists(), "{} is not built: cargo build --release --example daemon", path.display());
    path
}

fn start(dialect: &str, stdin: impl Into<Stdio>) -> Daemon {
    let mut command = Command::new(daemon());
    Daemon(command.args(["-", dialect]).stdin(stdin).stdout(Stdio::null()).spawn().unwrap())
}

struct Daemon(Child);

impl Daemon {
    #[track_caller]
    fn wait(&mut self) -> ExitStatus {
        eventually("it ends", || self.0.try_wait().unwrap())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn listening(path: &Path) -> OwnedFd {
    let listener = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap();
    bind(listener.as_raw_fd(), &UnixAddr::new(path).unwrap()).unwrap();
    listen(&listener, Backlog::new(8).unwrap()).unwrap();
    listener
}

fn hello_request() -> serde_json::Value {
    request("GET", "/hello", &[])
}

#[test]
fn a_listener_is_on_standard_input_or_passed_by_a_service_manager() {
    for how in ["stdin", "LISTEN_FDS"] {
        let bench = Bench::new();
        let listener = listening(&bench.path());
        let mut process = if how == "stdin" {
            start("baton", listener)
        } else {
            let script = format!("LISTEN_PID=$$ LISTEN_FDS=1 exec {} - baton 3<&0 </dev/null", daemon().display());
            Daemon(Command::new("sh").args(["-c", &script]).stdin(listener).spawn().unwrap())
        };
        let mut gateway = Gateway::greet(&bench.path());
        for id in 1..=3 {
            let mut far = gateway.hand_over(id, hello_request());
            gateway.taken(id);
            assert!(whole(&mut far).ends_with("hello\n"), "{how}");
            assert_eq!(gateway.done(id).result, Outcome::Ok);
        }
        kill(Pid::from_raw(process.0.id().cast_signed()), Signal::SIGTERM).unwrap();
        assert_eq!(gateway.next(), Some(Frame::Draining));
        assert!(process.wait().success());
        assert!(bench.path().exists(), "the file is its maker's");
    }
}

#[test]
fn on_one_connection_one_client_is_served() {
    let _turn = Bench::new();
    let (own, its) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
    let mut process = start("baton", its);
    let mut gateway = Gateway::on(own);
    gateway.send(&[hello()], &[]);
    let mut far = gateway.hand_over(1, hello_request());
    assert!(whole(&mut far).ends_with("hello\n"));
    // It wants no other from the moment on in which it has this one.
    let mut said: Vec<_> = (0..3).map(|_| gateway.next().unwrap()).collect();
    said.sort_by_key(|frame| *frame == Frame::Draining);
    assert!(matches!(said[..], [Frame::Taken { id: 1 }, Frame::Done { id: 1, .. }, Frame::Draining]), "{said:?}");
    assert_eq!(gateway.greeting().in_flight_max, 1);
    assert!(process.wait().success());
    gateway.ended();

    let (own, its) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
    let mut process = start("seqpacket", its);
    let (client, mut far) = tcp_client();
    Gateway::on(own).send_bytes(b"some data", &[client.as_fd()]);
    drop(client);
    assert!(whole(&mut far).contains("data: {\"n\":1,\"text\":\"some data\"}\n\n"));
    assert!(process.wait().success());
}

#[test]
fn a_client_on_standard_input_is_served_and_its_end_is_its_end() {
    let _turn = Bench::new();
    let (client, mut far) = tcp_client();
    let mut process = start("seqpacket", OwnedFd::from(client));
    assert!(whole(&mut far).starts_with("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"));
    assert!(process.wait().success());
    drop(far);

    // As `baton receive` starts a program.
    let (client, mut far) = tcp_client();
    let mut command = Command::new(daemon());
    command.arg("-").stdin(OwnedFd::from(client)).env("GATEWAY_INTERFACE", "CGI/1.1");
    command.envs([("HANDOFF_ROLE", "responder"), ("REQUEST_URI", "/data"), ("HANDOFF_DATA", "of the policy")]);
    let mut process = Daemon(command.spawn().unwrap());
    let answer = whole(&mut far);
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\nof the policy"), "{answer}");
    assert!(process.wait().success());
}

#[test]
fn a_web_servers_program_reads_the_body_and_says_status() {
    let _turn = Bench::new();
    let mut command = Command::new(daemon());
    command.arg("-").stdin(Stdio::piped()).stdout(Stdio::piped()).env("GATEWAY_INTERFACE", "CGI/1.1");
    command.envs([("REQUEST_METHOD", "POST"), ("REQUEST_URI", "/echo?x"), ("CONTENT_LENGTH", "5")]);
    let mut process = Daemon(command.spawn().unwrap());
    // The server keeps its end open: a length says where it ends.
    let mut stdin = process.0.stdin.take().unwrap();
    stdin.write_all(b"hello, and more").unwrap();
    let mut answer = String::new();
    process.0.stdout.take().unwrap().read_to_string(&mut answer).unwrap();
    let expected = "Status: 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: 5\r\n\r\nhello";
    assert_eq!(answer, expected);
    assert!(process.wait().success());
}

#[test]
fn without_any_of_them_it_says_what_is_missing() {
    let _turn = Bench::new();
    let output = Command::new(daemon()).arg("-").stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("neither LISTEN_FDS, nor a socket"), "{said}");
}
