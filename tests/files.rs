//! Files of a folder as answers: which are served, whole or in part, and what cannot be had by any path, link or race.

#![cfg(feature = "gateway")]

mod support;

use std::fs::{self, File};
use std::future::Future;
use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use baton::files::{Conditions, Folder, Refusal, Wanted};
use baton::upstream::{Answer, Body, Fault, Piece};
use nix::fcntl::{AT_FDCWD, PosixFadviseAdvice, RenameFlags, posix_fadvise, renameat2};
use nix::sys::stat::Mode;
use nix::unistd::{Uid, mkfifo, setfsuid};
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
    assert_eq!((refusal.status, &refusal.fields["content-range"]), (416, &"bytes */0".parse().unwrap()));
}

#[test]
fn other_methods_are_told_which_there_are() {
    let site = Site::new();
    site.put("a", "");
    for method in ["POST", "PUT", "DELETE", "OPTIONS", "get"] {
        let refusal = site.ask(method, "/a", &[]).unwrap_err();
        assert_eq!((refusal.status, refusal.fields["allow"].as_bytes()), (405, &b"GET, HEAD"[..]), "{method}");
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
        assert_eq!(site.refuses(target, 301).fields["location"], location, "{target}");
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
    assert_eq!(at("/prefix", "").unwrap_err().fields["location"], "/prefix/?q");
    assert_eq!(at("/prefix/", "").unwrap(), 200);
    assert_eq!(at("/prefix/", "/").unwrap(), 200);
    assert_eq!(at("/prefix/a", "a").unwrap_err().fields["location"], "/prefix/a/?q");
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
        let said = refusal.fields["content-range"].to_str().unwrap().to_owned();
        assert_eq!((refusal.status, said), (416, format!("bytes */{end}")), "{range}");
        assert_eq!(site.ask("HEAD", "/a.bin", &[("range", range)]).unwrap().status, 200, "{range}");
    }
    assert_eq!(site.open_files(), 0);
}

#[test]
fn hidden_files_and_names_that_nobody_means_are_not_there() {
    let site = Site::new();
    for name in
        [".env", ".git/config", "a/.htaccess", "a/b", "a\\b", ".well-known/security.txt", ".well-known/.x", "%2e"]
    {
        site.put(name, name);
    }
    for target in ["/.env", "/%2Eenv", "/.git/config", "/a/.htaccess", "/.well-known/.x", "/.git/", "/a%2Fb", "/a/b%00"]
    {
        site.refuses(target, 404);
    }
    for target in ["/a/../a/b", "/../www/a/b", "/%2e%2e/www/a/b", "/./a/b", "//a/b", "/a/b/", "/a/b%0A", "/%zz"] {
        site.refuses(target, 404);
    }
    site.refuses(&format!("/{}", "x".repeat(256)), 404);
    site.refuses(&"/x".repeat(4000), 404);
    assert_eq!(site.get("/.well-known/security.txt", &[]).1, b".well-known/security.txt");
    assert_eq!(site.get("/a%5Cb", &[]).1, b"a\\b");
    // Decoded once.
    assert_eq!(site.get("/%252e", &[]).1, b"%2e");
}

#[test]
fn links_are_followed_below_the_folder_only() {
    let site = Site::new();
    site.put("a/real.txt", "real");
    fs::write(site.around.path().join("secret"), "secret").unwrap();
    for (to, name) in [
        ("a/real.txt", "within.txt"),
        ("../a", "a/loopless"),
        ("a", "folder"),
        ("../secret", "out"),
        ("a/../../secret", "around"),
        ("..", "above"),
        ("/etc/passwd", "absolute"),
        ("/proc/self/root/etc/passwd", "magic"),
        ("loop", "loop"),
        ("nowhere", "dangling"),
        ("/dev/zero", "zero"),
    ] {
        symlink(to, site.path(name)).unwrap();
    }
    symlink(site.path("a/real.txt"), site.path("full")).unwrap();
    for target in ["/within.txt", "/folder/real.txt", "/a/loopless/real.txt"] {
        assert_eq!(site.get(target, &[]).1, b"real", "{target}");
    }
    assert_eq!(site.refuses("/folder", 301).fields["location"], "/folder/");
    for target in ["/out", "/around", "/above/secret", "/above", "/absolute", "/magic", "/loop", "/zero", "/full"] {
        let refusal = site.refuses(target, 404);
        assert!(refusal.error.unwrap().contains("link"), "{target}");
    }
    assert_eq!(site.refuses("/dangling", 404).error, None);
    assert_eq!(site.open_files(), 0);
}

#[test]
fn what_is_no_file_is_neither_served_nor_waited_for() {
    let site = Site::new();
    mkfifo(&site.path("pipe"), Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
    let _listener = UnixListener::bind(site.path("socket")).unwrap();
    for target in ["/pipe", "/socket", "/pipe/", "/socket/"] {
        site.refuses(target, 404);
    }
    assert_eq!(site.open_files(), 0);
}

#[test]
fn a_file_that_may_not_be_read_is_forbidden() {
    let site = Site::new();
    let file = site.put("a", "x");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o000)).unwrap();
    fs::set_permissions(site.around.path(), fs::Permissions::from_mode(0o755)).unwrap();
    // Root may read anything: a thread of another user (setfsuid(2)) may not.
    let files = site.files.clone();
    let asked = std::thread::spawn(move || {
        setfsuid(Uid::from_raw(65534));
        now(ask(&files, "GET", "/a", &[])).unwrap_err()
    });
    let refusal = asked.join().unwrap();
    assert_eq!(refusal.status, 403, "{refusal:?}");
    assert!(refusal.error.unwrap().contains("ermission"));
}

#[test]
fn a_folder_that_is_gone_is_our_fault_until_it_is_back() {
    let site = Site::new();
    site.put("a", "x");
    let away = site.around.path().join("away");
    fs::rename(site.path(""), &away).unwrap();
    let refusal = site.refuses("/a", 503);
    assert!(refusal.error.unwrap().contains("/www: "));
    fs::rename(&away, site.path("")).unwrap();
    assert_eq!(site.get("/a", &[]).1, b"x");
}

#[test]
fn a_large_file_arrives_as_it_is_from_memory_and_from_the_disk() {
    let site = Site::new();
    let content = noise(10_000_000);
    let path = site.put("large", &content);
    let file = File::open(&path).unwrap();
    file.sync_all().unwrap();
    assert!(site.get("/large", &[]).1 == content);
    posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
    assert!(site.get("/large", &[]).1 == content);
    posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
    let range = [("range", "bytes=5000001-9999998")];
    assert!(site.get("/large", &range).1 == content[5_000_001..9_999_999]);
}

#[test]
fn the_length_counts_down_and_a_body_that_is_dropped_is_closed() {
    let site = Site::new();
    site.put("a", noise(5 * PIECE));
    let mut answer = site.ask("GET", "/a", &[]).unwrap();
    for left in (0..5).rev() {
        assert_eq!(site.open_files(), 1);
        let Some(Ok(Piece::Data(piece))) = now(next(&mut answer.body)) else { panic!("no piece") };
        assert_eq!((piece.len(), answer.body.length()), (PIECE, Some((left * PIECE) as u64)));
    }
    assert_eq!(now(next(&mut answer.body)), None);
    assert_eq!(now(next(&mut answer.body)), None);
    drop(answer);
    drop(site.ask("GET", "/a", &[]).unwrap());
    assert_eq!(site.open_files(), 0);
}

#[test]
fn a_file_that_shrinks_is_cut_and_never_filled_up() {
    let site = Site::new();
    let content = noise(20 * PIECE);
    for left in [0, 1, PIECE, PIECE + 1, 20 * PIECE - 1] {
        let path = site.put("a", &content);
        now(async {
            let mut answer = ask(&site.files, "GET", "/a", &[]).await.unwrap();
            let Some(Ok(Piece::Data(first))) = next(&mut answer.body).await else { panic!("no piece") };
            File::options().write(true).open(&path).unwrap().set_len(left as u64).unwrap();
            let (rest, fault) = whole(answer.body).await.unwrap_err();
            let served = [&first[..], &rest].concat();
            assert!(served == content[..PIECE.max(left)], "{left}");
            assert!(matches!(&fault, Fault::Broken(why) if why.contains("missing")), "{fault}");
        });
    }
    assert_eq!(site.open_files(), 0);
}

#[test]
fn a_cut_stays_one_however_often_it_is_asked_for_more() {
    let site = Site::new();
    let path = site.put("a", noise(2 * PIECE));
    now(async {
        let mut answer = ask(&site.files, "GET", "/a", &[]).await.unwrap();
        next(&mut answer.body).await.unwrap().unwrap();
        File::options().write(true).open(&path).unwrap().set_len(0).unwrap();
        for _ in 0..3 {
            assert!(matches!(next(&mut answer.body).await, Some(Err(Fault::Broken(_)))));
        }
    });
}

#[test]
fn a_file_that_grows_is_served_as_long_as_it_was() {
    let site = Site::new();
    let content = noise(2 * PIECE + 1);
    let path = site.put("a", &content);
    now(async {
        let answer = ask(&site.files, "GET", "/a", &[]).await.unwrap();
        File::options().append(true).open(&path).unwrap().write_all(&content).unwrap();
        assert!(whole(answer.body).await.unwrap() == content);
    });
}

/// A client that takes whatever comes at once leaves a turn to others.
#[test]
fn a_file_in_memory_does_not_keep_a_worker_to_itself() {
    let site = Site::new();
    let content = noise(64 << 20);
    site.put("a", &content);
    let (turns, done) = (AtomicU64::new(0), AtomicBool::new(false));
    now(async {
        let read = async {
            let answer = ask(&site.files, "GET", "/a", &[]).await.unwrap();
            let length = whole(answer.body).await.unwrap().len();
            done.store(true, Ordering::Relaxed);
            length
        };
        let others = async {
            while !done.load(Ordering::Relaxed) {
                turns.fetch_add(1, Ordering::Relaxed);
                tokio::task::yield_now().await;
            }
        };
        assert_eq!(tokio::join!(read, others).0, content.len());
    });
    assert!(turns.into_inner() >= 3);
}

/// While one thread swaps what stands at two names, `ask` is asked again and again.
fn while_swapping(one: PathBuf, other: PathBuf, mut ask: impl FnMut()) {
    let stop = Arc::new(AtomicBool::new(false));
    let swaps = std::thread::spawn({
        let stop = Arc::clone(&stop);
        move || {
            let mut count = 0;
            while !stop.load(Ordering::Relaxed) {
                renameat2(AT_FDCWD, &one, AT_FDCWD, &other, RenameFlags::RENAME_EXCHANGE).unwrap();
                count += 1;
            }
            count
        }
    });
    for _ in 0..20_000 {
        ask();
    }
    stop.store(true, Ordering::Relaxed);
    let swaps: u32 = swaps.join().unwrap();
    assert!(swaps > 100, "{swaps}");
}

#[test]
fn swapping_links_at_full_speed_shows_nothing_of_what_is_outside() {
    let site = Site::new();
    site.put("file", "inside");
    site.put("folder/file", "inside");
    let outside = site.around.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("file"), "outside").unwrap();
    symlink("../outside/file", site.path("file-out")).unwrap();
    symlink("../outside", site.path("folder-out")).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for (name, target) in [("file", "/file"), ("folder", "/folder/file")] {
        let (mut shown, mut refused) = (0, 0);
        while_swapping(site.path(name), site.path(&format!("{name}-out")), || {
            runtime.block_on(async {
                match ask(&site.files, "GET", target, &[]).await {
                    Ok(answer) => {
                        assert_eq!(whole(answer.body).await.unwrap(), b"inside");
                        shown += 1;
                    }
                    Err(refusal) => {
                        assert_eq!(refusal.status, 404, "{refusal:?}");
                        refused += 1;
                    }
                }
            });
        });
        // Both were met, or nothing was shown.
        assert!(shown > 0 && refused > 0, "{name}: {shown} shown, {refused} refused");
        println!("{name}: {shown} shown, {refused} refused");
    }
    assert_eq!(site.open_files(), 0);
}

#[test]
fn a_deployment_that_swaps_the_folder_loses_no_request() {
    let site = Site::new();
    for (release, content) in [("r1", "one"), ("r2", "two, longer")] {
        site.put(&format!("{release}/a/index.html"), content);
    }
    symlink("r1", site.path("current")).unwrap();
    symlink("r2", site.path("next")).unwrap();
    let files = Folder::new(site.path("current"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut seen = [0, 0];
    while_swapping(site.path("current"), site.path("next"), || {
        runtime.block_on(async {
            let answer = ask(&files, "GET", "/a/", &[]).await.unwrap();
            let length = answer.body.length();
            let content = whole(answer.body).await.unwrap();
            assert_eq!(length, Some(content.len() as u64));
            match &content[..] {
                b"one" => seen[0] += 1,
                b"two, longer" => seen[1] += 1,
                other => panic!("{other:?}"),
            }
        });
    });
    assert!(seen.iter().all(|&count| count > 0), "{seen:?}");
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
