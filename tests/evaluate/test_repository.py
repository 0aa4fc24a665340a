"""Holes are whole pieces of syntax; filled again they make the file; held-out lines are the commits' own."""

import subprocess
from pathlib import Path

import pytest

from starcoder.errors import ConfigError
from starcoder.evaluate.matching import compared
from starcoder.evaluate.repository import SourceFile, cut, holes, read

CODE = '''"""A module."""

import os


def area(width, height):
    """Of a rectangle."""
    size = width * height
    return size


def walk(rows):
    for row in rows:
        name = row.name
        yield name, (
            row.size
        )
    if not rows: return
'''


def test_python_is_cut_by_its_syntax():
    found = {(hole.kind, hole.first, hole.last) for hole in holes(SourceFile(path="a.py", text=CODE))}
    assert ("function", 8, 9) in found, "a body without its docstring"
    assert ("block", 14, 17) in found
    assert ("line", 8, 8) in found and ("next-line", 8, 8) in found
    assert not any(first in (15, 16, 17) for kind, first, _ in found if kind in ("line", "next-line"))


def test_other_languages_are_cut_by_indentation():
    text = "function f(a) {\n  const b = a;\n  return b + 1;\n}\n"
    found = {(hole.kind, hole.first, hole.last) for hole in holes(SourceFile(path="a.js", text=text))}
    assert ("block", 2, 3) in found
    assert {hole for hole in found if hole[0] == "line"} == {("line", 1, 1), ("line", 2, 2), ("line", 3, 3)}


def test_every_hole_filled_with_what_stood_there_is_the_file_again():
    own = Path(__file__).read_text("utf-8")
    problems = cut([SourceFile(path="a.py", text=own)], limit=30)
    assert {problem.group for problem in problems} == {"next-line", "line", "block", "function"}
    for problem in problems:
        assert problem.code(problem.reference) == own
        assert compared(problem, problem.reference) == {
            "exact_match": 1,
            "edit_similarity": 1,
            "identifier_match": 1,
            "parses": 1,
        }


def test_no_prefix_ends_in_indentation():
    """Tokenizers join blanks with the word after them, so behind blanks that word cannot be written."""
    problems = cut([SourceFile(path="a.py", text=CODE), SourceFile(path="b.js", text="a {\n  bcde;\n}\n")])
    ends = {problem.request.prefix[-1:] for problem in problems if problem.group == "next-line"}
    assert ends and not any(end.isspace() for end in ends)
    others = {problem.request.prefix[-1:] for problem in problems if problem.group != "next-line"}
    assert others <= {"", "\n"}


def test_the_choice_is_the_seeds_alone():
    files = [SourceFile(path="a.py", text=Path(__file__).read_text("utf-8"))]
    first, again, other = (cut(files, limit=5, seed=seed) for seed in (0, 0, 1))
    assert [one.id for one in first] == [one.id for one in again] != [one.id for one in other]


def git(folder, *arguments):
    subprocess.run(
        ["git", "-C", folder, "-c", "user.name=a", "-c", "user.email=a@b", *arguments],
        check=True,
        capture_output=True,
    )


@pytest.fixture
def repository(tmp_path):
    git(tmp_path, "init", "-q")
    source = tmp_path / "src"
    source.mkdir()
    (source / "a.py").write_text("first = 1\nsecond = 2\n")
    (source / "old.py").write_text("nothing_new = 0\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "one")
    (source / "a.py").write_text("first = 1\n+++ b/other.py = 3\nthird_value = 3\nsecond = 2\n")
    git(tmp_path, "commit", "-qam", "two")
    (source / "new.py").write_text("fourth = 4\r\nfifth = 5\r\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "three")
    return source


def test_held_out_lines_are_those_of_the_last_commits(repository):
    found = {file.path: file.lines for file in read(repository, holdout_commits=2)}
    assert found == {"a.py": {2, 3}, "new.py": {1, 2}}
    assert [file.path for file in read(repository, holdout_commits=1)] == ["new.py"]
    assert {file.path for file in read(repository, holdout_commits=9)} == {"a.py", "new.py", "old.py"}


def test_only_held_out_lines_are_asked_for(repository):
    files = read(repository, holdout_commits=1)
    assert {problem.id for problem in cut(files)} == {
        "next-line/new.py:2",
        "line/new.py:1",
        "line/new.py:2",
    }


def test_uncommitted_changes_are_not_asked_for(repository):
    (repository / "new.py").write_text("changed = 1\n")
    [file] = read(repository, holdout_commits=1)
    assert file.text == "fourth = 4\nfifth = 5\n"


def test_what_cannot_be_cut_is_told(tmp_path):
    with pytest.raises(ConfigError, match="there is no folder"):
        read(tmp_path / "none")
    with pytest.raises(ConfigError, match="no source files"):
        read(tmp_path)
    with pytest.raises(ConfigError, match="git cannot read"):
        read(tmp_path, holdout_commits=1)
    with pytest.raises(ConfigError, match="no line, block or function"):
        cut([SourceFile(path="a.py", text="x\n")])
