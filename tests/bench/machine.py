"""What both tools are made of: processes that end with their block, what they have used, tables."""
import contextlib
import glob
import json
import os
import pathlib
import platform
import re
import select
import signal
import socket
import statistics
import subprocess
import time

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
START_SECONDS_MAX = 20


class Failed(Exception):
    """What ends the whole run, in words for the person who started it."""


# --- processes -----------------------------------------------------------------------------------

@contextlib.contextmanager
def process(argv, **more):
    """A child that is gone, and waited for, when the block ends."""
    p = subprocess.Popen([str(a) for a in argv], **more)
    try:
        yield p
    finally:
        for stop in (p.terminate, p.kill):
            if p.poll() is None:
                stop()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    p.wait(3)


def line_with(pattern, p, stream, seconds=START_SECONDS_MAX):
    """The first match in what a process writes to a pipe; unbuffered, so select() tells the truth."""
    due, said = time.monotonic() + seconds, b""
    while (left := due - time.monotonic()) > 0:
        if select.select([stream], [], [], left)[0]:
            part = os.read(stream.fileno(), 65536)
            said += part
            match = re.search(pattern, said.decode(errors="replace"))
            if match:
                return match
            if not part:
                break
    raise Failed(f"{p.args[0]} did not say {pattern!r} but: {said.decode(errors='replace').strip()[-500:]}")


def line_in(pattern, p, log):
    """The first match in the file that a process writes to."""
    due = time.monotonic() + START_SECONDS_MAX
    while time.monotonic() < due:
        ended = p.poll() is not None
        if match := re.search(pattern, log.read_text(errors="replace")):
            return match
        if ended:
            break
        time.sleep(0.01)
    raise Failed(f"{p.args[0]} did not say {pattern!r} but: {tail(log)}")


def tail(log):
    return log.read_text(errors="replace").strip()[-500:]


def family(pid):
    """A process and all that descend from it."""
    pids = [pid]
    for path in glob.glob(f"/proc/{pid}/task/*/children"):
        with contextlib.suppress(OSError):
            for child in pathlib.Path(path).read_text().split():
                pids += family(int(child))
    return pids


def cpu_ns(pid):
    """What all threads of a process and its descendants have run, to the nanosecond."""
    total = 0
    for p in family(pid):
        for path in glob.glob(f"/proc/{p}/task/*/schedstat"):
            with contextlib.suppress(OSError):
                total += int(pathlib.Path(path).read_text().split()[0])
    return total


def machine_busy_s():
    """Seconds that all cores together have worked, for whomever, since the start."""
    fields = [int(f) for f in pathlib.Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    return (sum(fields[:3]) + sum(fields[5:8])) / os.sysconf("SC_CLK_TCK")


def free_port():
    """For a program that takes a port but not 0; nothing keeps it free."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_for_port(port, listeners, p, log):
    """Waits until that many sockets listen on a port; connecting to it would be counted as load."""
    due = time.monotonic() + START_SECONDS_MAX
    while time.monotonic() < due and p.poll() is None:
        rows = [row.split() for row in pathlib.Path("/proc/net/tcp").read_text().splitlines()[1:]]
        if sum(r[1].endswith(f":{port:04X}") and r[3] == "0A" for r in rows) >= listeners:
            return
        time.sleep(0.01)
    raise Failed(f"{p.args[0]} does not listen on {port}: {tail(log)}")


def wait_for_unix(path, p, log):
    """Waits until a socket listens there; connecting to it would be counted as load."""
    due = time.monotonic() + START_SECONDS_MAX
    while time.monotonic() < due and p.poll() is None:
        if any(row.split()[-1] == str(path) for row in pathlib.Path("/proc/net/unix").read_text().splitlines()):
            return
        time.sleep(0.01)
    raise Failed(f"{p.args[0]} does not listen on {path}: {tail(log) if log.exists() else ''}")


def compile_c(source, to):
    built = to / pathlib.Path(source).stem
    cc = subprocess.run(["cc", "-O2", "-pthread", "-o", built, source], capture_output=True, text=True, timeout=120)
    if cc.returncode:
        raise Failed(f"cc {source}: {cc.stderr.strip()}")
    return built


def counts_of(daemon):
    """What the daemon has done, by its own count."""
    daemon.send_signal(signal.SIGUSR1)
    return json.loads(line_with(r"\{.*\}\n", daemon, daemon.stdout)[0])


# --- reporting -----------------------------------------------------------------------------------

def quartiles(values):
    if len(values) < 2:
        return values[0], values[0], values[0]
    return tuple(statistics.quantiles(values, n=4, method="inclusive"))


def shown(values, digits):
    low, middle, high = quartiles(values)
    return f"{middle:.{digits}f} [{low:.{digits}f} {high:.{digits}f}]"


def table(head, rows):
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    for row in [head, ["-" * w for w in widths], *rows]:
        print("| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths)) + " |")
    print()


def first_line(*argv):
    with contextlib.suppress(OSError, subprocess.SubprocessError, IndexError):
        said = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=10, cwd=ROOT)
        return said.stdout.splitlines()[0]
    return "absent"


def machine_facts():
    model = re.search(r"model name\s*: (.*)", pathlib.Path("/proc/cpuinfo").read_text())
    return {
        "cores": os.cpu_count(), "cpu": model[1] if model else platform.machine(),
        "kernel": platform.release(), "cc": first_line("cc", "--version"),
        "rustc": first_line("rustc", "--version"), "commit": first_line("git", "rev-parse", "--short", "HEAD"),
        "load_average_before": os.getloadavg(),
    }
