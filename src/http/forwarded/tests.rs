use super::*;

const TRUSTED: [&str; 4] = ["10.0.0.0/8", "fd00::/8", "192.0.2.1", "unix"];

fn of(text: &str) -> Node {
    if text == "unix" { Node::Unix } else { Node::ip(text.parse().expect("an address")) }
}

/// Who asks, how and whom, when `peer` does over http, for `own`.
fn found(peer: &str, fields: &[(&str, &str)]) -> (String, &'static str, String) {
    let trusted = TrustedProxies::parse(&TRUSTED).expect("networks");
    let fields = fields.iter().map(|&(name, value)| (name, value.as_bytes()));
    let client = Client::direct(of(peer), "http", "own").behind(fields, &trusted);
    let node = match client.node {
        Node::Ip(address) => address.to_string(),
        Node::Unix => "unix".to_owned(),
    };
    (node, client.scheme, client.host.into_owned())
}

fn check(peer: &str, forwarded_for: &str, expected: &str) {
    let fields = [("X-Forwarded-For", forwarded_for)];
    assert_eq!(found(peer, &fields).0, expected, "{peer}: {forwarded_for:?}");
}

#[test]
fn the_client_is_the_first_from_the_right_that_is_not_trusted() {
    check("203.0.113.1", "198.51.100.1", "203.0.113.1");
    check("10.0.0.1", "198.51.100.1", "198.51.100.1");
    check("10.0.0.1", "127.0.0.1, 198.51.100.1", "198.51.100.1");
    check("10.0.0.1", "127.0.0.1, 198.51.100.1, 10.9.9.9,192.0.2.1", "198.51.100.1");
    check("10.0.0.1", "10.0.0.3, 10.0.0.2", "10.0.0.3");
    check("unix", "198.51.100.1", "198.51.100.1");
    check("fd00::1", "2001:db8::1", "2001:db8::1");
    check("::ffff:10.0.0.1", "::ffff:198.51.100.1", "198.51.100.1");
    check("10.0.0.1", ", ,198.51.100.1 ,", "198.51.100.1");
    check("10.0.0.1", "198.51.100.1:5000", "198.51.100.1");
    check("10.0.0.1", "[2001:db8::1]:5000", "2001:db8::1");
    check("10.0.0.1", "[2001:db8::1]", "2001:db8::1");
    check("10.0.0.1", "", "10.0.0.1");
}

#[test]
fn what_is_no_address_ends_the_search() {
    for text in ["unknown", "_x", "198.51.100.1.", "1.2.3", "01.2.3.4", "[198.51.100.1]", "fe80::1%eth0", "é"] {
        check("10.0.0.1", text, "10.0.0.1");
        check("10.0.0.1", &format!("198.51.100.1, {text}, 10.0.0.2"), "10.0.0.2");
    }
}

#[test]
fn so_many_proxies_are_looked_behind_and_no_more() {
    let behind = |count: usize| format!("198.51.100.1{}", ", 10.0.0.2".repeat(count));
    check("10.0.0.1", &behind(HOPS_MAX - 1), "198.51.100.1");
    check("10.0.0.1", &behind(HOPS_MAX), "10.0.0.2");
}

#[test]
fn several_fields_are_one_list() {
    let fields =
        [("x-forwarded-for", "127.0.0.1"), ("X-Forwarded-For", "198.51.100.1"), ("x-forwarded-for", "10.0.0.2")];
    assert_eq!(found("10.0.0.1", &fields).0, "198.51.100.1");
}

#[test]
fn scheme_and_host_are_of_the_same_proxy_as_the_client() {
    let check = |fields: &[(&str, &str)], expected: (&str, &str, &str)| {
        let found = found("10.0.0.1", fields);
        assert_eq!((&found.0[..], found.1, &found.2[..]), expected, "{fields:?}");
    };
    check(&[("X-Forwarded-Proto", "HTTPS")], ("10.0.0.1", "https", "own"));
    check(&[("X-Forwarded-Proto", "https, http")], ("10.0.0.1", "http", "own"));
    let two = ("X-Forwarded-For", "198.51.100.1, 10.0.0.2");
    check(&[two, ("X-Forwarded-Proto", "gopher, https, http")], ("198.51.100.1", "https", "own"));
    check(&[two, ("X-Forwarded-Proto", "https")], ("198.51.100.1", "https", "own"));
    check(&[two, ("X-Forwarded-Host", "Example.ORG:8443, inner")], ("198.51.100.1", "http", "example.org:8443"));
    check(&[two, ("X-Forwarded-Host", "a b"), ("X-Forwarded-Proto", "ws")], ("198.51.100.1", "http", "own"));
    let one = ("Forwarded", "for=198.51.100.1;proto=https;host=\"Example.org:8443\"");
    check(&[one], ("198.51.100.1", "https", "example.org:8443"));
    let inner = ("Forwarded", "For=\"10.0.0.2:80\";by=_x;Proto=http");
    check(&[one, inner], ("198.51.100.1", "https", "example.org:8443"));
    check(&[("Forwarded", "for=127.0.0.1;host=a"), ("Forwarded", "for=198.51.100.1")], ("198.51.100.1", "http", "own"));
    check(&[("Forwarded", "for=\"[2001:db8::1]:80\"")], ("2001:db8::1", "http", "own"));
    check(
        &[("X-Forwarded-For", "198.51.100.1"), ("Forwarded", "for=127.0.0.1;host=a")],
        ("198.51.100.1", "http", "own"),
    );
}

#[test]
fn nobody_hides_a_proxys_element_in_quotes() {
    for before in ["for=\"", "for=\"x", "for=127.0.0.1;host=\"", "for=\"\\"] {
        let fields = [("Forwarded", format!("{before}, for=198.51.100.1"))];
        let fields: Vec<_> = fields.iter().map(|(name, value)| (*name, &value[..])).collect();
        assert_eq!(found("10.0.0.1", &fields).0, "198.51.100.1", "{before}");
    }
    let many = |count: u8| format!("for=198.51.100.1{}", (1..count).map(|n| format!(";p{n}=x")).collect::<String>());
    assert_eq!(found("10.0.0.1", &[("Forwarded", &many(8))]).0, "198.51.100.1");
    for text in [
        "for=198.51.100.1;host=\"a, for=127.0.0.1;x=\\\"\"",
        "for",
        "for=",
        "=198.51.100.1",
        "for =198.51.100.1",
        "for=198.51.100.1;",
        "for=198.51.100.1;for=198.51.100.1",
        &many(9),
        "for=198.51.100.1;a=b;A=b",
        "for=a b",
    ] {
        assert_eq!(found("10.0.0.1", &[("Forwarded", text)]).0, "10.0.0.1", "{text}");
    }
}

fn said(peer: &str, host: &str, fields: &[(&str, &str)]) -> (String, String) {
    let trusted = TrustedProxies::parse(&TRUSTED).expect("networks");
    let fields = fields.iter().map(|&(name, value)| (name, value.as_bytes()));
    let client = Client::direct(of(peer), "http", host).behind(fields, &trusted);
    let (mut addresses, mut elements) = (Vec::new(), Vec::new());
    client.put_addresses(&mut addresses);
    client.put_elements(&mut elements);
    (String::from_utf8(addresses).expect("text"), String::from_utf8(elements).expect("text"))
}

#[test]
fn who_asks_is_said_as_the_standard_has_it() {
    let check = |peer, host, fields: &[(&str, &str)], addresses: &str, elements: &str| {
        assert_eq!(said(peer, host, fields), (addresses.to_owned(), elements.to_owned()));
    };
    check("203.0.113.1", "a.example", &[], "203.0.113.1", "for=203.0.113.1;host=a.example;proto=http");
    check("2001:db8::1", "[::1]:80", &[], "2001:db8::1", "for=\"[2001:db8::1]\";host=\"[::1]:80\";proto=http");
    check("::ffff:203.0.113.1", "", &[], "203.0.113.1", "for=203.0.113.1;proto=http");
    check("unix", "a:80", &[], "unknown", "for=_unix;host=\"a:80\";proto=http");
    let behind = "for=198.51.100.1;host=a;proto=http, for=10.0.0.1";
    check("10.0.0.1", "a", &[("x-forwarded-for", "198.51.100.1")], "10.0.0.1", behind);
    check("10.0.0.1", "a", &[("forwarded", "for=198.51.100.1")], "198.51.100.1, 10.0.0.1", "for=10.0.0.1");
    let broken = [("forwarded", "for=\"x, for=198.51.100.1")];
    check("10.0.0.1", "a", &broken, "198.51.100.1, 10.0.0.1", behind);
}

#[test]
fn networks_are_what_they_say() {
    let has = |entry: &str, address: &str| TrustedProxies::parse(&[entry]).expect(entry).has(of(address));
    for (entry, inside, outside) in [
        ("10.0.0.1", "10.0.0.1", "10.0.0.2"),
        ("10.0.0.0/8", "10.255.0.1", "11.0.0.0"),
        ("10.0.0.0/31", "::ffff:10.0.0.1", "10.0.0.2"),
        ("0.0.0.0/0", "255.255.255.255", "::1"),
        ("::ffff:10.0.0.0/104", "10.1.2.3", "11.0.0.1"),
        ("::/0", "::1", "127.0.0.1"),
        ("fd00::/8", "fdff::1", "fe00::"),
        ("::1", "::1", "::2"),
        ("unix", "unix", "127.0.0.1"),
        ("::/0", "2001:db8::1", "unix"),
    ] {
        assert!(has(entry, inside), "{entry} {inside}");
        assert!(!has(entry, outside), "{entry} {outside}");
    }
}

#[test]
fn an_entry_that_names_nobody_is_named() {
    for entry in [
        "",
        "x",
        "10.0.0.0/33",
        "::/129",
        "10.0.0.0/",
        "10.0.0.0/08",
        "10.0.0.0/+8",
        "10.0.0.0/8/8",
        "unix:/run/a",
        "10.0.0.1:80",
        "Unix",
    ] {
        let error = TrustedProxies::parse(&["::1", entry]).expect_err(entry);
        assert_eq!(error, TrustError::Malformed(entry.to_owned()));
    }
    for (entry, network) in
        [("10.0.0.1/8", "10.0.0.0/8"), ("fd00::1/64", "fd00::/64"), ("::ffff:10.0.0.1/104", "::ffff:10.0.0.0/104")]
    {
        let error = TrustedProxies::parse(&[entry]).expect_err(entry).to_string();
        assert!(error.contains(entry) && error.contains(&format!("write \"{network}\"")), "{error}");
    }
}
