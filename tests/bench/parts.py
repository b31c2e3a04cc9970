"""Says which part of Baton a processor's time goes to, by the stacks that perf recorded."""
import collections
import re
import subprocess

# The innermost of our own functions on a stack says whose the time is; what it calls, the kernel's work above all, is its.
PARTS = (
    ("policy", r"\bpolicy::|\bwasmtime"),
    ("head", r"\barrival::|\bhttp::|\bhttparse::"),
    ("acknowledgement", r"acknowledgement::|Sent::(judge|wait)|handoff::beat|drop_in_place<baton::handoff::send::Sent"),
    ("metadata", r"connection::metadata"),
    ("channel", r"handoff::channel|handoff::native|connection::reported"),
    ("connect and send", r"handoff::|\btarget::"),
    ("accept", r"\blistener::"),
    ("answer", r"\bexchange::|\brespond::"),
    ("connection", r"\bconnection::|\bclient::|\brequest::|\broute::|\baccess_log::"),
    ("scheduler and reactor", r"\btokio::|\bmio::"),
)
KERNEL = "kernel.kallsyms"
GUEST = re.compile(r"\(/tmp/perf-\d+\.map\)|\[JIT\]|\(/memfd|\(anon|//anon")


def samples(data):
    """Stacks, innermost frame first."""
    text = subprocess.run(["perf", "script", "-i", data, "-F", "ip,sym,dso"], capture_output=True, text=True,
                          timeout=600).stdout
    for block in text.split("\n\n"):
        if frames := [line.strip() for line in block.strip().split("\n") if line.strip()]:
            yield frames


def part_of(frames):
    program = [f for f in frames if KERNEL not in f]
    if program and GUEST.search(program[0]):
        return "policy"
    for frame in program:
        for part, pattern in PARTS:
            if re.search(pattern, frame):
                return part
    return "other"


def shares(data):
    """Rows of part, share of all time in per cent, and how much of that the kernel's and the program's; then the kernel's
    time by system call."""
    total, kernel, program, calls = 0, collections.Counter(), collections.Counter(), collections.Counter()
    for frames in samples(data):
        total += 1
        in_kernel = KERNEL in frames[0]
        (kernel if in_kernel else program)[part_of(frames)] += 1
        if in_kernel:
            named = (m[1] or m[2] for f in frames if (m := re.search(r"\b__x64_sys_(\w+)|\b__sys_((?:send|recv)msg)\b", f)))
            calls[next((name for name in named if name), "interrupts and switches")] += 1
    percent = lambda count: f"{100 * count / max(1, total):.1f}"
    parts = sorted(kernel | program, key=lambda part: -(kernel[part] + program[part]))
    rows = [[part, percent(kernel[part] + program[part]), percent(kernel[part]), percent(program[part])] for part in parts]
    rows.append(["all", percent(total), percent(kernel.total()), percent(program.total())])
    return rows, [[name, percent(count)] for name, count in calls.most_common() if count * 200 >= total], total
