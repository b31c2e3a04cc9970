//! Files of a folder as answers: which are served, whole or in part, and to whom they are not sent again.

#![cfg(feature = "gateway")]

#[path = "../support/mod.rs"]
mod support;

mod beneath;
mod nginx;
mod reading;
mod wire;

use std::fs::{self, File};
use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use baton::files::{Conditions, Folder, Refusal, Wanted};
use baton::upstream::{Answer, Body, Fault, Piece};
use support::{folder, patience};
use tempfile::TempDir;

/// A second in the past, so that a file's time says which content it has.
const THEN: Duration = Duration::from_secs(784_111_777);
const THEN_IN_WORDS: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
/// The parts that a file is read in.
const PIECE: usize = 64 << 10;

/// A folder that is served, in a folder of its own.
struct Site {
    around: TempDir,
    files: Folder,
}

impl Site {
    fn new() -> Self {
        let around = folder();
        fs::create_dir(around.path().join("www")).unwrap();
        let files = Folder::new(around.path().join("www"));
        Self { around, files }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.around.path().join("www").join(name)
    }

    fn put(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        date(&path, SystemTime::UNIX_EPOCH + THEN);
        path
    }

    fn ask(&self, method: &str, target: &str, fields: &[(&str, &str)]) -> Result<Answer, Refusal> {
        now(ask(&self.files, method, target, fields))
    }

    /// Status and body of an answer.
    #[track_caller]
    fn get(&self, target: &str, fields: &[(&str, &str)]) -> (u16, Vec<u8>) {
        now(async {
            let answer = ask(&self.files, "GET", target, fields).await.unwrap();
            let length = answer.body.length();
            let body = whole(answer.body).await.unwrap();
            assert_eq!(length, Some(body.len() as u64));
            (answer.status, body)
        })
    }

    #[track_caller]
    fn refuses(&self, target: &str, status: u16) -> Refusal {
        let refusal = self.ask("GET", target, &[]).map(|answer| answer.status).expect_err(target);
        assert_eq!(refusal.status, status, "{target}: {refusal:?}");
        refusal
    }

    /// Descriptors of ours into the site.
    fn open_files(&self) -> usize {
        let links =
            fs::read_dir("/proc/self/fd").unwrap().filter_map(|entry| fs::read_link(entry.unwrap().path()).ok());
        links.filter(|path| path.starts_with(self.around.path())).count()
    }
}

/// Behind a route whose prefix is `/`.
async fn ask(files: &Folder, method: &str, target: &str, fields: &[(&str, &str)]) -> Result<Answer, Refusal> {
    let (path, query) = target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
    let conditions = Conditions::read(fields.iter().map(|(name, value)| (*name, value.as_bytes())));
    files.answer(&Wanted { method, path, below: path, query, conditions }).await
}

async fn next(body: &mut Box<dyn Body>) -> Option<Result<Piece, Fault>> {
    std::future::poll_fn(|context| body.poll_next(context)).await
}

async fn whole(mut body: Box<dyn Body>) -> Result<Vec<u8>, (Vec<u8>, Fault)> {
    let mut all = Vec::new();
    while let Some(piece) = next(&mut body).await {
        match piece {
            Ok(Piece::Data(bytes)) => {
                assert!(!bytes.is_empty() && bytes.len() <= PIECE);
                all.extend_from_slice(&bytes);
            }
            Ok(Piece::Trailers(_)) => panic!("a file has no trailers"),
            Err(fault) => return Err((all, fault)),
        }
    }
    Ok(all)
}

/// As a worker of the gateway does, but not for ever.
#[track_caller]
fn now<F: Future>(future: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(patience(), future).await }).expect("an answer in time")
}

fn date(path: &Path, time: SystemTime) {
    File::options().write(true).open(path).unwrap().set_modified(time).unwrap();
}

/// Bytes of which no two pieces are alike.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

fn field<'a>(answer: &'a Answer, name: &str) -> Option<&'a str> {
    assert!(answer.fields.get_all(name).iter().count() <= 1, "{name}");
    answer.fields.get(name).map(|value| value.to_str().unwrap())
}

/// What a refusal says in its one field.
#[track_caller]
fn says<'a>(refusal: &'a Refusal, name: &str) -> &'a str {
    let (said, value) = refusal.field.as_ref().expect(name);
    assert_eq!(said.as_str(), name);
    value.to_str().unwrap()
}

#[test]
fn a_file_is_served_whole() {
    let site = Site::new();
    site.put("a b/é.html", "<p>");
    for method in ["GET", "HEAD"] {
        let answer = site.ask(method, "/a%20b/%C3%A9.html?q", &[]).unwrap();
        assert_eq!(answer.status, 200);
        for (name, expected) in [
            ("content-type", "text/html; charset=utf-8"),
            ("content-length", "3"),
            ("last-modified", THEN_IN_WORDS),
            ("accept-ranges", "bytes"),
        ] {
            assert_eq!(field(&answer, name), Some(expected), "{method} {name}");
        }
        assert!(field(&answer, "etag").unwrap().starts_with('"'));
        let expected: &[u8] = if method == "GET" { b"<p>" } else { b"" };
        assert_eq!(answer.body.length(), Some(expected.len() as u64));
        assert_eq!(now(whole(answer.body)).unwrap(), expected, "{method}");
    }
    assert_eq!(site.open_files(), 0);
}

#[test]
fn an_empty_file_is_one() {
    let site = Site::new();
    site.put("empty.txt", "");
    assert_eq!(site.get("/empty.txt", &[]), (200, vec![]));
    assert_eq!(site.get("/empty.txt", &[("range", "bytes=-1")]), (200, vec![]));
    let refusal = site.ask("GET", "/empty.txt", &[("range", "bytes=0-0")]).unwrap_err();
    assert_eq!((refusal.status, says(&refusal, "content-range")), (416, "bytes */0"));
}

#[test]
fn other_methods_are_told_which_there_are() {
    let site = Site::new();
    site.put("a", "");
    for method in ["POST", "PUT", "DELETE", "OPTIONS", "get"] {
        let refusal = site.ask(method, "/a", &[]).unwrap_err();
        assert_eq!((refusal.status, says(&refusal, "allow")), (405, "GET, HEAD"), "{method}");
    }
}

#[test]
fn a_directory_is_its_index_behind_a_slash() {
    let site = Site::new();
    site.put("index.html", "root");
    site.put("a/index.html", "below");
    site.put("none/other.html", "");
    site.put("odd/index.html/x", "");
    assert_eq!(site.get("/", &[]).1, b"root");
    assert_eq!(site.get("/a/", &[]).1, b"below");
    assert_eq!(field(&site.ask("GET", "/a/", &[]).unwrap(), "content-type"), Some("text/html; charset=utf-8"));
    for (target, location) in [("/a", "/a/"), ("/a?x=%2F/&y", "/a/?x=%2F/&y"), ("/a?", "/a/?"), ("/none", "/none/")] {
        assert_eq!(says(&site.refuses(target, 301), "location"), location, "{target}");
    }
    // No listing, and nothing else in the index's place.
    site.refuses("/none/", 404);
    site.refuses("/odd/", 404);
    site.refuses("/a/index.html/", 404);

    // The folder itself, below a prefix with a slash and without.
    let at = |path, below| {
        let wanted = Wanted { method: "GET", path, below, query: Some("q"), conditions: Conditions::default() };
        now(site.files.answer(&wanted)).map(|answer| answer.status)
    };
    assert_eq!(says(&at("/prefix", "").unwrap_err(), "location"), "/prefix/?q");
    assert_eq!(at("/prefix/", "").unwrap(), 200);
    assert_eq!(at("/prefix/", "/").unwrap(), 200);
    assert_eq!(says(&at("/prefix/a", "a").unwrap_err(), "location"), "/prefix/a/?q");
    assert_eq!(at("/prefix/a/", "a/").unwrap(), 200);
}

#[test]
fn a_route_of_one_path_may_name_one_file() {
    let site = Site::new();
    let file = Folder::new(site.put("robots.txt", "User-agent: *"));
    let at = |path, below| {
        let wanted = Wanted { method: "GET", path, below, query: None, conditions: Conditions::default() };
        now(file.answer(&wanted))
    };
    let answer = at("/robots.txt", "").unwrap();
    assert_eq!(field(&answer, "content-type"), Some("text/plain; charset=utf-8"));
    assert_eq!(now(whole(answer.body)).unwrap(), b"User-agent: *");
    assert_eq!(at("/robots.txt/", "/").unwrap_err().status, 404);
    assert_eq!(at("/robots.txt/a", "/a").unwrap_err().status, 404);
}

#[test]
fn a_client_that_has_the_file_is_told_so() {
    let site = Site::new();
    site.put("a.txt", "old");
    let answer = site.ask("GET", "/a.txt", &[]).unwrap();
    let (tag, modified) = (field(&answer, "etag").unwrap(), field(&answer, "last-modified").unwrap());
    for method in ["GET", "HEAD"] {
        for conditions in [[("if-none-match", tag)], [("if-modified-since", modified)]] {
            let same = site.ask(method, "/a.txt", &conditions).unwrap();
            assert_eq!((same.status, same.body.length()), (304, Some(0)), "{method} {conditions:?}");
            assert_eq!((field(&same, "etag"), field(&same, "last-modified")), (Some(tag), Some(modified)));
            assert_eq!((field(&same, "content-length"), field(&same, "content-type")), (None, None));
        }
        for conditions in [[("if-match", "\"x\"")], [("if-unmodified-since", "Sun, 06 Nov 1994 08:49:36 GMT")]] {
            assert_eq!(site.ask(method, "/a.txt", &conditions).unwrap_err().status, 412, "{method} {conditions:?}");
        }
        assert_eq!(site.ask(method, "/a.txt", &[("if-match", tag)]).unwrap().status, 200);
    }
    // A file that is not there has no conditions.
    assert_eq!(site.ask("GET", "/none", &[("if-none-match", "*")]).unwrap_err().status, 404);

    // The same length at the same second, another file.
    fs::remove_file(site.path("a.txt")).unwrap();
    let path = site.put("a.txt", "new");
    date(&path, SystemTime::UNIX_EPOCH + THEN + Duration::from_nanos(1));
    assert_eq!(site.get("/a.txt", &[("if-none-match", tag)]), (200, b"new".to_vec()));
    assert_eq!(site.get("/a.txt", &[("range", "bytes=1-"), ("if-range", tag)]), (200, b"new".to_vec()));
}

#[test]
fn a_file_that_has_just_changed_is_not_put_together_from_parts() {
    let site = Site::new();
    let path = site.put("a", "0123456789");
    let tag = |site: &Site| field(&site.ask("GET", "/a", &[]).unwrap(), "etag").unwrap().to_owned();
    let settled = tag(&site);
    assert_eq!(site.get("/a", &[("range", "bytes=9-"), ("if-range", &settled)]), (206, b"9".to_vec()));
    date(&path, SystemTime::now() + Duration::from_secs(3600));
    let fresh = tag(&site);
    assert!(fresh.starts_with("W/\""), "{fresh}");
    assert_eq!(site.get("/a", &[("range", "bytes=9-"), ("if-range", &fresh)]).0, 200);
    assert_eq!(site.ask("GET", "/a", &[("if-none-match", &fresh)]).unwrap().status, 304);
    assert_eq!(site.ask("GET", "/a", &[("if-match", &fresh)]).unwrap_err().status, 412);
}

#[test]
fn times_that_no_date_can_say_are_not_said() {
    let site = Site::new();
    let path = site.put("a", "x");
    date(&path, SystemTime::UNIX_EPOCH - Duration::from_secs(1_000_000_000));
    let answer = site.ask("GET", "/a", &[("if-modified-since", THEN_IN_WORDS)]).unwrap();
    assert_eq!((answer.status, field(&answer, "last-modified")), (200, None));
    assert_eq!(site.ask("GET", "/a", &[("if-none-match", field(&answer, "etag").unwrap())]).unwrap().status, 304);

    // None is later than the answer's own.
    date(&path, SystemTime::now() + Duration::from_secs(86400));
    let answer = site.ask("GET", "/a", &[]).unwrap();
    let said = httpdate::parse_http_date(field(&answer, "last-modified").unwrap()).unwrap();
    assert!(said <= SystemTime::now());
}

#[test]
fn a_part_is_the_bytes_that_were_asked_for() {
    let site = Site::new();
    let content = noise(3 * PIECE + 17);
    site.put("a.bin", &content);
    let end = content.len();
    let (last, past) = (format!("bytes={}-", end - 1), format!("bytes={end}-"));
    let across = format!("bytes={}-{}", PIECE - 1, 2 * PIECE);
    for (range, part) in [
        ("bytes=0-0", 0..1),
        ("bytes=-1", end - 1..end),
        (last.as_str(), end - 1..end),
        (across.as_str(), PIECE - 1..2 * PIECE + 1),
        ("bytes=0-", 0..end),
        ("bytes=-99999999999999999999999", 0..end),
        ("bytes=5-99999999999999999999999", 5..end),
    ] {
        let answer = site.ask("GET", "/a.bin", &[("range", range)]).unwrap();
        assert_eq!(answer.status, 206, "{range}");
        let (length, said) = (part.len().to_string(), format!("bytes {}-{}/{end}", part.start, part.end - 1));
        assert_eq!(field(&answer, "content-length"), Some(length.as_str()), "{range}");
        assert_eq!(field(&answer, "content-range"), Some(said.as_str()), "{range}");
        assert_eq!(field(&answer, "content-type"), Some("application/octet-stream"));
        assert_eq!(answer.body.length(), Some(part.len() as u64));
        assert!(now(whole(answer.body)).unwrap() == content[part], "{range}");
    }
    for range in ["bytes=5-4", "bytes=0-0,2-2", "lines=0-1", "bytes=x"] {
        let answer = site.ask("GET", "/a.bin", &[("range", range)]).unwrap();
        assert_eq!((answer.status, field(&answer, "content-range")), (200, None), "{range}");
        assert!(now(whole(answer.body)).unwrap() == content, "{range}");
    }
    for range in [past.as_str(), "bytes=-0", "bytes=99999999999999999999999-"] {
        let refusal = site.ask("GET", "/a.bin", &[("range", range)]).unwrap_err();
        let said = says(&refusal, "content-range");
        assert_eq!((refusal.status, said), (416, format!("bytes */{end}").as_str()), "{range}");
        assert_eq!(site.ask("HEAD", "/a.bin", &[("range", range)]).unwrap().status, 200, "{range}");
    }
    assert_eq!(site.open_files(), 0);
}

#[test]
fn a_filter_gets_the_whole_file_whatever_the_request_says() {
    let site = Site::new();
    let content = noise(PIECE + 1);
    site.put("page.html", &content);
    now(async {
        let fields = [("range", "bytes=0-0"), ("if-none-match", "*")];
        let conditions = Conditions::read(fields.iter().map(|(name, value)| (*name, value.as_bytes())));
        let wanted = Wanted { method: "POST", path: "/page.html", below: "page.html", query: None, conditions };
        let found = site.files.find(&wanted).await.unwrap();
        assert_eq!((found.length, found.modified), (content.len() as u64, SystemTime::UNIX_EPOCH + THEN));
        let body = found.body().await.unwrap();
        assert_eq!(body.length(), Some(content.len() as u64));
        assert!(whole(body).await.unwrap() == content);
    });
}
