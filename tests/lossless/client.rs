//! A client: requests, alone or several at once, over a connection that lasts or not, and what it got for each.

use std::fmt::Write as _;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};

use crate::chance::Chance;
use crate::support::patience;

/// How a request is to be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Short,
    Last,
    Stream,
    Echo,
    Unread,
    Late,
}

impl Kind {
    const ALL: [Self; 6] = [Self::Short, Self::Last, Self::Stream, Self::Echo, Self::Unread, Self::Late];

    fn word(self) -> &'static str {
        match self {
            Self::Short => "short",
            Self::Last => "last",
            Self::Stream => "stream",
            Self::Echo => "echo",
            Self::Unread => "unread",
            Self::Late => "late",
        }
    }
}

/// What came for a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Got {
    /// One daemon's answer, byte by byte, to its end.
    Daemon { name: String, bytes: u64 },
    /// One answer of the gateway's, to its end: nobody took the client.
    Unavailable { bytes: u64 },
    /// The beginning of one daemon's answer, perhaps none of it, and then the connection's end.
    Cut { bytes: u64, is_reset: bool },
    /// The gateway's 503, and behind it an answer of the daemon that took the client while it was being written: the one
    /// thing that must not be and that nothing here can prevent, so the log must call it a conflict.
    Both,
    /// The answer before it was the connection's last.
    Unheard,
}

/// A request, and what became of it.
#[derive(Debug)]
pub struct Asked {
    pub mark: String,
    pub kind: Kind,
    pub got: Got,
    /// How many were sent before it on its connection.
    pub nth: usize,
    /// Names the connection.
    pub port: u16,
}

struct Request {
    mark: String,
    kind: Kind,
    bytes: Vec<u8>,
    body: Vec<u8>,
}

impl Request {
    fn new(kind: Kind, is_last: bool, late_ms: (u64, u64), chance: &mut Chance) -> Self {
        let mark = Chance::mark();
        let length = match kind {
            Kind::Echo => chance.one_of(&[0, 1, 100, 5000, 40_000]),
            Kind::Unread => chance.one_of(&[1, 5000, 60_000]),
            _ => 0,
        };
        let body = mark.as_bytes().iter().copied().cycle().take(length).collect::<Vec<_>>();
        let (method, query) = match kind {
            Kind::Echo | Kind::Unread => ("POST", String::new()),
            Kind::Late => ("GET", format!("?{}", chance.milliseconds(late_ms.0, late_ms.1).as_millis())),
            _ => ("GET", String::new()),
        };
        let mut head = format!("{method} /{}/{mark}{query} HTTP/1.1\r\nHost: x\r\n", kind.word());
        if is_last {
            head.push_str("Connection: close\r\n");
        }
        let mut bytes = Vec::new();
        if method == "GET" {
            head.push_str("\r\n");
            bytes.extend_from_slice(head.as_bytes());
        } else if chance.percent(30) {
            head.push_str("Transfer-Encoding: chunked\r\n\r\n");
            bytes.extend_from_slice(head.as_bytes());
            for chunk in body.chunks(1 + chance.below(9000)) {
                bytes.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
                bytes.extend_from_slice(chunk);
                bytes.extend_from_slice(b"\r\n");
            }
            bytes.extend_from_slice(b"0\r\n\r\n");
        } else {
            write!(head, "Content-Length: {length}\r\n\r\n").expect("text");
            bytes.extend_from_slice(head.as_bytes());
            bytes.extend_from_slice(&body);
        }
        Self { mark, kind, bytes, body }
    }

    /// The body that a daemon of that name gives it, unless that is a stream.
    fn expected(&self, name: &str) -> Vec<u8> {
        let mut expected = format!("{name} {}\n", self.mark).into_bytes();
        match self.kind {
            Kind::Echo => expected.extend_from_slice(&self.body),
            Kind::Stream => {
                expected = (0..5).map(|n| format!("{name} {} {n}\n", self.mark)).collect::<String>().into_bytes();
                expected.extend_from_slice(format!("{name} {} end\n", self.mark).as_bytes());
            }
            _ => {}
        }
        expected
    }
}

/// What a connection has given so far.
struct Reader {
    stream: TcpStream,
    bytes: Vec<u8>,
    end: Option<ErrorKind>,
    is_over: bool,
}

impl Reader {
    /// Reads until there are so many bytes or the connection has ended.
    fn fill(&mut self, is_enough: impl Fn(&[u8]) -> bool) -> Result<(), String> {
        let mut chunk = [0; 16 << 10];
        while !self.is_over && !is_enough(&self.bytes) {
            match self.stream.read(&mut chunk) {
                Ok(0) => self.is_over = true,
                Ok(count) => self.bytes.extend_from_slice(&chunk[..count]),
                Err(error) if error.kind() == ErrorKind::ConnectionReset => {
                    (self.end, self.is_over) = (Some(error.kind()), true);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(format!("nobody ends it: {error}, after {}", self.shown())),
            }
        }
        Ok(())
    }

    fn shown(&self) -> String {
        let shown = self.bytes.len().min(2000);
        format!("{:?}", String::from_utf8_lossy(&self.bytes[..shown]))
    }
}

/// One client's life: as many requests as it likes, over one connection or over new ones. What must never be is an error.
pub fn live(address: SocketAddr, late_ms: (u64, u64), chance: &mut Chance) -> Result<Vec<Asked>, String> {
    let stream = match TcpStream::connect(address) {
        Ok(stream) => stream,
        Err(error) => return Err(format!("nobody listens: {error}")),
    };
    stream.set_nodelay(true).expect("a socket");
    stream.set_read_timeout(Some(patience())).expect("a socket");
    stream.set_write_timeout(Some(patience())).expect("a socket");
    let port = stream.local_addr().expect("a socket").port();
    let mut reader = Reader { stream, bytes: Vec::new(), end: None, is_over: false };
    let mut all = Vec::new();
    let rounds = if chance.percent(40) { 1 } else { 2 + chance.below(20) };
    for round in 0..rounds {
        let count = if chance.percent(70) { 1 } else { 2 + chance.below(3) };
        let requests: Vec<_> = (0..count)
            .map(|n| {
                let is_last = round + 1 == rounds && n + 1 == count && chance.percent(80);
                // Streams and `last` end a connection: rarely, or none would last.
                let kind = loop {
                    let kind = chance.one_of(&Kind::ALL);
                    let ends = matches!(kind, Kind::Last | Kind::Stream);
                    if (!ends || is_last || rounds == 1 || chance.percent(10))
                        && (kind != Kind::Late || chance.percent(30))
                    {
                        break kind;
                    }
                };
                Request::new(kind, is_last, late_ms, chance)
            })
            .collect();
        let goes_on = converse(&mut reader, requests, port, &mut all)?;
        if !goes_on {
            break;
        }
    }
    Ok(all)
}

/// Sends some requests at once, and reads what comes for each; says whether the connection goes on.
fn converse(reader: &mut Reader, requests: Vec<Request>, port: u16, all: &mut Vec<Asked>) -> Result<bool, String> {
    let bytes: Vec<u8> = requests.iter().flat_map(|request| request.bytes.iter().copied()).collect();
    // Written while answers are read: there may be more than fits.
    let mut writer = reader.stream.try_clone().expect("a descriptor");
    std::thread::scope(|scope| {
        let writing = (bytes.len() > 30_000).then(|| scope.spawn(|| drop(writer.write_all(&bytes))));
        if writing.is_none() {
            // Whoever has no answer for it may have closed it already.
            drop(reader.stream.write_all(&bytes));
        }
        let result = read_all(reader, requests, port, all);
        if !matches!(result, Ok(true)) {
            // Whoever still writes has nobody to write to.
            drop(reader.stream.shutdown(std::net::Shutdown::Both));
        }
        result
    })
}

fn read_all(reader: &mut Reader, requests: Vec<Request>, port: u16, all: &mut Vec<Asked>) -> Result<bool, String> {
    let mut goes_on = true;
    let mut last = None;
    for request in requests {
        let got = if goes_on { read(reader, &request, &mut goes_on)? } else { Got::Unheard };
        let nth = all.len();
        all.push(Asked { mark: request.mark.clone(), kind: request.kind, got, nth, port });
        if !goes_on && last.is_none() {
            last = Some((nth, request));
        }
    }
    if !goes_on {
        reader.fill(|_| false)?;
        let (nth, request) = last.expect("it ended with one");
        let is_sealed = matches!(all[nth].got, Got::Unavailable { .. });
        if is_sealed
            && !reader.bytes.is_empty()
            && matches!(read(reader, &request, &mut true)?, Got::Daemon { .. } | Got::Cut { .. })
        {
            all[nth].got = Got::Both;
        }
        if !reader.bytes.is_empty() {
            return Err(format!("a second voice behind the end: {}, {all:?}", reader.shown()));
        }
    }
    Ok(goes_on)
}

fn read(reader: &mut Reader, request: &Request, goes_on: &mut bool) -> Result<Got, String> {
    let head_end = |bytes: &[u8]| bytes.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4);
    reader.fill(|bytes| head_end(bytes).is_some())?;
    let cut = |reader: &mut Reader, goes_on: &mut bool| {
        *goes_on = false;
        let bytes = std::mem::take(&mut reader.bytes).len() as u64;
        Got::Cut { bytes, is_reset: reader.end.is_some() }
    };
    let Some(head_bytes) = head_end(&reader.bytes) else {
        if !reader.bytes.is_empty() && !b"HTTP/1.1 200 OK\r\n".starts_with(&reader.bytes[..reader.bytes.len().min(17)])
        {
            return Err(format!("the beginning of no answer: {}", reader.shown()));
        }
        return Ok(cut(reader, goes_on));
    };
    let head = String::from_utf8_lossy(&reader.bytes[..head_bytes]).to_ascii_lowercase();
    let field = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    let length: Option<usize> = field("content-length").map(|length| length.parse().expect("a number"));
    let closes = field("connection") == Some("close");
    if head.matches("http/1.1 ").count() != 1 {
        return Err(format!("two heads in one: {}", reader.shown()));
    }
    match (&head[9..12], length) {
        ("503", Some(length)) if field("retry-after").is_some() => {
            reader.fill(|bytes| bytes.len() >= head_bytes + length)?;
            if reader.bytes.len() < head_bytes + length {
                return Err(format!("half an answer of the gateway's: {}", reader.shown()));
            }
            reader.bytes.drain(..head_bytes + length);
            *goes_on = !closes;
            Ok(Got::Unavailable { bytes: (head_bytes + length) as u64 })
        }
        ("200", length) if length.is_some() != (request.kind == Kind::Stream) => {
            reader.fill(|bytes| length.is_some_and(|length| bytes.len() >= head_bytes + length))?;
            let end = length.map_or(reader.bytes.len(), |length| reader.bytes.len().min(head_bytes + length));
            let body = &reader.bytes[head_bytes..end];
            let name = body.split(|byte| *byte == b' ').next().unwrap_or_default();
            let name = String::from_utf8_lossy(name).into_owned();
            let expected = request.expected(&name);
            // Of a name that was cut nothing more is known.
            let is_beginning = expected.starts_with(body) || !body.contains(&b' ') && body.len() < 20;
            if !is_beginning || length.is_some_and(|length| length != expected.len() && body.contains(&b' ')) {
                return Err(format!("not its answer, which {} was to be: {}", request.mark, reader.shown()));
            }
            if body.len() < expected.len() {
                return Ok(cut(reader, goes_on));
            }
            reader.bytes.drain(..end);
            *goes_on = !closes;
            Ok(Got::Daemon { name, bytes: end as u64 })
        }
        _ => Err(format!("nobody's answer to {} of {:?}: {}", request.mark, request.kind, reader.shown())),
    }
}
