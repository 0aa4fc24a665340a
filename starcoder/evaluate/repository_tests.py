"""Judges answers by a repository's own tests: a copy of it, one file changed, its command in the sandbox.

Limits: the verdict is the command's exit code, which code in the repository can fake; the tools of the tests
must be among the paths that the sandbox shows, and nothing can be downloaded.
"""

import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from starcoder.errors import ConfigError
from starcoder.evaluate.problems import Problem
from starcoder.evaluate.repository import open_head
from starcoder.evaluate.run import Judge
from starcoder.evaluate.sandbox.verdicts import Program
from starcoder.repos import git
from starcoder.repos.skip import MADE

_END = "STARCODER_END_OF_FILE_7f3a"  # closes a here-document; no file has this line


@dataclass(frozen=True, slots=True)
class Copy:
    """A copy of a repository, and where in it the folder lies that problems are cut from."""

    root: Path
    inner: str


def copy(repository: Path, target: Path, *, is_at_head: bool) -> Copy:
    """Copy the whole repository around a folder, as committed or as it is on the disk.

    Raises:
        ConfigError: the committed state is wanted and there is no git repository.
    """
    root = git.find_root(repository) or repository.resolve()
    target.mkdir(parents=True, exist_ok=True)
    if is_at_head:
        found, head = open_head(repository)
        try:
            found.write_files(head, target)
        except git.GitError as error:
            raise ConfigError(f"git cannot read {str(repository)!r}: {error.message}", error.hint) from None
    else:
        shutil.copytree(root, target, symlinks=True, ignore=_left_out, dirs_exist_ok=True)
    for path in (target, *target.rglob("*")):
        if not path.is_symlink():  # programs run as another user
            path.chmod(path.stat().st_mode | (0o555 if path.is_dir() else 0o444))
    return Copy(target, repository.resolve().relative_to(root.resolve()).as_posix())


def _left_out(folder: str, names: list[str]) -> set[str]:
    """What a copy lacks: the history, folders that tools made, pipes and devices."""
    return {
        name
        for name in names
        if name == ".git"
        or (name in MADE and Path(folder, name).is_dir())
        or not (
            Path(folder, name).is_symlink() or Path(folder, name).is_dir() or Path(folder, name).is_file()
        )
    }


def with_tests(
    problems: Sequence[Problem], source: Copy, command: str, *, path: Sequence[Path] = ()
) -> list[Problem]:
    """The same problems, judged by `command` at the root of the copy; PATH begins with the `bin`s of `path`.

    The sandbox must have been given the folder around the copy, then those of `path`, as its packages.
    """
    return [
        replace(
            problem,
            check=partial(_program, problem.request.path or "", source, command, tuple(path)),
            is_compared=True,
        )
        for problem in problems
    ]


def check(problems: Sequence[Problem], judge: Judge) -> None:
    """See that the tests pass while nothing is changed.

    Raises:
        ConfigError: they do not.
    """
    program = problems[0].program(problems[0].reference)
    assert program is not None, "the problems are tested ones"
    verdict = judge.submit(program).result()
    if not verdict.held:
        raise ConfigError(
            f"the repository's tests fail as it is: {verdict.kind} {verdict.detail}",
            "they run in the sandbox: without network, in --timeout-s; name another --test-command",
        )


def _program(file: str, source: Copy, command: str, path: Sequence[Path], code: str) -> Program:
    file = shlex.quote((Path(source.inner) / file).as_posix())
    # The sandbox shows its n-th folder of packages as /packages/n where it has a root of its own.
    folders = [f"/packages/{number}/bin:{shlex.quote(str(one))}/bin" for number, one in enumerate(path, 1)]
    root, name = shlex.quote(str(source.root.parent)), shlex.quote(source.root.name)
    lines = [
        "set -e",
        f"export PATH={':'.join([*folders, '/usr/local/bin:/usr/bin:/bin'])}",
        "export HOME=/tmp PYTHONDONTWRITEBYTECODE=1",
        f"for place in /packages/0 {root}; do if [ -d $place/{name} ]; then break; fi; done",
        f"cp -r $place/{name} /tmp/repository && chmod -R u+w /tmp/repository",
        "cd /tmp/repository",
        f"cat > {file} <<'{_END}'",
        code.removesuffix("\n"),
        _END,
    ]
    return Program("\n".join(lines), f"{command}\n", "bash")
