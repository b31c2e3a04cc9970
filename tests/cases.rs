//! What is a request, where its body ends, and what is answered in which order: tables of raw bytes (`cases/*.txt`), each
//! line judged by every byte that comes back.
//!
//! Behind each line comes one more request in the same write. It is answered if, and only if, the connection was to live, so
//! it shows where the line before it was taken to end.
#![cfg(feature = "gateway")]

mod support;

use std::collections::BTreeMap;
use std::io::Read;

use support::{Client, Daemon, Gateway, OK_EVERYWHERE, eventually, folder};

/// Paths of which not all methods, hosts or anything is answered, beside all others, which are answered `ok`.
const SOME_ROUTES: &str = r#"[[route]]
path = "=/get"
methods = ["GET"]
default = { respond = { body = "ok" } }
[[route]]
path = "=/only"
host = "only.example"
default = { respond = { body = "ok" } }
[[route]]
path = "=/only"
default = { respond = { status = 404 } }
"#;

fn table() -> String {
    format!("{OK_EVERYWHERE}{SOME_ROUTES}")
}

/// Policies that answer with the path, and with the body's beginning.
const POLICIES: &str = r#"
[gateway]
workers = 1
LISTEN
[policy.answers]
module = "POLICIES/answers.wat"
[policy.reads]
module = "POLICIES/reads_body.wat"
[[route]]
path = "/"
policies = ["answers"]
[[route]]
path = "=/looks"
policies = ["reads"]
"#;

const HEADS: &str = include_str!("cases/heads.txt");
const BODIES: &str = include_str!("cases/bodies.txt");
const CONNECTIONS: &str = include_str!("cases/connections.txt");

/// Ends what is sent, when it is understood as a request of its own.
const BEHIND: &str = "GET /behind HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";

/// One line of a table: its section, and its columns, separated by ` | `.
struct Line {
    section: &'static str,
    columns: Vec<&'static str>,
}

impl Line {
    fn name(&self) -> String {
        format!("{}: {}", self.section, self.columns[0])
    }

    fn bytes(&self) -> Vec<u8> {
        unescape(self.columns[self.columns.len() - 1])
    }
}

fn lines(table: &'static str, columns: usize) -> Vec<Line> {
    let mut section = "";
    let mut found = Vec::new();
    for line in table.lines() {
        if let Some(title) = line.strip_prefix("# --- ") {
            section = title;
        } else if !line.is_empty() && !line.starts_with('#') {
            let columns_here: Vec<_> = line.splitn(columns, " | ").collect();
            assert_eq!(columns_here.len(), columns, "{line}");
            found.push(Line { section, columns: columns_here });
        }
    }
    found
}

fn unescape(text: &str) -> Vec<u8> {
    if let Some((before, rest)) = text.split_once('{') {
        let (inside, behind) = rest.split_once('}').expect("closed");
        let (count, repeated) = inside.split_once('*').expect("a number and a text");
        let repeated = unescape(repeated).repeat(count.parse().expect("a number"));
        return [unescape(before), repeated, unescape(behind)].concat();
    }
    let (mut out, mut bytes) = (Vec::new(), text.bytes());
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'\\' => match bytes.next().expect("an escape") {
                b'r' => b'\r',
                b'n' => b'\n',
                b't' => b'\t',
                b'0' => 0,
                b'x' => {
                    let digits = [bytes.next().expect("two"), bytes.next().expect("two")];
                    u8::from_str_radix(std::str::from_utf8(&digits).expect("ASCII"), 16).expect("hexadecimal")
                }
                other => other,
            },
            byte => byte,
        });
    }
    out
}

/// Everything until the other end closes in good order, as answers; `is_head` says which of them have no body.
#[track_caller]
fn answers(client: &mut Client, is_head: impl Fn(usize) -> bool, what: &str) -> Vec<(u16, bool, String)> {
    let mut bytes = Vec::new();
    let ended = client.stream.read_to_end(&mut bytes);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(ended.is_ok(), "{what}: {ended:?} after {:?}", text(&bytes));
    let (mut rest, mut found) = (&bytes[..], Vec::new());
    while !rest.is_empty() {
        let end = rest.windows(4).position(|w| w == b"\r\n\r\n");
        let (head, behind) = rest.split_at(end.unwrap_or_else(|| panic!("{what}: no head: {:?}", text(rest))) + 4);
        let head = text(head);
        let mut lines = head.split("\r\n");
        let status = lines.next().and_then(|line| line.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok());
        let fields: BTreeMap<_, _> = lines.filter_map(|line| line.split_once(": ")).collect();
        let length = fields.get("Content-Length").map_or(0, |length| length.parse::<usize>().expect("a number"));
        let length = if is_head(found.len()) { 0 } else { length };
        assert!(status.is_some() && behind.len() >= length, "{what}: no answer, or cut: {:?}", text(rest));
        let (body, behind) = behind.split_at(length);
        found.push((status.expect("just seen"), fields.get("Connection") == Some(&"close"), text(body)));
        rest = behind;
    }
    found
}

/// A head and what is to become of it.
struct Head {
    name: String,
    status: u16,
    lives: bool,
    bytes: Vec<u8>,
}

fn heads() -> Vec<Head> {
    let read = |line: Line| {
        let (status, fate) = line.columns[1].split_once(' ').expect("a status and a fate");
        assert!(matches!(fate, "lives" | "close"), "{fate}");
        Head {
            name: line.name(),
            status: status.parse().expect("a status"),
            lives: fate == "lives",
            bytes: line.bytes(),
        }
    };
    lines(HEADS, 3).into_iter().map(read).collect()
}

impl Head {
    fn is_refused(&self) -> bool {
        matches!(self.status, 400 | 408 | 414 | 417 | 431 | 501 | 505)
    }

    /// Two places in the head: a body in chunks that has not come yet is another case.
    fn cuts(&self) -> [usize; 2] {
        let end = self.bytes.windows(4).position(|w| w == b"\r\n\r\n").map_or(self.bytes.len(), |at| at + 4);
        [end / 2, end - 1]
    }

    fn sent_from(&self, at: usize) -> Vec<u8> {
        [&self.bytes[at..], BEHIND.as_bytes()].concat()
    }

    #[track_caller]
    fn judge(&self, how: &str, mut client: Client) {
        let what = format!("{} ({how})", self.name);
        let is_head = self.bytes.starts_with(b"HEAD ");
        let got = answers(&mut client, |at| is_head && at == 0, &what);
        let is_first_right =
            got.first().is_some_and(|(status, closes, _)| (*status, !closes) == (self.status, self.lives));
        assert!(is_first_right, "{what}: {got:?}");
        if self.lives {
            assert_eq!(got[1..], [(200, true, "ok".to_owned())], "{what}: what follows");
        } else {
            assert_eq!(got.len(), 1, "{what}: {got:?}");
        }
    }
}

#[test]
fn every_head_is_understood_in_one_way_or_refused() {
    let gateway = Gateway::start(&table());
    let heads = heads();
    for head in &heads {
        let mut client = gateway.client();
        client.send(head.sent_from(0));
        head.judge("whole", client);
    }
    // Refused before anybody was asked, and logged once, with the reason.
    let count: usize = heads.iter().map(|head| 1 + usize::from(head.lives)).sum();
    let log = eventually("every line", || Some(gateway.log()).filter(|log| log.len() >= count));
    assert_eq!(log.len(), count);
    let mut log = log.iter();
    for head in &heads {
        let line = log.next().expect("counted");
        assert_eq!(line["status"], head.status, "{}: {line}", head.name);
        if head.is_refused() {
            assert_eq!(line["outcome"], "client-error", "{}: {line}", head.name);
            assert!(line["error"].as_str().is_some_and(|e| !e.is_empty()), "{}: {line}", head.name);
            assert!(line["policy"].is_null() && line["to"].is_null(), "{}: {line}", head.name);
        } else {
            assert_eq!(line["outcome"], "responded", "{}: {line}", head.name);
            assert!(line["error"].is_null(), "{}: {line}", head.name);
        }
        if head.lives {
            assert_eq!(log.next().expect("counted")["target"], "/behind", "{}", head.name);
        }
    }
}

#[test]
fn a_head_in_two_pieces_is_the_same_head() {
    let gateway = Gateway::start(&table());
    let heads = heads();
    for cut in 0..2 {
        let begin = |head: &Head| {
            let mut client = gateway.client();
            client.send(&head.bytes[..head.cuts()[cut]]);
            client
        };
        let mut clients: Vec<_> = heads.iter().map(begin).collect();
        // The one worker has looked at all first pieces when it answers this.
        assert_eq!(gateway.status("/"), 200);
        for (head, client) in heads.iter().zip(&mut clients) {
            client.send(head.sent_from(head.cuts()[cut]));
        }
        for (head, client) in heads.iter().zip(clients) {
            head.judge(&format!("cut at {}", head.cuts()[cut]), client);
        }
    }
}

#[test]
fn a_head_byte_by_byte_is_the_same_head() {
    let gateway = Gateway::start(&table());
    let heads = heads();
    let mut clients: Vec<_> = heads.iter().map(|_| gateway.client()).collect();
    let last = |head: &Head| head.cuts()[1];
    for at in 0..heads.iter().map(last).max().expect("some") {
        // All of them get a byte before any gets the next: none is read at one go.
        for (head, client) in heads.iter().zip(&mut clients).filter(|(head, _)| at < last(head)) {
            client.send(&head.bytes[at..=at]);
        }
    }
    for (head, mut client) in heads.iter().zip(clients) {
        client.send(head.sent_from(last(head)));
        head.judge("byte by byte", client);
    }
}

#[test]
fn a_refused_request_reaches_no_policy_and_no_daemon() {
    let folder = folder();
    let daemon = Daemon::start(&folder.path().join("chat.sock"), "seqpacket", "serve", &[]);
    let toml = table().replace(
        "default = { respond = { body = \"ok\" } }\n[[route]]\npath = \"=/get\"",
        "default = { handoff = \"chat\" }\n[target.chat]\nsockets = [\"DIR/chat.sock\"]\n[[route]]\npath = \"=/get\"",
    );
    let gateway = Gateway::start_in(folder, &toml, |command| command);
    let refused: Vec<_> = heads().into_iter().filter(Head::is_refused).collect();
    for head in &refused {
        let mut client = gateway.client();
        // A whole request behind the faulty one: whoever read on would serve it.
        client.send([&head.bytes[..], b"\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"].concat());
        head.judge("and another", client);
    }
    assert!(gateway.ask("GET / HTTP/1.1\r\nHost: x\r\n\r\n").ends_with("from daemon\n"));
    let log = eventually("every line", || Some(gateway.log()).filter(|log| log.len() > refused.len()));
    let decided: Vec<_> = log.iter().filter(|line| !line["policy"].is_null()).collect();
    assert_eq!((log.len(), decided.len()), (refused.len() + 1, 1));
    assert_eq!((decided[0]["policy"].as_str(), decided[0]["outcome"].as_str()), (Some("passes"), Some("handed-off")));
    assert_eq!(daemon.events("accepted").len(), 1);
}

/// A body, where it ends, and what is shown of it: the answer of `reads_body.wat`.
struct Body {
    name: String,
    ends: bool,
    shown: (u16, String),
    bytes: Vec<u8>,
}

fn bodies() -> Vec<Body> {
    let read = |line: Line| {
        assert!(matches!(line.columns[1], "ends" | "closes"), "{}", line.name());
        let shown = match line.columns[2] {
            "!" => (503, String::new()),
            text => (200, String::from_utf8_lossy(&unescape(text)).into_owned()),
        };
        Body { name: line.name(), ends: line.columns[1] == "ends", shown, bytes: line.bytes() }
    };
    lines(BODIES, 4).into_iter().map(read).collect()
}

impl Body {
    fn sent_to(&self, path: &str) -> Vec<u8> {
        [format!("POST {path} HTTP/1.1\r\nHost: x\r\n").as_bytes(), &self.bytes, BEHIND.as_bytes()].concat()
    }

    fn behind(&self) -> Vec<(u16, bool, String)> {
        if self.ends { vec![(231, true, "/behind".to_owned())] } else { Vec::new() }
    }

    #[track_caller]
    fn judge_shown(&self, how: &str, client: &mut Client) {
        let what = format!("{} ({how})", self.name);
        let got = answers(client, |_| false, &what);
        assert_eq!(got[..1], [(self.shown.0, !self.ends, self.shown.1.clone())], "{what}");
        assert_eq!(got[1..], self.behind(), "{what}: what follows");
    }
}

#[test]
fn a_body_that_nobody_looks_at_ends_where_it_ends() {
    let gateway = Gateway::start(POLICIES);
    for body in bodies() {
        let mut client = gateway.client();
        client.send(body.sent_to("/ignores"));
        let got = answers(&mut client, |_| false, &body.name);
        assert_eq!(got[..1], [(231, !body.ends, "/ignores".to_owned())], "{}", body.name);
        assert_eq!(got[1..], body.behind(), "{}: what follows", body.name);
    }
}

#[test]
fn a_body_that_is_looked_at_is_shown_and_ends_where_it_ends() {
    let gateway = Gateway::start(POLICIES);
    for body in bodies() {
        let mut client = gateway.client();
        client.send(body.sent_to("/looks"));
        body.judge_shown("whole", &mut client);
    }
}

/// As soon as 16 bytes have come they are shown. Chunks behind them are another case: nobody knows how many come.
fn is_seen_whole(body: &Body) -> bool {
    body.shown.1.len() < 16 || body.bytes.starts_with(b"Content-Length")
}

#[test]
fn a_body_in_two_pieces_is_the_same_body() {
    let gateway = Gateway::start(POLICIES);
    let bodies: Vec<_> = bodies().into_iter().filter(is_seen_whole).collect();
    let cut = |sent: &[u8]| sent.len() - BEHIND.len() - 3;
    let begin = |body: &Body| {
        let (mut client, sent) = (gateway.client(), body.sent_to("/looks"));
        client.send(&sent[..cut(&sent)]);
        client
    };
    let mut clients: Vec<_> = bodies.iter().map(begin).collect();
    // The one worker has looked at all first pieces when it answers this.
    assert_eq!(gateway.status("/"), 231);
    for (body, client) in bodies.iter().zip(&mut clients) {
        let sent = body.sent_to("/looks");
        client.send(&sent[cut(&sent)..]);
    }
    for (body, client) in bodies.iter().zip(&mut clients) {
        body.judge_shown("in two pieces", client);
    }
}

#[test]
fn a_body_byte_by_byte_is_the_same_body() {
    let gateway = Gateway::start(POLICIES);
    let bodies: Vec<_> = bodies().into_iter().filter(is_seen_whole).collect();
    let sent: Vec<_> = bodies.iter().map(|body| body.sent_to("/looks")).collect();
    let mut clients: Vec<_> = bodies.iter().map(|_| gateway.client()).collect();
    for at in 0..sent.iter().map(Vec::len).max().expect("some") {
        for (sent, client) in sent.iter().zip(&mut clients).filter(|(sent, _)| at < sent.len()) {
            client.send(&sent[at..=at]);
        }
    }
    for (body, client) in bodies.iter().zip(&mut clients) {
        body.judge_shown("byte by byte", client);
    }
}

/// Several requests of one client, and what comes back: status and body of each, whether it is to HEAD, and the end.
struct Conversation {
    name: String,
    wanted: Vec<(bool, u16, Option<String>)>,
    lives: bool,
    bytes: Vec<u8>,
}

fn conversations() -> Vec<Conversation> {
    let read = |line: Line| {
        let mut words: Vec<_> = line.columns[1].split(' ').collect();
        let fate = words.pop().expect("a fate");
        assert!(matches!(fate, "lives" | "closed"), "{}", line.name());
        let answer = |word: &&str| {
            let text = word.strip_prefix("head").unwrap_or(word);
            match text.parse() {
                Ok(status) => (text != *word, status, None),
                Err(_) => (text != *word, 231, Some(if text == *word { text.to_owned() } else { String::new() })),
            }
        };
        let wanted = words.iter().map(answer).collect();
        Conversation { name: line.name(), wanted, lives: fate == "lives", bytes: line.bytes() }
    };
    lines(CONNECTIONS, 3).into_iter().map(read).collect()
}

impl Conversation {
    fn sent(&self) -> Vec<u8> {
        [&self.bytes[..], BEHIND.as_bytes()].concat()
    }

    #[track_caller]
    fn judge(&self, how: &str, client: &mut Client) {
        let what = format!("{} ({how})", self.name);
        let is_head = |at: usize| self.wanted.get(at).is_some_and(|(is_head, ..)| *is_head);
        let mut got = answers(client, is_head, &what);
        if self.lives {
            assert_eq!(got.pop(), Some((231, true, "/behind".to_owned())), "{what}: what follows {got:?}");
        }
        assert_eq!(got.len(), self.wanted.len(), "{what}: {got:?}");
        for (at, ((_, status, body), (got_status, closes, got_body))) in self.wanted.iter().zip(&got).enumerate() {
            assert_eq!(got_status, status, "{what}: {got:?}");
            assert!(body.as_ref().is_none_or(|body| body == got_body), "{what}: {got:?}");
            assert_eq!(*closes, !self.lives && at + 1 == got.len(), "{what}: {got:?}");
        }
    }
}

#[test]
fn requests_of_one_client_are_answered_in_order_until_one_is_the_last() {
    let gateway = Gateway::start(POLICIES);
    for conversation in conversations() {
        let mut client = gateway.client();
        client.send(conversation.sent());
        conversation.judge("whole", &mut client);
    }
}

#[test]
fn so_are_they_line_by_line_and_byte_by_byte() {
    let gateway = Gateway::start(POLICIES);
    // A client that has said its last and sends on is met by a reset: it is not to be waited for.
    let is_patient = |conversation: &Conversation| !conversation.name.starts_with("A last request");
    let conversations: Vec<_> = conversations().into_iter().filter(is_patient).collect();
    for how in ["line by line", "byte by byte"] {
        let split = |conversation: &Conversation| -> Vec<Vec<u8>> {
            let sent = conversation.sent();
            let by_line = sent.split_inclusive(|&b| how == "byte by byte" || b == b'\n');
            by_line.map(<[u8]>::to_vec).collect()
        };
        let pieces: Vec<_> = conversations.iter().map(split).collect();
        let mut clients: Vec<_> = conversations.iter().map(|_| gateway.client()).collect();
        for at in 0..pieces.iter().map(Vec::len).max().expect("some") {
            for (pieces, client) in pieces.iter().zip(&mut clients) {
                if let Some(piece) = pieces.get(at) {
                    client.send(piece);
                }
            }
        }
        for (conversation, client) in conversations.iter().zip(&mut clients) {
            conversation.judge(how, client);
        }
    }
}

/// Prints the table "cases by class" of `README.md`: `cargo test --release --test cases -- --nocapture by_class`.
#[test]
fn the_cases_by_class_are_as_many_as_the_manual_says() {
    let mut rows = String::new();
    let mut total = 0;
    for (table, columns, file) in [(HEADS, 3, "heads"), (BODIES, 4, "bodies"), (CONNECTIONS, 3, "connections")] {
        let lines = lines(table, columns);
        let mut sections: Vec<&str> = lines.iter().map(|line| line.section).collect();
        sections.dedup();
        for section in sections {
            let count = lines.iter().filter(|line| line.section == section).count();
            rows += &format!("| `{file}` | {section} | {count} |\n");
        }
        total += lines.len();
        let distinct: std::collections::BTreeSet<_> = lines.iter().map(|line| line.columns[columns - 1]).collect();
        assert_eq!(distinct.len(), lines.len(), "{file}: a line is there twice");
    }
    rows += &format!("| | all | {total} |\n");
    println!("{rows}");
    assert!(include_str!("README.md").contains(&rows), "tests/README.md has another table than:\n{rows}");
}
