//! The daemon's socket, who may connect, and how a channel begins.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Stdio;

use baton::handoff::native::frame::{Frame, Reason};

use crate::client::{Lent, Request};
use crate::gateway::{Channel, receive_on, send_on};
use crate::language::{Daemon, Language};
use crate::support::eventually;

/// HELLO comes without being asked for.
pub fn says_hello_at_once(language: Language) {
    let daemon = Daemon::native(language);
    let socket = Channel::connect(&daemon.path);
    let (packet, descriptors) = receive_on(&socket).expect("HELLO");
    let frames = frames(&packet);
    let Frame::Hello(hello) = &frames[0] else { panic!("{frames:?}") };
    assert!(hello.versions.contains(&1), "{hello:?}");
    assert_eq!(hello.in_flight_max, 100, "{hello:?}");
    assert!(hello.data_bytes_max.is_none_or(|max| max >= 1 << 20), "{hello:?}");
    assert!(descriptors.is_empty());
    let mut channel = Channel::greet(Channel::connect(&daemon.path));
    channel.is_alive();
}

pub fn says_how_many_it_takes(language: Language) {
    let daemon = Daemon::native_with(language, |command| command.args(["--in-flight-max", "7"]));
    assert_eq!(Channel::open(&daemon).hello.in_flight_max, 7);
}

/// Full is full, on one channel and over all of them; who is refused is whole, and a place that is free is given again.
pub fn refuses_what_is_too_many(language: Language) {
    let daemon = Daemon::native_with(language, |command| command.args(["--in-flight-max", "2"]));
    let (mut one, mut other) = (Channel::open(&daemon), Channel::open(&daemon));
    let mut held = [one.hand(&Request::get("/hold")), other.hand(&Request::get("/hold"))];
    one.taken(&mut held[0]);
    other.taken(&mut held[1]);
    for channel in [&mut one, &mut other] {
        let third = channel.hand(&Request::get("/hello"));
        assert_eq!(channel.refused(&third).reason, Reason::Overloaded);
        third.check_untouched(&daemon, b"");
    }
    let [first, second] = held;
    one.say(&Frame::Revoke { id: first.id, reason: "a place is needed".to_owned() });
    one.ended(first);
    let (answer, _) = other.served(&Request::get("/hello"));
    assert!(answer.ends_with(b"hello\n"));
    other.say(&Frame::Revoke { id: second.id, reason: "the end".to_owned() });
    other.ended(second);
}

pub fn ends_a_channel_that_does_not_begin_with_hello(language: Language) {
    let daemon = Daemon::native(language);
    let before = Frame::Ping(b"early".to_vec()).encode();
    let socket = Channel::connect(&daemon.path);
    send_on(&socket, &before, &[]).expect("it reads");
    only_hello_comes(&socket);

    let socket = Channel::connect(&daemon.path);
    let lent = Lent::new(1);
    send_on(&socket, &Request::get("/hello").frame(1), &[lent.client()]).expect("it reads");
    only_hello_comes(&socket);
    lent.check_untouched(&daemon, b"");
    Channel::open(&daemon).is_alive();
}

/// Nothing but HELLO, perhaps, and what is no answer to anything, then the end.
#[track_caller]
fn only_hello_comes(socket: &OwnedFd) {
    while let Some((packet, _)) = receive_on(socket) {
        for frame in frames(&packet) {
            let is_fine = matches!(frame, Frame::Hello(_) | Frame::Load(_) | Frame::Ping(_) | Frame::Ignored(_));
            assert!(is_fine, "{frame:?}");
        }
    }
}

#[track_caller]
fn frames(packet: &[u8]) -> Vec<Frame> {
    let mut frames = Vec::new();
    let mut rest = packet;
    while !rest.is_empty() {
        let frame;
        (frame, rest) = Frame::split(rest).unwrap_or_else(|error| panic!("{error} in {packet:02x?}"));
        frames.push(frame);
    }
    frames
}

pub fn agrees_on_a_version(language: Language) {
    let daemon = Daemon::native(language);
    for (hello, is_fine) in [
        (r#"{"versions":[1],"in_flight_max":0}"#, true),
        (r#"{"versions":[3,1,2],"in_flight_max":0,"name":"\u00e9","unknown":{"a":[1]}}"#, true),
        (r#"{"versions":[2],"in_flight_max":0}"#, false),
        (r#"{"versions":[],"in_flight_max":0}"#, false),
        (r#"{"versions":1,"in_flight_max":0}"#, false),
        (r#"{"in_flight_max":0}"#, false),
        ("[1]", false),
        ("", false),
        ("{", false),
    ] {
        let socket = Channel::connect(&daemon.path);
        let mut packet = header(1, 0, hello.len(), 0);
        packet.extend(hello.as_bytes());
        packet.extend(Frame::Ping(b"there?".to_vec()).encode());
        send_on(&socket, &packet, &[]).expect("it reads");
        let mut all = Vec::new();
        let pong = Frame::Pong(b"there?".to_vec());
        while let Some((packet, _)) = receive_on(&socket) {
            all.extend(frames(&packet));
            if all.contains(&pong) {
                break;
            }
        }
        assert_eq!(all.contains(&pong), is_fine, "{hello}: {all:?}");
    }
}

pub fn ends_a_channel_with_a_second_hello(language: Language) {
    let daemon = Daemon::native(language);
    let mut channel = Channel::open(&daemon);
    let hello = Frame::Hello(channel.hello.clone());
    channel.say(&hello);
    channel.has_ended();
}

/// HELLO is about no handoff.
pub fn ends_a_channel_with_a_hello_that_has_an_id(language: Language) {
    let daemon = Daemon::native(language);
    let socket = Channel::connect(&daemon.path);
    let hello = r#"{"versions":[1],"in_flight_max":0}"#;
    send_on(&socket, &[&header(1, 0, hello.len(), 1)[..], hello.as_bytes()].concat(), &[]).expect("it reads");
    only_hello_comes(&socket);
    Channel::open(&daemon).is_alive();
}

/// A frame's header with whatever it says.
pub fn header(kind: u8, flags: u8, length: usize, id: u64) -> Vec<u8> {
    let mut header = vec![0xB7, 1, kind, flags];
    header.extend(u32::try_from(length).expect("short").to_le_bytes());
    header.extend(id.to_le_bytes());
    header
}

/// Not a byte for those who are not on the list; and whoever is on it is served.
pub fn refuses_peers_that_are_not_allowed(language: Language) {
    let own = nix::unistd::geteuid().as_raw();
    let daemon = Daemon::native_with(language, |command| command.env("BATON_GATEWAY_UIDS", (own + 12345).to_string()));
    let socket = Channel::connect(&daemon.path);
    assert!(receive_on(&socket).is_none(), "it speaks to anybody");

    let list = format!("{},{own}", own + 12345);
    let daemon = Daemon::native_with(language, |command| command.env("BATON_GATEWAY_UIDS", list));
    Channel::open(&daemon).is_alive();
}

/// A list that cannot be read is nobody's.
pub fn does_not_start_with_a_list_that_cannot_be_read(language: Language) {
    let folder = crate::support::folder();
    let path = folder.path().join("d.sock");
    for list in ["root", "0,", "0 1", "-1", "", "4294967296"] {
        let mut command = (language.command)();
        command.arg(&path).arg("baton").env("BATON_GATEWAY_UIDS", list);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let status = eventually("it gives up", || {
            let ended = child.try_wait().unwrap();
            if ended.is_none() && path.exists() {
                drop(child.kill());
            }
            ended
        });
        assert!(status.code().is_some_and(|code| code != 0), "with {list:?}: {status}");
    }
}

pub fn lets_its_group_connect_and_nobody_else(language: Language) {
    let daemon = Daemon::native(language);
    assert_eq!(fs::metadata(&daemon.path).unwrap().permissions().mode() & 0o777, 0o660);
}

pub fn replaces_a_stale_socket_and_no_live_one(language: Language) {
    let mut daemon = Daemon::native(language);
    let path = daemon.path.clone();
    daemon.child.kill().unwrap();
    daemon.child.wait().unwrap();
    assert!(path.exists(), "it was killed");
    let again = Daemon::start(language, &path, "baton", 2);
    let mut second = (language.command)();
    second.arg(&path).arg("baton").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut second = second.spawn().unwrap();
    let status = eventually("the second gives up", || second.try_wait().unwrap());
    assert!(!status.success());
    Channel::open(&again).is_alive();
}

pub fn serves_channels_side_by_side(language: Language) {
    let daemon = Daemon::native(language);
    // One that never says anything, one that holds a client, and another.
    let silent = Channel::connect(&daemon.path);
    let mut one = Channel::open(&daemon);
    let mut held = one.hand(&Request::get("/hold"));
    one.taken(&mut held);
    for _ in 0..3 {
        let mut other = Channel::open(&daemon);
        let (answer, _) = other.served(&Request::get("/hello"));
        assert!(answer.ends_with(b"hello\n"));
    }
    drop(silent);
    one.is_alive();
}

/// Who asks and does not read the answers stops itself at most.
pub fn a_gateway_that_does_not_read_delays_nobody(language: Language) {
    let daemon = Daemon::native(language);
    let deaf = Channel::open(&daemon);
    deaf.flood(&Frame::Ping(vec![b'p'; 50_000]).encode());
    let mut other = Channel::open(&daemon);
    for _ in 0..3 {
        assert!(other.served(&Request::get("/hello")).0.ends_with(b"hello\n"));
        other.is_alive();
    }
    drop(deaf);
    assert!(Channel::open(&daemon).served(&Request::get("/hello")).0.ends_with(b"hello\n"));
}

/// What connects and leaves, or only connects, costs nothing in the end.
pub fn lets_go_of_channels_that_end(language: Language) {
    let daemon = Daemon::native(language);
    Channel::open(&daemon).is_alive();
    let before = daemon.descriptors_at_rest();
    for round in 0..50 {
        let socket = Channel::connect(&daemon.path);
        if round % 2 == 0 {
            Channel::greet(socket).is_alive();
        }
    }
    eventually("their descriptors are back", || (daemon.descriptors() <= before).then_some(()));
    Channel::open(&daemon).is_alive();
}

/// A packet with something wrong in it counts as none, also in front of what is wrong.
pub fn takes_a_packet_whole_or_not_at_all(language: Language) {
    let daemon = Daemon::native(language);
    for wrong in [&b"\xB7\x01"[..], &header(12, 0, 0, 0)] {
        let mut channel = Channel::open(&daemon);
        let lent = channel.prepare();
        let ping = Frame::Ping(b"in front".to_vec()).encode();
        channel.send(&[&ping[..], &Request::get("/hello").frame(lent.id), wrong].concat(), &[lent.client()]);
        channel.has_ended();
        lent.check_untouched(&daemon, b"");
    }
}
