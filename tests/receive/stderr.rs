//! What programs say on standard error.

use std::io::Read as _;
use std::process::Stdio;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::native::{ask, start};
use crate::support::{baton, eventually};
use crate::{HEAD, Receiver, gateway};

#[test]
fn it_is_logged_line_by_line_with_the_handoffs_id() {
    let program = format!("{HEAD} printf 'one\\ntw' >&2; printf 'o\\n\\033[2Jthree' >&2; echo $HANDOFF_ID");
    let (_gateway, receiver, mut script) = start(&[], &program);
    ask(&mut script, 1);
    for line in ["[01JTEST] one", "[01JTEST] two", "[01JTEST] \\u{1b}[2Jthree"] {
        receiver.stderr.wait(1, &[line]);
    }
    assert!(receiver.stderr.all().iter().any(|line| line == "[01JTEST] two"));
}

#[test]
fn where_no_gateway_tells_an_id_one_is_made_up() {
    let gateway = gateway();
    let receiver = Receiver::start(&gateway, &[], &format!("{HEAD} echo said >&2; echo $HANDOFF_ID"));
    let mut ids = Vec::new();
    for _ in 0..2 {
        let id = crate::ask(&gateway, "").trim().to_owned();
        receiver.stderr.wait(1, &[&format!("[{id}] said")]);
        ids.push(id);
    }
    assert!(ids[0] != ids[1] && !ids[0].is_empty());
}

#[test]
fn a_flood_is_counted_and_holds_nobody_up() {
    let program = format!("i=0; while [ $i -lt 5000 ]; do i=$((i+1)); echo line $i; done >&2; {HEAD} echo done");
    let (_gateway, receiver, mut script) = start(&[], &program);
    let (answer, _) = ask(&mut script, 1);
    assert!(answer.ends_with("done\n"));
    let said = |mark: &str| receiver.stderr.all().iter().filter(|line| line.contains(mark)).count();
    let left_out = eventually("what was left out is counted", || {
        let all = receiver.stderr.all();
        let counts = all
            .iter()
            .filter_map(|line| line.strip_prefix("[01JTEST] ")?.split_once(" lines left out")?.0.parse::<usize>().ok());
        let left_out: usize = counts.sum();
        (left_out + said("] line ") == 5000).then_some(left_out)
    });
    assert!(left_out > 0, "more than 100 in a second");
}

#[test]
fn the_hundredth_line_of_a_second_is_said() {
    let program = format!("for i in $(seq 100); do echo line $i; done >&2; {HEAD} echo done");
    let (_gateway, receiver, mut script) = start(&[], &program);
    ask(&mut script, 1);
    receiver.stderr.wait(1, &["line 100"]);
    assert!(!receiver.stderr.all().iter().any(|line| line.contains("left out")));
}

/// Its reader sleeps, or is gone: programs go on.
#[test]
fn a_log_that_nobody_reads_holds_nobody_up() {
    for is_gone in [false, true] {
        let gateway = gateway();
        let (mut reader, writer) = std::io::pipe().unwrap();
        // A line for people fills a pipe with 64 KiB; a thousand of them wait.
        let said = "x".repeat(2000);
        let program = format!("{HEAD} i=0; while [ $i -lt 90 ]; do i=$((i+1)); echo {said} >&2; done; echo done");
        let mut command = baton();
        command.arg("receive").arg(gateway.path("d.sock")).args(["--", "sh", "-c", &program]);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(writer).spawn().unwrap();
        drop(command);
        let mut byte = [0];
        while byte != *b"\n" {
            reader.read_exact(&mut byte).unwrap();
        }
        let reader = if is_gone { None } else { Some(reader) };
        for _ in 0..20 {
            assert_eq!(crate::ask(&gateway, ""), "done\n");
        }
        kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM).unwrap();
        let status = eventually("it ends", || child.try_wait().unwrap());
        assert_eq!(status.code(), Some(0));
        drop(reader);
    }
}
