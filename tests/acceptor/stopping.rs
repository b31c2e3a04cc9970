//! A daemon that ends: gateways are told, whoever comes too late goes back, whoever was taken is served.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use baton::handoff::native::frame::{Frame, Reason};
use baton::handoff::{Acceptor, Dialect, Options};

use crate::scripted::{Gateway, get};
use crate::{Bench, accept, options, whole};

#[test]
fn those_in_flight_are_served_and_those_who_come_are_refused() {
    let bench = Bench::new();
    let mut acceptor = bench.acceptor();
    let mut gateway = Gateway::greet(&bench.path());
    let mut fars: Vec<_> = (1..=2).map(|id| gateway.hand_over(id, get())).collect();
    let mut handoff = accept(&mut acceptor);
    acceptor.stop_handle().stop();
    assert!(acceptor.accept().unwrap().is_none() && acceptor.accept().unwrap().is_none());
    assert_eq!(gateway.next(), Some(Frame::Draining));
    // It waited in the queue.
    assert_eq!(gateway.refused(2).reason, Reason::Draining);
    assert!(!bench.path().exists(), "nobody new finds it");
    thread::scope(|scope| {
        let draining = scope.spawn(|| acceptor.drain(Duration::from_secs(20)).unwrap());
        // One that was under way.
        fars.push(gateway.hand_over(3, get()));
        assert_eq!(gateway.refused(3).reason, Reason::Draining);
        gateway.send(&[Frame::Ping(b"alive".to_vec())], &[]);
        assert_eq!(gateway.next(), Some(Frame::Pong(b"alive".to_vec())));
        handoff.respond(200, &[], b"served").unwrap();
        handoff.finish(200);
        gateway.taken(1);
        gateway.done(1);
        assert!(draining.join().unwrap());
    });
    assert!(whole(&mut fars[0]).ends_with("served"));
    drop(acceptor);
    gateway.ended();
    drop((gateway, fars));
    bench.check_ledger();
}

#[test]
fn draining_ends_when_its_time_is_up_and_then_says_so() {
    let bench = Bench::new();
    let mut acceptor = bench.acceptor();
    let mut gateway = Gateway::greet(&bench.path());
    let mut far = gateway.hand_over(1, get());
    let mut handoff = accept(&mut acceptor);
    handoff.start(200, &[]).unwrap();
    let begun = Instant::now();
    assert!(!acceptor.drain(Duration::from_millis(50)).unwrap());
    assert!(begun.elapsed() >= Duration::from_millis(50) && acceptor.in_flight() == 1);
    drop(acceptor);
    // What becomes of it is told all the same.
    handoff.write(b"late").unwrap();
    handoff.finish(200);
    gateway.taken(1);
    assert_eq!(gateway.next(), Some(Frame::Draining));
    gateway.done(1);
    gateway.ended();
    assert!(whole(&mut far).ends_with("late"));
}

#[test]
fn a_successor_listens_while_the_last_clients_are_served() {
    let bench = Bench::new();
    let mut acceptor = bench.acceptor();
    let gateway = Gateway::greet(&bench.path());
    let _far = gateway.hand_over(1, get());
    let handoff = accept(&mut acceptor);
    acceptor.stop_handle().stop();
    assert!(acceptor.accept().unwrap().is_none());
    let successor = Acceptor::bind(bench.path(), Dialect::Baton, options()).unwrap();
    drop(handoff);
    drop(acceptor);
    assert!(bench.path().exists(), "the file is the successor's");
    drop(successor);
    assert!(!bench.path().exists());
}

#[test]
fn an_unreadable_list_of_uids_lets_nobody_in_and_leaves_nothing_behind() {
    let path = std::env::temp_dir().join("never-made");
    // A process of its own, because the environment is everybody's.
    let bench = Bench::new();
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "stopping::binds_with_the_list_that_it_inherits", "--nocapture", "--ignored"])
        .env("BATON_GATEWAY_UIDS", "0,root")
        .env("BATON_TEST_SOCKET", bench.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("BATON_GATEWAY_UIDS is a list of user ids"), "{said}");
    assert!(!bench.path().exists() && !path.exists());
    assert_eq!(fs::read_dir(bench.folder.path()).unwrap().count(), 0);
}

#[test]
#[ignore = "a part of the test above"]
fn binds_with_the_list_that_it_inherits() {
    let Some(path) = std::env::var_os("BATON_TEST_SOCKET") else { return };
    println!("{:?}", Acceptor::bind(path, Dialect::Baton, Options::default()).err());
}
