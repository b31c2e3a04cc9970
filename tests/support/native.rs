//! A daemon that speaks the native protocol by a test's script, word by word.

use std::collections::VecDeque;
use std::io::{IoSlice, IoSliceMut, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::net::TcpStream;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use baton::handoff::native::frame::{Frame, Handoff, Hello, Outcome, Reason, Refusal, Report};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, accept4, bind, listen, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};
use serde_json::Value;

use super::patience;

/// A listening socket.
pub struct Script(OwnedFd);

/// A channel that a gateway has opened.
pub struct Channel {
    pub socket: OwnedFd,
    frames: VecDeque<(Frame, Vec<OwnedFd>)>,
}

/// A client that was lent.
pub struct Lent {
    pub id: u64,
    pub handoff: Handoff,
    pub client: TcpStream,
    pub files: Vec<OwnedFd>,
}

impl Script {
    pub fn listen(path: &Path) -> Self {
        drop(std::fs::remove_file(path));
        let listener =
            socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).expect("a socket");
        bind(listener.as_raw_fd(), &UnixAddr::new(path).expect("short")).expect("bound");
        listen(&listener, Backlog::new(64).expect("a backlog")).expect("listening");
        let time = TimeVal::new(i64::try_from(patience().as_secs()).expect("short"), 0);
        setsockopt(&listener, sockopt::ReceiveTimeout, &time).expect("a socket");
        Self(listener)
    }

    /// The next connection, which has not heard a word.
    pub fn accept_silently(&self) -> Channel {
        let number = accept4(self.0.as_raw_fd(), SockFlag::SOCK_CLOEXEC).expect("the gateway connects");
        #[allow(unsafe_code, reason = "accept4 gives a new descriptor that nobody else owns")]
        // SAFETY: see the reason.
        let socket = unsafe { <OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(number) };
        let time = TimeVal::new(i64::try_from(patience().as_secs()).expect("short"), 0);
        setsockopt(&socket, sockopt::ReceiveTimeout, &time).expect("a socket");
        Channel { socket, frames: VecDeque::new() }
    }

    /// Whether somebody has connected and not been accepted.
    pub fn has_somebody(&self) -> bool {
        let mut ask = [rustix::event::PollFd::new(&self.0, rustix::event::PollFlags::IN)];
        let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        rustix::event::poll(&mut ask, Some(&now)).expect("a socket") > 0
    }

    /// The next channel: both have said HELLO.
    pub fn accept(&self, in_flight_max: u64) -> Channel {
        let mut channel = self.accept_silently();
        channel.send(&hello(in_flight_max));
        let (frame, _) = channel.frame();
        assert!(matches!(&frame, Frame::Hello(hello) if hello.versions == [1]), "{frame:?}");
        channel
    }
}

pub fn hello(in_flight_max: u64) -> Frame {
    Frame::Hello(Hello {
        versions: vec![1],
        name: "script".to_owned(),
        pid: std::process::id().into(),
        in_flight_max,
        data_bytes_max: None,
        roles: Vec::new(),
    })
}

pub fn report(status: u16, bytes_out: u64) -> Report {
    Report { status: Some(status), bytes_out, duration_us: 1, result: Outcome::Ok, message: None }
}

impl Channel {
    /// One that leads nowhere.
    pub fn to_nobody() -> Self {
        let pair = nix::sys::socket::socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC);
        Self { socket: pair.expect("a pair").0, frames: VecDeque::new() }
    }

    /// One packet's worth of frames, read when there is none left.
    #[track_caller]
    pub fn frame(&mut self) -> (Frame, Vec<OwnedFd>) {
        while self.frames.is_empty() {
            assert!(self.receive(), "the gateway has ended the channel");
        }
        self.frames.pop_front().expect("there is one")
    }

    /// Whether the gateway ended the channel instead of saying anything.
    pub fn has_ended(&mut self) -> bool {
        self.frames.is_empty() && !self.receive()
    }

    fn receive(&mut self) -> bool {
        let mut bytes = vec![0; 128 << 10];
        let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
        let mut control = RecvAncillaryBuffer::new(&mut room);
        let received = rustix::net::recvmsg(
            &self.socket,
            &mut [IoSliceMut::new(&mut bytes)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        );
        let received = match received {
            Ok(received) if received.bytes > 0 => received.bytes,
            Ok(_) | Err(rustix::io::Errno::CONNRESET) => return false,
            Err(error) => panic!("a packet: {error}"),
        };
        let mut descriptors = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                descriptors.extend(rights);
            }
        }
        let mut descriptors = descriptors.into_iter();
        let mut rest = &bytes[..received];
        while !rest.is_empty() {
            let (frame, behind) = Frame::split(rest).expect("a frame");
            let own = descriptors.by_ref().take(frame.descriptors()).collect();
            self.frames.push_back((frame, own));
            rest = behind;
        }
        assert!(descriptors.next().is_none(), "descriptors that belong to nothing");
        true
    }

    /// The next handoff; PINGs before it are answered.
    #[track_caller]
    pub fn lent(&mut self) -> Lent {
        loop {
            match self.frame() {
                (Frame::Handoff { id, handoff }, mut files) => {
                    let client = TcpStream::from(files.remove(0));
                    return Lent { id, handoff, client, files };
                }
                (Frame::Ping(bytes), _) => self.send(&Frame::Pong(bytes)),
                (other, _) => panic!("{other:?}"),
            }
        }
    }

    pub fn send(&self, frame: &Frame) {
        self.send_with(std::slice::from_ref(frame), &[]).expect("the gateway is there");
    }

    /// Several frames in one packet.
    pub fn send_with(&self, frames: &[Frame], descriptors: &[BorrowedFd<'_>]) -> rustix::io::Result<()> {
        let bytes: Vec<u8> = frames.iter().flat_map(Frame::encode).collect();
        self.send_bytes(&bytes, descriptors)
    }

    pub fn send_bytes(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> rustix::io::Result<()> {
        let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
        let mut control = SendAncillaryBuffer::new(&mut room);
        if !descriptors.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(descriptors)));
        }
        rustix::net::sendmsg(&self.socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL).map(drop)
    }

    pub fn take(&self, lent: &Lent) {
        self.send(&Frame::Taken { id: lent.id });
    }

    pub fn refuse(&self, lent: Lent, reason: Reason, retry_after_s: Option<u64>) {
        let (id, refusal) = (lent.id, Refusal { reason, retry_after_s, message: None });
        drop(lent);
        self.send(&Frame::Refused { id, refusal });
    }

    pub fn done(&self, lent: Lent, report: Report) {
        let id = lent.id;
        drop(lent);
        self.send(&Frame::Done { id, report });
    }

    pub fn give_back(&self, lent: &Lent, report: Report, unread: &[u8]) {
        let frame = Frame::Return { id: lent.id, report, unread: unread.to_vec() };
        self.send_with(&[frame], &[lent.client.as_fd()]).expect("the gateway is there");
    }

    /// Takes, answers, and gives back or closes.
    pub fn serve(&self, lent: Lent, body: &str, returns: bool) {
        self.take(&lent);
        let connection = if returns { "keep-alive" } else { "close" };
        let answer =
            format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: {connection}\r\n\r\n{body}", body.len());
        let report = report(200, answer.len() as u64);
        lent.write(&answer);
        if returns { self.give_back(&lent, report, b"") } else { self.done(lent, report) }
    }
}

impl Lent {
    pub fn write(&self, text: &str) {
        // It comes non-blocking; what a test writes fits.
        (&self.client).write_all(text.as_bytes()).expect("the client reads");
    }

    pub fn metadata(&self, path: &str) -> Value {
        Value::Object(self.handoff.metadata.clone()).pointer(path).cloned().unwrap_or_default()
    }

    pub fn file(&self, at: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        let copy = self.files[at].try_clone().expect("a descriptor");
        std::fs::File::from(copy).read_to_end(&mut bytes).expect("a memfd");
        bytes
    }
}
