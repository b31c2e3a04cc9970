//! Files of a folder: what a route answers whose default is `{ file = "…" }`, and what a FastCGI filter is given.
//!
//! A path of a request cannot leave the folder, whatever links stand in it and whoever changes them meanwhile: the kernel
//! resolves it (`openat2` with RESOLVE_BENEATH and RESOLVE_NO_MAGICLINKS). Relative links that stay below the folder are followed. The
//! folder itself is looked up for every request, so that a deployment may swap the link that names it; all of one request
//! is one folder's.
//!
//! System calls: `openat2`, of the folder and then of the file, at first with RESOLVE_CACHED, which does what takes no disk,
//! and otherwise on a thread that may wait; `statx` of what was opened; `preadv2` and `pread64` of its bytes. O_NONBLOCK
//! keeps a named pipe from waiting for its writer; O_NOCTTY a terminal from becoming ours. Neither is served: only regular
//! files are.

mod conditions;
mod kind;
mod name;
mod reading;

use std::ffi::OsStr;
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use hyper::HeaderMap;
use hyper::body::Bytes;
use hyper::header::{self, HeaderName, HeaderValue};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

pub use self::conditions::Conditions;
use self::conditions::{Parts, Validators, Verdict};
use self::reading::Reading;
use crate::http::head::Version;
use crate::upstream::{Answer, Body, Whole};

/// How often a path is resolved again that something was renamed under meanwhile. The kernel gives up when it cannot rule
/// out that it was led out of the folder, by any rename on the machine.
const RESOLVE_ATTEMPTS_MAX: usize = 64;

/// A file that was changed so shortly ago may be changed again without its time showing it.
const SETTLED: Duration = Duration::from_secs(1);

/// The first second of the year 10000, for which no date has digits.
const DATES_END: Duration = Duration::from_secs(253_402_300_800);

/// A folder whose files are served; or one file, for a route of one path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Folder(PathBuf);

/// What of a request says which file is wanted.
#[derive(Clone, Debug)]
pub struct Wanted<'a> {
    /// As it came.
    pub method: &'a str,
    /// The whole path, [normalised](crate::http::path::normalise).
    pub path: &'a str,
    /// The end of `path` that is below the route's prefix, with or without the slash in front. Empty: the folder itself.
    pub below: &'a str,
    /// Behind the `?`, for a client that is sent to the same path with a slash.
    pub query: Option<&'a str>,
    /// Of its fields.
    pub conditions: Conditions<'a>,
}

/// A file that was found, and is open.
#[derive(Debug)]
pub struct Found {
    file: File,
    /// How long it was when it was opened: what will be served.
    pub length: u64,
    /// When it was changed.
    pub modified: SystemTime,
    tag: String,
    kind: &'static str,
}

/// Why no file is served. The answer's body is a page, which is not made here.
#[derive(Debug)]
pub struct Refusal {
    /// 301, 403, 404, 405, 412, 416 or 503.
    pub status: u16,
    /// What belongs to the status: Location, Allow, Content-Range.
    pub field: Option<(HeaderName, HeaderValue)>,
    /// What is wrong on our side, for the log.
    pub error: Option<String>,
}

/// Whether the kernel may go to the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lookup {
    AtOnce,
    Waiting,
}

/// Which of the two lookups failed.
#[derive(Debug)]
enum Failure {
    Folder(Errno),
    File(Errno),
}

impl Folder {
    /// The folder at `path`, which is absolute. It is not looked at yet.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// Answers a request.
    ///
    /// # Errors
    /// A [`Refusal`], which is an answer too.
    ///
    /// # Cancel safety
    /// Dropping it closes what was opened.
    pub async fn answer(&self, wanted: &Wanted<'_>) -> Result<Answer, Refusal> {
        let parts = match wanted.method {
            "GET" => Parts::Allowed,
            "HEAD" => Parts::Ignored,
            _ => return Err(Refusal::with(405, header::ALLOW, HeaderValue::from_static("GET, HEAD"))),
        };
        self.find(wanted).await?.answer(&wanted.conditions, parts).await
    }

    /// Finds the file that is wanted, whatever the method and the conditions say.
    ///
    /// # Errors
    /// 301, 403, 404 or 503.
    ///
    /// # Cancel safety
    /// Dropping it closes what was opened.
    pub async fn find(&self, wanted: &Wanted<'_>) -> Result<Found, Refusal> {
        let is_directory = if wanted.below.is_empty() { wanted.path } else { wanted.below }.ends_with('/');
        let name = name::name(wanted.below, is_directory).ok_or_else(|| Refusal::new(404))?;
        let opened = match open(&self.0, &name, Lookup::AtOnce) {
            // EINVAL: before Linux 5.12.
            Err(Failure::Folder(Errno::AGAIN | Errno::INVAL) | Failure::File(Errno::AGAIN | Errno::INVAL)) => {
                let (folder, name) = (self.0.clone(), name.clone());
                let waited = tokio::task::spawn_blocking(move || open(&folder, &name, Lookup::Waiting)).await;
                waited.map_err(|error| self.fault(&error))?
            }
            done => done,
        };
        let file = opened.map_err(|failure| match failure {
            Failure::Folder(errno) => self.fault(&io::Error::from(errno)),
            Failure::File(errno) => self.refused(&name, errno),
        })?;
        let metadata = file.metadata().map_err(|error| self.fault(&error))?;
        if metadata.is_dir() && !is_directory {
            return Err(moved(wanted));
        }
        // A directory in the index's place has no index itself.
        if !metadata.is_file() {
            return Err(Refusal::new(404));
        }
        let named = if name.is_empty() { self.0.as_path() } else { Path::new(&name) };
        Ok(Found::new(file, &metadata, kind::kind(named)))
    }

    /// A file that cannot be opened.
    fn refused(&self, name: &OsStr, errno: Errno) -> Refusal {
        let error = |why: &str| Some(format!("{}: {why}", self.0.join(name).display()));
        match errno {
            // ENXIO: a socket, or a device that nothing drives.
            Errno::NOENT | Errno::NOTDIR | Errno::NAMETOOLONG | Errno::NXIO => Refusal::new(404),
            Errno::XDEV => {
                Refusal { error: error("a link leads out of the folder, or is absolute"), ..Refusal::new(404) }
            }
            Errno::LOOP => Refusal { error: error("links without an end, or into /proc"), ..Refusal::new(404) },
            Errno::ACCESS | Errno::PERM => {
                Refusal { error: error(&io::Error::from(errno).to_string()), ..Refusal::new(403) }
            }
            _ => Refusal { error: error(&io::Error::from(errno).to_string()), ..Refusal::new(503) },
        }
    }

    /// What no file is to blame for.
    fn fault(&self, error: &dyn std::fmt::Display) -> Refusal {
        Refusal { error: Some(format!("{}: {error}", self.0.display())), ..Refusal::new(503) }
    }
}

impl Found {
    fn new(file: File, metadata: &Metadata, kind: &'static str) -> Self {
        let modified = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
        let is_settled = SystemTime::now().duration_since(modified).is_ok_and(|age| age >= SETTLED);
        let length = metadata.len();
        let nanoseconds = i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec());
        // Weak until it is certain that another content would have another time (RFC 9110 §8.8.1).
        let weak = if is_settled { "" } else { "W/" };
        let tag = format!("{weak}\"{:x}-{length:x}-{nanoseconds:x}\"", metadata.ino());
        Self { file, length, modified, tag, kind }
    }

    /// The whole file, for a filter.
    ///
    /// # Errors
    /// 503: it cannot be read, or has become shorter.
    ///
    /// # Cancel safety
    /// Dropping it closes the file.
    pub async fn body(self) -> Result<Box<dyn Body>, Refusal> {
        let length = self.length;
        self.bytes(0, length).await
    }

    async fn bytes(self, begin: u64, end: u64) -> Result<Box<dyn Body>, Refusal> {
        match Reading::begin(self.file, begin, end).await {
            Ok(reading) => Ok(Box::new(reading)),
            Err(error) => Err(Refusal { error: Some(format!("reading: {error}")), ..Refusal::new(503) }),
        }
    }

    async fn answer(self, conditions: &Conditions<'_>, parts: Parts) -> Result<Answer, Refusal> {
        let modified = self.date();
        let length = self.length;
        let file = Validators { tag: self.tag.clone(), modified, length };
        let mut fields = HeaderMap::new();
        fields.insert(header::ETAG, ours(self.tag.clone()));
        if let Some(modified) = modified {
            fields.insert(header::LAST_MODIFIED, ours(httpdate::fmt_http_date(modified)));
        }
        let (status, begin, end) = match conditions.judge(&file, parts) {
            Verdict::Failed => return Err(Refusal::new(412)),
            Verdict::Unsatisfiable => {
                return Err(Refusal::with(416, header::CONTENT_RANGE, ours(format!("bytes */{length}"))));
            }
            Verdict::NotModified => {
                return Ok(Answer { version: Version::Http11, status: 304, fields, body: nothing() });
            }
            Verdict::Part { first, last } => {
                fields.insert(header::CONTENT_RANGE, ours(format!("bytes {first}-{last}/{length}")));
                (206, first, last + 1)
            }
            Verdict::Whole => (200, 0, length),
        };
        fields.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
        fields.insert(header::CONTENT_LENGTH, HeaderValue::from(end - begin));
        fields.insert(header::CONTENT_TYPE, HeaderValue::from_static(self.kind));
        let body = if parts == Parts::Allowed { self.bytes(begin, end).await? } else { nothing() };
        Ok(Answer { version: Version::Http11, status, fields, body })
    }

    /// Its Last-Modified, which is never later than the answer's Date (RFC 9110 §8.8.2.1). `None` before 1970 and after 9999.
    fn date(&self) -> Option<SystemTime> {
        let since = self.modified.min(SystemTime::now()).duration_since(SystemTime::UNIX_EPOCH).ok()?;
        (since < DATES_END).then(|| SystemTime::UNIX_EPOCH + Duration::from_secs(since.as_secs()))
    }
}

impl Refusal {
    fn new(status: u16) -> Self {
        Self { status, field: None, error: None }
    }

    fn with(status: u16, name: HeaderName, value: HeaderValue) -> Self {
        Self { field: Some((name, value)), ..Self::new(status) }
    }
}

fn nothing() -> Box<dyn Body> {
    Box::new(Whole::new(Bytes::new()))
}

/// A value that was written here.
fn ours(text: String) -> HeaderValue {
    HeaderValue::try_from(text).expect("visible ASCII")
}

/// A directory is asked for without its slash: what its page refers to would be looked for beside it. The location has no
/// host, which the client knows better, and cannot be taken for one: a normalised path has no two slashes in a row.
fn moved(wanted: &Wanted<'_>) -> Refusal {
    let query = wanted.query.map(|query| format!("?{query}")).unwrap_or_default();
    match HeaderValue::try_from(format!("{}/{query}", wanted.path)) {
        Ok(location) => Refusal::with(301, header::LOCATION, location),
        Err(_) => Refusal::new(404),
    }
}

/// Opens the file of a name below a folder, or with an empty name what the folder itself is.
fn open(folder: &Path, name: &OsStr, lookup: Lookup) -> Result<File, Failure> {
    let cached = if lookup == Lookup::AtOnce { ResolveFlags::CACHED } else { ResolveFlags::empty() };
    let reading = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    if name.is_empty() {
        let opened = rustix::fs::openat2(CWD, folder, reading, Mode::empty(), cached);
        return opened.map(File::from).map_err(Failure::Folder);
    }
    let path_only = OFlags::PATH | OFlags::CLOEXEC;
    let root = rustix::fs::openat2(CWD, folder, path_only, Mode::empty(), cached).map_err(Failure::Folder)?;
    let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | cached;
    let attempts = if lookup == Lookup::AtOnce { 1 } else { RESOLVE_ATTEMPTS_MAX };
    let mut opened = Err(Errno::AGAIN);
    for _ in 0..attempts {
        opened = rustix::fs::openat2(&root, name, reading, Mode::empty(), beneath);
        if !matches!(opened, Err(Errno::AGAIN)) {
            break;
        }
    }
    opened.map(File::from).map_err(Failure::File)
}
