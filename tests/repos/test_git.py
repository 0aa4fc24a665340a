"""Git through libgit2 says what git itself says: revisions, trees, history, changes."""

import os
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest

from starcoder.repos import git as repos_git
from starcoder.repos.git import GitError, GitRepository, added_lines
from tests.repos.repositories import git


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two merges, tags of both kinds, a packed store and a loose commit."""
    root = tmp_path / "repo"
    root.mkdir()
    git(root, "init", "-q", "-b", "main")
    for number in range(6):
        (root / f"f{number}.py").write_text(f"value = {number}\n" * (number + 1))
        (root / "deep" / "er").mkdir(parents=True, exist_ok=True)
        (root / "deep" / "er" / "größe.py").write_text(f"n = {number}\n")
        git(root, "add", "-A")
        git(root, "commit", "-qm", f"Commit {number}", "--date", f"2024-01-0{number + 1}T00:00:00Z")
    for branch in ("side", "feature/x"):
        git(root, "checkout", "-qb", branch, "HEAD~1")
        (root / f"{branch[:2]}.py").write_text("x = 1\n")
        git(root, "add", "-A")
        git(root, "commit", "-qm", f"On {branch}")
        git(root, "checkout", "-q", "main")
        git(root, "merge", "-q", "--no-ff", "-m", f"Merge {branch}", branch)
    git(root, "tag", "light", "HEAD~2")
    git(root, "tag", "-a", "v1", "-m", "one", "HEAD~1")
    git(root, "gc", "-q")
    git(root, "mv", "f1.py", "moved.py")
    git(root, "commit", "-qm", "Move, loose")
    return root


NAMES = """main side feature/x light v1
 HEAD HEAD~3 HEAD^ HEAD^^2 HEAD~1^2~1 v1^{} v1^{commit}~1 heads/side HEAD^0
 refs/heads/main HEAD^{commit} nowhere HEAD~99 main^7 HEAD~0 HEAD~1x HEAD^{tree}
 deadbeef HEAD:f1.py -q main@{0}
 FETCH_HEAD ../HEAD"""


@pytest.mark.parametrize("name", ["", "a b", *NAMES.split()])
def test_revisions_are_resolved_as_git_does(folder: Path, name: str) -> None:
    asked = f"{name or 'HEAD'}^{{commit}}"
    command = ["git", "-C", str(folder), "rev-parse", "-q", "--verify", "--end-of-options", asked]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    known = done.stdout.strip() or None
    if "@{" in name or ":" in name:
        known = None  # not offered
    assert GitRepository(folder).resolve(name) == known


def test_short_ids_are_resolved_and_the_current_folder_is_not_looked_at(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = git(folder, "rev-parse", "HEAD")
    other = git(folder, "rev-parse", "HEAD~1")
    (tmp_path / "refs" / "heads").mkdir(parents=True)
    (tmp_path / "refs" / "heads" / head[:8]).write_text(f"{other}\n")
    (tmp_path / "packed-refs").write_text(f"{other} refs/heads/{head[:8]}\n")
    monkeypatch.chdir(tmp_path)
    assert GitRepository(folder).resolve(head[:8]) == GitRepository(folder).resolve(head) == head


def test_entries_commits_and_changes_are_those_of_git(folder: Path) -> None:
    repository = GitRepository(folder)
    listed = git(folder, "ls-tree", "-r", "-l", "-z", "HEAD").rstrip("\0").split("\0")
    fields = [line.replace("\t", " ").split(None, 4) for line in listed]
    head = repository.resolve("HEAD") or ""
    assert [(e.mode, e.blob, e.size, e.path) for e in repository.entries(head)] == [
        (mode, id, int(size), path) for mode, _, id, size, path in fields
    ]
    commits = list(repository.commits(head))
    assert sorted(one.id for one in commits) == sorted(git(folder, "rev-list", "HEAD").split())
    assert all(a.time >= b.time for a, b in pairwise(commits))
    assert (commits[0].author, commits[0].message) == ("t <t@example.org>", "Move, loose\n")
    for one in commits:
        parent = one.parents[0] if one.parents else None
        names = ("--root", "-r", "-z", "--name-only", "--no-renames", "--no-commit-id")
        theirs = git(folder, "diff-tree", *names, *filter(None, [parent]), one.id).rstrip("\0").split("\0")
        assert sorted(change.path for change in repository.changes(one.id, parent) or []) == sorted(theirs)


def test_a_shallow_clone_ends_where_it_was_cut(folder: Path, tmp_path: Path) -> None:
    git(tmp_path, "clone", "-q", "--depth", "2", f"file://{folder}", "shallow")
    repository = GitRepository(tmp_path / "shallow")
    found = {one.id for one in repository.commits(repository.resolve("HEAD") or "")}
    assert found == set(git(tmp_path / "shallow", "rev-list", "HEAD").split())


def test_linked_worktrees_and_submodules_are_their_own(folder: Path, tmp_path: Path) -> None:
    git(folder, "worktree", "add", "-q", str(tmp_path / "linked"), "side")
    outer = tmp_path / "outer"
    outer.mkdir()
    git(outer, "init", "-q")
    git(outer, "submodule", "add", "-q", str(folder), "deps/inner")
    for place in (tmp_path / "linked", outer / "deps" / "inner"):
        repository = GitRepository(place)
        assert repository.resolve("HEAD") == git(place, "rev-parse", "HEAD")
        listed = git(place, "ls-files", "-z").rstrip("\0").split("\0")
        assert sorted(repository.tracked_paths()) == sorted(listed)
    assert GitRepository(outer / "deps" / "inner").origin == str(folder)


def test_a_format_that_libgit2_does_not_read_is_named(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q", "--object-format=sha256", "new")
    with pytest.raises(GitError, match="SHA-256"):
        GitRepository(tmp_path / "new")


def test_a_clone_uses_no_environment_and_no_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shim = tmp_path / "bin" / "git"
    shim.parent.mkdir()
    shim.write_text(f'#!/bin/sh\nenv > {tmp_path}/seen\necho "$@" >> {tmp_path}/seen\nexit 1\n')
    shim.chmod(0o755)
    monkeypatch.setenv("PATH", f"{shim.parent}:{os.environ['PATH']}")
    for name in ("GIT_DIR", "GIT_PROXY_COMMAND", "GIT_SSL_NO_VERIFY", "SOMETHING_ELSE", "GIT_CONFIG_COUNT"):
        monkeypatch.setenv(name, "x")
    with pytest.raises(GitError, match="cannot be cloned") as caught:
        repos_git.clone("https://joe:hunter2@127.0.0.1:9/a/b.git", tmp_path / "target")
    assert "hunter2" not in caught.value.message
    seen = (tmp_path / "seen").read_text()
    given = {line.partition("=")[0] for line in seen.split("\n") if line.startswith("GIT_")}
    assert given == {
        "GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM", "GIT_CONFIG_NOSYSTEM", "GIT_ATTR_NOSYSTEM",
        "GIT_ALLOW_PROTOCOL", "GIT_NO_LAZY_FETCH", "GIT_TERMINAL_PROMPT", "GIT_ASKPASS", "GIT_SSH_COMMAND",
    }  # fmt: skip
    assert "SOMETHING_ELSE" not in seen
    assert not (tmp_path / "target").exists()


def test_added_lines_are_those_of_a_diff_without_context() -> None:
    assert added_lines(b"a\nb\n", b"a\nx\nb\ny") == {2, 4}
    assert added_lines(b"", b"a\nb") == {1, 2}
    assert added_lines(b"a\nb\n", b"a\n") == added_lines(b"a\0", b"b\0") == frozenset()


def test_urls_are_told_from_paths_and_lose_their_credentials() -> None:
    assert repos_git.public_url("https://joe:token@host/owner/name.git") == "https://host/owner/name.git"
    assert repos_git.public_url("https://joe:to@ken@host/x") == "https://host/x"
    urls = ("git@host:owner/name.git", "https://h/a/b/c.git/", "https://h/x")
    assert [repos_git.name_of_url(url) for url in urls] == ["owner/name", "b/c", "x"]
    assert repos_git.is_url("git@host:owner/name.git")
    assert not any(map(repos_git.is_url, ("/tmp/a@b:c", "ext::sh -c x", "file:///tmp/x", "--upload-pack=x")))
    paths = ("file:///a%20b", "file://localhost/x", "/c", "a")
    assert [repos_git.local_path(text) for text in paths] == ["/a b", "/x", "/c", "a"]
