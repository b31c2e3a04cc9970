//! Limits, at them and past them; and a process that has run out of descriptors.

use std::os::fd::{AsFd as _, OwnedFd};

use baton::handoff::native::frame::{Memfds, Reason};
use baton::handoff::{End, Options};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::scripted::{Gateway, get, handoff, handoff_with, memfd, request, tcp_client};
use crate::{Bench, accept, options, whole};

#[test]
fn as_many_are_in_flight_as_can_be_borne_and_one_more_is_refused() {
    let bench = Bench::new();
    let mut acceptor = bench.acceptor_with(Options { in_flight_max: 2, ..options() });
    let mut one = Gateway::greet(&bench.path());
    let mut other = Gateway::greet(&bench.path());
    let mut fars: Vec<_> = (1..=3).map(|id| one.hand_over(id, get())).collect();
    let first = accept(&mut acceptor);
    let _second = accept(&mut acceptor);
    // Full on this channel, and over all of them.
    fars.push(other.hand_over(1, get()));
    assert!(acceptor.try_accept().unwrap().is_pending());
    for (gateway, id) in [(&mut one, 3), (&mut other, 1)] {
        let refusal = gateway.refused(id);
        assert_eq!(refusal.reason, Reason::Overloaded);
    }
    assert_eq!((whole(&mut fars[2]), acceptor.in_flight()), (String::new(), 2));
    // Room again.
    first.finish(End::ok());
    fars.push(other.hand_over(2, get()));
    accept(&mut acceptor).finish(End::ok());
}

#[test]
fn data_past_its_limit_is_refused_and_at_it_arrives() {
    let bench = Bench::new();
    let mut acceptor = bench.acceptor_with(Options { data_bytes_max: 1000, ..options() });
    let mut gateway = Gateway::greet(&bench.path());
    let memfds = Memfds { data: true, ..Memfds::default() };
    for (id, length, is_in_memfd) in [(1, 1000, false), (2, 1001, false), (3, 1000, true), (4, 1001, true)] {
        let (client, _far) = tcp_client();
        let data = vec![b'd'; length];
        if is_in_memfd {
            let file = memfd(&data, true);
            gateway.send(&[handoff_with(id, get(), b"", b"", memfds)], &[client.as_fd(), file.as_fd()]);
        } else {
            gateway.send(&[handoff_with(id, get(), &data, b"", Memfds::default())], &[client.as_fd()]);
        }
        if length == 1000 {
            let handoff = accept(&mut acceptor);
            assert_eq!(handoff.data(), data);
            drop(handoff);
            assert_eq!(gateway.refused(id).reason, Reason::Overloaded);
        } else {
            assert!(acceptor.try_accept().unwrap().is_pending());
            let refusal = gateway.refused(id);
            assert_eq!(refusal.reason, Reason::Unsupported);
            assert_eq!(refusal.message.as_deref(), Some("1001 bytes of data, at most 1000 are taken"));
        }
    }
    drop((acceptor, gateway));
    bench.check_ledger();
}

/// Opens all that may be opened but for `left`.
fn exhaust(left: usize) -> (Vec<OwnedFd>, u64) {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, 200.min(soft), hard).unwrap();
    let mut held: Vec<OwnedFd> = vec![std::fs::File::open("/dev/null").unwrap().into()];
    while let Ok(copy) = held[0].try_clone() {
        held.push(copy);
    }
    held.truncate(held.len() - left);
    (held, soft)
}

/// Nobody is touched, so another daemon can have them; nothing that came halfway stays.
#[test]
fn without_descriptors_clients_are_refused_and_the_channel_lives() {
    let bench = Bench::new();
    let mut acceptor = bench.acceptor();
    let mut gateway = Gateway::greet(&bench.path());
    assert!(acceptor.try_accept().unwrap().is_pending());
    let clients: Vec<_> = (0..4).map(|_| tcp_client()).collect();
    let file = memfd(b"data", true);
    for left in [0, 1, 2] {
        let (held, soft) = exhaust(left);
        // Three descriptors where there is room for fewer.
        let memfds = Memfds { data: true, ..Memfds::default() };
        let frames = [handoff(1, get()), handoff_with(2, get(), b"", b"", memfds)];
        gateway.send(&frames, &[clients[0].0.as_fd(), clients[1].0.as_fd(), file.as_fd()]);
        let accepted = acceptor.try_accept();
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
        drop(held);
        assert!(accepted.unwrap().is_pending());
        for id in [1, 2] {
            assert_eq!(gateway.refused(id).message.as_deref(), Some("no descriptors are left"));
        }
    }
    // With room it goes on as before.
    gateway.send(&[handoff(3, get())], &[clients[2].0.as_fd()]);
    accept(&mut acceptor).finish(End::ok());
    acceptor.flush();
    gateway.taken(3);
    gateway.done(3);
    drop((acceptor, gateway, clients, file));
    bench.check_ledger();
}

#[test]
fn without_descriptors_a_new_gateway_waits() {
    let bench = Bench::new();
    let mut acceptor = bench.acceptor();
    let gateway = Gateway::greet(&bench.path());
    let (held, soft) = exhaust(0);
    let accepted = (0..10).map(|_| acceptor.try_accept()).collect::<Result<Vec<_>, _>>();
    let deadline = acceptor.deadline();
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
    drop(held);
    assert!(accepted.unwrap().iter().all(std::task::Poll::is_pending));
    assert!(deadline.is_some(), "it says when it looks again");
    let _far = gateway.hand_over(1, get());
    accept(&mut acceptor).finish(End::ok());
}

/// What of this process is in memory.
fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

/// What a stream that lasts needs, beside its descriptor.
#[test]
fn a_stream_that_lasts_needs_little_memory() {
    const COUNT: usize = 2000;
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    let bench = Bench::new();
    let mut acceptor = bench.acceptor_with(Options { in_flight_max: COUNT, ..options() });
    let mut gateway = Gateway::greet(&bench.path());
    let fields = [("user-agent", "Mozilla/5.0 (X11; Linux x86_64) and much more"), ("accept", "text/event-stream")];
    let metadata = request("GET", "/v1/chat", &fields);
    let mut fars = Vec::with_capacity(COUNT);
    let mut held = Vec::with_capacity(COUNT);
    let mut before = 0;
    for id in 1..=COUNT as u64 {
        let (client, far) = std::os::unix::net::UnixStream::pair().unwrap();
        gateway.send(&[handoff_with(id, metadata.clone(), &[b'd'; 10_000], &[], Memfds::default())], &[client.as_fd()]);
        fars.push(far);
        let mut handoff = accept(&mut acceptor);
        handoff.start(200, &[("Content-Type", "text/event-stream")]).unwrap();
        handoff.shrink();
        assert_eq!((handoff.data().len(), handoff.metadata().len()), (0, 0));
        held.push(handoff);
        gateway.taken(id);
        if id == COUNT as u64 / 2 {
            before = resident_bytes();
        }
    }
    let each = (resident_bytes() - before) / (COUNT / 2);
    assert!(each <= 1024, "{each} bytes");
    drop((held, fars, gateway, acceptor));
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
    bench.check_ledger();
}
