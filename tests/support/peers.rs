//! Other front servers beside ours, as Debian has them: each a process of its own, in the foreground, that ends with its
//! handle. Their configurations are the caller's, in a folder of the caller's; `DIR` stands for it there.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Client, eventually};

/// A server that listens.
pub struct Peer {
    child: Child,
    pub address: SocketAddr,
}

/// Whether a server's program is there; `tests/run` installs it, and a test says that it has shown nothing without.
pub fn is_installed(program: &str) -> bool {
    let quiet = Command::new(program).arg("-v").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if quiet.is_err() {
        eprintln!("NOT SHOWN: {program} is not installed");
        assert!(std::env::var_os("CI").is_none(), "tests/run installs {program}");
    }
    quiet.is_ok()
}

/// nginx. `http` is what stands in its `http` block; `LISTEN` there is a TCP port of its own and the Unix socket
/// `DIR/nginx.sock`. It is one process, and of our user.
pub fn nginx(folder: &Path, http: &str) -> Peer {
    let temporary: String = ["client_body", "fastcgi", "proxy", "scgi", "uwsgi"]
        .map(|name| format!("{name}_temp_path DIR/nginx.{name};\n"))
        .concat();
    let configuration = format!(
        "daemon off;\nmaster_process off;\npid DIR/nginx.pid;\nerror_log DIR/nginx.log;\nevents {{}}\n\
         http {{\naccess_log off;\n{temporary}{}\n}}\n",
        http.replace("LISTEN", "listen 127.0.0.1:PORT; listen unix:DIR/nginx.sock;")
    );
    start(folder, "nginx", &["-e", "DIR/nginx.log", "-p", "DIR", "-c"], &configuration)
}

/// Apache with these modules beside the two that it cannot do without; `configuration` is the rest. As root it serves as
/// `www-data`, who must be able to get into the folder.
pub fn apache(folder: &Path, modules: &[&str], configuration: &str) -> Peer {
    let user = if nix::unistd::geteuid().is_root() { "User www-data\nGroup www-data\n" } else { "" };
    let modules: String = [&["mpm_event", "authz_core"], modules]
        .concat()
        .iter()
        .map(|name| format!("LoadModule {name}_module /usr/lib/apache2/modules/mod_{name}.so\n"))
        .collect();
    let configuration = format!(
        "{modules}ServerRoot DIR\nDefaultRuntimeDir DIR\nPidFile DIR/apache2.pid\nErrorLog DIR/apache2.log\nServerName x\n\
         {user}Listen 127.0.0.1:PORT\n{configuration}\n"
    );
    start(folder, "apache2", &["-D", "FOREGROUND", "-f"], &configuration)
}

/// Neither takes a port of the kernel's choice: it gets one that was free a moment ago, and another where it is not. Its last
/// argument is the file of the configuration.
fn start(folder: &Path, program: &str, arguments: &[&str], configuration: &str) -> Peer {
    let here = |text: &str| text.replace("DIR", folder.to_str().expect("a folder of ours"));
    let configuration = here(configuration);
    let file = folder.join(program).with_extension("conf");
    for _ in 0..10 {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        std::fs::write(&file, configuration.replace("PORT", &address.port().to_string())).unwrap();
        let mut command = Command::new(program);
        command.args(arguments.iter().map(|argument| here(argument))).arg(&file).stdin(Stdio::null());
        let mut peer = Peer { child: command.spawn().unwrap(), address };
        let serves = eventually("it listens or ends", || {
            let has_ended = peer.child.try_wait().unwrap().is_some();
            let is_there = !has_ended && TcpStream::connect(address).is_ok();
            (has_ended || is_there).then_some(is_there)
        });
        if serves {
            return peer;
        }
    }
    let log = std::fs::read_to_string(folder.join(program).with_extension("log")).unwrap_or_default();
    panic!("{program} does not start: {log}");
}

impl Peer {
    pub fn client(&self) -> Client {
        Client::connect(self.address)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // A server ends its own processes when it is asked to, and leaves them behind when it is killed.
        let _ = kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM);
        drop(self.child.wait());
    }
}
