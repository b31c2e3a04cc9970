//! Dialects in which the gateway writes a head, or sends the request's.

use std::io::Read as _;

use crate::support::{Gateway, eventually};
use crate::{ANSWERED, HEAD, Receiver, body, gateway_of, get};

// fdpass: the gateway has written the response's head.

/// The body behind the gateway's plain head, and whether the end was clean.
#[track_caller]
fn ask_for_body(gateway: &Gateway, fields: &str) -> (String, bool) {
    let mut client = gateway.client();
    client.send(get(fields));
    let mut answer = Vec::new();
    let is_clean = client.stream.read_to_end(&mut answer).is_ok();
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    assert!(head.starts_with("HTTP/1.1 200 OK\r\nDate: ") && head.ends_with("GMT\r\nConnection: close"), "{head}");
    (body.to_owned(), is_clean)
}

#[test]
fn behind_a_head_the_program_writes_the_body_and_knows_it() {
    let gateway = gateway_of("fdpass");
    let script = "echo \"$HANDOFF_HEAD_SENT:${HANDOFF_DATA-unset}\"; head -c 5";
    let _receiver = Receiver::start(&gateway, &["--dialect", "fdpass"], script);
    let mut client = gateway.client();
    client.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello");
    let answer = client.rest();
    assert!(
        answer.ends_with("\r\nConnection: close\r\n\r\n1:\nhello") && answer.matches("HTTP/1.1").count() == 1,
        "{answer}"
    );
}

#[test]
fn behind_a_head_an_empty_body_is_whole_only_if_its_program_says_so() {
    for (program, is_clean, said) in [
        (&["true"][..], true, None),
        (&["false"], false, Some("exit status 1")),
        (&["sh", "-c", "kill -9 $$"], false, Some("signal 9")),
        (&["/nonexistent/program"], false, Some("cannot run /nonexistent/program")),
        (&["sleep", "1000"], false, Some("ran too long")),
    ] {
        let gateway = gateway_of("fdpass");
        let options = ["--dialect", "fdpass", "--timeout", "300ms"];
        let receiver = Receiver::start_with(&gateway, &options, program, |command| command);
        let before = receiver.descriptors();
        assert_eq!(ask_for_body(&gateway, ""), (String::new(), is_clean), "{program:?}");
        if let Some(said) = said {
            receiver.stderr.wait(1, &[said]);
        }
        eventually("the descriptors are back", || (receiver.descriptors() <= before).then_some(()));
    }
}

#[test]
fn behind_a_head_half_a_body_is_reset_when_its_program_is_cut_and_left_when_it_fails() {
    for (script, is_clean) in [("echo half; sleep 1000", false), ("echo half; exit 3", true)] {
        let gateway = gateway_of("fdpass");
        let _receiver = Receiver::start(&gateway, &["--dialect", "fdpass", "--timeout", "300ms"], script);
        let mut client = gateway.client();
        client.send(get(""));
        client.until("half\n");
        assert_eq!(client.was_reset(), !is_clean, "{script}");
    }
}

// datagram: the message is the request's head.

#[test]
fn the_head_is_the_data_where_handoffs_are_datagrams() {
    let gateway = gateway_of("datagram");
    let script = format!(
        "{HEAD} printf '%s' \"$HANDOFF_DATA\"; cat \"$HANDOFF_DATA_FILE\"; echo ${{HANDOFF_HEAD_SENT-unset}}; head -c 5"
    );
    let receiver = Receiver::start(&gateway, &["--dialect", "datagram"], &script);
    let before = receiver.descriptors();
    for _ in 0..3 {
        let head = "POST /a%20b?c HTTP/1.1\r\nhOST:  x\r\nContent-Length: 5\r\n\r\n";
        let mut client = gateway.client();
        client.send(format!("{head}hello"));
        assert_eq!(body(&mut client), format!("{head}{head}unset\nhello"));
    }
    eventually("the descriptors are back", || (receiver.descriptors() <= before).then_some(()));
}

#[test]
fn a_datagrams_program_that_writes_nothing_is_answered_for() {
    let gateway = gateway_of("datagram");
    let _receiver = Receiver::start(&gateway, &["--dialect", "datagram"], "true");
    let answer = gateway.ask(&get(""));
    assert_eq!(answer, "HTTP/1.1 502 Bad Gateway\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
}

#[test]
fn who_sends_a_datagram_is_asked_of_the_kernel() {
    let own = nix::unistd::geteuid().to_string();
    for (uid, is_allowed) in [("54321", false), (&*own, true)] {
        let gateway = gateway_of("datagram");
        let options = ["--dialect", "datagram", "--allow-uid", uid];
        let receiver = Receiver::start(&gateway, &options, &format!("{HEAD} echo in"));
        let answer = gateway.ask(&get(""));
        if is_allowed {
            assert_eq!(answer, format!("{ANSWERED}in\n"));
        } else {
            // It has read the message, so it is the one that ends the client.
            assert_eq!(answer, "");
            receiver.stderr.wait(1, &[&format!("uid {own} may not hand over")]);
        }
    }
}
