//! An application in HTTP: what it was asked is kept as it came, what it answers is written as it stands.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::support::{eventually, patience};

/// A server that runs until it is dropped.
pub(super) struct Application {
    address: SocketAddr,
    state: Arc<State>,
}

struct State {
    asked: Mutex<Vec<Asked>>,
    made: AtomicUsize,
    open: AtomicUsize,
    ends: AtomicBool,
}

/// A request.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) head: String,
    pub(super) body: Vec<u8>,
}

impl Asked {
    /// The path, and whatever follows it.
    pub(super) fn target(&self) -> &str {
        self.head.split(' ').nth(1).expect("a target")
    }
}

impl Application {
    /// Answers every request, whose body has been read, with what `answer` says.
    pub(super) fn start(answer: impl Fn(&Asked) -> String + Send + Sync + 'static) -> Self {
        Self::start_with(true, answer)
    }

    /// Answers as soon as the head is there, and never reads on.
    pub(super) fn start_without_reading(answer: impl Fn(&Asked) -> String + Send + Sync + 'static) -> Self {
        Self::start_with(false, answer)
    }

    fn start_with(reads: bool, answer: impl Fn(&Asked) -> String + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("it listens");
        let state = Arc::new(State {
            asked: Mutex::default(),
            made: AtomicUsize::new(0),
            open: AtomicUsize::new(0),
            ends: AtomicBool::new(false),
        });
        let (accepting, answer) = (Arc::clone(&state), Arc::new(answer));
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if accepting.ends.load(Ordering::SeqCst) {
                    return;
                }
                accepting.made.fetch_add(1, Ordering::SeqCst);
                accepting.open.fetch_add(1, Ordering::SeqCst);
                let (state, answer) = (Arc::clone(&accepting), Arc::clone(&answer));
                std::thread::spawn(move || {
                    serve(stream, &state, reads, &*answer);
                    state.open.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        Self { address, state }
    }

    /// As the configuration has it.
    pub(super) fn address(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What came so far.
    pub(super) fn asked(&self) -> Vec<Asked> {
        self.state.asked.lock().expect("no panic").clone()
    }

    /// Connections so far.
    pub(super) fn made(&self) -> usize {
        self.state.made.load(Ordering::SeqCst)
    }

    /// Waits until so many connections are open.
    #[track_caller]
    pub(super) fn has_open(&self, count: usize) {
        let what = format!("{count} connections to the application");
        eventually(&what, || (self.state.open.load(Ordering::SeqCst) == count).then_some(()));
    }
}

impl Drop for Application {
    fn drop(&mut self) {
        self.state.ends.store(true, Ordering::SeqCst);
        // So that it looks.
        drop(TcpStream::connect(self.address));
    }
}

/// Until the other end closes.
fn serve(mut stream: TcpStream, state: &State, reads: bool, answer: &dyn Fn(&Asked) -> String) {
    stream.set_read_timeout(Some(patience())).expect("a socket");
    let mut buffer = Vec::new();
    loop {
        let Some(end) = fill(&mut stream, &mut buffer, |bytes| {
            bytes.windows(4).position(|window| window == b"\r\n\r\n").map(|at| at + 4)
        }) else {
            return;
        };
        let head = String::from_utf8_lossy(&buffer[..end]).into_owned();
        buffer.drain(..end);
        let has = |field: &str| head.to_ascii_lowercase().contains(field);
        let body = match (reads, length(&head)) {
            (false, _) => Some(0),
            (true, Some(length)) => fill(&mut stream, &mut buffer, |bytes| (bytes.len() >= length).then_some(length)),
            (true, None) if has("transfer-encoding: chunked") => fill(&mut stream, &mut buffer, |bytes| {
                // No test's data looks like this.
                bytes.ends_with(b"\r\n\r\n").then_some(bytes.len())
            }),
            (true, None) => Some(0),
        };
        let Some(body) = body else { return };
        let asked = Asked { head, body: buffer.drain(..body).collect() };
        state.asked.lock().expect("no panic").push(asked.clone());
        if stream.write_all(answer(&asked).as_bytes()).is_err() {
            return;
        }
        if !reads {
            // Nothing more is read, and nothing closed.
            while !state.ends.load(Ordering::SeqCst) {
                std::thread::park_timeout(Duration::from_millis(20));
            }
            return;
        }
    }
}

fn length(head: &str) -> Option<usize> {
    head.lines().find_map(|line| {
        let (name, value) = line.split_once(": ")?;
        name.eq_ignore_ascii_case("content-length").then(|| value.parse().expect("a number"))
    })
}

/// Reads until `enough` says how much of it is wanted; `None` where the other end closes before.
fn fill(stream: &mut TcpStream, buffer: &mut Vec<u8>, enough: impl Fn(&[u8]) -> Option<usize>) -> Option<usize> {
    let mut chunk = [0; 16 << 10];
    loop {
        if let Some(count) = enough(buffer) {
            return Some(count);
        }
        match stream.read(&mut chunk) {
            Ok(0) | Err(_) => return None,
            Ok(count) => buffer.extend_from_slice(&chunk[..count]),
        }
    }
}
