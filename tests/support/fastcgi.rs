//! Real FastCGI programs: PHP-FPM, and C programs with unchanged FCGI_Accept loops, compiled against Debian's libfcgi.

use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};

use super::{eventually, patience};

/// PHP's process manager, with a pool of its own that serves whatever script it is told. It ends with this value.
pub struct PhpFpm {
    child: Child,
    /// Where it listens.
    pub socket: PathBuf,
    /// What it says.
    pub log: PathBuf,
}

impl PhpFpm {
    /// Starts one with two children; it listens at `php-fpm.sock` in `folder`, and says how it is at `/status`.
    pub fn start(folder: &Path) -> Self {
        Self::start_with(folder, "pm.max_children = 2\n")
    }

    /// The same with lines of your own for the pool; they say `pm.max_children`.
    pub fn start_with(folder: &Path, lines: &str) -> Self {
        let (socket, log, file) =
            (folder.join("php-fpm.sock"), folder.join("php-fpm.log"), folder.join("php-fpm.conf"));
        let owner = if geteuid().is_root() { "user = root\ngroup = root\n" } else { "" };
        let text = format!(
            "[global]\nerror_log = {}\ndaemonize = no\n[www]\nlisten = {}\nlisten.mode = 0666\npm = static\n\
             pm.status_path = /status\n{owner}{lines}",
            log.display(),
            socket.display()
        );
        std::fs::write(&file, text).expect("written");
        let mut command = Command::new(php_fpm());
        // Without php.ini: the defaults of PHP, wherever the tests run. It refuses to run as root unless it is told.
        command.args(["-n", "-F", "-R", "-y"]).arg(&file);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().expect("php-fpm runs: install php-fpm");
        eventually("php-fpm listens", || {
            let status = child.try_wait().expect("ours");
            assert!(status.is_none(), "{status:?}: {}", std::fs::read_to_string(&log).unwrap_or_default());
            UnixStream::connect(&socket).ok()
        });
        Self { child, socket, log }
    }
}

impl Drop for PhpFpm {
    fn drop(&mut self) {
        // Killed, it would leave its children behind.
        kill(Pid::from_raw(i32::try_from(self.child.id()).expect("a pid")), Signal::SIGTERM).unwrap_or_default();
        let end = std::time::Instant::now() + patience();
        while matches!(self.child.try_wait(), Ok(None)) && std::time::Instant::now() < end {
            std::thread::park_timeout(std::time::Duration::from_millis(5));
        }
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Distributions put the version into the name, and the program where only root looks.
fn php_fpm() -> PathBuf {
    let path = std::env::var("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/usr/local/sbin".into()]);
    let programs = folders.filter_map(|folder| std::fs::read_dir(folder).ok()).flatten().flatten();
    let mut found: Vec<PathBuf> = programs
        .filter(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            name.strip_prefix("php-fpm").is_some_and(|v| v.chars().all(|c| c.is_ascii_digit() || c == '.'))
        })
        .map(|entry| entry.path())
        .collect();
    found.sort();
    found.pop().expect("php-fpm is installed: apt-get install php-fpm")
}

/// A FastCGI program in C. It ends with this value.
pub struct Program {
    pub child: Child,
}

impl Program {
    /// Compiles `tests/fastcgi/NAME.c` and starts it, listening at `socket`.
    pub fn spawn(name: &str, socket: &Path) -> Self {
        let listener = UnixListener::bind(socket).expect("a free path");
        Self::spawn_on(name, socket.parent().expect("a folder"), listener.into(), &[])
    }

    /// The same on any listening socket, with an environment (FCGI_WEB_SERVER_ADDRS); compiled into `folder`.
    pub fn spawn_on(name: &str, folder: &Path, listener: OwnedFd, environment: &[(&str, &str)]) -> Self {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fastcgi").join(name).with_extension("c");
        let program = folder.join(name);
        let mut compiler = Command::new("cc");
        compiler.args(["-O1", "-Wall", "-Werror", "-o"]).arg(&program).arg(&source).arg("-lfcgi");
        let output = compiler.output().expect("cc runs");
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{} (libfcgi-dev?): {error}", source.display());
        // A web server that starts FastCGI programs gives them the listening socket as descriptor 0.
        let mut command = Command::new(&program);
        command.stdin(Stdio::from(listener)).stdout(Stdio::null()).envs(environment.iter().copied());
        Self { child: command.spawn().expect("the program starts") }
    }
}

impl Program {
    /// As `kill -9`.
    pub fn kill(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
