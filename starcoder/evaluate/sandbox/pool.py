"""The sandbox as its callers see it: programs go in, verdicts come out as they are reached."""

from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from starcoder.evaluate.sandbox.verdicts import Isolation, Limits, Program, Verdict

Driver = Literal["namespaces", "docker", "podman"]


class Sandbox:
    """Worker processes that run programs, each program behind walls of its own.

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
        allow_unsafe: bool = False,
    ):
        """Start the workers and find out which walls stand.

        Args:
            workers: Programs at a time; the number of cores if not given.
            limits: For every program; `Limits()` if not given.
            driver: docker and podman take tool-chains from images.
            images: Language to image, for docker and podman.
            packages: Folders of Python packages that programs may import (read-only).
            preload: Modules to import once, before any program, because importing them is slow (numpy).
            allow_unsafe: Run even where network or files cannot be shut off.

        Raises:
            SandboxError: programs could reach the network or the user's files here and `allow_unsafe` is not
                set, or the driver does not work.
        """
        raise NotImplementedError

    @property
    def isolation(self) -> Isolation:
        """The walls that stand on this machine."""
        raise NotImplementedError

    def submit(self, program: Program) -> "Future[Verdict]":
        """Queue a program. One equal to an earlier one of this sandbox is not run again, but gets its verdict."""
        raise NotImplementedError

    def run(self, programs: Iterable[Program]) -> Iterator[tuple[int, Verdict]]:
        """Run all programs; yields (index, verdict) as each ends, in any order."""
        raise NotImplementedError

    def close(self) -> None:
        """End every program and worker. Safe to call twice."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
