//! The daemon as a client of an API that is the test's, byte by byte.

use std::collections::VecDeque;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use super::{Chat, events, expect};

/// An answer's bytes.
type Pieces = Vec<Vec<u8>>;

/// A server that answers one request for each of its answers; what it was asked is kept.
struct Api {
    url: String,
    asked: Arc<Mutex<Vec<(String, Value)>>>,
}

impl Api {
    /// Each answer is sent in pieces, one `write` each.
    fn start(answers: Vec<Pieces>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("http://{}/some/v1/", listener.local_addr().expect("bound"));
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (mut answers, sink) = (VecDeque::from(answers), Arc::clone(&asked));
        std::thread::spawn(move || {
            while let Some(answer) = answers.pop_front() {
                let (mut stream, _) = listener.accept().expect("a client");
                let (mut bytes, mut chunk) = (Vec::new(), [0; 4096]);
                let (head, body) = loop {
                    let count = stream.read(&mut chunk).expect("a request");
                    bytes.extend_from_slice(&chunk[..count]);
                    let text = String::from_utf8_lossy(&bytes).into_owned();
                    if let Some((head, body)) = text.split_once("\r\n\r\n")
                        && let Ok(body) = serde_json::from_str(body)
                    {
                        break (head.to_owned(), body);
                    }
                };
                sink.lock().expect("no panic").push((head, body));
                stream.set_nodelay(true).expect("a socket");
                for piece in answer {
                    // It may have heard enough.
                    drop(stream.write_all(&piece));
                }
                drop(stream.shutdown(Shutdown::Write));
                drop(stream.read_to_end(&mut Vec::new()));
            }
        });
        Self { url, asked }
    }
}

fn event(text: &str) -> String {
    format!("data: {}\n\n", json!({"choices": [{"index": 0, "delta": {"content": text}}]}))
}

fn pieces(texts: &[&str]) -> Pieces {
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

const STOP: &str = "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n";

#[test]
fn any_api_that_speaks_like_openais_is_asked_as_it_wants() {
    let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n";
    let words = format!("{}{}: a comment\n\n{STOP}", event("one"), event(" twö"));
    // Chunks end anywhere, in a letter too.
    let chunked = |size: usize| {
        let chunk = |part: &[u8]| [format!("{:x}\r\n", part.len()).as_bytes(), part, b"\r\n"].concat();
        let chunks = words.as_bytes().chunks(size).map(chunk).chain([b"0\r\n\r\n".to_vec()]);
        std::iter::once(format!("{head}Transfer-Encoding: chunked\r\n\r\n").into_bytes()).chain(chunks).collect()
    };
    let announced = format!("HTTP/1.1 103 Early Hints\r\n\r\n{head}Content-Length: {}\r\n\r\n", words.len());
    let mut answers: Vec<Pieces> = vec![
        // The connection's end is the answer's.
        pieces(&[&format!("{head}Connection: close\r\n\r\n"), &words]),
        pieces(&[&announced, &words]),
        format!("{head}\r\n{words}").bytes().map(|byte| vec![byte]).collect(),
        // Line ends as some write them, and without a space behind the colon.
        pieces(&[&format!("{head}\r\n"), &words.replace('\n', "\r\n").replace("data: ", "data:")]),
        chunked(1),
        chunked(7),
        chunked(10_000),
    ];
    let good = answers.len();
    let status = |status: &str, more: &str| pieces(&[&format!("HTTP/1.1 {status}\r\n{more}Content-Length: 0\r\n\r\n")]);
    let streams = |body: &str| pieces(&[&format!("{head}\r\n{body}")]);
    let bad: Vec<(Pieces, u16, &str, Option<&str>)> = vec![
        (pieces(&["no HTTP at all\r\n\r\n"]), 502, "model-failed", None),
        (pieces(&[""]), 502, "model-failed", None),
        (streams(""), 502, "model-failed", None),
        (streams("data: [1]\n\n"), 502, "model-failed", None),
        (streams("data: {\n\n"), 502, "model-failed", None),
        (streams("data: {\"error\":{\"message\":\"what\"}}\n\n"), 502, "model-failed", None),
        (pieces(&[head, "Transfer-Encoding: chunked\r\n\r\nxyz\r\n"]), 502, "model-failed", None),
        (pieces(&[head, "X: ", &"x".repeat(70_000), "\r\n\r\n"]), 502, "model-failed", None),
        (status("302 Found", "Location: /\r\n"), 502, "model-failed", None),
        (status("404 Not Found", ""), 502, "model-failed", None),
        (status("429 Slow Down", "Retry-After: 12\r\n"), 503, "model-busy", Some("12")),
        (status("429 Slow Down", "Retry-After: 99999\r\n"), 503, "model-busy", Some("3600")),
        (status("429 Slow Down", "Retry-After: Sat, 01 Jan 2000 00:00:00 GMT\r\n"), 503, "model-busy", Some("1")),
        (status("429 Slow Down", ""), 503, "model-busy", Some("5")),
    ];
    answers.extend(bad.iter().map(|(answer, ..)| answer.clone()));
    let api = Api::start(answers);
    let environment = [
        ("OPENAI_BASE_URL", &*api.url),
        ("OPENAI_API_KEY", "sk-very-secret"),
        ("OPENAI_MODEL", "a-model"),
        ("CHAT_PROMPT", "Be brief."),
    ];
    let chat = Chat::start_with(&[], &environment);
    assert!(!chat.parts().iter().any(|(name, _)| name == "model"), "nobody stands in for it");
    let visitor = chat.log_in();
    for _ in 0..good {
        let (texts, last, value) = events(&visitor.asks("hällo").rest());
        assert_eq!((texts.concat().as_str(), &*last, &value["finish_reason"]), ("one twö", "done", &json!("stop")));
    }
    for (answer, status, error, retry_after) in bad {
        let mut client = visitor.asks("hello");
        eprintln!("{}", String::from_utf8_lossy(&answer.concat()).chars().take(80).collect::<String>());
        expect(&mut client, status, error, retry_after);
    }
    let asked = api.asked.lock().expect("no panic");
    let (head, body) = &asked[0];
    assert!(head.starts_with("POST /some/v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:"), "{head}");
    assert!(head.contains("\r\nAuthorization: Bearer sk-very-secret"), "{head}");
    let messages = json!([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hällo"}]);
    assert_eq!(*body, json!({"model": "a-model", "messages": messages, "stream": true}));
    let said = chat.said.all().concat() + &chat.stdout.all().concat();
    assert!(!said.contains("very-secret"), "{said}");
}

#[test]
fn an_api_that_is_not_there_is_said() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}/v1", listener.local_addr().expect("bound"));
    let chat = Chat::start_with(&["--daemon", "--silence 1"], &[("OPENAI_BASE_URL", &url)]);
    let visitor = chat.log_in();
    // It accepts, and that is all.
    expect(&mut visitor.asks("hello"), 504, "model-silent", None);
    // A client that leaves before the first word takes the question with it.
    let (mut stream, _) = listener.accept().expect("the first");
    drop(stream.read_to_end(&mut Vec::new()));
    let client = visitor.asks("hello");
    let (mut stream, _) = listener.accept().expect("the second");
    drop(client);
    // The end, or a reset.
    drop(stream.read_to_end(&mut Vec::new()));
    chat.says("daemon", &["alice: client-gone, 0 pieces"]);
    drop(listener);
    expect(&mut visitor.asks("hello"), 502, "model-failed", None);
    chat.says("daemon", &["alice: 502 model-failed: no connection: "]);
}
