//! Peers that break the protocol: the channel ends, everything that came is closed, nobody else notices.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use baton::handoff::native::frame::Frame;
use baton::handoff::native::header::PACKET_BYTES_MAX;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

use crate::client::{Lent, Request, Stray};
use crate::dialects::check_answer;
use crate::gateway::Channel;
use crate::language::{Daemon, Language};
use crate::start::header;
use crate::support::eventually;

/// What a packet is sent with.
type Descriptors<'a> = Vec<BorrowedFd<'a>>;

/// Sends what `make` returns, to which a pipe's end and a client of nobody are given, and checks that the channel ends, and
/// all of it is closed; a client that was taken on that channel has its stream to the end, and others are served.
#[track_caller]
fn ends(daemon: &Daemon, what: &str, make: impl for<'a> Fn(&'a Stray, &'a Lent) -> (Vec<u8>, Descriptors<'a>)) {
    let _what = Named(what);
    let mut other = Channel::open(daemon);
    let mut channel = Channel::open(daemon);
    let mut stream = channel.hand(&Request::get("/"));
    channel.taken(&mut stream);
    let (stray, lent) = (Stray::new(), Lent::new(1_000));
    let (packet, descriptors) = make(&stray, &lent);
    channel.send(&packet, &descriptors);
    drop(descriptors);
    channel.has_ended_but_for(&stream);
    stray.check_closed();
    lent.check_untouched(daemon, b"");
    check_answer(&String::from_utf8(stream.far.rest()).unwrap(), "baton", "");
    other.is_alive();
}

/// Says in which case something failed.
pub struct Named<'a>(pub &'a str);

impl Drop for Named<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("in the case: {}", self.0);
        }
    }
}

/// Descriptors at rest, once everything that is opened for the first of its kind and kept has been.
fn descriptors_after_one(daemon: &Daemon) -> usize {
    ends(daemon, "the first", |stray, _| (vec![0; 20], vec![stray.copy.as_fd()]));
    daemon.descriptors_at_rest()
}

/// All of them, then the ledger.
fn each(language: Language, cases: &[(&str, &[u8])]) {
    let daemon = Daemon::native(language);
    let before = descriptors_after_one(&daemon);
    for (what, packet) in cases {
        ends(&daemon, what, |_, _| (packet.to_vec(), Vec::new()));
    }
    eventually("nothing stays open", || (daemon.descriptors() <= before).then_some(()));
}

pub fn ends_a_channel_with_a_wrong_header(language: Language) {
    let ping = Frame::Ping(b"ping".to_vec()).encode();
    let with = |at: usize, byte: u8| {
        let mut packet = ping.clone();
        packet[at] = byte;
        packet
    };
    let behind = |more: &[u8]| [&ping, more].concat();
    each(
        language,
        &[
            ("magic", &with(0, 0xB6)),
            ("magic 0", &with(0, 0)),
            ("version 0", &with(1, 0)),
            ("version 2", &with(1, 2)),
            ("one byte", b"\xB7"),
            ("fifteen bytes", &ping[..15]),
            ("a payload that is not there", &ping[..16]),
            ("a payload that is cut", &ping[..19]),
            ("a longer payload", &with(4, 5)),
            ("the longest payload", &header(10, 0, 0xFFFF_FFFF, 0)),
            ("a shorter payload", &with(4, 3)),
            ("a byte behind", &behind(b"\0")),
            ("half a header behind", &behind(&ping[..8])),
            ("a wrong frame behind", &behind(&with(0, 0))),
        ],
    );
}

pub fn ends_a_channel_with_a_type_that_it_does_not_know(language: Language) {
    each(
        language,
        &[
            ("type 0", &header(0, 0, 0, 0)),
            ("type 12", &header(12, 0, 0, 0)),
            ("type 255", &header(255, 0x7F, 0, 0)),
            ("behind a fine one", &[Frame::Ping(Vec::new()).encode(), header(200, 0, 0, 1)].concat()),
        ],
    );
}

/// With the flag, anything may be said of it.
pub fn ignores_a_type_that_it_need_not_know(language: Language) {
    let daemon = Daemon::native(language);
    let mut channel = Channel::open(&daemon);
    for (kind, flags, payload, id) in
        [(12, 0x80, "", 0), (200, 0x80, "anything \0", 0), (255, 0xFF, "", u64::MAX), (0, 0x80, "x", 1)]
    {
        let mut packet = header(kind, flags, payload.len(), id);
        packet.extend(payload.as_bytes());
        channel.send(&packet, &[]);
        packet.extend(Frame::Ping(b"behind".to_vec()).encode());
        channel.send(&packet, &[]);
        assert_eq!(channel.pong(), b"behind", "type {kind}");
    }
    // But its descriptors are nobody's.
    ends(&daemon, "a descriptor with it", |stray, _| (header(200, 0x80, 0, 0), vec![stray.copy.as_fd()]));
}

pub fn ends_a_channel_whose_gateway_speaks_as_a_daemon(language: Language) {
    let json = |kind: u8, id: u64, text: &str| [header(kind, 0, text.len(), id), text.as_bytes().to_vec()].concat();
    each(
        language,
        &[
            ("TAKEN", &header(3, 0, 0, 1)),
            ("REFUSED", &json(4, 1, r#"{"reason":"denied"}"#)),
            ("DONE", &json(5, 1, r#"{"result":"ok","bytes_out":0,"duration_us":0}"#)),
            ("LOAD", &json(7, 0, r#"{"in_flight":0,"load":0}"#)),
            ("DRAINING", &header(8, 0, 0, 0)),
        ],
    );
}

pub fn ends_a_channel_with_a_wrong_id(language: Language) {
    let reason = br#"{"reason":"x"}"#;
    each(language, &[("REVOKE of none", &[&header(9, 0, reason.len(), 0)[..], reason].concat())]);
    let daemon = Daemon::native(language);
    ends(&daemon, "HANDOFF of none", |_, lent| {
        let request = Request::get("/hello");
        let mut packet = request.frame(1);
        packet[8] = 0;
        (packet, vec![lent.client()])
    });
    let mut channel = Channel::open(&daemon);
    let (mut held, lent) = (channel.hand(&Request::get("/hold")), Lent::new(0));
    channel.taken(&mut held);
    channel.send(&Request::get("/hello").frame(held.id), &[lent.client()]);
    channel.has_ended();
    lent.check_untouched(&daemon, b"");
    held.far.until("held\n");
    drop(held.leave());
    ends(&daemon, "two of one id", |_, lent| {
        let frame = Request::get("/hello").frame(7);
        ([&frame[..], &frame].concat(), vec![lent.client(); 2])
    });
}

/// A HANDOFF's payload that is none.
pub fn ends_a_channel_with_a_wrong_payload(language: Language) {
    let daemon = Daemon::native(language);
    let before = descriptors_after_one(&daemon);
    let section = |bytes: &[u8]| [&u32::try_from(bytes.len()).unwrap().to_le_bytes()[..], bytes].concat();
    let sections = |all: &[&[u8]]| all.iter().flat_map(|one| section(one)).collect::<Vec<u8>>();
    let fine = || sections(&[b"{}", b"", b""]);
    for (what, flags, payload) in [
        ("nothing", 0, Vec::new()),
        ("two sections", 0, sections(&[b"{}", b""])),
        ("four sections", 0, sections(&[b"{}", b"", b"", b""])),
        ("a section that ends behind it", 0, [&fine()[..10], &[1, 0, 0, 0]].concat()),
        ("a very long section", 0, [&[255; 4][..], b"{}"].concat()),
        ("a byte behind", 0, [&fine()[..], b"x"].concat()),
        ("no JSON", 0, sections(&[b"{", b"", b""])),
        ("no object", 0, sections(&[b"[]", b"", b""])),
        ("no UTF-8", 0, sections(&[b"{\"a\":\"\xff\"}", b"", b""])),
        ("no metadata", 0, sections(&[b"", b"", b""])),
        ("data in a memfd and here", 2, sections(&[b"{}", b"x", b""])),
        ("preread in a memfd and here", 4, sections(&[b"{}", b"", b"x"])),
    ] {
        ends(&daemon, what, |_, lent| {
            let packet = [header(2, flags, payload.len(), 1_000), payload.clone()].concat();
            (packet, vec![lent.client(); if flags == 0 { 1 } else { 2 }])
        });
    }
    ends(&daemon, "REVOKE without an object", |_, _| ([header(9, 0, 1, 9), b"x".to_vec()].concat(), Vec::new()));
    eventually("nothing stays open", || (daemon.descriptors() <= before).then_some(()));
}

pub fn ends_a_channel_with_a_wrong_number_of_descriptors(language: Language) {
    let daemon = Daemon::native(language);
    let before = descriptors_after_one(&daemon);
    let ping = Frame::Ping(Vec::new()).encode();
    for count in [1, 2, 253] {
        ends(&daemon, "PING with some", |stray, _| (ping.clone(), vec![stray.copy.as_fd(); count]));
    }
    ends(&daemon, "HANDOFF with none", |_, _| (Request::get("/hello").frame(1_000), Vec::new()));
    for count in [1, 2, 252] {
        ends(&daemon, "HANDOFF with more", |stray, lent| {
            let mut descriptors = vec![lent.client()];
            descriptors.extend(vec![stray.copy.as_fd(); count]);
            (Request::get("/hello").frame(1_000), descriptors)
        });
    }
    for flags in [1_u8, 2, 4, 7] {
        ends(&daemon, "HANDOFF without its memfds", |stray, lent| {
            let mut packet = Request::get("/hello").frame(1_000);
            packet[3] = flags;
            let mut descriptors = vec![lent.client()];
            descriptors.extend(vec![stray.copy.as_fd(); flags.count_ones() as usize - 1]);
            (packet, descriptors)
        });
    }
    ends(&daemon, "two frames, one client", |_, lent| {
        let packet = [Request::get("/hello").frame(1_000), Request::get("/hello").frame(1_001)].concat();
        (packet, vec![lent.client()])
    });
    eventually("nothing stays open", || (daemon.descriptors() <= before).then_some(()));
}

/// What comes as a client is one: a stream socket.
pub fn ends_a_channel_with_a_client_that_is_none(language: Language) {
    let daemon = Daemon::native(language);
    ends(&daemon, "a pipe", |stray, _| (Request::get("/hello").frame(1_000), vec![stray.copy.as_fd()]));
    for kind in [SockType::Datagram, SockType::SeqPacket] {
        let (one, _other): (OwnedFd, OwnedFd) =
            socketpair(AddressFamily::Unix, kind, None, SockFlag::SOCK_CLOEXEC).unwrap();
        let mut channel = Channel::open(&daemon);
        channel.send(&Request::get("/hello").frame(1_000), &[one.as_fd()]);
        channel.has_ended();
        drop(one);
    }
    Channel::open(&daemon).is_alive();
}

/// One byte more than a packet may have: what was cut off is not there.
pub fn ends_a_channel_with_a_packet_that_is_too_long(language: Language) {
    let daemon = Daemon::native(language);
    for (what, payload_said) in
        [("as long as it says", PACKET_BYTES_MAX + 1 - 16), ("fine but for the last byte", PACKET_BYTES_MAX - 16)]
    {
        ends(&daemon, what, |_, _| {
            let mut packet = header(10, 0, payload_said, 0);
            packet.resize(PACKET_BYTES_MAX + 1, b'p');
            (packet, Vec::new())
        });
    }
    ends(&daemon, "a client with it", |_, lent| {
        let mut packet = Request::get("/data").frame(1_000);
        let more = PACKET_BYTES_MAX + 1 - packet.len();
        packet = Request::get("/data").data(&vec![b'd'; more - 20]).frame(1_000);
        packet.extend(header(10, 0, 4, 0));
        packet.extend(b"ping");
        assert_eq!(packet.len(), PACKET_BYTES_MAX + 1);
        (packet, vec![lent.client()])
    });
}

/// Echoed to the byte, up to the largest packet; of a PONG nothing comes.
pub fn answers_ping(language: Language) {
    let daemon = Daemon::native(language);
    let mut channel = Channel::open(&daemon);
    for length in [0, 1, 1000, PACKET_BYTES_MAX - 16] {
        let payload: Vec<u8> = (0..=255).cycle().take(length).collect();
        channel.say(&Frame::Ping(payload.clone()));
        assert!(channel.pong() == payload, "{length} bytes");
    }
    channel.say(&Frame::Pong(b"nobody asked".to_vec()));
    // The id of one is nothing to look at.
    let mut packet = Frame::Ping(b"id".to_vec()).encode();
    packet[8] = 9;
    channel.send(&packet, &[]);
    assert_eq!(channel.pong(), b"id");
}

/// Whatever a handler does.
pub fn answers_ping_while_it_serves(language: Language) {
    let daemon = Daemon::native_with(language, |command| command.args(["--interval", "20"]));
    let mut channel = Channel::open(&daemon);
    let mut held = channel.hand(&Request::get("/hold"));
    channel.taken(&mut held);
    held.far.until("held\n");
    let mut stream = channel.hand(&Request::get("/"));
    channel.taken(&mut stream);
    stream.far.until("\"n\":1,");
    for _ in 0..5 {
        channel.is_alive();
    }
    assert!(daemon.holds(stream.inode), "it answers when the stream has ended");
    drop(held.leave());
    channel.done(&held);
    channel.ended_later(stream);
}
