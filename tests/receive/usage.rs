//! What may be typed.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::process::Stdio;

use crate::support::baton;
use crate::{HEAD, Receiver, ask, gateway};

pub(crate) fn run(arguments: &[&OsStr]) -> (Option<i32>, String) {
    let output = baton().arg("receive").args(arguments).stdin(Stdio::null()).output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn wrong_usage_ends_with_2_and_names_what_is_wrong() {
    for (arguments, names) in [
        (&[][..], "SOCKET"),
        (&["s.sock"], "COMMAND"),
        (&["s.sock", "--"], "COMMAND"),
        (&["s.sock", "true"], "true"),
        (&["--dialect", "auto", "s.sock", "--", "true"], "seqpacket, stream, fdpass, datagram or baton"),
        (&["--clients-max", "0", "s.sock", "--", "true"], "clients-max"),
        (&["--clients-max", "100001", "s.sock", "--", "true"], "clients-max"),
        (&["--prefork", "0", "s.sock", "--", "true"], "prefork"),
        (&["--prefork", "1001", "s.sock", "--", "true"], "prefork"),
        (&["--prefork", "1", "--timeout", "1s", "s.sock", "--", "true"], "--prefork"),
        (&["--prefork", "1", "--stall-timeout", "1s", "s.sock", "--", "true"], "--prefork"),
        (&["--prefork", "1", "--clients-max", "1", "s.sock", "--", "true"], "--prefork"),
        (&["--prefork", "1", "--allow-gid", "1", "s.sock", "--", "true"], "--prefork"),
        (&["--timeout", "0s", "s.sock", "--", "true"], "at least 1ms"),
        (&["--stall-timeout", "0ms", "s.sock", "--", "true"], "at least 1ms"),
        (&["--allow-gid", "root", "s.sock", "--", "true"], "allow-gid"),
        (&["--timeout", "5", "s.sock", "--", "true"], "ms, s, m or h"),
        (&["--timeout", "99999999999999999h", "s.sock", "--", "true"], "ms, s, m or h"),
        (&["--drain-timeout", "s", "s.sock", "--", "true"], "ms, s, m or h"),
        (&["--socket-mode", "1777", "s.sock", "--", "true"], "0777"),
        (&["--socket-mode", "8", "s.sock", "--", "true"], "octal"),
        (&["--allow-uid", "root", "s.sock", "--", "true"], "allow-uid"),
        (&["--unknown", "s.sock", "--", "true"], "--unknown"),
    ] {
        let words: Vec<_> = arguments.iter().map(OsStr::new).collect();
        let (code, said) = run(&words);
        assert_eq!(code, Some(2), "{arguments:?}: {said}");
        assert!(said.contains(names), "{arguments:?}: {said}");
    }
    assert!(!Path::new("s.sock").exists());
}

#[test]
fn where_it_cannot_listen_it_ends_with_1_and_says_where() {
    let gateway = gateway();
    let _receiver = Receiver::start(&gateway, &[], &format!("{HEAD} echo first"));
    let file = gateway.path("file");
    fs::write(&file, "precious").unwrap();
    for path in [gateway.path("d.sock"), file.clone(), gateway.path("no/such/folder.sock"), gateway.path("u.sock")] {
        let (code, said) = run(&[path.as_os_str(), "--".as_ref(), "true".as_ref()]);
        assert_eq!(code, Some(1), "{}: {said}", path.display());
        assert!(said.contains(path.to_str().unwrap()), "{said}");
    }
    assert_eq!(fs::read_to_string(file).unwrap(), "precious");
    assert_eq!(ask(&gateway, ""), "first\n");
}
