//! `X-Socket-Handoff` and `X-Handoff-Data` are between an application and us: from clients they go nowhere, and no client
//! sees one, whatever it comes on.

use super::support::upstream::{Serving, undated};
use super::{before_serving, check_logged};

const FIELDS: &str = "X-Socket-Handoff: /run/evil.sock\r\nX-Handoff-Data: secret\r\nx-socket_handoff: /run/evil.sock\r\n\
                      X_Handoff_Data: secret\r\n";

#[test]
fn no_client_sees_one_and_no_upstream_a_clients() {
    let upstream = Serving::start(|head, peer| {
        let length = "Content-Length: 2\r\n\r\n";
        peer.send(match head.split(' ').nth(1).expect("a target") {
            "/final" => format!("HTTP/1.1 200 OK\r\n{FIELDS}{length}ok"),
            "/interim" => {
                format!("HTTP/1.1 103 Early Hints\r\n{FIELDS}\r\nHTTP/1.1 200 OK\r\n{FIELDS}{length}ok")
            }
            "/head" => format!("HTTP/1.1 200 OK\r\n{FIELDS}{length}"),
            "/error" => format!("HTTP/1.1 500 \r\n{FIELDS}{length}ok"),
            "/204" => format!("HTTP/1.1 204 No Content\r\n{FIELDS}\r\n"),
            "/304" => format!("HTTP/1.1 304 Not Modified\r\n{FIELDS}\r\n"),
            "/trailers" => {
                format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n{FIELDS}\r\n")
            }
            _ => format!("HTTP/1.1 200 OK\r\n{length}ok"),
        });
        true
    });
    let gateway = before_serving(&upstream, "", "");
    for (method, target, status) in [
        ("GET", "/final", 200),
        ("GET", "/interim", 200),
        ("HEAD", "/head", 200),
        ("GET", "/error", 500),
        ("GET", "/204", 204),
        ("GET", "/304", 304),
        ("GET", "/trailers", 200),
        ("GET", "/plain", 200),
    ] {
        let all = undated(&gateway.ask(&format!(
            "{method} {target} HTTP/1.1\r\nHost: x\r\nTE: trailers\r\nConnection: TE, close\r\n{FIELDS}\r\n"
        )));
        let lower = all.to_ascii_lowercase();
        for word in ["handoff", "secret", "evil"] {
            assert!(!lower.contains(word), "{target}: {all}");
        }
        check_logged(&gateway, target, "proxied", status);
    }
    let heads = upstream.heads().concat().to_ascii_lowercase();
    assert!(!heads.contains("handoff") && !heads.contains("secret"), "{heads}");
    let said = gateway.stderr.all().concat() + &gateway.log().iter().map(ToString::to_string).collect::<String>();
    assert!(!said.contains("secret"), "{said}");
}
