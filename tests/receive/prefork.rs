//! Programs that accept for themselves.

use std::collections::HashSet;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::{Gateway, eventually};
use crate::usage::run;
use crate::{HEAD, Receiver, ask, gateway};

/// Programs that loop and take what they were started with: this very program. Each client is told its number.
fn start(gateway: &Gateway, options: &[&str], script: &str) -> Receiver {
    let own = env!("CARGO_BIN_EXE_baton");
    let program = [own, "receive", "--clients-max", "1", "-", "--", "sh", "-c", script];
    Receiver::start_with(gateway, options, &program, |command| command)
}

fn running(receiver: &Receiver) -> HashSet<i32> {
    let children = format!("/proc/{0}/task", receiver.child.id());
    let tasks = std::fs::read_dir(children).expect("it runs").flatten();
    let lists = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
    lists.flat_map(|list| list.split_whitespace().map(|pid| pid.parse().unwrap()).collect::<Vec<i32>>()).collect()
}

#[test]
fn as_many_as_were_asked_for_serve_and_are_started_again() {
    let gateway = gateway();
    let receiver = start(&gateway, &["--prefork", "3"], &format!("{HEAD} echo $PPID"));
    let first = eventually("three run", || Some(running(&receiver)).filter(|all| all.len() == 3));
    for _ in 0..5 {
        let served: i32 = ask(&gateway, "").trim().parse().unwrap();
        assert!(first.contains(&served));
    }
    for pid in &first {
        kill(Pid::from_raw(*pid), Signal::SIGKILL).unwrap();
    }
    receiver.stderr.wait(1, &["[program 1] signal 9; started again in 100 ms"]);
    let second = eventually("three run again", || {
        Some(running(&receiver)).filter(|all| all.len() == 3 && all.is_disjoint(&first))
    });
    let served: i32 = ask(&gateway, "").trim().parse().unwrap();
    assert!(second.contains(&served));
}

#[test]
fn whoever_dies_at_once_is_started_ever_later() {
    let gateway = gateway();
    let options = ["--prefork", "1"];
    let receiver = Receiver::start_with(&gateway, &options, &["/nonexistent/program"], |command| command);
    for pause in ["100 ms", "200 ms", "400 ms"] {
        receiver.stderr.wait(1, &["[program 1] exit status 1; started again in ", pause]);
    }
    receiver.stderr.wait(1, &["[program 1] baton: cannot run /nonexistent/program"]);
}

#[test]
fn it_has_the_listener_at_3_and_nothing_else() {
    let gateway = gateway();
    let script = "echo $LISTEN_FDS $LISTEN_PID $$ $BATON_GATEWAY_UIDS; ls -l /proc/$$/fd; exec sleep 1000";
    let options = ["--prefork", "1", "--allow-uid", "54321", "--allow-uid", "0", "--dialect", "stream"];
    let receiver = Receiver::start(&gateway, &options, &format!("exec >&2; {script}"));
    let said = eventually("all is said", || {
        let all = receiver.stderr.all();
        all.iter().any(|line| line.contains(" 3 -> socket:")).then_some(all)
    });
    let told = said.iter().find_map(|line| line.strip_prefix("[program 1] 1 ")).expect("LISTEN_FDS");
    let words: Vec<_> = told.split(' ').collect();
    assert!(words[0] == words[1] && words[2] == "54321,0", "{told}");
    let open: Vec<_> =
        said.iter().filter_map(|line| line.split_once(" -> ")?.0.rsplit(' ').next()?.parse().ok()).collect();
    assert_eq!(open.iter().filter(|fd: &&u32| **fd <= 9).count(), 4, "{said:#?}");
    // It waits in accept(2) unless it says otherwise.
    let flags = std::fs::read_to_string(format!("/proc/{}/fdinfo/3", words[1])).unwrap();
    let flags = flags.lines().find_map(|line| line.strip_prefix("flags:")).unwrap();
    assert_eq!(u32::from_str_radix(flags.trim(), 8).unwrap() & 0o4000, 0);
}

#[test]
fn term_is_passed_on_and_those_that_stay_are_killed() {
    for (program, drain_timeout) in [("exec sleep 1000", "30s"), ("trap '' TERM; while :; do sleep 0.1; done", "100ms")]
    {
        let gateway = gateway();
        let options = ["--prefork", "2", "--drain-timeout", drain_timeout];
        let mut receiver = Receiver::start(&gateway, &options, &format!("echo up >&2; {program}"));
        receiver.stderr.wait(1, &["[program 1] up"]);
        receiver.stderr.wait(1, &["[program 2] up"]);
        let all = running(&receiver);
        receiver.signal(Signal::SIGTERM);
        assert_eq!(receiver.wait().code(), Some(0));
        assert!(!gateway.path("d.sock").exists());
        for pid in all {
            assert_eq!(kill(Pid::from_raw(pid), None), Err(nix::errno::Errno::ESRCH));
        }
    }
}

#[test]
fn a_drain_lets_programs_finish() {
    let gateway = gateway();
    let mut receiver = start(&gateway, &["--prefork", "1"], &format!("{HEAD} echo here; read word; echo $word"));
    let mut client = gateway.client();
    client.send(crate::get(""));
    client.until("here\n");
    receiver.signal(Signal::SIGTERM);
    eventually("nobody new comes", || (!gateway.path("d.sock").exists()).then_some(()));
    client.send("goodbye\n");
    assert_eq!(client.rest(), "goodbye\n");
    drop(client);
    assert_eq!(receiver.wait().code(), Some(0));
}

#[test]
fn a_live_listener_is_not_replaced() {
    let gateway = gateway();
    let _receiver = start(&gateway, &["--prefork", "1"], "true");
    let path = gateway.path("d.sock");
    let (code, said) = run(&["--prefork".as_ref(), "1".as_ref(), path.as_os_str(), "--".as_ref(), "true".as_ref()]);
    assert_eq!(code, Some(1), "{said}");
    let (code, said) = run(&["--prefork".as_ref(), "1".as_ref(), "-".as_ref(), "--".as_ref(), "true".as_ref()]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("takes a path"), "{said}");
}
