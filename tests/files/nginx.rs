//! Beside nginx, whose users move in.

use std::os::unix::fs::symlink;

use super::{Site, THEN_IN_WORDS, field, now, whole};
use crate::support::peers;

/// Who moves in from nginx finds the same files, in the same answers. (What differs on purpose: hidden files, escaped
/// slashes, several ranges, and `5-4` or `x`, which are no ranges, so that RFC 9110 has us ignore them.)
#[test]
fn nginx_and_we_serve_a_folder_alike() {
    if !peers::is_installed("nginx") {
        return;
    }
    let site = Site::new();
    site.put("index.html", "root");
    site.put("a/b c.txt", "0123456789");
    site.put("a/index.html", "below");
    site.put("none/x", "");
    symlink("b c.txt", site.path("a/link.txt")).unwrap();
    let nginx = peers::nginx(site.around.path(), "absolute_redirect off;\nserver { LISTEN root DIR/www; }");
    let check = |method: &str, target: &str, fields: &[(&str, &str)]| {
        let mut client = nginx.client();
        let lines: String = fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        client.send(format!("{method} {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{lines}\r\n"));
        let theirs = client.rest();
        let (head, body) = theirs.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        let theirs = |name: &str| {
            let named =
                head.lines().filter_map(|line| line.split_once(": ")).find(|(n, _)| n.eq_ignore_ascii_case(name));
            named.map(|(_, value)| value.to_owned())
        };
        let ours = site.ask(method, target, fields);
        let said = match &ours {
            Ok(answer) => (answer.status, answer.fields.clone()),
            Err(refusal) => (refusal.status, refusal.field.clone().into_iter().collect()),
        };
        let what = format!("{method} {target} {fields:?}");
        assert_eq!(Some(said.0), status, "{what}");
        for name in ["content-range", "last-modified", "location"] {
            let ours = said.1.get(name).map(|value| value.to_str().unwrap().to_owned());
            assert_eq!(ours, theirs(name), "{what}: {name}");
        }
        if let Ok(answer) = ours {
            assert_eq!(field(&answer, "content-length").map(str::to_owned), theirs("content-length"), "{what}");
            assert_eq!(now(whole(answer.body)).unwrap(), body.as_bytes(), "{what}");
        }
    };
    for method in ["GET", "HEAD"] {
        for target in
            ["/", "/a", "/a?x=1&y", "/a/", "/a/b%20c.txt", "/a/b%20c.txt?x", "/a/link.txt", "/A/", "/none", "/x"]
        {
            check(method, target, &[]);
        }
        for target in ["/a/b%20c.txt/", "/a/b%20c.txt/x", "/a/nothing/x"] {
            check(method, target, &[]);
        }
        for condition in [
            ("if-modified-since", THEN_IN_WORDS),
            ("if-modified-since", "Sun, 06 Nov 1994 08:49:36 GMT"),
            ("if-modified-since", "x"),
            ("if-unmodified-since", THEN_IN_WORDS),
            ("if-unmodified-since", "Sun, 06 Nov 1994 08:49:36 GMT"),
            ("if-match", "\"x\""),
            ("if-match", "*"),
            ("if-none-match", "\"x\""),
            ("if-none-match", "*"),
        ] {
            check(method, "/a/b%20c.txt", &[condition]);
        }
    }
    for range in ["0-0", "-1", "9-", "0-", "10-", "-0", "-11", "3-4", "3-99", "99-100"] {
        check("GET", "/a/b%20c.txt", &[("range", &format!("bytes={range}"))]);
    }
    for (then, range) in [(THEN_IN_WORDS, "0-0"), ("Sun, 06 Nov 1994 08:49:38 GMT", "0-0"), ("\"x\"", "20-")] {
        check("GET", "/a/b%20c.txt", &[("range", &format!("bytes={range}")), ("if-range", then)]);
    }
    check("POST", "/a/b%20c.txt", &[]);
}
