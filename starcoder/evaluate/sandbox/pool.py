"""The sandbox as its callers see it: programs go in, verdicts come out as they are reached."""

import contextlib
import functools
import json
import os
import queue
import struct
import subprocess
import sys
import sysconfig
import tempfile
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, as_completed
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import starcoder
from starcoder.errors import SandboxError
from starcoder.evaluate.sandbox import languages
from starcoder.evaluate.sandbox.containers import ContainerWorker
from starcoder.evaluate.sandbox.names import free_names, members
from starcoder.evaluate.sandbox.verdicts import GUARANTEES, LAYERS, Isolation, Limits, Program, Verdict

_Order = tuple[Program, Limits]
Driver = Literal["namespaces", "docker", "podman"]

_LENGTH = struct.Struct("<I")
_NOT_EXPECTED = {"container", "no-signals"}  # they replace other layers
_SYSTEM = (
    "/bin", "/lib", "/lib32", "/lib64", "/sbin", "/usr", "/etc/ld.so.cache", "/etc/alternatives",
    "/etc/localtime",
)  # fmt: skip
_BOOT = "import sys; sys.path.append({path!r}); from starcoder.evaluate.sandbox.worker import main; main()"


class Sandbox:
    """Worker processes that run programs, each program isolated from all others and from the machine.

    Use it as a context manager; leaving it ends every program that still runs. Not for more than one thread
    at a time, except that futures may be awaited anywhere.
    """

    def __init__(
        self,
        *,
        workers: int | None = None,
        limits: Limits | None = None,
        driver: Driver = "namespaces",
        images: dict[str, str] | None = None,
        packages: Iterable[Path] = (),
        preload: Iterable[str] = (),
        accept_missing: Iterable[str] = (),
        without: Iterable[str] = (),
    ):
        """Start the workers and find out how they are isolated here.

        Args:
            workers: Programs at a time; the number of cores if not given.
            limits: For every program that needs no more; `Limits()` if not given.
            driver: docker and podman take tool-chains from images.
            images: Language to image, for docker and podman.
            packages: Folders of Python packages that programs may import (read-only).
            preload: Modules to import once, before any program, because importing them is slow (numpy).
            accept_missing: Guarantees (`verdicts.GUARANTEES`) to do without where they cannot be given.
            without: Layers to leave out (`verdicts.LAYERS`), to see what a lesser machine would give.

        Raises:
            SandboxError: a guarantee cannot be given and is not among `accept_missing`, or the driver does
                not work.
        """
        accepted = set(accept_missing)
        if unknown := sorted(accepted - set(GUARANTEES)):
            raise SandboxError(
                f"there is no guarantee {unknown[0]!r}", f"the guarantees are {', '.join(GUARANTEES)}"
            )
        self._limits = limits or Limits()
        self._scratch = tempfile.TemporaryDirectory(prefix="starcoder-sandbox-", ignore_cleanup_errors=True)
        os.chmod(self._scratch.name, 0o711)  # workers started by root become nobody on the way to their roots
        self._jobs: queue.SimpleQueue[tuple[Program, Future[Verdict]] | None] = queue.SimpleQueue()
        self._known: dict[Program, Future[Verdict]] = {}
        self._toolchains = {name: languages.tools(name) for name in languages.LANGUAGES}
        self._workers: list[_Worker | ContainerWorker] = []
        self._threads: list[threading.Thread] = []
        try:
            for number in range(workers or os.cpu_count() or 1):
                root = os.path.join(self._scratch.name, str(number))
                os.mkdir(root)
                if driver == "namespaces":
                    settings = self._settings(root, packages, preload, without) | {"number": number}
                    self._workers.append(_Worker(settings, self._toolchains))
                else:
                    self._workers.append(ContainerWorker(driver, images or {}, root))
            for worker in self._workers:
                worker.start()
            self._isolation = self._workers[0].isolation
            if lacking := [name for name in self._isolation.lacks if name not in accepted]:
                raise SandboxError(
                    f"the sandbox cannot guarantee {', '.join(lacking)} on this machine: it lacks "
                    + ", ".join(self._isolation.missing),
                    "allow unprivileged user namespaces, use docker or podman, or accept it with "
                    + " ".join(f"--accept-missing {name}" for name in lacking),
                )
        except BaseException:
            self.close()
            raise
        self._threads = [
            threading.Thread(target=self._serve, args=(worker,), daemon=True) for worker in self._workers
        ]
        for thread in self._threads:
            thread.start()

    @property
    def isolation(self) -> Isolation:
        """The layers of isolation on this machine."""
        return self._isolation

    @property
    def holds(self) -> dict[str, tuple[str, ...]]:
        """Every guarantee by name, with the layers that give it; none where it was accepted as missing."""
        return self._isolation.by_guarantee()

    def available(self, language: str) -> bool:
        """Whether programs of `language` can run here; otherwise their verdict is `unavailable`."""
        return self._workers[0].available(language)

    def submit(self, program: Program) -> "Future[Verdict]":
        """Queue a program; one equal to an earlier one is not run again, but gets that one's verdict."""
        if program not in self._known:
            self._known[program] = Future()
            self._jobs.put((program, self._known[program]))
        return self._known[program]

    def run(self, programs: Iterable[Program]) -> Iterator[tuple[int, Verdict]]:
        """Run all programs; yields (index, verdict) as each ends, in any order."""
        indices: dict[Future[Verdict], list[int]] = {}
        for index, program in enumerate(programs):
            indices.setdefault(self.submit(program), []).append(index)
        for future in as_completed(indices):
            for index in indices[future]:
                yield index, future.result()

    def close(self) -> None:
        """End every program and worker. Safe to call twice."""
        for future in self._known.values():
            future.cancel()
        for worker in self._workers:
            worker.stop()
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()
        for worker in self._workers:
            worker.stop()  # one may have been replacing a dead process just now
        self._scratch.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _settings(
        self, root: str, packages: Iterable[Path], preload: Iterable[str], without: Iterable[str]
    ) -> dict[str, object]:
        folders = [str(Path(folder).resolve()) for folder in packages]
        own = {sys.base_prefix, sysconfig.get_path("stdlib")}  # not the user's environment
        toolchains = {path for tools in self._toolchains.values() for path in languages.folders(tools)}
        java = {str(path) for path in Path("/etc").glob("java*")}
        return {
            "root": root,
            "readable": [*_SYSTEM, *sorted({*own, *toolchains, *java})],
            "packages": folders,
            "preload": list(preload),
            "without": list(without),
        }

    def _serve(self, worker: "_Worker | ContainerWorker") -> None:
        job = self._take()
        while job is not None:
            program, future = job
            # The next program is sent along while this one runs, unless another worker may wait for it.
            following = self._take() if self._jobs.qsize() > 2 * len(self._workers) else None
            try:
                ahead = None if following is None else self._order(following[0])
                future.set_result(worker.judge(*self._order(program), ahead))
            except SandboxError as error:
                future.set_exception(error)
            job = following or self._take()

    def _take(self) -> "tuple[Program, Future[Verdict]] | None":
        """The next program that is still wanted; None when there will be none."""
        while (job := self._jobs.get()) is not None:
            if job[1].set_running_or_notify_cancel():
                return job
        self._jobs.put(None)  # for the next who asks
        return None

    def _order(self, program: Program) -> "_Order":
        return program, self._limits.at_least(program.needs)


class _Worker:
    """One worker process; started again when something ends it."""

    def __init__(self, settings: dict[str, object], toolchains: dict[str, dict[str, str]]):
        self._settings, self._toolchains = settings, toolchains
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = False
        self._sent: _Order | None = None  # which waits in the process's input
        self.isolation = Isolation((), ())

    def start(self) -> None:
        """Start the process and learn how it is isolated.

        Raises:
            SandboxError: it does not start.
        """
        package = str(Path(starcoder.__file__).parent.parent)
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-W", "ignore", "-c", _BOOT.format(path=package)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            cwd="/",
            start_new_session=True,  # a terminal's Ctrl-C is the caller's to handle
            env={
                "LD_BIND_NOW": "1",  # or every fork resolves its symbols again
                "PATH": "/usr/bin:/bin",
                "LANG": "C.UTF-8",
                "OPENBLAS_NUM_THREADS": "1",
                "OMP_NUM_THREADS": "1",
            },
        )
        try:
            self._send_bytes(_framed(self._settings))
            hello = self._receive()
        except OSError:
            assert self._process.stderr, "is a pipe"
            reason = self._process.stderr.read().decode(errors="replace").strip().rpartition("\n")[2]
            self.stop()
            raise SandboxError(
                f"a sandbox process did not start: {reason or 'it ended'}",
                "`starcoder doctor` shows what this machine allows; --sandbox docker needs no namespaces",
            ) from None
        layers = frozenset(hello["layers"])
        self.isolation = Isolation(
            tuple(layer for layer in LAYERS if layer in layers),
            tuple(layer for layer in LAYERS if layer not in layers | _NOT_EXPECTED),
        )

    def available(self, language: str) -> bool:
        """Whether this machine has the tool-chain."""
        return language == "python" or bool(self._toolchains.get(language))

    def judge(self, program: Program, limits: Limits, following: "_Order | None" = None) -> Verdict:
        """Try one program; a worker that dies of it is replaced, and the program is tried once more.

        The one `following` is sent before this one's verdict is there, so that the worker need not wait.

        Raises:
            SandboxError: the worker dies again, or was stopped.
        """
        if not self.available(program.language):
            return Verdict("unavailable", f"no tool-chain for {program.language} on this machine")
        for _ in range(2):
            try:
                if self._sent != (program, limits):
                    self._send_program(program, limits)
                self._sent = None
                if following is not None and self.available(following[0].language):
                    self._send_program(*following)
                    self._sent = following
                verdict = self._receive()
                if "trouble" in verdict:
                    raise SandboxError(f"a program could not be isolated: {verdict['trouble']}")
                return Verdict(**verdict)
            except (OSError, ValueError):  # ValueError: `stop` has closed the pipes
                if self._stopped:
                    break
                self.stop()
                self._stopped, self._sent = False, None
                self.start()
        raise SandboxError(
            "a sandbox process ended twice on the same program", "is the machine out of memory?"
        )

    def _send_program(self, program: Program, limits: Limits) -> None:
        source, task = (text.encode("utf-8", "surrogatepass") for text in (program.source, _task(program)))
        job = {
            "language": program.language,
            "sizes": [len(source), len(task)],
            "tools": self._toolchains.get(program.language, {}),
            "limits": asdict(limits),
        }
        self._send_bytes(b"".join([_framed(job), source, task]))

    def stop(self) -> None:
        """End the process and all it runs."""
        self._stopped = True
        if self._process:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
                with contextlib.suppress(OSError):
                    assert pipe, "are pipes"
                    pipe.close()

    def _send_bytes(self, data: bytes) -> None:
        assert self._process and self._process.stdin, "started"
        frame = memoryview(data)
        while frame:
            frame = frame[self._process.stdin.write(frame) or 0 :]

    def _receive(self) -> dict[str, Any]:
        (length,) = _LENGTH.unpack(self._exactly(_LENGTH.size))
        message: dict[str, Any] = json.loads(self._exactly(length))
        return message

    def _exactly(self, count: int) -> bytes:
        assert self._process and self._process.stdout, "started"
        data = b""
        while len(data) < count:
            part = self._process.stdout.read(count - len(data))
            if not part:
                raise ConnectionError("the sandbox process ended")
            data += part
        return data


def _task(program: Program) -> str:
    """All of a program but the candidate, for the test runner."""
    if program.language != "python":
        return json.dumps({"tests": program.tests})
    if program.cases is not None:
        return json.dumps({"cases": asdict(program.cases)})
    return _tests(program.tests, program.entry_points, program.setup)


@functools.lru_cache(maxsize=256)
def _tests(tests: str, declared: tuple[str, ...], setup: str) -> str:
    """Decide which names of the tests are the candidate's, which are modules, which come from the setup."""
    free = free_names(tests)
    modules = {name for name in free if name in sys.stdlib_module_names} - set(declared)
    entry_points = declared or tuple(sorted(free - modules))
    needs_setup = bool(free - modules - set(entry_points))
    return json.dumps(
        {
            "cases": None,
            "tests": tests,
            "entry_points": entry_points,
            "modules": sorted(modules),
            "setup": setup if needs_setup else "",
            "classes": {name: found for name, found in members(setup).items() if name in entry_points},
        }
    )


def _framed(message: object) -> bytes:
    data = json.dumps(message).encode()
    return _LENGTH.pack(len(data)) + data
