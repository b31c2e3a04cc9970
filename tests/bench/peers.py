"""How each gateway that is measured is started, and what daemon it needs behind it.

The configurations are what each program's own manual gives for this work: two workers, no access
log, and otherwise its defaults. README.md says what they are compared for.
"""
import contextlib
import glob
import hashlib
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

from machine import HERE, ROOT, Failed, compile_c, first_line, free_port, line_in, line_with, process, wait_for_port, wait_for_unix

WORKERS = 2
TOKEN = "8f14e45fceea167a5a36dedd4bea2543"  # what every request carries
PATH = "/v1/chat"  # of every request, without its query
APACHE_MODULES = pathlib.Path("/usr/lib/apache2/modules")  # Debian's

FLOORS = ("floor", "floor-read")
BATONS = ("baton", "baton-nopolicy")
RELAYS = ("baton-proxy", "baton-fastcgi")  # what answers through us
# The same policy in other languages, as policies/build leaves it. Interpreters need more than the defaults.
INTERPRETED = ("javascript", "python")
LANGUAGES = tuple(f"baton-{language}" for language in ("assemblyscript", "c", "go", *INTERPRETED))
INTERPRETERS_LIMITS = """deadline = "1s"
configure_deadline = "60s"
memory_max = "256MiB"
"""
# By name: the program it needs, and the dialect of its daemon.
SERVERS = {
    "nginx": ("nginx", "http"),
    "nginx-keepalive": ("nginx", "http"),
    "haproxy": ("haproxy", "http"),
    "apache-fdpass": ("apache2", "fdpass"),
}
ALL = (*FLOORS, *BATONS, *SERVERS)
# The native protocol: the gateway, before a daemon that is one of these; by name what is said with one packet.
NATIVE_DAEMONS = {
    "": ("native_daemon", "-b", 64),
    "-pairs": ("native_daemon", "-b", 1),
    "-words": ("native_daemon", "-b", 0),
    "-library": ("library_daemon",),
}
NATIVE = {f"{gateway}-native{daemon}": gateway for daemon in NATIVE_DAEMONS for gateway in ("baton", "bare")}
# What is compared with them; -log: the same with an access log, of which `bare` has none.
BESIDE_NATIVE = ("baton-native-log", "nginx-keepalive", "nginx-keepalive-log")
SERVERS["nginx-keepalive-log"] = SERVERS["nginx-keepalive"]
NATIVE["baton-native-log"] = "baton"
# The same two before PHP-FPM, which they and Baton connect to anew for each request, as they do by themselves.
PROGRAMS = {
    "baton-fastcgi": None,
    "nginx-fastcgi": "nginx",
    "haproxy-fastcgi": "haproxy",
}
PHP_CHILDREN = 4
REFERENCE = ("reference", "reference-read")


def program(name):
    """Where a program is, if it is; servers are often not on the path of a user."""
    return shutil.which(name, path=os.environ.get("PATH", os.defpath) + ":/usr/sbin:/usr/local/sbin")


def php_fpm():
    """Debian names it by its version."""
    found = sorted(glob.glob("/usr/sbin/php-fpm*"))
    return program("php-fpm") or (found[-1] if found else None)


def is_here(name):
    if name in PROGRAMS:
        return php_fpm() is not None and (PROGRAMS[name] is None or program(PROGRAMS[name]) is not None)
    if name not in SERVERS:
        return True
    return program(SERVERS[name][0]) is not None and (
        not name.startswith("apache") or (APACHE_MODULES / "mod_proxy_fdpass.so").exists())


def needs(name):
    return SERVERS[name][0] if name in SERVERS else " and ".join(filter(None, ["php-fpm", PROGRAMS[name]]))


def chosen(wanted, otherwise=ALL):
    """The peers to measure. Whoever names one wants it; of the others, those that are here."""
    for name in wanted or ():
        if not is_here(name):
            raise Failed(f"{name}: {needs(name)} is not installed")
    for name in () if wanted else otherwise:
        if not is_here(name):
            print(f"{name} is left out: {needs(name)} is not installed", file=sys.stderr)
    return list(wanted or filter(is_here, otherwise))


def versions(names):
    """Of the servers among these peers."""
    needed = {SERVERS[name][0] for name in names if name in SERVERS}
    needed |= {PROGRAMS[name] for name in names if PROGRAMS.get(name)}
    found = {name: first_line(program(name), "-v") for name in sorted(needed)}
    if any(name in PROGRAMS for name in names):
        found["php-fpm"] = first_line(php_fpm(), "-v")
    return found


def daemon_dialect(name):
    if name in RELAYS:
        return "http"
    if name in NATIVE:
        return "baton"
    if name == "baton-fdpass":
        return "fdpass"
    return SERVERS[name][1] if name in SERVERS else "seqpacket"


# --- configurations ------------------------------------------------------------------------------

def unprivileged(line):
    """What a server that was started as root becomes; one that was not says it cannot."""
    return line if os.geteuid() == 0 else ""


def native_daemon(name):
    """Which of them it stands before."""
    daemon = name.split("-native", 1)[1]
    return daemon if daemon in NATIVE_DAEMONS else ""


def language_of(name):
    return name.removeprefix("baton-") if name in LANGUAGES else None


def baton_config(daemon_socket, policy, limits="", dialect="seqpacket", log=None):
    """Without an access log, as a rule: the floor writes none."""
    access_log = f'access_log = "{log}"\naccess_log_format = "combined"' if log else ""
    policies = 'policies = ["bench"]\n' if policy else ""
    default = "{ respond = { status = 404 } }" if policy else '{ handoff = "chat" }'
    text = f"""[gateway]
workers = {WORKERS}
{access_log}

[[listener]]
name = "http"
address = "127.0.0.1:0"

[target.chat]
sockets = ["{daemon_socket}"]
dialect = "{dialect}"

[[route]]
path = "/"
{policies}default = {default}
"""
    if policy:
        digest = hashlib.sha256(TOKEN.encode()).hexdigest()
        text += f"""
[policy.bench]
module = "{policy}"
targets = ["chat"]
{limits}config = {{ target = "chat", realm = "bench", tokens = {{ "{digest}" = "reader" }} }}
"""
    return text


def baton_relay_config(upstream):
    """`upstream`: the lines of the one that everything goes to."""
    return f"""[gateway]
workers = {WORKERS}

[[listener]]
name = "http"
address = "127.0.0.1:0"

[upstream.daemon]
{upstream}

[[route]]
path = "/"
default = {{ proxy = "daemon" }}
"""


def php_fpm_config(directory, socket):
    return f"""[global]
daemonize = no
error_log = {directory}/php-fpm.log
[www]
listen = {socket}
listen.mode = 0666
listen.backlog = 4096
pm = static
pm.max_children = {PHP_CHILDREN}
{"user = nobody" if os.geteuid() == 0 else ""}
{"group = nogroup" if os.geteuid() == 0 else ""}
"""


def php_page(body_bytes):
    """Answers as the daemon does."""
    return f"""<?php
header('Content-Type: text/plain');
header('Content-Length: {body_bytes}');
echo substr(str_repeat("Hello, world\n", {body_bytes // 13 + 1}), 0, {body_bytes});
"""


def nginx_config(directory, port, daemon_socket, keepalive, streams, page=None, log=None):
    """`keepalive` as ngx_http_upstream_module says: connections to keep, HTTP/1.1, no Connection."""
    kept = "keepalive 64;" if keepalive else ""
    ask = 'proxy_http_version 1.1; proxy_set_header Connection "";' if keepalive else ""
    whole = "proxy_buffering off; proxy_read_timeout 1h;" if streams else ""
    onward = f"proxy_pass http://daemon; {ask} {whole}"
    if page:
        onward = f"fastcgi_pass daemon; include /etc/nginx/fastcgi_params; fastcgi_param SCRIPT_FILENAME {page};"
    paths = "\n".join(f"    {kind}_temp_path {directory}/{kind};"
                      for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    return f"""daemon off;
{unprivileged("user nobody nogroup;")}
worker_processes {WORKERS};
worker_rlimit_nofile {max(streams * 2, 1024) + 1000};
pid {directory}/pid;
error_log stderr warn;
events {{ worker_connections {max(streams * 2, 1024) + 500}; }}
http {{
    access_log {f"{log} combined" if log else "off"};
{paths}
    upstream daemon {{ server unix:{daemon_socket}; {kept} }}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location / {{ {onward} }}
    }}
}}
"""


def haproxy_config(port, daemon_socket, streams, page=None):
    use, kind, rewrite = "", "", ""
    if page:
        kind = f"fcgi-app php\n    docroot {page.parent}\n    no option keep-conn\n"
        use, rewrite = "    use-fcgi-app php\n", f"    http-request set-path /{page.name}\n"
    return f"""global
    nbthread {WORKERS}
    maxconn {max(streams, 1000) + 200}
defaults
    mode http
    timeout connect 5s
    timeout client 1h
    timeout server 1h
frontend http
    bind 127.0.0.1:{port} backlog 4096
{rewrite}    default_backend daemon
{kind}backend daemon
{use}    server daemon unix@{daemon_socket}{" proto fcgi" if page else ""}
"""


def apache_config(directory, port, daemon_socket):
    """Two processes with a thread for each of the clients that the load has at most.

    An address must have a host to be one, so the socket's path is written as relative to ServerRoot."""
    return f"""ServerRoot {directory.parent}
ServerName bench.example
PidFile {directory}/pid
DefaultRuntimeDir {directory}
ErrorLog /dev/stderr
LoadModule mpm_event_module {APACHE_MODULES}/mod_mpm_event.so
LoadModule authz_core_module {APACHE_MODULES}/mod_authz_core.so
LoadModule proxy_module {APACHE_MODULES}/mod_proxy.so
LoadModule proxy_fdpass_module {APACHE_MODULES}/mod_proxy_fdpass.so
{unprivileged("User nobody")}
{unprivileged("Group nogroup")}
Listen 127.0.0.1:{port}
ListenBacklog 4096
ServerLimit {WORKERS}
StartServers {WORKERS}
ThreadsPerChild 64
MaxRequestWorkers {WORKERS * 64}
MinSpareThreads 1
MaxSpareThreads {WORKERS * 64}
ProxyPass {PATH} fd://{daemon_socket.relative_to(directory.parent)}
"""


# --- processes -----------------------------------------------------------------------------------

def baton_program():
    if os.environ.get("BATON_BIN"):
        return os.environ["BATON_BIN"]
    argv = ["cargo", "build", "--release", "--locked", "--bin", "baton"]
    if subprocess.run(argv, cwd=ROOT, stdout=sys.stderr).returncode:
        raise Failed("cargo build --release failed")
    return pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release" / "baton"


def rust_policy():
    """The compiled policy that is measured, or the one in text where guests are not built yet."""
    build, module = ROOT / "policies" / "build", ROOT / "policies" / "target" / "bearer-rust.wasm"
    if not build.exists():
        return HERE / "policy.wat"
    if not module.exists() and subprocess.run([build], stdout=sys.stderr).returncode:
        raise Failed("policies/build failed")
    return module


def built_policy(language):
    module = ROOT / "policies" / "target" / f"bearer-{language}.wasm"
    if not module.exists() and subprocess.run([ROOT / "policies" / "build"], stdout=sys.stderr).returncode:
        raise Failed("policies/build failed")
    return module


class Peers:
    """The programs, built once."""

    def __init__(self, names, directory, policy, reference=None):
        self.directory, self.policy = directory, policy
        self.daemon = compile_c(HERE / "daemon.c", directory)
        self.floor = compile_c(HERE / "gateway.c", directory)
        self.reference = compile_c(reference, directory) if reference else None
        native = {NATIVE_DAEMONS[native_daemon(n)][0] for n in names if n in NATIVE}
        native |= {"native_gateway" for n in names if NATIVE.get(n) == "bare"}
        self.native = {program: compile_c(HERE / f"{program}.c", directory) for program in native}
        self.baton = baton_program() if any(n.startswith("baton") for n in names) else None

    def log(self, name):
        """What a gateway says; a file, because a pipe that nobody reads stops its writer."""
        return self.directory / f"{name}.log"

    @contextlib.contextmanager
    def behind(self, name, streams=0, body_bytes=None, stalled=False):
        """A fresh gateway before a fresh daemon: both processes, and the gateway's port.

        `streams` is how many event streams the daemon is to give at a time; 0: it gives answers. `stalled`: long ones,
        to clients that do not read them. `body_bytes` is the
        length of those that go through a gateway over a connection that is kept."""
        with tempfile.TemporaryDirectory(prefix="bb") as d:  # short: a socket's path has 107 bytes
            directory = pathlib.Path(d)
            directory.chmod(0o755)  # a server's workers are somebody else than root
            socket = directory / "d"
            with self._backend(name, directory, socket, streams, body_bytes, stalled) as daemon:
                with self._gateway(name, directory, socket, streams) as (gateway, port):
                    yield daemon, gateway, port

    @contextlib.contextmanager
    def _backend(self, name, directory, socket, streams, body_bytes, stalled):
        if name in PROGRAMS:
            config, page = directory / "php-fpm.conf", directory / "page.php"
            config.write_text(php_fpm_config(directory, socket))
            page.write_text(php_page(body_bytes))
            argv = [php_fpm(), "-n", "-F", "-y", config]
            with process(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as p:
                wait_for_unix(socket, p, directory / "php-fpm.log")
                yield p
            return
        if name in NATIVE:
            program, *more = NATIVE_DAEMONS[native_daemon(name)]
            argv = [self.native[program], "-u", socket, *more]
            with process(argv, stdout=subprocess.PIPE, bufsize=0) as daemon:
                line_with("ready\n", daemon, daemon.stdout)
                yield daemon
            return
        argv = [self.daemon, "-u", socket, "-d", daemon_dialect(name), *(["-e"] if streams else []),
                *(["-f"] if stalled else []), *(["-s", body_bytes] if body_bytes else [])]
        with process(argv, stdout=subprocess.PIPE, bufsize=0) as daemon:
            line_with("ready\n", daemon, daemon.stdout)
            yield daemon

    @contextlib.contextmanager
    def _gateway(self, name, directory, socket, streams):
        port, listeners = None, 1  # without a port it says where it listens
        config = directory / "config"
        page = directory / "page.php" if name in PROGRAMS else None
        if name in REFERENCE:
            port, listeners = free_port(), WORKERS
            argv = [self.reference, "-p", port, "-u", socket, "-n", WORKERS]
            argv += ["-A", "read"] if name.endswith("-read") else []
        elif name in FLOORS:
            argv = [self.floor, socket, "read" if name.endswith("-read") else "none", WORKERS]
        elif NATIVE.get(name) == "bare":
            argv = [self.native["native_gateway"], socket, WORKERS]
        elif name in NATIVE or name == "baton-fdpass":
            log = directory / "access.log" if name.endswith("-log") else None
            config.write_text(baton_config(socket, None, dialect=daemon_dialect(name), log=log))
            argv = [self.baton, "run", "-c", config]
        elif name in BATONS:
            config.write_text(baton_config(socket, None if name.endswith("-nopolicy") else self.policy))
            argv = [self.baton, "run", "-c", config]
        elif name in RELAYS:
            address = f'"fcgi+unix:{socket}"\nroot = "{page.parent}"\nscript = "/{page.name}"' if page else f'"unix:{socket}"'
            config.write_text(baton_relay_config(f"address = {address}"))
            argv = [self.baton, "run", "-c", config]
        elif name in LANGUAGES:
            limits = INTERPRETERS_LIMITS if language_of(name) in INTERPRETED else ""
            config.write_text(baton_config(socket, built_policy(language_of(name)), limits))
            argv = [self.baton, "run", "-c", config]
        else:
            port = free_port()
            if name.startswith("haproxy"):
                config.write_text(haproxy_config(port, socket, streams, page))
                argv = [program("haproxy"), "-f", config]
            elif name == "apache-fdpass":
                config.write_text(apache_config(directory, port, socket))
                argv = [program("apache2"), "-D", "FOREGROUND", "-f", config]
            else:
                log = directory / "access.log" if name.endswith("-log") else None
                config.write_text(nginx_config(directory, port, socket, "-keepalive" in name, streams, page, log))
                argv = [program("nginx"), "-p", directory, "-c", config]
        with open(self.log(name), "wb") as log, process(argv, stdin=subprocess.DEVNULL,
                                                        stdout=subprocess.DEVNULL, stderr=log) as p:
            if port:
                wait_for_port(port, listeners, p, self.log(name))
            else:
                port = int(line_in(r"listening on http://127\.0\.0\.1:(\d+)", p, self.log(name))[1])
            yield p, port
