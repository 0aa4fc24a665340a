"""Reading a hostile repository starts no process, opens no connection and takes nothing of another one."""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from starcoder.evaluate.repository import read
from starcoder.files import write_whole
from starcoder.repos.git import GitError, GitRepository
from starcoder.repos.walk import TreeReader, walk
from tests.repos.hostile import SECRET, Makers, environment, plain
from tests.repos.repositories import git

READER = """
import socket, sys
from pathlib import Path
started = []
watched = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty")
watched += ("socket.connect", "socket.getaddrinfo")
sys.addaudithook(lambda event, arguments: started.append((event, arguments)) if event in watched else None)
from starcoder.errors import StarcoderError
from starcoder.evaluate.repository import read
from starcoder.evaluate.repository_tests import copy
from starcoder.prepare.inputs import list_inputs
from starcoder.prepare.settings import PrepareSettings
from starcoder.repos.walk import TreeReader
folder, scratch = Path(sys.argv[1]), Path(sys.argv[2])
texts = []
for place in sorted(folder.iterdir()):
    for choice in ({"commits": True, "split_by": "time"}, {"worktree": True}):
        for url in (str(place), f"file://{place}"):
            for listing in list_inputs(PrepareSettings(inputs=(url,), **choice), scratch):
                reader = TreeReader(Path(listing.repository.folder))
                for record in listing.records:
                    texts.append(reader.read(record.path, record.blob, 100_000) or b"")
    try:
        texts += [file.text.encode() for file in read(place, holdout_commits=1)]
        copied = copy(place, scratch / place.name, is_at_head=True)
        texts += [path.read_bytes() for path in copied.root.rglob("*") if path.is_file()]
    except StarcoderError:
        pass
    print(place.name, len(texts), flush=True)
assert not started, started
assert not any(b"content_of_the_victim" in text for text in texts), "another repository was read"
assert sum(b"def area" in text for text in texts) > 60
"""


@pytest.fixture
def trap(tmp_path: Path) -> Path:
    path = tmp_path / "bin" / "git-remote-trap"
    path.parent.mkdir()
    path.write_text(f"#!/bin/sh\necho ran >> {tmp_path}/trapped\n")
    path.chmod(0o755)
    for name in ("git", "ssh", "gpg", "git-upload-pack", "sh-askpass"):
        shutil.copy(path, path.parent / name)
    return path


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    folder = tmp_path / "victim"
    folder.mkdir()
    (folder / "secret.py").write_text(f"{SECRET} = 'and of nobody else'\n")
    plain(folder)
    return folder


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.1)
        yield server


def test_nothing_runs_connects_or_is_mislabelled(
    tmp_path: Path, trap: Path, victim: Path, listener: socket.socket
) -> None:
    made = Makers(trap, victim, listener.getsockname()[1]).all(tmp_path / "hostile")
    assert len(made) >= 20
    (tmp_path / "home").mkdir()
    write_whole(
        tmp_path / "home" / ".gitconfig",
        f"[log]\nshowSignature = true\n[gpg]\nprogram = {trap}\n[core]\nfsmonitor = {trap}\n",
    )
    if os.geteuid() == 0:  # somebody else's, which git itself refuses
        shutil.copytree(made[0], tmp_path / "hostile" / "owned", symlinks=True)
        for path in (tmp_path / "hostile" / "owned").rglob("*"):
            os.chown(path, 12345, 12345, follow_symlinks=False)
    hostile = {"PATH": f"{trap.parent}:{os.environ['PATH']}", "HOME": str(tmp_path / "home")}
    hostile |= environment(trap, victim) | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    recorder = shutil.which("strace")
    trace = tmp_path / "trace"
    calls = "trace=execve,execveat,connect,sendto,fork,vfork"
    watched = ["strace", "-f", "-qq", "-o", str(trace), "-e", calls]
    command = [sys.executable, "-c", READER, str(tmp_path / "hostile"), str(tmp_path / "scratch")]
    done = subprocess.run(
        [*(watched if recorder else ()), *command],
        env=hostile, cwd=victim, capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-500:] + done.stderr[-3000:]
    assert not (tmp_path / "trapped").exists()
    with pytest.raises(TimeoutError):
        listener.accept()
    if recorder:  # what C code does is seen by the recorder alone
        seen = [line.split(None, 1)[1] for line in trace.read_text().splitlines()]
        assert len(seen) == 1, seen
        assert seen[0].startswith("execve(")


def test_objects_of_another_repository_are_not_read(tmp_path: Path, trap: Path, victim: Path) -> None:
    makers = Makers(trap, victim, 9)
    for make in (
        makers.make_alternates,
        makers.make_linked_objects,
        makers.make_git_file,
        makers.make_git_link,
    ):
        folder = tmp_path / make.__name__
        folder.mkdir()
        plain(folder)
        make(folder)
        with pytest.raises(GitError):
            GitRepository(folder)
        first, *rest = walk(folder)
        assert first.omitted and not first.files
        names = {file.path for tree in rest for file in tree.files}
        assert "area.py" in names
        assert "secret.py" not in names


def test_the_traps_would_close(tmp_path: Path, trap: Path, victim: Path) -> None:
    """Git itself runs them: a reader that did as git does would not pass these tests."""
    makers = Makers(trap, victim, 9)
    for make, command in (
        (makers.make_signature, ["log"]),
        (makers.make_promisor_program, ["cat-file", "-p", "HEAD:area.py"]),
        (makers.make_monitor_and_hooks, ["status"]),
        (makers.make_textconv, ["diff", "HEAD~1"]),
    ):
        folder = tmp_path / make.__name__
        folder.mkdir()
        plain(folder)
        make(folder)
        subprocess.run(["git", "-C", str(folder), *command], capture_output=True, check=False)
        assert (tmp_path / "trapped").exists(), command
        (tmp_path / "trapped").unlink()


def test_missing_objects_of_a_partial_clone_are_counted(tmp_path: Path, trap: Path, victim: Path) -> None:
    folder = tmp_path / "partial"
    folder.mkdir()
    plain(folder)
    (folder / "there.py").write_text("there = 1\n")
    Makers(trap, victim, 9).save(folder)
    Makers(trap, victim, 9).make_promisor_program(folder)
    (tree,) = walk(folder)
    assert [file.path for file in tree.files] == ["there.py"]
    assert tree.omitted == (("area.py", "unreadable"),)


def test_held_out_commits_are_read_as_they_are_stored(tmp_path: Path, trap: Path, victim: Path) -> None:
    folder = tmp_path / "textconv"
    folder.mkdir()
    plain(folder)
    Makers(trap, victim, 9).make_textconv(folder)
    (file,) = read(folder, holdout_commits=2)
    assert (file.path, file.lines) == ("area.py", {3, 4, 5})
    assert "return width * height" in file.text
    assert not (tmp_path / "trapped").exists()


def store(folder: Path, kind: str, data: bytes) -> str:
    """The id of an object that is written as it is, however odd."""
    command = ["git", "-C", str(folder), "hash-object", "-t", kind, "-w", "--stdin", "--literally"]
    return subprocess.run(command, input=data, capture_output=True, check=True).stdout.decode().strip()


def test_a_tree_of_trees_does_not_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten levels of ten equal folders are 10,000,000,000 files in eleven objects."""
    plain(tmp_path)
    id, mode = store(tmp_path, "blob", b"boom\n"), b"100644"
    for _ in range(10):
        entries = (b"%s f%d\0" % (mode, n) + bytes.fromhex(id) for n in range(10))
        id, mode = store(tmp_path, "tree", b"".join(entries)), b"40000"
    monkeypatch.setattr("starcoder.repos.git._MAX_FILES", 10_000)
    (tree,) = walk(tmp_path, revision=git(tmp_path, "commit-tree", id, "-m", "x"))
    assert tree.omitted == (("", "repository with too many files"),)


@pytest.mark.parametrize("name", ["..", ".git", ".GIT", "a/../../b"])
def test_names_that_lead_out_of_a_tree_are_left_out(tmp_path: Path, name: str) -> None:
    plain(tmp_path)
    blob = bytes.fromhex(git(tmp_path, "rev-parse", "HEAD:area.py"))
    id = store(tmp_path, "tree", b"100644 %s\0" % name.encode() + blob + b"100644 ok.py\0" + blob)
    commit = git(tmp_path, "commit-tree", id, "-m", "x")
    (tree,) = walk(tmp_path, revision=commit)
    assert [file.path for file in tree.files] == ["ok.py"]
    GitRepository(tmp_path).write_files(commit, tmp_path / "written")
    assert [path.name for path in (tmp_path / "written").rglob("*")] == ["ok.py"]
    assert TreeReader(tmp_path).read("ok.py", blob.hex(), 10) is None  # larger than asked for


def test_links_are_written_only_if_they_stay_inside(tmp_path: Path) -> None:
    folder = tmp_path / "links"
    (folder / "a" / "b").mkdir(parents=True)
    plain(folder)
    links = {"a/ok": "../area.py", "a/b/ok": "../../a", "out": "../x", "a/b/out": "../../../x", "abs": "/etc"}
    for path, to in (links | {"a/chain": "b/ok/../../.."}).items():
        (folder / path).symlink_to(to)
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "x")
    repository, written = GitRepository(folder), tmp_path / "written"
    repository.write_files(repository.resolve("HEAD") or "", written)
    found = {path.relative_to(written).as_posix() for path in written.rglob("*") if path.is_symlink()}
    assert found == {"a/ok", "a/b/ok"}
