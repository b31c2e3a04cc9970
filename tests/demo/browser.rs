//! A real browser, driven over WebDriver (w3.org/TR/webdriver2) with nothing but a socket.

#![allow(dead_code, unreachable_pub, reason = "as in the harness")]

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::support::{Client, Lines, folder};

/// The name under which WebDriver passes elements.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";
/// A browser's first start on a busy machine.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// A browser with an empty profile; it ends when it is dropped.
pub struct Browser {
    driver: Child,
    port: u16,
    session: String,
    _home: tempfile::TempDir,
}

impl Browser {
    /// Starts one; `None` where none is installed.
    pub fn start() -> Option<Self> {
        let (browser, driver) = (installed("chromium")?, installed("chromedriver")?);
        let home = folder();
        let mut driver = Command::new(driver)
            .arg("--port=0")
            .env("HOME", home.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the driver starts");
        let said = Lines::read(driver.stdout.take().expect("piped")).wait(0, &["started successfully on port "]);
        let port = said.rsplit(' ').next().and_then(|port| port.trim_end_matches('.').parse().ok()).expect("a port");
        let mut started = Self { driver, port, session: String::new(), _home: home };
        let profile = format!("--user-data-dir={}", started._home.path().join("profile").display());
        let flags = [
            "--headless",
            "--no-sandbox", // the only way for root
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--no-proxy-server",
            "--window-size=900,900",
            &profile,
        ];
        let options = json!({"binary": browser, "args": flags});
        let wanted = json!({"capabilities": {"alwaysMatch": {"goog:chromeOptions": options}}});
        let session = started.send("POST", "/session", Some(&wanted));
        started.session = format!("/session/{}", session["sessionId"].as_str().expect("a session"));
        Some(started)
    }

    pub fn open(&self, url: &str) {
        self.call("POST", "/url", Some(&json!({"url": url})));
    }

    pub fn click(&self, css: &str) {
        let element = self.find(css);
        self.call("POST", &format!("/element/{element}/click"), Some(&json!({})));
    }

    /// Types into an element; `\u{e007}` is the key Enter, `\u{e00c}` Escape.
    pub fn type_into(&self, css: &str, text: &str) {
        let element = self.find(css);
        self.call("POST", &format!("/element/{element}/value"), Some(&json!({"text": text})));
    }

    /// Makes the page so large, in pixels, and dark for those who want that.
    pub fn look(&self, width: u32, height: u32, scheme: &str) {
        let size = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false});
        let features = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        for (command, parameters) in
            [("Emulation.setDeviceMetricsOverride", size), ("Emulation.setEmulatedMedia", features)]
        {
            self.call("POST", "/goog/cdp/execute", Some(&json!({"cmd": command, "params": parameters})));
        }
    }

    /// Forgets every cookie of the page's site.
    pub fn forget_cookies(&self) {
        self.call("DELETE", "/cookie", None);
    }

    /// The text of an element as a person sees it.
    pub fn text(&self, css: &str) -> String {
        let element = self.find(css);
        self.call("GET", &format!("/element/{element}/text"), None).as_str().expect("a text").to_owned()
    }

    /// What a script returns that runs in the page.
    pub fn script(&self, script: &str) -> Value {
        self.call("POST", "/execute/sync", Some(&json!({"script": script, "args": []})))
    }

    /// A picture of the page as PNG, in base64.
    pub fn screenshot(&self) -> String {
        self.call("GET", "/screenshot", None).as_str().expect("a picture").to_owned()
    }

    fn find(&self, css: &str) -> String {
        let element = self.call("POST", "/element", Some(&json!({"using": "css selector", "value": css})));
        element[ELEMENT].as_str().expect("an element").to_owned()
    }

    fn call(&self, method: &str, path: &str, body: Option<&Value>) -> Value {
        self.send(method, &format!("{}{path}", self.session), body)
    }

    fn send(&self, method: &str, path: &str, body: Option<&Value>) -> Value {
        let body = body.map(Value::to_string).unwrap_or_default();
        let mut client = Client::connect(([127, 0, 0, 1], self.port).into());
        client.stream.set_read_timeout(Some(START_TIMEOUT)).expect("a socket");
        client.send(format!(
            "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            self.port,
            body.len()
        ));
        let answer = client.answer();
        let mut value: Value = serde_json::from_str(&answer.body).expect("JSON");
        assert_eq!(answer.status, 200, "{method} {path}: {value}");
        value["value"].take()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        if !self.session.is_empty() {
            // Also in a test that failed: otherwise the browser would outlive its driver.
            let quit = || self.call("DELETE", "", None);
            drop(std::panic::catch_unwind(std::panic::AssertUnwindSafe(quit)));
        }
        let pid = Pid::from_raw(i32::try_from(self.driver.id()).expect("a pid"));
        kill(pid, Signal::SIGTERM).expect("it runs");
        drop(self.driver.wait());
    }
}

fn installed(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|file| file.is_file())
}
