"""The docker and podman drivers: a throw-away container for every program, for tool-chains out of images."""

import os
import re
import secrets
import shutil
import subprocess
import time
from collections.abc import Mapping
from typing import Literal

from starcoder.errors import SandboxError
from starcoder.evaluate.sandbox import languages
from starcoder.evaluate.sandbox.commands import TOGETHER, Ended, compile_s, diagnose, fill, first_error
from starcoder.evaluate.sandbox.verdicts import Isolation, Kind, Limits, Program, Verdict

IMAGES: Mapping[str, str] = {
    "python": "python:3.12-slim",
    "javascript": "node:22-slim",
    "java": "eclipse-temurin:21",
    "cpp": "gcc:14",
    "rust": "rust:1-slim",
    "bash": "bash:5",
    "perl": "perl:5-slim",
}
"""Which image has which tool-chain; `Sandbox(images=...)` adds to it and overrides it."""

_ISOLATION = Isolation(("container",), ())
_NOT_COMPILED, _KILLED = 99, 137
_START_S = 20.0  # a container takes its time to start and to go
_PYTHON = languages.Language(
    "python", ("python3",), "main.py", ("python3", "-I", "{file}"), 'import os; os.write(3, b"{nonce}")'
)


class ContainerWorker:
    """Runs programs in containers of `driver`, one at a time.

    The candidate and its tests are one program in there, for every language, so no success is confirmed.
    """

    def __init__(self, driver: Literal["docker", "podman"], images: Mapping[str, str], folder: str):
        self._driver, self._images, self._folder = driver, {**IMAGES, **images}, folder
        self.isolation = _ISOLATION

    def start(self) -> None:
        """Ask the driver whether it works.

        Raises:
            SandboxError: it is not installed or its daemon does not answer.
        """
        if not shutil.which(self._driver):
            raise SandboxError(
                f"{self._driver} is not installed", "the default sandbox needs neither daemon nor image"
            )
        done = subprocess.run([self._driver, "info"], capture_output=True, text=True, check=False, timeout=60)
        if done.returncode or "Cannot connect" in done.stderr + done.stdout:
            reason = (done.stderr or done.stdout).strip().rpartition("\n")[2]
            raise SandboxError(
                f"{self._driver} does not answer: {reason}", f"`{self._driver} info` must work first"
            )

    def stop(self) -> None:
        """Nothing outlives a program."""

    def available(self, language: str) -> bool:
        """Whether an image is known for `language`."""
        return language in self._images and (language == "python" or language in languages.LANGUAGES)

    def judge(self, program: Program, limits: Limits, following: object = None) -> Verdict:
        """Try one program in a container of its own.

        Raises:
            SandboxError: the driver could not start a container.
        """
        if not self.available(program.language):
            return Verdict("unavailable", f"no image for {program.language}")
        toolchain = languages.LANGUAGES.get(program.language, _PYTHON)
        nonce, name = secrets.token_hex(16), f"starcoder-{secrets.token_hex(8)}"
        if program.cases is not None:
            return Verdict("unavailable", "tasks of inputs and outputs need the test runner: use namespaces")
        text = toolchain.join(program.source, program.tests, nonce)
        file = toolchain.file_for(text)
        os.makedirs(f"{self._folder}/{name}")
        with open(f"{self._folder}/{name}/{file}", "w", encoding="utf-8", errors="replace") as written:
            written.write(text)
        began = time.monotonic()
        timeout_s = limits.timeout_s + compile_s(program.language) + _START_S
        command = self.command(name, self._images[program.language], _script(toolchain, file, limits), limits)
        try:
            done = subprocess.run(command, capture_output=True, check=False, timeout=timeout_s)
            ended = _ended(done, limits)
        except subprocess.TimeoutExpired:
            subprocess.run([self._driver, "kill", name], capture_output=True, check=False)
            ended = Ended(9, "", "", "timeout")
        finally:
            shutil.rmtree(f"{self._folder}/{name}", ignore_errors=True)
        seconds = time.monotonic() - began
        if ended.nonce == nonce:
            return Verdict("unconfirmed", TOGETHER, seconds)
        if ended.status >> 8 == 125:
            raise SandboxError(f"{self._driver} started no container: {ended.output[-300:].strip()}")
        if ended.status >> 8 == _NOT_COMPILED:
            return Verdict("syntax", first_error(ended.output), seconds)
        return Verdict(*diagnose(ended, nonce), seconds)

    def command(self, name: str, image: str, script: str, limits: Limits) -> list[str]:
        """The driver's command line for one program whose files are in the folder `name`."""
        return [
            self._driver, "run", "--rm", "--name", name, "--network", "none", "--read-only",
            "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--user", "65534:65534",
            "--ipc", "none", "--pids-limit", str(max(limits.processes, 256)),
            "--memory", str(limits.memory_bytes), "--memory-swap", str(limits.memory_bytes), "--cpus", "1",
            "--ulimit", "core=0", "--ulimit", f"fsize={limits.file_bytes}", "--ulimit", "nofile=256",
            "--tmpfs", f"/tmp:rw,exec,nosuid,nodev,size={4 * limits.file_bytes}",
            "--volume", f"{self._folder}/{name}:/program:ro", "--workdir", "/tmp",
            "--entrypoint", "/bin/sh", image, "-c", script,
        ]  # fmt: skip


def _script(toolchain: languages.Language, file: str, limits: Limits) -> str:
    """Compile and run, with the verdict, which only standard output can carry out, as its last line."""
    blanks = {
        "file": f"/program/{file}",
        "name": file.partition(".")[0],
        "memory_mib": str(limits.memory_bytes >> 21),
    }
    compile_it, run_it = (
        " ".join(fill(part, blanks) for part in command) for command in (toolchain.compile, toolchain.run)
    )
    seconds = max(1, round(limits.timeout_s))
    return (
        f"{f'({compile_it}) >&2 || exit {_NOT_COMPILED}; ' if compile_it else ''}"
        f"timeout -s KILL {seconds} {run_it} 3>/tmp/.verdict >/tmp/.output 2>&1 </dev/null; status=$?; "
        f"head -c {limits.output_bytes} /tmp/.output >&2; cat /tmp/.verdict; exit $status"
    )


def _ended(done: "subprocess.CompletedProcess[bytes]", limits: Limits) -> Ended:
    nonce = re.sub(rb"\s", b"", done.stdout[-64:]).decode("latin-1")
    output = done.stderr[: limits.output_bytes].decode(errors="replace")
    stopped_by: Kind | None = "timeout" if done.returncode == _KILLED else None
    return Ended(max(0, done.returncode) << 8, output, nonce, stopped_by)
