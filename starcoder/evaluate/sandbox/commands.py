"""One program's trial in a language with a tool-chain: compile, run, and wait for the nonce.

Candidate and tests are one program here, so the nonce is a literal in it, written to descriptor 3 after the
last test. That stops every candidate that merely ends early; one made to attack this very sandbox can read
its own text.
"""

import os
import re
import select
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

from starcoder.evaluate.sandbox.languages import LANGUAGES
from starcoder.evaluate.sandbox.runner import Outcome
from starcoder.evaluate.sandbox.verdicts import Kind, Limits

_COMPILE_S = 30.0
_PROCESSES = 256  # threads count, and a JVM starts dozens
_DETAIL = 300
TOGETHER = "candidate and tests are one program in this language"
"""Detail of a success that the candidate could have forged."""
_CLUES: tuple[tuple[Kind, str], ...] = (
    ("memory", r"OutOfMemoryError|heap out of memory|bad_alloc|memory allocation of"),
    ("isolation", r"Operation not permitted|Permission denied|Read-only file system|EPERM|EACCES|EROFS"),
    ("assertion", r"(?i)assert|panicked at|not ok"),
    ("syntax", r"(?i)syntax ?error"),
    ("name", r"ReferenceError|command not found|Undefined subroutine|Can't locate"),
)


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended: its status as `waitpid` gives it, the start of its output, the nonce it wrote."""

    status: int
    output: str
    nonce: str
    stopped_by: Kind | None = None


def compile_s(language: str) -> float:
    """Seconds a program of this language gets for being compiled, on top of its limit for running."""
    return _COMPILE_S if language in LANGUAGES and LANGUAGES[language].compile else 0.0


def room(language: str, limits: Limits) -> Limits:
    """Limits wide enough for the tool-chain."""
    return replace(
        limits,
        processes=max(limits.processes, _PROCESSES),
        cpu_s=limits.cpu_s + int(compile_s(language)),
        file_bytes=max(limits.file_bytes, 64 << 20),
    )


def judge(
    language: str, tools: Mapping[str, str], source: str, tests_and_nonce: tuple[str, str], limits: Limits
) -> Outcome:
    """Try a candidate, in an isolated process whose working folder is its own."""
    tests, nonce = tests_and_nonce
    toolchain = LANGUAGES[language]
    text = toolchain.join(source, tests, nonce)
    file = toolchain.file_for(text)
    with open(file, "w", encoding="utf-8", errors="surrogatepass") as written:
        written.write(text)
    blanks = {
        "file": file,
        "name": file.partition(".")[0],
        "memory_mib": str(limits.memory_bytes >> 21),
    }
    if toolchain.compile:
        ended = _run(toolchain.compile, blanks, tools, _COMPILE_S, limits)
        if ended.stopped_by or ended.status:
            return Outcome(ended.stopped_by or "syntax", first_error(ended.output))
    ended = _run(toolchain.run, blanks, tools, limits.timeout_s, limits)
    if ended.nonce == nonce:
        return Outcome("unconfirmed", TOGETHER, nonce)
    return Outcome(*diagnose(ended, nonce))


def _run(
    command: tuple[str, ...],
    blanks: Mapping[str, str],
    tools: Mapping[str, str],
    timeout_s: float,
    limits: Limits,
) -> Ended:
    """Run one command with its output and descriptor 3 read here."""
    output, output_end = os.pipe()
    verdict, verdict_end = os.pipe()
    arguments = [fill(part, blanks) for part in command]
    path = tools.get(command[0], arguments[0])
    child = os.fork()
    if child == 0:
        os.dup2(output_end, 1)
        os.dup2(output_end, 2)
        os.dup2(verdict_end, 3)
        os.set_inheritable(3, True)  # dup2 leaves it as it is where it was 3 already
        os.closerange(4, 128)
        environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/tmp", "TMPDIR": "/tmp"}
        os.execve(path, [path, *arguments[1:]], {**environment, "LANG": "C.UTF-8"})
    os.close(output_end)
    os.close(verdict_end)
    texts, stopped_by = _collect(output, verdict, time.monotonic() + timeout_s, limits.output_bytes)
    if stopped_by:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    os.close(output)
    os.close(verdict)
    return Ended(status, texts[output].decode(errors="replace"), texts[verdict].decode("latin-1"), stopped_by)


def _collect(
    output: int, verdict: int, deadline: float, most_bytes: int
) -> tuple[dict[int, bytearray], Kind | None]:
    """What arrives on both pipes until both end or a limit is reached, and which limit."""
    texts = {output: bytearray(), verdict: bytearray()}
    poll = select.poll()
    for descriptor in texts:
        poll.register(descriptor, select.POLLIN)
    still_open = 2
    while still_open:
        left = deadline - time.monotonic()
        if left <= 0:
            return texts, "timeout"
        for descriptor, _ in poll.poll(1000 * left):
            part = os.read(descriptor, 1 << 16)
            texts[descriptor] += part
            if not part:
                poll.unregister(descriptor)
                still_open -= 1
            elif len(texts[descriptor]) > most_bytes:
                return texts, "error"
    return texts, None


def fill(part: str, blanks: Mapping[str, str]) -> str:
    """A part of a tool-chain's command with its blanks filled in."""
    return re.sub(r"\{(\w+)\}", lambda blank: blanks[blank[1]], part)


def diagnose(ended: Ended, nonce: str) -> tuple[Kind, str]:
    """Why a command that ran did not pass, and a line about it."""
    # The nonce is in the program's text, which a message may quote.
    line = first_error(ended.output.replace(nonce, "..."))
    if ended.stopped_by == "timeout":
        return "timeout", "not done in time"
    if ended.stopped_by:
        return "error", "more output than allowed"
    for kind, clue in _CLUES:
        if ended.status and re.search(clue, ended.output):
            return kind, line
    if ended.status == 0:
        return "exit", "ended with code 0 before the tests did"
    if os.WIFSIGNALED(ended.status):
        return "error", f"ended by {signal.Signals(os.WTERMSIG(ended.status)).name}"
    return "error", line or f"ended with code {os.waitstatus_to_exitcode(ended.status)}"


def first_error(output: str) -> str:
    """The line of a tool's output that tells most."""
    lines = [line.strip() for line in output.split("\n") if line.strip()]
    telling = [line for line in lines if re.search(r"(?i)error|assert|panicked|denied|not ok", line)]
    return (telling or lines or [""])[0][:_DETAIL]
