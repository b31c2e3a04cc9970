//! What `-` is: a listener, a gateway's connection or a client that was there at the start.

use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::os::fd::{AsFd as _, OwnedFd};
use std::process::{Child, Command, Stdio};

use baton::handoff::native::frame::Frame;
use baton::handoff::{Dialect, Listener, Options, Outcome};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::unistd::Pid;

use crate::scripted::{self, Gateway as Script};
use crate::support::{Lines, baton, eventually};
use crate::{ANSWERED, HEAD, ask, gateway};

fn wait(child: &mut Child) -> Option<i32> {
    eventually("it ends", || child.try_wait().expect("ours")).code()
}

#[test]
fn a_listener_at_3_or_on_standard_input() {
    for is_passed in [true, false] {
        let gateway = gateway();
        let path = gateway.path("d.sock");
        let listener = Listener::bind(&path, Dialect::Seqpacket, &Options::default()).unwrap();
        let passed =
            if is_passed { "export LISTEN_FDS=1 LISTEN_PID=$$; exec \"$@\" 3<&0 </dev/null" } else { "exec \"$@\"" };
        let mut command = Command::new("sh");
        command.args(["-c", passed, "sh", env!("CARGO_BIN_EXE_baton"), "receive", "-", "--", "sh", "-c"]);
        command.arg(format!("{HEAD} echo in ${{LISTEN_FDS-nothing}}; ls /proc/$$/fd"));
        let copy = listener.as_fd().try_clone_to_owned().unwrap();
        command.stdin(Stdio::from(copy)).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let stderr = Lines::read(child.stderr.take().unwrap());
        stderr.wait(0, &["receiving on -"]);
        for _ in 0..3 {
            assert_eq!(ask(&gateway, ""), "in nothing\n0\n1\n2\n");
        }
        kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM).unwrap();
        assert_eq!(wait(&mut child), Some(0));
        assert!(path.exists(), "its file is its maker's");
    }
}

/// As with `Accept=yes`: one handoff, then the end.
#[test]
fn a_gateways_connection() {
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
    let mut command = baton();
    command.args(["receive", "--dialect", "baton", "-", "--", "sh", "-c", &format!("{HEAD} read word; echo $word")]);
    let mut child = command.stdin(Stdio::from(theirs)).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    drop(command);
    let mut script = Script::on(ours);
    script.send(&[scripted::hello()], &[]);
    let mut far = script.hand_over(1, scripted::get());
    // There is nobody after this one, which is said at once.
    let said = [script.next(), script.next()];
    assert!(said.contains(&Some(Frame::Taken { id: 1 })) && said.contains(&Some(Frame::Draining)), "{said:?}");
    assert_eq!(script.greeting().in_flight_max, 1);
    far.write_all(b"hello\n").unwrap();
    let mut answer = String::new();
    far.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, format!("{ANSWERED}hello\n"));
    drop(far);
    let report = script.done(1);
    assert_eq!((report.result, report.bytes_out), (Outcome::Ok, answer.len() as u64));
    assert_eq!(wait(&mut child), Some(0));
}

/// As by inetd: a client on 0, 1 and 2. No word of the log is for it.
#[test]
fn a_client() {
    for (program, expected) in [
        (format!("{HEAD} echo said >&2; read line; echo $line"), format!("{ANSWERED}GET / HTTP/1.1\r\n")),
        (
            "echo said >&2; exit 3".to_owned(),
            "HTTP/1.1 502 Bad Gateway\r\nConnection: close\r\nContent-Length: 0\r\n\r\n".to_owned(),
        ),
    ] {
        let (client, mut far) = scripted::tcp_client();
        let copy = || Stdio::from(OwnedFd::from(client.try_clone().unwrap()));
        let mut command = baton();
        command.args(["receive", "-", "--", "sh", "-c", &program]);
        let mut child = command.stdin(copy()).stdout(copy()).stderr(copy()).spawn().unwrap();
        drop((command, client));
        far.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        far.shutdown(Shutdown::Write).unwrap();
        let mut answer = String::new();
        far.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, expected);
        assert_eq!(wait(&mut child), Some(0));
    }
}

#[test]
fn nothing_is_an_error() {
    let output = baton().args(["receive", "-", "--", "true"]).stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("LISTEN_FDS"), "{said}");
}
