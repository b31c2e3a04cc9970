//! The page in a real browser: logged in, asked, stopped, gone wrong, and looked at.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use super::browser::Browser;
use super::{Chat, eventually};

const ENTER: &str = "\u{e007}";
const ESCAPE: &str = "\u{e00c}";

/// What somebody sees in a picture of the page, `at` these places.
fn looks(browser: &Browser, name: &str, at: &[(u64, u64)]) -> Value {
    let picture = browser.screenshot();
    // For people.
    if let Some(folder) = std::env::var_os("BATON_TEST_PICTURES") {
        std::fs::write(Path::new(&folder).join(format!("chat-{name}.png.base64")), &picture).expect("written");
    }
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/llm_chat/picture.py");
    let mut python = Command::new("python3");
    python.arg(program).args(at.iter().map(|(x, y)| format!("{x},{y}")));
    let mut child = python.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("python3 runs");
    child.stdin.take().expect("piped").write_all(picture.as_bytes()).expect("it reads");
    let output = child.wait_with_output().expect("ours");
    assert!(output.status.success(), "no picture");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// A place inside of an element, near its left upper corner, where nothing is written.
fn corner(browser: &Browser, css: &str) -> (u64, u64) {
    let place = browser.script(&format!(
        "const box = document.querySelector('{css}').getBoundingClientRect(); return [box.left + 8, box.top + 4].map(Math.round);"
    ));
    (place[0].as_u64().expect("in the picture"), place[1].as_u64().expect("in the picture"))
}

fn pixels(seen: &Value, colour: &str) -> u64 {
    seen["most"][colour].as_u64().unwrap_or(0)
}

/// The text of an element; nothing where there is none, or while the page is being loaded.
fn text(browser: &Browser, css: &str) -> String {
    let script =
        format!("return document.readyState === 'complete' && document.querySelector('{css}')?.innerText || '';");
    browser.script(&script).as_str().expect("a text").to_owned()
}

fn wait(browser: &Browser, css: &str, what: &str) {
    eventually(what, || text(browser, css).contains(what).then_some(()));
}

/// The last answer.
fn answer(browser: &Browser) -> String {
    let text = browser.script("return [...document.querySelectorAll('.assistant')].at(-1)?.textContent ?? '';");
    text.as_str().expect("a text").to_owned()
}

fn is_shown(browser: &Browser, css: &str) -> bool {
    browser.script(&format!("return document.querySelector('{css}').checkVisibility();")).as_bool().expect("a bool")
}

/// Whether nothing sticks out: what is long scrolls within the page.
fn fits(browser: &Browser) -> bool {
    let page = "const page = document.documentElement; return page.scrollWidth <= innerWidth && page.scrollHeight <= innerHeight;";
    browser.script(page).as_bool().expect("a bool")
}

fn asks(browser: &Browser, question: &str) {
    browser.type_into("#question", question);
    browser.type_into("#question", ENTER);
}

#[test]
fn a_person_logs_in_asks_stops_an_answer_and_is_told_what_went_wrong() {
    let Some(browser) = Browser::start() else {
        assert!(std::env::var_os("CI").is_none(), "chromium and chromedriver are not installed");
        // Past what the test runner keeps back.
        let said =
            writeln!(std::io::stderr(), "NOT TESTED: no browser (chromium, chromedriver); tests/run installs them");
        return said.expect("somebody reads");
    };
    let chat = Chat::start(&["--daemon", "--silence 3"]);
    browser.look(900, 700, "light");
    browser.open(&chat.url());
    assert_eq!(text(&browser, "h1"), "Log in");
    browser.type_into("#name", "alice");
    browser.type_into("#password", "wrong");
    browser.click("#login");
    wait(&browser, "#error", "do not go together");
    assert_eq!(
        browser.script("return [document.activeElement.id, document.querySelector('#name').value];"),
        json!(["password", "alice"])
    );
    let seen = looks(&browser, "login", &[corner(&browser, "#error"), corner(&browser, "#login")]);
    assert_eq!(seen["at"], json!(["#fdeee8", "#0b6454"]), "{seen}");
    browser.type_into("#password", "open sesame");
    browser.type_into("#password", ENTER);
    wait(&browser, "h1", "Chat");
    assert_eq!(text(&browser, "#user"), "alice");
    assert!(text(&browser, "#welcome").starts_with("What would you like to know?") && !is_shown(&browser, "#stop"));

    // Word by word: whoever looks on sees many texts, each longer than the one before.
    browser.script(
        "window.seen = []; new MutationObserver(() => { const item = document.querySelector('.assistant .text'); \
         if (item) seen.push(item.textContent); }).observe(document.querySelector('#messages'), {childList: true, subtree: true});",
    );
    asks(&browser, "hello <b>there</b>");
    eventually("it streams", || is_shown(&browser, "#stop").then_some(()));
    wait(&browser, "#state", "The answer is complete.");
    let said = answer(&browser);
    assert!(said.contains("You said “hello <b>there</b>”, and this is answer 1"), "{said}");
    let seen = browser.script("return seen;");
    let mut texts: Vec<_> = seen.as_array().expect("texts").iter().filter_map(Value::as_str).collect();
    texts.dedup();
    assert!(texts.len() > 5 && texts.windows(2).all(|pair| pair[1].starts_with(pair[0])), "{texts:?}");
    assert!(is_shown(&browser, "#send") && !is_shown(&browser, "#stop") && !is_shown(&browser, "#problem"));

    let places = [corner(&browser, ".user"), corner(&browser, "#send"), (2, 200)];
    let seen = looks(&browser, "answered", &places);
    assert_eq!((&seen["width"], &seen["height"]), (&json!(900), &json!(700)));
    assert_eq!(seen["at"], json!(["#dcefe9", "#0b6454", "#f7f6f2"]), "{seen}");
    assert!(seen["colours"].as_u64() > Some(50) && pixels(&seen, "#f7f6f2") > 300_000, "{seen}");
    assert!(pixels(&seen, "#dcefe9") > 2_000 && pixels(&seen, "#1c2126") > 500, "its words are there: {seen}");

    // Stopped in mid-stream, once by the button and once by a key: the model is told at once.
    for (times, stop) in [(1, "click"), (2, ESCAPE)] {
        asks(&browser, "/slow please");
        eventually("a first word", || answer(&browser).contains("You").then_some(()));
        if stop == "click" {
            browser.click("#stop")
        } else {
            browser.type_into("body", stop)
        }
        eventually("it says so", || answer(&browser).ends_with("Stopped.").then_some(()));
        chat.says_times("model", "the client left after", times);
        assert!(is_shown(&browser, "#send") && !is_shown(&browser, "#stop"));
    }
    asks(&browser, "and again");
    eventually("another answer", || answer(&browser).contains("“and again”, and this is answer 4").then_some(()));
    wait(&browser, "#state", "The answer is complete.");

    for (question, title, again) in [
        ("/error 500", "The model failed.", "Try again"),
        ("/hang", "No answer in time.", "Try again"),
        ("/error 429", "Too busy right now.", "Try again in "),
    ] {
        asks(&browser, question);
        wait(&browser, "#problem", title);
        assert!(text(&browser, "#again").starts_with(again), "{question}");
        assert!(is_shown(&browser, "#send"), "{question}");
    }
    assert!(browser.script("return document.querySelector('#again').disabled;").as_bool().expect("a bool"));
    assert!(fits(&browser));
    let scrolls = "const c = document.querySelector('#conversation'); return c.scrollHeight > c.clientHeight;";
    assert!(browser.script(scrolls).as_bool().expect("a bool"), "there is enough to be seen that it could stick out");
    let seen = looks(&browser, "problem", &[corner(&browser, "#problem")]);
    assert_eq!(seen["at"], json!(["#fdeee8"]), "{seen}");
    // What broke off in the middle stays, and the same question can be asked again.
    asks(&browser, "/cut");
    wait(&browser, "#problem", "The model failed.");
    assert!(answer(&browser).ends_with("You said “/cut”,"), "{}", answer(&browser));
    chat.says_times("model", "broke off", 1);
    browser.click("#again");
    chat.says_times("model", "broke off", 2);
    wait(&browser, "#problem", "The model failed.");

    // On a phone, in the dark.
    browser.look(390, 780, "dark");
    browser.click("#new");
    assert!(is_shown(&browser, "#welcome") && !is_shown(&browser, "#problem") && fits(&browser));
    asks(&browser, "/long");
    eventually("many words", || answer(&browser).contains("word40 ").then_some(()));
    assert!(fits(&browser) && is_shown(&browser, "#stop"));
    let seen = looks(&browser, "phone", &[corner(&browser, "#stop"), (2, 300)]);
    assert_eq!(seen["at"], json!(["#62d2b8", "#14171a"]), "{seen}");
    assert_eq!((&seen["width"], &seen["height"]), (&json!(390), &json!(780)));
    assert!(seen["colours"].as_u64() > Some(50) && pixels(&seen, "#e8eaec") > 300, "{seen}");
    browser.click("#stop");
    eventually("stopped", || answer(&browser).ends_with("Stopped.").then_some(()));

    chat.says_times("daemon", "client-gone", 3);

    // A session that is over is said, and nobody is handed over.
    let handed_over = chat.count("daemon", "pieces");
    browser.forget_cookies();
    asks(&browser, "who am I?");
    wait(&browser, "#problem", "You are logged out.");
    assert!(!is_shown(&browser, "#again"));
    assert_eq!(chat.count("daemon", "pieces"), handed_over);
}
