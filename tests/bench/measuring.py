"""One measurement of a gateway under load: what it took of the processor, and, with --profile, where."""
import collections
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time

import parts
import peers
from machine import cpu_ns, family, line_with, machine_busy_s, process, table

LOAD_SECONDS_MAX = 60  # of one measurement, warm-up included
SETTLE_SECONDS = 0.02  # counters of a thread are exact when it sleeps


def load(options, port, clients, around):
    """Runs the load; `around` is a context over its timed part. Returns what the load reports.

    `options.body_bytes`: connections are kept, and answers have bodies of that length."""
    argv = [options.load, "-p", port, "-c", clients, "-n", options.requests, "-w", options.warmup,
            "-t", LOAD_SECONDS_MAX, "-b", peers.TOKEN, *(["-k", options.body_bytes] if options.body_bytes else [])]
    with process(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as p:
        line_with("warm\n", p, p.stdout, LOAD_SECONDS_MAX + 5)
        with around:
            p.stdin.write(b"\n")
            report = json.loads(line_with(r"\{.*\}\n", p, p.stdout, LOAD_SECONDS_MAX + 5)[0])
    return report


@contextlib.contextmanager
def measured(gateway, daemon, into):
    """CPU of gateway and daemon, and the part of the machine that others used, over the block."""
    time.sleep(SETTLE_SECONDS)
    began, busy = time.monotonic(), machine_busy_s()
    before = cpu_ns(gateway.pid), cpu_ns(daemon.pid), cpu_ns(os.getpid())
    yield
    time.sleep(SETTLE_SECONDS)
    after = cpu_ns(gateway.pid), cpu_ns(daemon.pid), cpu_ns(os.getpid())
    seconds, busy = time.monotonic() - began, machine_busy_s() - busy
    into["gateway_ns"], into["daemon_ns"], ours_ns = (a - b for a, b in zip(after, before))
    # `ours` has everything that this run started: all of it descends from this process.
    into["others_share"] = max(0.0, (busy - ours_ns / 1e9) / seconds / os.cpu_count())


# --- profile -------------------------------------------------------------------------------------

@contextlib.contextmanager
def attached(argv, seconds=10):
    """A tracer over the block: interrupted and waited for, so that it writes what it saw."""
    with process(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as p:
        time.sleep(1)  # neither tracer says when it is attached
        yield
        p.send_signal(signal.SIGINT)
        p.communicate(timeout=seconds)


def syscalls_per_request(gateways, name, options, clients):
    with gateways.behind(name, body_bytes=options.body_bytes) as (_, gateway, port), tempfile.NamedTemporaryFile("r") as out:
        pids = [a for pid in family(gateway.pid) for a in ("-p", str(pid))]
        tracer = attached(["strace", "-f", "-c", "-o", out.name, *pids])
        count = load(options, port, clients, tracer)["count"]
        # "% time, seconds, usecs/call, calls, [errors], syscall"
        rows = [line.split() for line in out.read().splitlines() if re.match(r"\s*\d", line)]
        return {r[-1]: int(r[3]) / max(1, count) for r in rows if r[-1] != "total"}


def hot_symbols(gateways, name, options, clients, directory):
    data = directory / f"{name}.perf"
    with gateways.behind(name, body_bytes=options.body_bytes) as (_, gateway, port):
        pids = ",".join(map(str, family(gateway.pid)))
        load(options, port, clients,
             attached(["perf", "record", "-q", "-F", "2000", "-g", "-o", data, "-p", pids]))
    for sort, lines in (("dso", 8), ("dso,symbol", 40)):
        text = subprocess.run(["perf", "report", "-i", data, "--stdio", "-q", "--no-children", "-g", "none",
                               "--sort", sort], capture_output=True, text=True, timeout=120).stdout
        # The last columns are of branches, which were not recorded.
        rows = [re.sub(r"(\s+-)+\s*$", "", line).rstrip() for line in text.splitlines() if line.strip()]
        yield "\n".join(rows[:lines])


def parts_of_baton(gateways, name, options, clients, directory):
    """Two tables: shares by part of the program, and of the kernel's time by system call."""
    data = directory / f"{name}.stacks"
    with gateways.behind(name, body_bytes=options.body_bytes) as (_, gateway, port):
        pids = ",".join(map(str, family(gateway.pid)))
        # Whole stacks are copied for each sample: few, or the copying is what is measured.
        load(options, port, clients,
             attached(["perf", "record", "-q", "-F", "997", "--call-graph", "dwarf,8192", "-o", data, "-p", pids], 60))
    rows, calls, count = parts.shares(data)
    print(f"{name}, {clients} client{'s' * (clients > 1)}: share of its CPU by part, in per cent ({count} samples)\n")
    table(["part", "all", "kernel", "program"], rows)
    table(["the kernel's, by call", "all"], calls)


def profile(gateways, options, directory):
    for clients in options.clients:
        print(f"system calls per request, {clients} client{'s' * (clients > 1)}\n")
        if shutil.which("strace"):
            counts = {name: syscalls_per_request(gateways, name, options, clients) for name in options.peers}
            total = collections.Counter()
            for of in counts.values():
                total.update(of)
            names = [s for s, _ in total.most_common() if any(of.get(s, 0) >= 0.005 for of in counts.values())]
            table(["call", *options.peers],
                  [[s, *(f"{of.get(s, 0):.2f}" for of in counts.values())] for s in names]
                  + [["all", *(f"{sum(of.values()):.2f}" for of in counts.values())]])
        else:
            print("strace is absent\n")
        for name in options.peers if shutil.which("perf") else ():
            print(f"{name}, {clients} client{'s' * (clients > 1)}: where its CPU goes (perf record)\n")
            for text in hot_symbols(gateways, name, options, clients, directory):
                print(text + "\n")
            if name.startswith("baton"):
                parts_of_baton(gateways, name, options, clients, directory)
