//! The writer of the access log: a thread of its own behind a bounded queue.

use std::io::Write;
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::Record;

/// Lines that wait for the writer.
const QUEUE_LINES_MAX: usize = 8192;
/// Bytes of them.
const QUEUE_BYTES_MAX: usize = 8 << 20;
/// What is written at once.
const BUFFER_BYTES: usize = 64 << 10;
/// How long the end waits for a writer that is stuck.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// Where the log goes, and how its lines look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The destination.
    pub sink: Sink,
    /// The form of a line.
    pub format: Format,
}

/// A destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sink {
    /// Appended to; created if need be; opened again by [`AccessLog::reopen`].
    File(PathBuf),
    /// Standard output.
    Stdout,
}

impl std::fmt::Display for Sink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Stdout => f.write_str("standard output"),
        }
    }
}

/// The form of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Apache's combined format.
    Combined,
    /// One JSON object.
    Json,
}

/// The log. Cheap to clone; the writer ends when the last clone is dropped.
#[derive(Clone, Debug)]
pub struct AccessLog {
    queue: mpsc::SyncSender<Message>,
    shared: Arc<Shared>,
    format: Format,
}

/// What the writer is told beside the queue, which may be full.
#[derive(Debug, Default)]
struct Shared {
    lost: AtomicU64,
    queued_bytes: AtomicUsize,
    reopen: AtomicBool,
}

#[derive(Debug)]
enum Message {
    Line(Vec<u8>),
    Reopen,
    Flush(mpsc::SyncSender<()>),
}

impl AccessLog {
    /// Opens the log and begins its writer.
    ///
    /// # Errors
    /// The file cannot be opened, or the thread not begun.
    pub fn open(options: &Options) -> std::io::Result<Self> {
        let mut output = Output::open(&options.sink)?;
        let (queue, lines) = mpsc::sync_channel(QUEUE_LINES_MAX);
        let shared = Arc::new(Shared::default());
        let told = Arc::clone(&shared);
        std::thread::Builder::new().name("access-log".into()).spawn(move || output.run(&lines, &told))?;
        Ok(Self { queue, shared, format: options.format })
    }

    /// Opens the file anew (USR1, after it was renamed). The old one is written to until that succeeds.
    pub fn reopen(&self) {
        if self.queue.try_send(Message::Reopen).is_err() {
            self.shared.reopen.store(true, Ordering::Release);
        }
    }

    /// Waits until everything is written, at most a second.
    pub fn flush(&self) {
        let (done, wait) = mpsc::sync_channel(1);
        let end = Instant::now() + FLUSH_TIMEOUT;
        let mut message = Message::Flush(done);
        while let Err(mpsc::TrySendError::Full(ours)) = self.queue.try_send(message) {
            if Instant::now() >= end {
                return;
            }
            message = ours;
            std::thread::yield_now();
        }
        let _: Result<(), _> = wait.recv_timeout(end.saturating_duration_since(Instant::now()));
    }

    pub(super) fn write(&self, record: &Record) {
        let line = match self.format {
            Format::Combined => record.combined(),
            Format::Json => record.json(),
        };
        let bytes = line.len();
        let room = self.shared.queued_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes <= QUEUE_BYTES_MAX;
        if !room || self.queue.try_send(Message::Line(line)).is_err() {
            self.shared.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
            self.shared.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The writer's end.
struct Output {
    sink: Sink,
    file: Box<dyn Write + Send>,
    /// What is not written yet: whole lines, but for the first if it [is begun](Self::is_begun).
    buffer: Vec<u8>,
    /// The file ends in the middle of a line, of which the buffer holds the rest.
    is_begun: bool,
    /// While it cannot be written: how many lines were lost so far.
    lost: Option<usize>,
}

impl Output {
    fn open(sink: &Sink) -> std::io::Result<Self> {
        let file: Box<dyn Write + Send> = match sink {
            Sink::File(path) => Box::new(std::fs::OpenOptions::new().create(true).append(true).open(path)?),
            // The standard library's would keep what it could not write, and offer it again before all else.
            Sink::Stdout => Box::new(std::fs::File::from(std::io::stdout().as_fd().try_clone_to_owned()?)),
        };
        let buffer = Vec::with_capacity(BUFFER_BYTES);
        Ok(Self { sink: sink.clone(), file, buffer, is_begun: false, lost: None })
    }

    fn run(&mut self, lines: &mpsc::Receiver<Message>, shared: &Shared) {
        while let Ok(first) = lines.recv() {
            let mut next = Some(first);
            while let Some(message) = next {
                if shared.reopen.swap(false, Ordering::Acquire) {
                    self.reopen();
                }
                match message {
                    Message::Line(line) => {
                        shared.queued_bytes.fetch_sub(line.len(), Ordering::Relaxed);
                        self.write(&line);
                    }
                    Message::Reopen => self.reopen(),
                    Message::Flush(done) => {
                        self.flush();
                        let _: Result<(), _> = done.try_send(());
                    }
                }
                next = lines.try_recv().ok();
            }
            self.flush();
            let count = shared.lost.swap(0, Ordering::Relaxed);
            if count > 0 {
                tracing::error!(lines = count, "access log too slow: lines lost");
            }
        }
    }

    fn write(&mut self, line: &[u8]) {
        if self.buffer.len() + line.len() > BUFFER_BYTES {
            self.flush();
        }
        self.buffer.extend_from_slice(line);
    }

    /// Writes what is there. What cannot be written is forgotten, or there would be no end of it, but for the rest of a line
    /// that is in the file by half: it comes first when there is room again, so that every line is whole.
    fn flush(&mut self) {
        if self.buffer.is_empty() {
            return;
        }
        let (written, result) = write_some(&mut *self.file, &self.buffer);
        let Err(error) = result else {
            self.buffer.clear();
            self.is_begun = false;
            if let Some(lines) = self.lost.take() {
                tracing::warn!(lines, "access log can be written again; lines were lost");
            }
            return;
        };
        if self.lost.is_none() {
            tracing::error!(%error, "access log cannot be written");
        }
        self.is_begun = self.buffer[..written].last().map_or(self.is_begun, |last| *last != b'\n');
        self.buffer.drain(..written);
        let rest =
            if self.is_begun { self.buffer.iter().position(|b| *b == b'\n').map_or(0, |end| end + 1) } else { 0 };
        let lines = self.buffer[rest..].iter().filter(|byte| **byte == b'\n').count();
        self.buffer.truncate(rest);
        self.lost = Some(self.lost.unwrap_or(0) + lines);
    }

    fn reopen(&mut self) {
        self.flush();
        match Self::open(&self.sink) {
            // The rest of a line belongs to the file that has its beginning.
            Ok(output) => *self = Self { lost: self.lost.map(|lost| lost + usize::from(self.is_begun)), ..output },
            Err(error) => tracing::error!(%error, "access log cannot be opened again; the old one stays"),
        }
    }
}

/// Writes as much as can be written; says how much that was, and why it was not all.
fn write_some(file: &mut dyn Write, bytes: &[u8]) -> (usize, std::io::Result<()>) {
    let mut written = 0;
    while written < bytes.len() {
        match file.write(&bytes[written..]) {
            Ok(0) => return (written, Err(std::io::ErrorKind::WriteZero.into())),
            Ok(count) => written += count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return (written, Err(error)),
        }
    }
    (written, Ok(()))
}
