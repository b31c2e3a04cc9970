//! A server behind the gateway whose every byte is the test's: what it was asked is there as it came, what it answers is
//! written as it stands, in steps.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use super::{Client, eventually, patience};

/// A listener whose connections the test accepts one by one.
pub struct Upstream(TcpListener);

impl Upstream {
    pub fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        listener.set_nonblocking(true).expect("a socket");
        Self(listener)
    }

    /// As the configuration has it.
    pub fn address(&self) -> String {
        format!("http://{}", self.0.local_addr().expect("it listens"))
    }

    /// The next connection.
    #[track_caller]
    pub fn accept(&self) -> Client {
        eventually("a connection to the upstream", || self.try_accept())
    }

    /// The next connection, if somebody has made one.
    pub fn try_accept(&self) -> Option<Client> {
        self.0.accept().ok().map(|(stream, _)| Client::of(stream))
    }
}

impl Client {
    /// A connection that is there already, from whichever side.
    pub fn of(stream: TcpStream) -> Self {
        stream.set_nonblocking(false).expect("a socket");
        stream.set_nodelay(true).expect("a socket");
        stream.set_read_timeout(Some(patience())).expect("a socket");
        stream.set_write_timeout(Some(patience())).expect("a socket");
        Self { stream, buffer: Vec::new() }
    }

    /// A head, with its last line.
    #[track_caller]
    pub fn head(&mut self) -> String {
        self.until("\r\n\r\n")
    }

    /// A head; `None` where the other end closed instead.
    pub fn next_head(&mut self) -> Option<String> {
        let mut chunk = [0; 16 << 10];
        loop {
            if let Some(at) = self.buffer.windows(4).position(|w| w == b"\r\n\r\n") {
                let rest = self.buffer.split_off(at + 4);
                return Some(String::from_utf8_lossy(&std::mem::replace(&mut self.buffer, rest)).into_owned());
            }
            match std::io::Read::read(&mut self.stream, &mut chunk) {
                Ok(0) | Err(_) => return None,
                Ok(count) => self.buffer.extend_from_slice(&chunk[..count]),
            }
        }
    }

    /// Exactly so many bytes.
    #[track_caller]
    pub fn take(&mut self, count: usize) -> Vec<u8> {
        let held = self.buffer.len().min(count);
        let mut bytes: Vec<u8> = self.buffer.drain(..held).collect();
        bytes.resize(count, 0);
        std::io::Read::read_exact(&mut self.stream, &mut bytes[held..]).expect("so many bytes");
        bytes
    }

    /// One answer or request, whose head says its length, as it came but for its date.
    #[track_caller]
    pub fn message(&mut self) -> String {
        let head = self.head();
        let length = head.lines().find_map(|line| {
            let (name, value) = line.split_once(": ")?;
            name.eq_ignore_ascii_case("content-length").then(|| value.parse().expect("a number"))
        });
        let body = self.take(length.unwrap_or(0));
        undated(&format!("{head}{}", String::from_utf8_lossy(&body)))
    }
}

/// An answer's bytes without the line of its date.
pub fn undated(answer: &str) -> String {
    answer.split_inclusive("\r\n").filter(|line| !line.starts_with("Date: ")).collect()
}

/// A server that answers by itself, each connection in a thread of its own, until it is dropped.
pub struct Serving {
    address: SocketAddr,
    stops: Arc<AtomicBool>,
    accepting: Option<JoinHandle<()>>,
    /// The heads that came, in their order.
    pub heads: Arc<Mutex<Vec<String>>>,
    /// Connections so far.
    pub connections: Arc<AtomicUsize>,
}

impl Serving {
    /// `answer` is called for each head that came, with its connection; `false` closes that.
    pub fn start(answer: impl Fn(&str, &mut Client) -> bool + Send + Sync + 'static) -> Self {
        Self::start_at("127.0.0.1:0".parse().expect("an address"), answer)
    }

    /// The same, at an address.
    pub fn start_at(address: SocketAddr, answer: impl Fn(&str, &mut Client) -> bool + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind(address).expect("a port");
        let address = listener.local_addr().expect("it listens");
        let (stops, heads, connections) =
            (Arc::<AtomicBool>::default(), Arc::<Mutex<Vec<_>>>::default(), Arc::default());
        let answer = Arc::new(answer);
        let (stopped, seen, counted) = (Arc::clone(&stops), Arc::clone(&heads), Arc::clone(&connections));
        let accepting = std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                AtomicUsize::fetch_add(&counted, 1, Ordering::SeqCst);
                let (answer, seen) = (Arc::clone(&answer), Arc::clone(&seen));
                std::thread::spawn(move || {
                    let mut peer = Client::of(stream);
                    while let Some(head) = peer.next_head() {
                        seen.lock().expect("no panic").push(head.clone());
                        if !answer(&head, &mut peer) {
                            return;
                        }
                    }
                });
            }
        });
        Self { address, stops, accepting: Some(accepting), heads, connections }
    }

    /// As the configuration has it.
    pub fn address(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn heads(&self) -> Vec<String> {
        self.heads.lock().expect("no panic").clone()
    }

    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.stops.store(true, Ordering::SeqCst);
        // So that it looks.
        drop(TcpStream::connect(self.address));
        if let Some(accepting) = self.accepting.take() {
            drop(accepting.join());
        }
    }
}
