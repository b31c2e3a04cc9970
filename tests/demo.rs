//! `baton demo` does what it tells people to do: followed word by word, and looked at with a real browser.
#![cfg(feature = "gateway")]

mod support;

#[path = "demo/browser.rs"]
mod browser;

use std::fs;
use std::io::Write as _;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use support::{Client, Lines, baton, eventually, folder, holds, inode_of};
use tempfile::TempDir;

/// The demo, in a folder for temporary files of its own.
struct Demo {
    child: Child,
    stdout: Lines,
    stderr: Lines,
    temporary: TempDir,
}

impl Demo {
    fn start(arguments: &[&str]) -> Self {
        let temporary = folder();
        let mut child = baton()
            .args(["demo", "--listen", "127.0.0.1:0"])
            .args(arguments)
            .env("TMPDIR", temporary.path())
            .current_dir(temporary.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let stdout = Lines::read(child.stdout.take().expect("piped"));
        let stderr = Lines::read(child.stderr.take().expect("piped"));
        let demo = Self { child, stdout, stderr, temporary };
        demo.stdout.wait(0, &["Ctrl-C ends it."]);
        demo
    }

    /// What stands behind a word in what it prints.
    fn printed(&self, word: &str) -> String {
        let line = self.stdout.wait(0, &[&format!("  {word}")]);
        line.trim_start().trim_start_matches(word).trim().to_owned()
    }

    /// Its own process and the daemon's, as it says.
    fn processes(&self) -> [u32; 2] {
        let line = self.printed("The gateway is process");
        let numbers = line.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok());
        numbers.collect::<Vec<_>>().try_into().expect("two processes")
    }

    fn policy(&self) -> PathBuf {
        self.printed("edit:").into()
    }

    fn url(&self) -> String {
        self.printed("or:    open").split(' ').next().expect("an address").trim_end_matches('/').to_owned()
    }

    fn client(&self) -> Client {
        let address: SocketAddr = self.url().trim_start_matches("http://").parse().expect("an address");
        Client::connect(address)
    }

    fn ask(&self, path: &str) -> String {
        let mut client = self.client();
        client.send(format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"));
        client.rest()
    }

    /// Edits the policy as people do: one text for another.
    fn edit(&self, from: &str, to: &str) {
        let text = fs::read_to_string(self.policy()).expect("the file is there");
        assert_eq!(text.matches(from).count(), 1, "{from}");
        fs::write(self.policy(), text.replace(from, to)).expect("saved");
    }

    fn end(&mut self) -> Option<i32> {
        kill(Pid::from_raw(i32::try_from(self.child.id()).expect("a pid")), Signal::SIGTERM).expect("it runs");
        let status = eventually("the demo ends", || self.child.try_wait().expect("ours"));
        status.code()
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
        if std::thread::panicking() {
            eprintln!("the demo said: {:#?} {:#?}", self.stdout.all(), self.stderr.all());
        }
    }
}

/// Whether a process runs; one that ended and that nobody has asked about does not.
fn runs(pid: u32) -> bool {
    fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| !line.is_empty())
}

fn entries(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("a folder").flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

const OPEN: &str = "(global $open i32 (i32.const 1))";
const CLOSED: &str = "(global $open i32 (i32.const 0))";
const PACE: &str = r#"\"words_per_second\":10"#;
const FAST: &str = r#"\"words_per_second\":1000"#;

#[test]
fn what_it_prints_can_be_followed_word_by_word() {
    let demo = Demo::start(&[]);
    let [gateway, daemon] = demo.processes();
    assert_eq!(gateway, demo.child.id());
    assert!(runs(daemon));
    demo.stderr.wait(0, &["listening on ", &demo.url()]);

    let command = demo.printed("try:");
    assert_eq!(command, format!("curl -N {}/stream", demo.url()));
    let mut curl = Command::new("bash")
        .args(["-c", &format!("exec {command}")])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("bash runs");
    let stream = Lines::read(curl.stdout.take().expect("piped"));
    let first = stream.wait(0, &["data: {\"pid\""]);
    let first: Value = serde_json::from_str(first.trim_start_matches("data: ")).expect("JSON");
    assert_eq!((&first["pid"], &first["data"]["greeting"]), (&daemon.into(), &"Hello from the daemon".into()));
    stream.wait(0, &["{\"token\":\"Hello \"}"]);
    // Word by word: the first one came long before the last.
    assert!(stream.all().iter().all(|line| line != "event: done"), "it is still under way");

    // While it streams, a client's socket is in the daemon and not in the gateway.
    let mut client = demo.client();
    client.get("/stream");
    client.until("data: ");
    let inode = inode_of(&client);
    assert!(holds(daemon, inode) && !holds(gateway, inode));

    stream.wait(0, &["event: done"]);
    assert!(eventually("curl ends", || curl.try_wait().expect("ours")).success());
    let page = demo.ask("/");
    assert!(page.starts_with("HTTP/1.1 200 ") && page.contains(&demo.policy().display().to_string()), "{page}");
    assert!(demo.ask("/other").contains("Try /stream."));
    // One line of JSON for each request, as its configuration says.
    let line = demo.stdout.wait(0, &["\"target\":\"/stream\"", "\"outcome\":\"handed-off\""]);
    assert_eq!(serde_json::from_str::<Value>(&line).expect("JSON")["policy"], "quickstart");
}

#[test]
fn an_edited_policy_decides_the_next_request() {
    let demo = Demo::start(&[]);
    demo.edit(PACE, FAST);
    demo.stderr.wait(0, &["policy reloaded", "to=2"]);
    let stream = demo.ask("/stream");
    assert!(stream.contains("\"words_per_second\":1000") && stream.ends_with("event: done\ndata: {}\n\n"), "{stream}");

    demo.edit(OPEN, CLOSED);
    demo.stderr.wait(0, &["policy reloaded", "to=3"]);
    let refused = demo.ask("/stream");
    assert!(refused.starts_with("HTTP/1.1 403 ") && refused.ends_with("\r\n\r\nclosed by the policy\n"), "{refused}");

    // A mistake is named, and what was there goes on.
    demo.edit(CLOSED, "(global $open i32 (i32.const 0)");
    demo.stderr.wait(0, &["policy not reloaded, generation 3 stays: text: "]);
    assert!(demo.ask("/stream").starts_with("HTTP/1.1 403 "));

    demo.edit("(global $open i32 (i32.const 0)", OPEN);
    demo.stderr.wait(0, &["policy reloaded", "to=4"]);
    demo.edit("Hello from the daemon", "Guten Tag, schön Sie zu sehen");
    demo.stderr.wait(0, &["policy reloaded", "to=5"]);
    let stream = demo.ask("/stream");
    assert!(stream.contains("{\"token\":\"Guten \"}") && stream.contains("{\"token\":\"schön \"}"), "{stream}");
}

#[test]
fn it_ends_on_term_and_leaves_nothing() {
    let mut demo = Demo::start(&[]);
    let [_, daemon] = demo.processes();
    let mut streaming = demo.client();
    streaming.get("/stream");
    streaming.until("token");
    assert_eq!(entries(demo.temporary.path()).len(), 1);
    assert!(demo.policy().starts_with(demo.temporary.path()));
    assert_eq!(demo.end(), Some(0));
    assert!(!runs(daemon), "its daemon is gone with it");
    assert!(entries(demo.temporary.path()).is_empty(), "its folder is removed");
    streaming.rest();
}

#[test]
fn its_daemon_does_not_outlive_it_whatever_happens() {
    let mut demo = Demo::start(&[]);
    let [_, daemon] = demo.processes();
    demo.child.kill().expect("it runs");
    demo.child.wait().expect("ours");
    eventually("the daemon ends", || (!runs(daemon)).then_some(()));
}

#[test]
fn a_named_folder_keeps_its_files_and_an_edited_policy_is_not_overwritten() {
    let kept = folder();
    let path = kept.path().join("a/demo & <co>");
    let mut demo = Demo::start(&["--folder", path.to_str().expect("text")]);
    assert_eq!(demo.policy(), path.join("policy.wat"));
    assert!(demo.ask("/").contains("/a/demo &amp; &lt;co&gt;/policy.wat"), "the page names it");
    demo.edit(OPEN, CLOSED);
    demo.stderr.wait(0, &["policy reloaded"]);
    assert_eq!(demo.end(), Some(0));
    let mut names = entries(&path);
    names.retain(|name| name != "daemon.sock");
    names.sort();
    assert_eq!(names, ["baton.toml", "policy.wat"]);
    let demo = Demo::start(&["--folder", path.to_str().expect("text")]);
    assert!(demo.ask("/stream").starts_with("HTTP/1.1 403 "));
    assert!(entries(demo.temporary.path()).is_empty());
}

#[test]
fn an_address_in_use_is_said_and_ends_it_with_1() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("bound").to_string();
    let temporary = folder();
    let output = baton()
        .args(["demo", "--listen", &address])
        .env("TMPDIR", temporary.path())
        .stdin(Stdio::null())
        .output()
        .expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), said.lines().count()), (Some(1), 1), "{said}");
    for word in [&*address, "Address already in use", "--listen"] {
        assert!(said.contains(word), "no {word:?} in {said}");
    }
    assert!(output.stdout.is_empty() && entries(temporary.path()).is_empty());
}

#[test]
fn a_browser_gets_the_stream_and_sees_the_policy_change() {
    let Some(browser) = browser::Browser::start() else {
        assert!(std::env::var_os("CI").is_none(), "chromium and chromedriver are not installed");
        // Past what the test runner keeps back.
        let said =
            writeln!(std::io::stderr(), "NOT TESTED: no browser (chromium, chromedriver); tests/run installs them");
        return said.expect("somebody reads");
    };
    let demo = Demo::start(&[]);
    let [_, daemon] = demo.processes();
    browser.open(&format!("{}/", demo.url()));
    assert_eq!(browser.text("h1"), "Who answers you?");
    assert_eq!(browser.text(".path"), demo.policy().display().to_string());
    assert_eq!(browser.text("#answer"), "");
    browser.click("#ask");
    let began = Instant::now();
    // Tokens appear while it streams, not when it is over.
    let early =
        eventually("the first words", || Some(browser.text("#answer")).filter(|text| text.contains("Hello from")));
    let state = browser.text("#state");
    assert!(state == "Streaming…" || began.elapsed().as_secs() > 5, "{state} {early}");
    let answered = format!("process {daemon}, over the connection that the gateway passed on");
    assert_eq!(browser.text("#pid"), answered);
    assert!(browser.text("#data").contains("\"greeting\":\"Hello from the daemon\""));
    picture(&browser, "streaming");
    demo.edit(PACE, FAST);
    demo.stderr.wait(0, &["policy reloaded", "to=2"]);
    eventually("the end", || (browser.text("#state") == "Done.").then_some(()));
    assert!(browser.text("#answer").trim_end().ends_with("the next answer obeys."));

    demo.edit(OPEN, CLOSED);
    demo.stderr.wait(0, &["policy reloaded", "to=3"]);
    browser.click("#ask");
    eventually("the refusal", || (browser.text("#state") == "Refused by the policy (403).").then_some(()));
    assert_eq!(browser.text("#answer").trim_end(), "closed by the policy");
    assert_eq!(browser.text("#pid"), "", "no daemon answered");
    picture(&browser, "refused");

    demo.edit(CLOSED, OPEN);
    demo.stderr.wait(0, &["policy reloaded", "to=4"]);
    browser.click("#ask");
    eventually("the end", || (browser.text("#state") == "Done.").then_some(()));
    assert!(browser.script("return document.documentElement.scrollWidth <= innerWidth").as_bool().expect("a bool"));
}

/// Saves what the browser shows into the folder that `BATON_TEST_PICTURES` names, for people.
fn picture(browser: &browser::Browser, name: &str) {
    let Some(folder) = std::env::var_os("BATON_TEST_PICTURES") else { return };
    fs::write(Path::new(&folder).join(format!("{name}.png.base64")), browser.screenshot()).expect("written");
}

/// Whatever the demo was started with, its daemon has 0, 1 and 2 and what it opens itself.
#[test]
fn its_daemon_inherits_nothing_but_0_1_and_2() {
    let temporary = folder();
    let mut child = Command::new("sh")
        .args(["-c", "exec 9</etc/hostname; exec \"$0\" demo --listen 127.0.0.1:0"])
        .arg(baton().get_program())
        .env("TMPDIR", temporary.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("it starts");
    let stdout = Lines::read(child.stdout.take().expect("piped"));
    let line = stdout.wait(0, &["the streaming daemon is process"]);
    let daemon: u32 = line.rsplit(' ').next().and_then(|pid| pid.trim_end_matches('.').parse().ok()).expect("a number");
    let open = fs::read_dir(format!("/proc/{daemon}/fd")).expect("it runs").flatten();
    let open: Vec<_> = open.filter_map(|fd| fs::read_link(fd.path()).ok()).collect();
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM).expect("it runs");
    child.wait().expect("ours");
    assert!(!open.contains(&PathBuf::from("/etc/hostname")), "{open:?}");
}
