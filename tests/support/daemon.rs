//! A daemon that takes handed-over clients and misbehaves on request. Own receiving code, not the library's: it judges
//! from outside what the library and the gateway do.
//!
//! `misbehaving-daemon SOCKET seqpacket|stream|fdpass|datagram MODE [key=value…]`; what needs a connection is nothing for
//! `datagram`
//!
//! | mode | does |
//! |---|---|
//! | `serve` | answers each client and closes |
//! | `stream` | answers, then a tick every 20 ms until the client leaves |
//! | `hold` | reads the message, keeps the client, says nothing |
//! | `absent` | listens, never accepts |
//! | `deaf` | accepts, never reads |
//! | `drop` | accepts, closes unread |
//! | `die-accepted` | accepts, exits |
//! | `die-read` | reads the message, exits |
//! | `late` | accepts, closes unread after `after=MS` |
//! | `shut` | accepts, shuts its end down in both directions and keeps it, unread |
//! | `babble` | accepts, talks as much as anybody takes, never reads |
//! | `peek` | accepts, looks at the message without reading it, lets go of the client that it got so; never reads |
//! | `close` | reads the message, closes the client at once |
//! | `pass-on` | reads the message, hands the client over to who listens at `to=PATH` |
//! | `hoard` | greets every client and keeps it, in one thread and without an event |
//!
//! Options: `backlog=N`; `name=TEXT` in its answers; `keep=1` keeps its end of the connection open; `short=1` reads one
//! byte, then closes its end and serves; `body=1` writes the body only, as with `fdpass`; `read=N` reads that many bytes of the client first, `all=1` everything until it
//! ends; `peek=1` shows what is there.
//! Prints events as JSON: `ready`, `accepted`, `got`, `client-gone`, `done`.

use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, ControlMessageOwned, MsgFlags, Shutdown, SockFlag, SockType, UnixAddr,
    accept4, bind, connect, listen, recvmsg, send, sendmsg, shutdown, socket,
};

#[derive(Clone)]
struct Options {
    kind: String,
    mode: String,
    pairs: Vec<(String, String)>,
}

impl Options {
    fn get(&self, key: &str) -> Option<&str> {
        self.pairs.iter().find(|(k, _)| k == key).map(|(_, value)| value.as_str())
    }
}

fn say(event: &str, more: serde_json::Value) {
    let mut object = serde_json::json!({"event": event});
    if let (Some(object), serde_json::Value::Object(more)) = (object.as_object_mut(), more) {
        object.extend(more);
    }
    let mut out = std::io::stdout().lock();
    writeln!(out, "{object}").and_then(|()| out.flush()).expect("the test listens");
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [path, kind, mode, pairs @ ..] = &args[..] else { panic!("SOCKET KIND MODE [key=value…]") };
    let pair = |text: &String| text.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned())).expect("key=value");
    let options = Options { kind: kind.clone(), mode: mode.clone(), pairs: pairs.iter().map(pair).collect() };

    drop(std::fs::remove_file(path));
    let kind = match kind.as_str() {
        "datagram" => SockType::Datagram,
        "seqpacket" => SockType::SeqPacket,
        _ => SockType::Stream,
    };
    let listener = socket(AddressFamily::Unix, kind, SockFlag::SOCK_CLOEXEC, None).expect("a socket");
    bind(listener.as_raw_fd(), &UnixAddr::new(path.as_str()).expect("short")).expect("bound");
    let backlog = options.get("backlog").map_or(128, |n| n.parse().expect("a number"));
    if kind != SockType::Datagram {
        listen(&listener, Backlog::new(backlog).expect("a backlog")).expect("listening");
    }
    say("ready", serde_json::json!({"pid": std::process::id()}));

    let mut kept = Vec::new();
    loop {
        if options.mode == "absent" {
            std::thread::park();
            continue;
        }
        if kind == SockType::Datagram {
            let (data, descriptors) = receive(&listener, &options);
            let options = options.clone();
            std::thread::spawn(move || serve_received(&data, descriptors, &options));
            continue;
        }
        let connection = accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC).expect("accepted");
        #[allow(unsafe_code, reason = "accept4 gives a new descriptor that nobody else owns")]
        // SAFETY: see the reason.
        let connection = unsafe { OwnedFd::from_raw_fd(connection) };
        if options.mode == "hoard" {
            let clients = receive(&connection, &options).1;
            for client in &clients {
                // One that has left is kept all the same.
                let _: nix::Result<usize> = send(client.as_raw_fd(), b"from hoard\n", MsgFlags::MSG_NOSIGNAL);
            }
            kept.extend(clients);
            continue;
        }
        say("accepted", serde_json::json!({}));
        match options.mode.as_str() {
            "deaf" => kept.push(connection),
            "drop" => drop(connection),
            "shut" => {
                shutdown(connection.as_raw_fd(), Shutdown::Both).expect("connected");
                kept.push(connection);
            }
            "die-accepted" => std::process::abort(),
            "late" => {
                let pause = Duration::from_millis(options.get("after").expect("after=MS").parse().expect("a number"));
                std::thread::spawn(move || {
                    std::thread::park_timeout(pause);
                    drop(connection);
                });
            }
            "babble" => {
                std::thread::spawn(move || {
                    while send(connection.as_raw_fd(), &[b'?'; 4096], MsgFlags::MSG_NOSIGNAL).is_ok() {}
                    std::thread::park_timeout(Duration::from_secs(60));
                    drop(connection);
                });
            }
            "peek" => {
                look(&connection);
                kept.push(connection);
            }
            _ => {
                let options = options.clone();
                std::thread::spawn(move || serve(connection, &options));
            }
        }
    }
}

/// Waits for a message and looks at it. The descriptor that the kernel gives with it is a copy, and closed.
fn look(connection: &OwnedFd) {
    let mut control = nix::cmsg_space!([std::os::fd::RawFd; 253]);
    let mut buffer = [0; 1];
    let mut iov = [IoSliceMut::new(&mut buffer)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_PEEK;
    let message = recvmsg::<UnixAddr>(connection.as_raw_fd(), &mut iov, Some(&mut control), flags).expect("a message");
    for part in message.cmsgs().expect("not truncated") {
        if let ControlMessageOwned::ScmRights(numbers) = part {
            #[allow(unsafe_code, reason = "recvmsg gives new descriptors that nobody else owns")]
            // SAFETY: see the reason.
            numbers.into_iter().for_each(|fd| drop(unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
}

/// Hands a client over once more, with the same message, to a daemon of the same kind.
fn pass_on(client: &OwnedFd, data: &[u8], options: &Options) {
    let kind = if options.kind == "seqpacket" { SockType::SeqPacket } else { SockType::Stream };
    let to = socket(AddressFamily::Unix, kind, SockFlag::SOCK_CLOEXEC, None).expect("a socket");
    connect(to.as_raw_fd(), &UnixAddr::new(options.get("to").expect("to=PATH")).expect("short")).expect("it listens");
    let numbers = [client.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&numbers)];
    sendmsg::<UnixAddr>(to.as_raw_fd(), &[IoSlice::new(data)], &rights, MsgFlags::MSG_NOSIGNAL, None).expect("sent");
}

/// The message's bytes and descriptors.
fn receive(connection: &OwnedFd, options: &Options) -> (Vec<u8>, Vec<OwnedFd>) {
    let (mut data, mut descriptors) = (Vec::new(), Vec::new());
    let mut buffer = vec![0; if options.get("short").is_some() { 1 } else { 2 << 20 }];
    loop {
        let mut control = nix::cmsg_space!([std::os::fd::RawFd; 253]);
        let mut iov = [IoSliceMut::new(&mut buffer)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message =
            recvmsg::<UnixAddr>(connection.as_raw_fd(), &mut iov, Some(&mut control), flags).expect("a message");
        for part in message.cmsgs().expect("not truncated") {
            if let ControlMessageOwned::ScmRights(numbers) = part {
                #[allow(unsafe_code, reason = "recvmsg gives new descriptors that nobody else owns")]
                // SAFETY: see the reason.
                descriptors.extend(numbers.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
            }
        }
        let count = message.bytes;
        data.extend_from_slice(&buffer[..count]);
        if count == 0 || options.kind != "stream" || options.get("short").is_some() || options.get("keep").is_some() {
            return (data, descriptors);
        }
    }
}

fn serve(connection: OwnedFd, options: &Options) {
    let (data, descriptors) = receive(&connection, options);
    // Closed here, unless it is to be kept.
    let _kept = options.get("keep").map(|_| connection);
    serve_received(&data, descriptors, options);
}

fn serve_received(data: &[u8], mut descriptors: Vec<OwnedFd>, options: &Options) {
    let count = descriptors.len();
    if options.mode == "die-read" {
        say("got", serde_json::json!({"data": String::from_utf8_lossy(data), "descriptors": count}));
        std::process::abort();
    }
    let Some(client) = descriptors.pop() else {
        return say("no-descriptor", serde_json::json!({"data": String::from_utf8_lossy(data)}));
    };
    match options.mode.as_str() {
        "close" => return drop(client),
        "pass-on" => return pass_on(&client, data, options),
        _ => {}
    }
    let flags = nix::fcntl::fcntl(&client, nix::fcntl::F_GETFL).expect("open");
    let blocking = flags & nix::fcntl::OFlag::O_NONBLOCK.bits() == 0;
    let mut client = TcpStream::from(client);
    client.set_nonblocking(false).expect("ours");
    client.set_read_timeout(Some(Duration::from_secs(5))).expect("ours");
    let mut first = vec![0; options.get("read").map_or(0, |n| n.parse().expect("a number"))];
    client.read_exact(&mut first).expect("the client sends as much");
    if options.get("all").is_some() {
        client.read_to_end(&mut first).expect("the client ends");
    }
    if options.get("peek").is_some() {
        first = vec![0; 64 << 10];
        client.set_read_timeout(Some(Duration::from_millis(300))).expect("ours");
        let count = client.peek(&mut first).unwrap_or(0);
        first.truncate(count);
    }
    say(
        "got",
        serde_json::json!({
            "data": String::from_utf8_lossy(data), "bytes": data.len(), "descriptors": count, "blocking": blocking,
            "port": client.peer_addr().map_or(0, |a| a.port()), "first": String::from_utf8_lossy(&first),
        }),
    );
    if options.mode == "hold" {
        loop {
            std::thread::park();
        }
    }
    match answer(&mut client, options) {
        Ok(()) => say("done", serde_json::json!({})),
        Err(error) => say("client-gone", serde_json::json!({"errno": error.raw_os_error()})),
    }
}

fn answer(client: &mut TcpStream, options: &Options) -> std::io::Result<()> {
    let name = options.get("name").unwrap_or("daemon");
    let has_head = options.kind != "fdpass" && options.get("body").is_none();
    let head = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n";
    // In one piece, so that whoever is killed has written all of it or nothing.
    client.write_all(format!("{}from {name}\n", if has_head { head } else { "" }).as_bytes())?;
    if options.mode == "stream" {
        for tick in 0.. {
            writeln!(client, "tick {tick}")?;
            std::thread::park_timeout(Duration::from_millis(20));
        }
    }
    client.shutdown(std::net::Shutdown::Write)?;
    client.set_read_timeout(Some(Duration::from_secs(2)))?;
    std::io::copy(client, &mut std::io::sink()).map(drop)
}
