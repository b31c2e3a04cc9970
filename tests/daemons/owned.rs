//! Who owns the client: TAKEN before it is touched, REFUSED, DONE, RETURN, and what was read beyond.

use std::net::Shutdown;

use baton::handoff::native::frame::Frame;
use baton::handoff::native::header::PACKET_BYTES_MAX;
use serde_json::json;

use crate::client::{Request, memfd};
use crate::dialects::check_answer;
use crate::gateway::Channel;
use crate::language::{Daemon, Language};
use crate::support::eventually;

/// Nobody hears TAKEN, so it cannot be sent: whatever the path, the client is left as it was.
pub fn touches_no_client_before_taken_was_sent(language: Language) {
    let daemon = Daemon::native(language);
    for (target, body) in [("/", ""), ("/hello", ""), ("/return", ""), ("/echo", "body"), ("/hold", ""), ("/fail", "")]
    {
        let mut channel = Channel::open(&daemon);
        channel.deafen();
        let mut lent = channel.prepare();
        lent.far.send(body);
        channel.hand_again(&mut lent, &Request::post(target, body.len()));
        channel.was_read();
        lent.check_untouched(&daemon, body.as_bytes());
    }
    Channel::open(&daemon).is_alive();
}

/// The same for a gateway that goes while the daemon is still thinking.
pub fn touches_no_client_of_a_gateway_that_has_gone(language: Language) {
    let daemon = Daemon::native(language);
    let mut channel = Channel::open(&daemon);
    let lent = channel.hand(&Request::get("/late"));
    channel.was_read();
    drop(channel);
    lent.check_untouched(&daemon, b"");
}

pub fn takes_late_and_serves(language: Language) {
    let daemon = Daemon::native(language);
    let mut channel = Channel::open(&daemon);
    let mut lent = channel.hand(&Request::get("/late"));
    let begun = std::time::Instant::now();
    channel.taken(&mut lent);
    assert!(begun.elapsed().as_millis() >= 2_500, "it takes before it wants to");
    let (answer, report) = channel.ended(lent);
    assert!(answer.ends_with(b"hello\n"));
    assert!(report.duration_us < 2_500_000, "counted from before TAKEN: {report:?}");
}

/// Its copy is closed when REFUSED comes, and the client is as it was.
pub fn refuses_with_a_reason(language: Language) {
    let daemon = Daemon::native(language);
    let mut channel = Channel::open(&daemon);
    for reason in ["overloaded", "draining", "unsupported", "denied"] {
        for retry_after in [None, Some(1), Some(3600)] {
            let more = retry_after.map(|seconds| format!("&retry_after={seconds}")).unwrap_or_default();
            let request = Request::post(&format!("/refuse?reason={reason}{more}"), 4);
            let mut lent = channel.prepare();
            lent.far.send("body");
            channel.hand_again(&mut lent, &request);
            let refusal = channel.refused(&lent);
            assert!(!daemon.holds(lent.inode), "it said REFUSED and holds the client");
            assert_eq!(refusal.reason.word(), reason);
            assert_eq!(refusal.retry_after_s, retry_after);
            assert_eq!(refusal.message.as_deref(), Some("as asked"));
            lent.check_untouched(&daemon, b"body");
        }
    }
    channel.is_alive();
}

pub fn reports_what_it_wrote(language: Language) {
    let daemon = Daemon::native(language);
    let mut channel = Channel::open(&daemon);
    let (answer, report) = channel.served(&Request::get("/hello"));
    let answer = String::from_utf8(answer).unwrap();
    let head = answer.to_ascii_lowercase();
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("\r\n\r\nhello\n"), "{answer}");
    for field in ["\r\ncontent-length: 6\r\n", "\r\nconnection: close\r\n", "\r\ncontent-type: text/plain"] {
        assert!(head.contains(field), "{answer}");
    }
    assert_eq!((report.status, report.result.word()), (Some(200), "ok"));
}

/// When DONE comes, the client is closed.
pub fn closes_before_it_says_done(language: Language) {
    let daemon = Daemon::native(language);
    let mut channel = Channel::open(&daemon);
    for target in ["/hello", "/", "/fail", "/drop"] {
        let mut lent = channel.hand(&Request::get(target));
        channel.taken(&mut lent);
        drop(lent.far.rest());
        channel.done(&lent);
        assert!(!daemon.holds(lent.inode), "{target}: it said DONE and holds the client");
    }
}

pub fn reports_a_failure(language: Language) {
    let daemon = Daemon::native(language);
    let (answer, report) = Channel::open(&daemon).served(&Request::get("/fail"));
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 500 ") && answer.ends_with("\r\n\r\nfailed\n"), "{answer}");
    assert_eq!((report.status, report.result.word()), (Some(500), "error"));
    assert_eq!(report.message.as_deref(), Some("as asked"));
}

/// A handoff that the program forgets is closed and reported.
pub fn reports_what_it_forgot(language: Language) {
    let daemon = Daemon::native(language);
    let mut channel = Channel::open(&daemon);
    let (answer, report) = channel.served(&Request::get("/drop"));
    assert_eq!(answer, b"");
    assert_eq!((report.status, report.result.word()), (None, "error"));
    assert_eq!(report.message.as_deref(), Some("not finished"));
    channel.is_alive();
}

pub fn streams_ten_events_with_the_data_in_the_first(language: Language) {
    let daemon = Daemon::native_with(language, |command| command.args(["--interval", "5"]));
    let mut channel = Channel::open(&daemon);
    let strange = "{\"user\":\"J\u{f6}rg \\ \u{20ac} \u{1f600}\",\t\"n\":1} </script> %s %n";
    let long = "d".repeat(50_000);
    for data in ["", "plain", strange, "GET / HTTP/1.1\r\nHost: x\r\nX-Quote: \"\\\"\r\n\r\n", &long] {
        let mut lent = channel.hand(&Request::get("/any/path?x=1").data(data.as_bytes()));
        channel.taken(&mut lent);
        let (answer, report) = channel.ended(lent);
        check_answer(&String::from_utf8(answer).unwrap(), "baton", data);
        assert_eq!((report.status, report.result.word()), (Some(200), "ok"));
        assert!(report.duration_us >= 45_000, "ten pauses of 5 ms: {report:?}");
    }
}

/// A path is served also where nothing is known of the request.
pub fn serves_where_the_metadata_says_nothing(language: Language) {
    let daemon = Daemon::native(language);
    let request = Request { metadata: json!({}), data: b"data".to_vec(), ..Request::default() };
    let (answer, _) = Channel::open(&daemon).served(&request);
    check_answer(&String::from_utf8(answer).unwrap(), "baton", "data");
}

/// One after the other would take twenty times as long: all have their second event before the first has its last.
pub fn serves_many_at_once(language: Language) {
    let daemon = Daemon::native_with(language, |command| command.args(["--interval", "300"]));
    let mut channel = Channel::open(&daemon);
    let mut all: Vec<_> =
        (0..20).map(|n| channel.hand(&Request::get("/").data(format!("client {n}").as_bytes()))).collect();
    let mut begins = Vec::new();
    for lent in &mut all {
        channel.taken(lent);
        begins.push(lent.far.until("\"n\":2,"));
    }
    let mut arrived = [0; 4096];
    all[0].far.0.set_nonblocking(true).unwrap();
    let count = all[0].far.0.peek(&mut arrived).unwrap_or(0);
    all[0].far.0.set_nonblocking(false).unwrap();
    assert!(!String::from_utf8_lossy(&arrived[..count]).contains("done"));
    for (n, (mut lent, begin)) in all.into_iter().zip(begins).enumerate() {
        let rest = String::from_utf8(lent.far.rest()).unwrap();
        check_answer(&format!("{begin}{rest}"), "baton", &format!("client {n}"));
        let report = channel.done(&lent);
        assert_eq!(report.bytes_out, (begin.len() + rest.len()) as u64);
    }
}

/// Where the gateway has written the head, the body alone is written, and the client does not come back.
pub fn writes_no_second_head(language: Language) {
    let daemon = Daemon::native(language);
    let mut channel = Channel::open(&daemon);
    let mut request = Request::get("/");
    request.metadata["response"]["head_sent"] = true.into();
    let (body, report) = channel.served(&request);
    let body = String::from_utf8(body).unwrap();
    assert!(body.starts_with("data: {") && body.ends_with("event: done\ndata: {}\n\n"), "{body}");
    assert_eq!((report.status, report.result.word()), (None, "ok"));

    request.metadata["request"]["target"] = "/return".into();
    let mut lent = channel.hand(&request);
    channel.taken(&mut lent);
    assert_eq!(String::from_utf8(lent.far.rest()).unwrap(), "returned\n");
    assert_eq!(channel.done(&lent).status, None);
}

/// The very socket comes back, again and again, and the daemon has closed its copy.
pub fn gives_the_client_back(language: Language) {
    let daemon = Daemon::native(language);
    let mut channel = Channel::open(&daemon);
    let (response, mut lent) = channel.answered(&Request::get("/return"));
    assert_eq!((response.status, response.text()), (200, "returned\n"));
    for _ in 0..5 {
        eventually("its copy is closed", || (!daemon.holds(lent.inode)).then_some(()));
        channel.hand_again(&mut lent, &Request::get("/return"));
        assert_eq!(channel.answered_again(&mut lent).text(), "returned\n");
    }
    // To another daemon's channel, or to the gateway.
    let mut other = Channel::open(&daemon);
    other.hand_again(&mut lent, &Request::get("/hello"));
    other.taken(&mut lent);
    assert!(other.ended(lent).0.ends_with(b"hello\n"));
}

/// What stands behind the request is the next request: it comes back, read or unread, to the byte.
pub fn leaves_the_next_request_alone(language: Language) {
    let daemon = Daemon::native(language);
    let mut channel = Channel::open(&daemon);
    let next = "GET /next HTTP/1.1\r\nHost: a\r\n\r\n";
    for (request, sent) in [
        (Request::get("/return"), ""),
        (Request::post("/echo", 5), "hello"),
        (Request::post("/unread", 5), "hello"),
        (Request::post("/unread", 0), ""),
        (Request::chunked("/echo"), "5\r\nhello\r\n0\r\n\r\n"),
        (Request::chunked("/unread"), "5;a=b\r\nhello\r\n0\r\nA: b\r\nC: d\r\n\r\n"),
        (Request::memfd("/echo", b"hello"), ""),
        (Request::memfd("/unread", b"hello"), ""),
    ] {
        let mut lent = channel.prepare();
        lent.far.send(format!("{sent}{next}"));
        channel.hand_again(&mut lent, &request);
        let target = request.metadata["request"]["target"].as_str().unwrap();
        channel.taken(&mut lent);
        let response = lent.far.response();
        let (report, unread) = channel.back(&mut lent);
        assert_eq!(report.bytes_out, response.bytes(), "{target}");
        let text = match target {
            "/echo" => "hello",
            "/unread" => "unread\n",
            _ => "returned\n",
        };
        assert_eq!(response.text(), text);
        lent.far.0.shutdown(Shutdown::Write).unwrap();
        let left = [unread, lent.read_near()].concat();
        assert_eq!(String::from_utf8_lossy(&left), next, "{target} with {sent:?}");
    }
}

/// Preread bytes that were not used come back; the head and the body among them do not.
pub fn gives_back_preread_bytes_that_it_did_not_use(language: Language) {
    let daemon = Daemon::native(language);
    let mut channel = Channel::open(&daemon);
    let head = "POST /echo HTTP/1.1\r\nHost: a\r\n\r\n";
    for (head, body, behind, socket) in [
        ("", "hello", "GET /n", "ext"),
        (head, "hello", "GET /n", "ext"),
        (head, "", "", "GET /n"),
        (head, "hello", "", ""),
    ] {
        let mut request = Request::post("/echo", body.len());
        request.metadata["request"]["head_bytes"] = head.len().into();
        request.preread = format!("{head}{body}{behind}").into_bytes();
        let mut lent = channel.prepare();
        lent.far.send(socket);
        channel.hand_again(&mut lent, &request);
        channel.taken(&mut lent);
        assert_eq!(lent.far.response().text(), body);
        let (_, unread) = channel.back(&mut lent);
        lent.far.0.shutdown(Shutdown::Write).unwrap();
        let left = [unread, lent.read_near()].concat();
        assert_eq!(String::from_utf8_lossy(&left), format!("{behind}{socket}"));
    }
}

/// More than a packet holds was read already: it cannot go back, and is not forgotten in silence.
pub fn closes_where_too_much_would_go_back(language: Language) {
    let daemon = Daemon::native(language);
    let mut channel = Channel::open(&daemon);
    for (behind, comes_back) in [(100_000, true), (PACKET_BYTES_MAX, false)] {
        let mut request = Request::post("/echo", 5);
        let next = vec![b'n'; behind];
        request.memfds[2] = Some(memfd(&[&b"hello"[..], &next].concat()));
        let mut lent = channel.hand(&request);
        channel.taken(&mut lent);
        assert_eq!(lent.far.response().text(), "hello");
        if comes_back {
            assert!(channel.back(&mut lent).1 == next);
        } else {
            assert_eq!(lent.far.rest(), b"");
            channel.done(&lent);
        }
    }
}

/// A body that nobody wanted is read and thrown away up to a limit; past it the client is closed.
pub fn gives_back_behind_a_short_rest_only(language: Language) {
    let daemon = Daemon::native(language);
    let mut channel = Channel::open(&daemon);
    for (length, comes_back) in [(65_536, true), (65_537, false), (1 << 20, false)] {
        let mut lent = channel.prepare();
        let mut sender = lent.far.0.try_clone().unwrap();
        let sending = std::thread::spawn(move || {
            use std::io::Write as _;
            // Whoever is closed in between has not read it.
            drop(sender.write_all(&vec![b'x'; length]));
        });
        channel.hand_again(&mut lent, &Request::post("/unread", length));
        channel.taken(&mut lent);
        let response = lent.far.response();
        assert_eq!(response.text(), "unread\n");
        if comes_back {
            let (report, unread) = channel.back(&mut lent);
            assert_eq!((report.bytes_out, unread.len()), (response.bytes(), 0));
        } else {
            assert_eq!(lent.far.rest(), b"");
            let report = channel.done(&lent);
            assert_eq!((report.bytes_out, report.status), (response.bytes(), Some(200)));
        }
        sending.join().unwrap();
    }
}

/// A client that waits for 100 has its answer, and may keep its body for ever.
pub fn closes_a_client_that_keeps_its_body(language: Language) {
    let daemon = Daemon::native(language);
    let mut channel = Channel::open(&daemon);
    let request = Request::post("/unread", 5).header("expect", "100-continue");
    let begun = std::time::Instant::now();
    let (answer, report) = channel.served(&request);
    assert!(answer.starts_with(b"HTTP/1.1 200 ") && answer.ends_with(b"unread\n"), "{answer:?}");
    assert_eq!(report.result.word(), "ok");
    assert!(begun.elapsed() < crate::support::patience() / 2, "it waited for the body");
}

pub fn answers_head_without_a_body(language: Language) {
    let daemon = Daemon::native(language);
    let mut channel = Channel::open(&daemon);
    let mut request = Request::get("/return");
    request.metadata["request"]["method"] = "HEAD".into();
    let mut lent = channel.hand(&request);
    channel.taken(&mut lent);
    let head = lent.far.until("\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    let (report, _) = channel.back(&mut lent);
    assert_eq!(report.bytes_out, head.len() as u64);
    lent.end_near();
    assert_eq!(lent.far.rest(), b"");
}

/// The channel has gone before RETURN: the client is closed, with its answer whole.
pub fn closes_what_it_cannot_give_back(language: Language) {
    let daemon = Daemon::native(language);
    let mut channel = Channel::open(&daemon);
    let mut lent = channel.hand(&Request::post("/echo", 5));
    channel.taken(&mut lent);
    drop(channel);
    lent.far.send("hello");
    let response = lent.far.response();
    assert_eq!(response.text(), "hello");
    assert_eq!(lent.far.rest(), b"");
    eventually("its copy is closed", || (!daemon.holds(lent.inode)).then_some(()));
}

/// REVOKE ends what is held or streamed; of one that is not there (any more) nothing comes.
pub fn ends_what_is_revoked(language: Language) {
    let daemon = Daemon::native_with(language, |command| command.args(["--interval", "50"]));
    let mut channel = Channel::open(&daemon);
    let revoke = |id| Frame::Revoke { id, reason: "quota".to_owned() };
    channel.say(&revoke(4711));
    let mut held = channel.hand(&Request::get("/hold"));
    channel.taken(&mut held);
    held.far.until("held\n");
    // Bytes that come are no end.
    held.far.send("GET /next");
    channel.is_alive();
    channel.say(&revoke(held.id));
    let id = held.id;
    held.far.rest();
    assert_eq!(channel.done(&held).result.word(), "revoked");

    let mut stream = channel.hand(&Request::get("/"));
    channel.taken(&mut stream);
    let begin = stream.far.until("\"n\":1,");
    channel.say(&revoke(stream.id));
    let rest = stream.far.rest();
    assert!(!String::from_utf8_lossy(&rest).contains("\"n\":10,"), "it went on to its end");
    let report = channel.done(&stream);
    assert_eq!(report.result.word(), "revoked");
    assert_eq!(report.bytes_out, (begin.len() + rest.len()) as u64);
    channel.say(&revoke(id));
    channel.is_alive();
}

/// A client that leaves is noticed, by whoever writes and by whoever waits.
pub fn notices_a_client_that_leaves(language: Language) {
    let daemon = Daemon::native(language);
    let mut channel = Channel::open(&daemon);
    for by_reset in [false, true] {
        let mut held = channel.hand(&Request::get("/hold"));
        channel.taken(&mut held);
        let begin = held.far.until("held\n");
        let far = held.leave();
        if by_reset {
            far.reset()
        } else {
            drop(far)
        }
        let report = channel.done(&held);
        assert_eq!((report.result.word(), report.status), ("client-gone", Some(200)));
        assert_eq!(report.bytes_out, begin.len() as u64);
        assert!(!daemon.holds(held.inode));

        let mut large = channel.hand(&Request::get("/large?bytes=50000000"));
        channel.taken(&mut large);
        large.far.until("aaaa");
        let far = large.leave();
        if by_reset {
            far.reset()
        } else {
            drop(far)
        }
        assert_eq!(channel.done(&large).result.word(), "client-gone");
    }
    let mut stream = channel.hand(&Request::get("/"));
    channel.taken(&mut stream);
    stream.far.until("\"n\":1,");
    stream.leave().reset();
    let result = channel.done(&stream).result.word();
    assert!(["client-gone", "ok"].contains(&result), "{result}");
}

/// Short writes and a slow reader: every byte once.
pub fn writes_all_of_it_to_a_slow_reader(language: Language) {
    let daemon = Daemon::native(language);
    let mut channel = Channel::open(&daemon);
    let mut lent = channel.hand(&Request::get("/large?bytes=5000000"));
    channel.taken(&mut lent);
    // The kernel's buffers are full by then; meanwhile the channel lives.
    eventually("it waits for room", || lent.far.is_full().then_some(()));
    channel.is_alive();
    let (answer, report) = channel.ended(lent);
    let at = answer.windows(4).position(|part| part == b"\r\n\r\n").expect("a head") + 4;
    assert_eq!(answer.len() - at, 5_000_000);
    assert!(answer[at..].iter().all(|byte| *byte == b'a'));
    assert_eq!((report.status, report.result.word()), (Some(200), "ok"));
}

/// A client that reads nothing at all has 30 s.
pub fn gives_up_a_client_that_never_reads(language: Language) {
    let daemon = Daemon::native(language);
    let mut channel = Channel::open(&daemon);
    let mut lent = channel.hand(&Request::get("/large?bytes=50000000"));
    channel.taken(&mut lent);
    let report = channel.done_within(&lent, std::time::Duration::from_secs(60));
    assert_eq!(report.result.word(), "timeout");
    assert!((29_000_000..50_000_000).contains(&report.duration_us), "{report:?}");
    assert!(report.bytes_out < 50_000_000);
}

/// A body that is not read costs no answer: the client is not reset under it.
pub fn an_unread_body_does_not_cost_the_answer(language: Language) {
    let daemon = Daemon::native(language);
    let mut channel = Channel::open(&daemon);
    let mut lent = channel.prepare();
    let mut sender = lent.far.0.try_clone().unwrap();
    let sending = std::thread::spawn(move || {
        use std::io::Write as _;
        sender.write_all(&[b'x'; 200_000])
    });
    channel.hand_again(&mut lent, &Request::post("/", 200_000));
    channel.taken(&mut lent);
    let (answer, _) = channel.ended(lent);
    check_answer(&String::from_utf8(answer).unwrap(), "baton", "");
    sending.join().unwrap().expect("taken");
}
