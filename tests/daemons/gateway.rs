//! A gateway whose every packet is the test's: the pure codec on real sockets, one channel at a time.

use std::collections::VecDeque;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Instant;

use baton::handoff::native::frame::{Frame, Hello, Refusal, Report};
use baton::handoff::native::header::PACKET_BYTES_MAX;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, setsockopt, socket, sockopt};
use nix::sys::time::{TimeVal, TimeValLike as _};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

use crate::client::{Lent, Request, Response, inode};
use crate::language::Daemon;
use crate::support::{eventually, patience};

/// A channel to a daemon, as a worker of a gateway has it.
pub struct Channel {
    socket: OwnedFd,
    /// The daemon's.
    pub hello: Hello,
    inbox: VecDeque<(Frame, Vec<OwnedFd>)>,
    id: u64,
}

impl Channel {
    /// Connects and says nothing yet.
    pub fn connect(path: &Path) -> OwnedFd {
        let socket = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).expect("a socket");
        let timeout = TimeVal::milliseconds(i64::try_from(patience().as_millis()).expect("not for ever"));
        setsockopt(&socket, sockopt::ReceiveTimeout, &timeout).expect("a socket");
        setsockopt(&socket, sockopt::SendTimeout, &timeout).expect("a socket");
        connect(socket.as_raw_fd(), &UnixAddr::new(path).expect("short")).expect("it listens");
        socket
    }

    /// A channel on which both have said HELLO.
    #[track_caller]
    pub fn open(daemon: &Daemon) -> Self {
        Self::greet(Self::connect(&daemon.path))
    }

    #[track_caller]
    pub fn greet(socket: OwnedFd) -> Self {
        let hello = Hello {
            versions: vec![1],
            name: "suite".to_owned(),
            pid: 0,
            in_flight_max: 0,
            data_bytes_max: None,
            roles: Vec::new(),
        };
        let mut channel = Self { socket, hello: hello.clone(), inbox: VecDeque::new(), id: 0 };
        channel.send(&Frame::Hello(hello).encode(), &[]);
        assert!(channel.receive(), "the channel ended before HELLO");
        match channel.inbox.pop_front() {
            Some((Frame::Hello(hello), _)) => channel.hello = hello,
            other => panic!("before HELLO: {other:?}"),
        }
        channel
    }

    /// One packet, whatever it holds.
    #[track_caller]
    pub fn send(&self, packet: &[u8], descriptors: &[BorrowedFd<'_>]) {
        send_on(&self.socket, packet, descriptors).expect("the daemon reads");
    }

    /// As many of one packet as there is room for, without reading a word of the answers.
    pub fn flood(&self, packet: &[u8]) {
        let mut tries = 0;
        // Where the daemon has made room once more in a while, it still reads.
        while tries < 20 {
            match nix::sys::socket::send(
                self.socket.as_raw_fd(),
                packet,
                MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL,
            ) {
                Ok(_) => tries = 0,
                Err(nix::errno::Errno::EAGAIN) => {
                    tries += 1;
                    std::thread::park_timeout(std::time::Duration::from_millis(5));
                }
                // The daemon has ended the channel: that is one way.
                Err(_) => return,
            }
        }
    }

    #[track_caller]
    pub fn say(&self, frame: &Frame) {
        self.send(&frame.encode(), &[]);
    }

    /// No more is read here: whatever the daemon sends from now on cannot be sent. It is still told of clients.
    pub fn deafen(&self) {
        nix::sys::socket::shutdown(self.socket.as_raw_fd(), nix::sys::socket::Shutdown::Read).expect("connected");
    }

    /// Waits until the daemon has read everything: from then on it has what was sent.
    #[track_caller]
    pub fn was_read(&self) {
        nix::ioctl_read_bad!(unread, nix::libc::TIOCOUTQ, nix::libc::c_int);
        eventually("the daemon reads", || {
            let mut count = 0;
            #[allow(unsafe_code, reason = "there is no safe form of this ioctl, and no other way to see it")]
            // SAFETY: SIOCOUTQ, which is TIOCOUTQ, writes one int to where the pointer leads.
            unsafe { unread(self.socket.as_raw_fd(), &raw mut count) }.expect("a socket");
            (count == 0).then_some(())
        });
    }

    /// A packet's frames, with their descriptors; `false` at the channel's end.
    #[track_caller]
    fn receive(&mut self) -> bool {
        let Some((packet, mut descriptors)) = receive_on(&self.socket) else { return false };
        let mut rest = &packet[..];
        assert!(!rest.is_empty(), "an empty packet");
        while !rest.is_empty() {
            let frame;
            (frame, rest) = Frame::split(rest).unwrap_or_else(|error| panic!("{error} in {packet:02x?}"));
            assert!(frame.descriptors() <= descriptors.len(), "{frame:?} without its descriptor");
            let own = descriptors.drain(..frame.descriptors()).collect();
            match frame {
                Frame::Load(_) => {}
                Frame::Ping(bytes) => self.say(&Frame::Pong(bytes)),
                frame => self.inbox.push_back((frame, own)),
            }
        }
        assert!(descriptors.is_empty(), "descriptors that belong to no frame");
        true
    }

    /// The first frame that is what is looked for; the others stay.
    #[track_caller]
    fn first(&mut self, what: &str, is_it: impl Fn(&Frame) -> bool) -> (Frame, Vec<OwnedFd>) {
        loop {
            if let Some(at) = self.inbox.iter().position(|(frame, _)| is_it(frame)) {
                return self.inbox.remove(at).expect("it was found");
            }
            assert!(self.receive(), "the channel ended before {what}");
        }
    }

    /// What is said next of a client.
    #[track_caller]
    fn next(&mut self, what: &str, lent: &Lent) -> (Frame, Vec<OwnedFd>) {
        self.first(what, |frame| about(frame) == Some(lent.id))
    }

    #[track_caller]
    pub fn pong(&mut self) -> Vec<u8> {
        match self.first("PONG", |frame| matches!(frame, Frame::Pong(_))).0 {
            Frame::Pong(bytes) => bytes,
            _ => unreachable!("it was looked for"),
        }
    }

    /// The daemon has worked off everything that was sent until now: it answers.
    #[track_caller]
    pub fn is_alive(&mut self) {
        let mark = format!("mark {}", self.id).into_bytes();
        self.say(&Frame::Ping(mark.clone()));
        assert_eq!(self.pong(), mark);
    }

    #[track_caller]
    pub fn draining(&mut self) {
        self.first("DRAINING", |frame| matches!(frame, Frame::Draining));
    }

    /// The daemon has ended the channel, and has said nothing of clients that was not asked for.
    #[track_caller]
    pub fn has_ended(&mut self) {
        while self.receive() {}
        assert!(self.inbox.is_empty(), "{:?}", self.inbox);
    }

    /// The same while a client that was taken is served; that may have been reported.
    #[track_caller]
    pub fn has_ended_but_for(&mut self, taken: &Lent) {
        while self.receive() {}
        self.inbox.retain(|(frame, _)| !matches!(frame, Frame::Done { id, .. } if *id == taken.id));
        assert!(self.inbox.is_empty(), "{:?}", self.inbox);
    }

    /// Why a client is refused; `None` where the channel ends instead.
    #[track_caller]
    pub fn refused_or_ended(&mut self, lent: &Lent) -> Option<Refusal> {
        while self.inbox.is_empty() {
            if !self.receive() {
                return None;
            }
        }
        Some(self.refused(lent))
    }

    /// Lends a new client.
    #[track_caller]
    pub fn hand(&mut self, request: &Request) -> Lent {
        let mut lent = Lent::new(0);
        self.hand_again(&mut lent, request);
        lent
    }

    /// Lends a client that is the gateway's.
    #[track_caller]
    pub fn hand_again(&mut self, lent: &mut Lent, request: &Request) {
        self.id += 1;
        lent.id = self.id;
        lent.at = Instant::now();
        self.send(&request.frame(lent.id), &lent.descriptors(request));
    }

    /// A client with the next id, of which the daemon is not told.
    pub fn prepare(&mut self) -> Lent {
        self.id += 1;
        Lent::new(self.id)
    }

    #[track_caller]
    pub fn taken(&mut self, lent: &mut Lent) {
        let frame = self.next("TAKEN", lent).0;
        assert!(matches!(frame, Frame::Taken { .. }), "for TAKEN: {frame:?}");
        lent.near = None;
    }

    #[track_caller]
    pub fn refused(&mut self, lent: &Lent) -> Refusal {
        match self.next("REFUSED", lent).0 {
            Frame::Refused { refusal, .. } => refusal,
            frame => panic!("for REFUSED: {frame:?}"),
        }
    }

    /// DONE of which it is known that it takes long.
    #[track_caller]
    pub fn done_within(&mut self, lent: &Lent, time: std::time::Duration) -> Report {
        let timeout = TimeVal::milliseconds(i64::try_from(time.as_millis()).expect("not for ever"));
        setsockopt(&self.socket, sockopt::ReceiveTimeout, &timeout).expect("a socket");
        self.done(lent)
    }

    #[track_caller]
    pub fn done(&mut self, lent: &Lent) -> Report {
        match self.next("DONE", lent).0 {
            Frame::Done { report, .. } => self.check_report(lent, report),
            frame => panic!("for DONE: {frame:?}"),
        }
    }

    /// The client comes back: the very socket. Returns what was read of it and not used, too.
    #[track_caller]
    pub fn back(&mut self, lent: &mut Lent) -> (Report, Vec<u8>) {
        let (report, unread, client) = match self.next("RETURN", lent) {
            (Frame::Return { report, unread, .. }, mut own) => (report, unread, own.remove(0)),
            (frame, _) => panic!("for RETURN: {frame:?}"),
        };
        assert_eq!(inode(&client), lent.inode, "another socket came back");
        lent.near = Some(client);
        (self.check_report(lent, report), unread)
    }

    fn check_report(&self, lent: &Lent, report: Report) -> Report {
        let elapsed = lent.at.elapsed().as_micros();
        assert!(u128::from(report.duration_us) <= elapsed, "{} us of {elapsed}", report.duration_us);
        report
    }

    /// The whole way with DONE: everything that the client got, until a clean end, and the report on it.
    #[track_caller]
    pub fn served(&mut self, request: &Request) -> (Vec<u8>, Report) {
        let mut lent = self.hand(request);
        self.taken(&mut lent);
        self.ended(lent)
    }

    /// The rest of it, for a client that was taken.
    #[track_caller]
    pub fn ended(&mut self, mut lent: Lent) -> (Vec<u8>, Report) {
        let answer = lent.far.rest();
        let report = self.done(&lent);
        assert_eq!(report.bytes_out, answer.len() as u64, "bytes_out");
        (answer, report)
    }

    /// The same for one of whose answer something was read before.
    #[track_caller]
    pub fn ended_later(&mut self, mut lent: Lent) -> Report {
        lent.far.rest();
        self.done(&lent)
    }

    /// The whole way with RETURN.
    #[track_caller]
    pub fn answered(&mut self, request: &Request) -> (Response, Lent) {
        let mut lent = self.hand(request);
        (self.answered_again(&mut lent), lent)
    }

    /// The rest of it. Nothing may have been read beyond the body.
    #[track_caller]
    pub fn answered_again(&mut self, lent: &mut Lent) -> Response {
        self.taken(lent);
        let response = lent.far.response();
        let (report, unread) = self.back(lent);
        assert_eq!(report.bytes_out, response.bytes(), "bytes_out");
        assert_eq!(report.result.word(), "ok");
        assert_eq!(report.status, Some(response.status));
        assert!(!response.head.to_ascii_lowercase().contains("connection: close"), "{}", response.head);
        assert_eq!(unread, b"");
        response
    }
}

/// Whom a frame is about.
fn about(frame: &Frame) -> Option<u64> {
    match frame {
        Frame::Taken { id } | Frame::Refused { id, .. } | Frame::Done { id, .. } | Frame::Return { id, .. } => {
            Some(*id)
        }
        _ => None,
    }
}

pub fn send_on(socket: &OwnedFd, packet: &[u8], descriptors: &[BorrowedFd<'_>]) -> rustix::io::Result<usize> {
    let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
    let mut control = SendAncillaryBuffer::new(&mut room);
    if !descriptors.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(descriptors)));
    }
    sendmsg(socket, &[IoSlice::new(packet)], &mut control, SendFlags::NOSIGNAL)
}

/// A packet and its descriptors; `None` at the end, also where it comes as a reset: what was sent before that was read.
#[track_caller]
pub fn receive_on(socket: &OwnedFd) -> Option<(Vec<u8>, Vec<OwnedFd>)> {
    let mut bytes = vec![0; PACKET_BYTES_MAX];
    let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
    let mut control = RecvAncillaryBuffer::new(&mut room);
    let received = loop {
        match recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC) {
            Ok(received) => break received,
            // It is told once; what was sent before it comes after it.
            Err(rustix::io::Errno::CONNRESET | rustix::io::Errno::INTR) => {}
            Err(error) => panic!("no packet: {error}"),
        }
    };
    let descriptors: Vec<_> = control
        .drain()
        .flat_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => descriptors.collect(),
            _ => Vec::new(),
        })
        .collect();
    assert!(!received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC), "a packet that is too long");
    bytes.truncate(received.bytes);
    (received.bytes > 0).then_some((bytes, descriptors))
}
