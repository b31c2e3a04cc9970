//! How long a program and its client may take.

use std::io::Read as _;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use baton::handoff::Outcome;

use crate::native::{ask, open, start};
use crate::support::eventually;
use crate::{ANSWERED, HEAD, Receiver, gateway, get, scripted};

const LATE: &str = "HTTP/1.1 504 Gateway Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";

#[test]
fn a_program_that_writes_nothing_has_stalled() {
    let (_gateway, receiver, mut script) = start(&["--stall-timeout", "100ms"], "sleep 1000");
    let (answer, report) = ask(&mut script, 1);
    assert_eq!(answer, LATE);
    assert_eq!((report.status, report.result), (Some(504), Outcome::Timeout));
    assert_eq!(report.message.as_deref(), Some("stalled"));
    assert!(report.duration_us >= 100_000, "{} µs", report.duration_us);
    receiver.stderr.wait(1, &["[01JTEST] sh: stalled"]);
}

#[test]
fn a_client_that_never_reads_has_stalled_and_what_it_got_is_cut() {
    let (_gateway, receiver, mut script) = start(&["--stall-timeout", "300ms"], &format!("{HEAD} exec yes"));
    let before = open(&receiver, &mut script);
    let mut far = script.hand_over(1, scripted::get());
    script.taken(1);
    let report = script.done(1);
    assert_eq!((report.status, report.result), (None, Outcome::Timeout));
    assert!(report.bytes_out > 1000);
    let end = far.read_to_end(&mut Vec::new());
    assert_eq!(end.expect_err("a reset").kind(), std::io::ErrorKind::ConnectionReset);
    eventually("the descriptors are back", || (receiver.descriptors() <= before).then_some(()));
}

#[test]
fn whoever_moves_a_byte_in_time_goes_on() {
    // Ten times a tenth more than half of the time that it may take.
    let program = format!("{HEAD} for i in 1 2 3 4 5 6 7 8 9 10; do sleep 0.22; echo $i; done");
    let (_gateway, _receiver, mut script) = start(&["--stall-timeout", "400ms"], &program);
    let begun = Instant::now();
    let (answer, report) = ask(&mut script, 1);
    assert_eq!(report.result, Outcome::Ok, "{report:?}");
    assert!(answer.ends_with("9\n10\n") && begun.elapsed() > Duration::from_secs(2));
}

#[test]
fn a_whole_run_has_its_own_time_however_busy_it_is() {
    for (program, answer) in
        [("sleep 1000".to_owned(), LATE), (format!("{HEAD} while echo tick; do sleep 0.01; done"), "")]
    {
        let (_gateway, _receiver, mut script) = start(&["--timeout", "200ms"], &program);
        let mut far = script.hand_over(1, scripted::get());
        script.taken(1);
        let mut got = String::new();
        let end = far.read_to_string(&mut got);
        drop(far);
        let report = script.done(1);
        assert_eq!((report.result, report.message.as_deref()), (Outcome::Timeout, Some("ran too long")));
        if answer.is_empty() {
            assert!(end.is_err() && report.status.is_none(), "half an answer is reset");
        } else {
            assert_eq!((&*got, report.status), (answer, Some(504)));
        }
    }
}

#[test]
fn a_program_that_does_not_mind_term_is_killed() {
    let program = "trap '' TERM; while :; do sleep 0.1; done";
    let (_gateway, _receiver, mut script) = start(&["--timeout", "50ms"], program);
    let begun = Instant::now();
    let (answer, report) = ask(&mut script, 1);
    assert_eq!((&*answer, report.result), (LATE, Outcome::Timeout));
    assert!(begun.elapsed() >= Duration::from_secs(2), "it had time to end by itself");
}

#[test]
fn term_lets_a_program_end_its_answer() {
    let program = format!("trap 'echo end; exit 0' TERM; {HEAD} while :; do sleep 0.01; done");
    let (_gateway, _receiver, mut script) = start(&["--timeout", "100ms"], &program);
    let (answer, report) = ask(&mut script, 1);
    assert_eq!(answer, format!("{ANSWERED}end\n"));
    assert_eq!(report.result, Outcome::Timeout);
}

/// The end of a connection is told of again and again.
#[test]
fn a_client_that_has_left_costs_nothing_while_its_program_goes_on() {
    let (_gateway, receiver, mut script) = start(&[], "sleep 1");
    let (client, far) = UnixStream::pair().unwrap();
    script.send(&[scripted::handoff(1, scripted::get())], &[client.as_fd()]);
    drop((client, far));
    script.taken(1);
    script.done(1);
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", receiver.child.id())).unwrap();
    let (_, behind) = stat.rsplit_once(") ").unwrap();
    let ticks = |at: usize| behind.split(' ').nth(at).unwrap().parse::<u64>().unwrap();
    // Of a hundred in a second; starting a program of this size takes some.
    assert!(ticks(11) + ticks(12) < 40, "{} + {} ticks", ticks(11), ticks(12));
}

/// The other dialects have nobody to tell, and the same times.
#[test]
fn a_stall_is_seen_in_every_dialect() {
    for dialect in ["seqpacket", "stream"] {
        let gateway = gateway();
        let options = ["--dialect", dialect, "--stall-timeout", "100ms"];
        let receiver = Receiver::start(&gateway, &options, "sleep 1000");
        assert_eq!(gateway.ask(&get("x-data: 1\r\n")), LATE);
        receiver.stderr.wait(1, &["sh: stalled"]);
    }
}
