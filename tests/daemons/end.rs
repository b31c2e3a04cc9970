//! Ends: of the daemon, of the gateway, of a long day.

use std::os::fd::{AsFd as _, AsRawFd as _};

use baton::handoff::native::frame::Reason;
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};

use crate::client::{Request, Stray};
use crate::gateway::Channel;
use crate::language::{Daemon, Language};
use crate::start::header;
use crate::support::eventually;

/// DRAINING on every channel; who comes is refused, who is there is served to the end; then a clean exit.
pub fn drains_at_term(language: Language) {
    let mut daemon = Daemon::native(language);
    let (mut one, mut other) = (Channel::open(&daemon), Channel::open(&daemon));
    let mut large = one.hand(&Request::get("/large?bytes=20000000"));
    one.taken(&mut large);
    large.far.until("aaaa");
    daemon.terminate();
    one.draining();
    other.draining();
    for channel in [&mut one, &mut other] {
        let late = channel.hand(&Request::get("/hello"));
        assert_eq!(channel.refused(&late).reason, Reason::Draining);
        late.check_untouched(&daemon, b"");
    }
    let rest = large.far.rest();
    assert_eq!(rest.iter().rev().take_while(|byte| **byte == b'a').count(), rest.len());
    let report = one.done(&large);
    assert_eq!((report.result.word(), report.status), ("ok", Some(200)));
    one.has_ended();
    other.has_ended();
    daemon.has_ended_well();
    assert!(!daemon.path.exists(), "its socket stays");
}

pub fn ends_at_term_with_nothing_to_do(language: Language) {
    let mut daemon = Daemon::native(language);
    let mut channel = Channel::open(&daemon);
    let (_, lent) = channel.answered(&Request::get("/return"));
    daemon.terminate();
    channel.draining();
    channel.has_ended();
    daemon.has_ended_well();
    drop(lent);

    let mut daemon = Daemon::native(language);
    daemon.terminate();
    daemon.has_ended_well();
}

/// A successor has taken its place: that one's file is not the old one's to remove.
pub fn leaves_the_socket_of_its_successor(language: Language) {
    let mut daemon = Daemon::native(language);
    let mut channel = Channel::open(&daemon);
    std::fs::remove_file(&daemon.path).unwrap();
    let next = Daemon::start(language, &daemon.path, "baton", 2);
    channel.is_alive();
    drop(channel);
    daemon.terminate();
    daemon.has_ended_well();
    Channel::open(&next).is_alive();
}

/// What was taken goes on when its channel ends: the gateway has restarted, or has been killed.
pub fn serves_on_when_the_gateway_has_gone(language: Language) {
    let daemon = Daemon::native(language);
    let mut channel = Channel::open(&daemon);
    let mut large = channel.hand(&Request::get("/large?bytes=20000000"));
    channel.taken(&mut large);
    let mut held = channel.hand(&Request::get("/hold"));
    channel.taken(&mut held);
    held.far.until("held\n");
    large.far.until("\r\n\r\n");
    drop(channel);
    // The daemon has noticed for sure when others were served.
    Channel::open(&daemon).served(&Request::get("/hello"));
    let rest = large.far.rest();
    assert_eq!(rest.len(), 20_000_000);
    assert!(daemon.holds(held.inode), "it has let go of a client");
    drop(held.leave());
    eventually("it notices", || (!daemon.holds(held.inode)).then_some(()));
    let mut again = Channel::open(&daemon);
    again.served(&Request::get("/hello"));
}

/// Thousands of clients, kept and new, refused and left: nothing stays.
pub fn neither_descriptors_nor_memory_grow(language: Language) {
    let daemon = Daemon::native(language);
    let mut channel = Channel::open(&daemon);
    let (_, mut kept) = channel.answered(&Request::get("/return"));
    let mut round = |count: usize| {
        for n in 0..count {
            channel.hand_again(&mut kept, &Request::get("/data").data(&[b'd'; 1000]));
            assert_eq!(channel.answered_again(&mut kept).body.len(), 1000);
            if n % 4 == 0 {
                channel.served(&Request::get("/hello"));
                let lent = channel.hand(&Request::get("/refuse?reason=denied"));
                channel.refused(&lent);
            }
        }
    };
    round(200);
    let descriptors = daemon.descriptors_at_rest();
    // What is kept for good grows in every round, a heap that finds its size does not. 1,200 handoffs each: a kilobyte of
    // each would show.
    let mut grown = [0; 3];
    for grown in &mut grown {
        let bytes = daemon.resident_bytes();
        round(800);
        *grown = daemon.resident_bytes().saturating_sub(bytes);
        if *grown < 1 << 20 {
            break;
        }
    }
    eventually("the descriptors are back", || (daemon.descriptors() <= descriptors).then_some(()));
    assert!(grown[2] < 1 << 20, "it grows, in bytes: {grown:?}");
}

/// What may be secret is in no log: not when all is well, and not when it is not.
pub fn says_nothing_of_data_and_headers(language: Language) {
    let mut daemon = Daemon::native(language);
    let secret = b"s3cret";
    let request = |target: &str| Request::get(target).data(secret).header("authorization", "Bearer s3cret");
    let mut channel = Channel::open(&daemon);
    channel.served(&request("/hello"));
    channel.served(&request("/fail"));
    channel.served(&request("/drop"));
    channel.answered(&request("/data"));
    let lent = channel.hand(&request("/refuse?reason=denied"));
    channel.refused(&lent);
    let mut held = channel.hand(&request("/hold"));
    channel.taken(&mut held);
    drop(held.leave());
    channel.done(&held);
    let mut lent = channel.prepare();
    lent.far.send("zz\r\ns3cret");
    channel.hand_again(&mut lent, &Request { data: secret.to_vec(), ..Request::chunked("/echo") });
    channel.taken(&mut lent);
    channel.ended(lent);
    for wrong in 0..3 {
        let mut channel = Channel::open(&daemon);
        let lent = channel.prepare();
        let mut packet = request("/hello").frame(lent.id);
        match wrong {
            0 => packet.extend(b"s3cret"),
            1 => packet[16 + 4] = b'[',
            _ => packet[3] = 2,
        }
        channel.send(&packet, &[lent.client()]);
        channel.has_ended();
    }
    drop(channel);
    daemon.terminate();
    daemon.has_ended_well();
    let said = daemon.output();
    assert!(!said.contains("s3cret"), "{said}");
}

/// A flood of what is wrong, beside a client that is served.
pub fn outlives_a_flood(language: Language) {
    let daemon = Daemon::native(language);
    let mut good = Channel::open(&daemon);
    let mut hold = || {
        let mut held = good.hand(&Request::get("/hold"));
        good.taken(&mut held);
        held.far.until("held\n");
        held
    };
    let mut first = hold();
    let mut held = hold();
    drop(first.leave());
    good.done(&first);
    // With one of them: what is opened for the first and kept is there.
    let before = daemon.descriptors_at_rest();
    for n in 0..100_u8 {
        let channel = Channel::open(&daemon);
        let stray = Stray::new();
        let descriptors = vec![stray.copy.as_fd(); usize::from(n)];
        channel.send(&header(n, n & 0x7F, usize::from(n % 7), u64::from(n)), &descriptors);
        if n % 2 == 0 {
            drop(descriptors);
            drop(channel);
            stray.check_closed();
        }
    }
    good.is_alive();
    eventually("nothing stays open", || (daemon.descriptors() <= before).then_some(()));
    drop(held.leave());
    good.done(&held);
}

/// A drained daemon's place is free.
pub fn lets_nobody_connect_after_its_end(language: Language) {
    let mut daemon = Daemon::native(language);
    Channel::open(&daemon).is_alive();
    daemon.terminate();
    daemon.has_ended_well();
    let socket = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap();
    let connected = connect(socket.as_raw_fd(), &UnixAddr::new(&daemon.path).unwrap());
    assert_eq!(connected, Err(Errno::ENOENT));
}
