//! A runtime that waits for the acceptor's one descriptor, as its documentation shows.

use std::os::fd::AsFd as _;
use std::task::Poll;
use std::time::Duration;

use baton::handoff::native::frame::Frame;
use baton::handoff::{Acceptor, Handoff, watch};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::scripted::{Gateway, get};
use crate::{Bench, patience, whole};

async fn accept(readiness: &AsyncFd<std::os::fd::OwnedFd>, acceptor: &mut Acceptor) -> Option<Handoff> {
    loop {
        let mut ready = readiness.readable().await.unwrap();
        match acceptor.try_accept().unwrap() {
            Poll::Ready(handoff) => return handoff,
            Poll::Pending => ready.clear_ready(),
        }
    }
}

#[test]
fn a_runtime_needs_nothing_but_the_descriptor() {
    let bench = Bench::new();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut acceptor = bench.acceptor();
    let stop = acceptor.stop_handle();
    let gateway = std::thread::spawn({
        let path = bench.path();
        move || {
            let mut gateways = [Gateway::greet(&path), Gateway::greet(&path)];
            for round in 1..=50 {
                for gateway in &mut gateways {
                    gateway.send(&[Frame::Ping(b"x".to_vec())], &[]);
                    assert!(matches!(gateway.next(), Some(Frame::Pong(_))));
                    let mut far = gateway.hand_over(round, get());
                    gateway.taken(round);
                    assert!(whole(&mut far).ends_with("async"));
                    gateway.done(round);
                }
            }
            stop.stop();
        }
    });
    let served = runtime.block_on(async {
        let readiness = watch(acceptor.as_fd().try_clone_to_owned().unwrap(), Interest::READABLE).unwrap();
        let mut served = 0;
        while let Some(mut handoff) =
            tokio::time::timeout(patience(), accept(&readiness, &mut acceptor)).await.expect("in time")
        {
            served += 1;
            // Blocking is what the library does; a runtime has threads for that.
            tokio::task::spawn_blocking(move || {
                handoff.respond(200, &[], b"async").unwrap();
                handoff.finish(200);
            });
        }
        served
    });
    gateway.join().unwrap();
    assert_eq!(served, 100);
    assert!(acceptor.drain(Duration::from_secs(5)).unwrap());
}

/// Whoever serves a client on the same thread may have read what the runtime was to be woken for.
#[test]
fn what_a_handoff_has_read_wakes_the_runtime() {
    let bench = Bench::new();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut acceptor = bench.acceptor();
    let gateway = Gateway::greet(&bench.path());
    runtime.block_on(async {
        let readiness = watch(acceptor.as_fd().try_clone_to_owned().unwrap(), Interest::READABLE).unwrap();
        let _first = gateway.hand_over(1, get());
        let handoff = accept(&readiness, &mut acceptor).await.unwrap();
        handoff.take().unwrap();
        let _second = gateway.hand_over(2, get());
        assert_eq!(handoff.wait_until_left(Duration::from_millis(20)), None);
        let next = tokio::time::timeout(patience(), accept(&readiness, &mut acceptor)).await.expect("in time");
        next.unwrap().take().unwrap();
    });
}
