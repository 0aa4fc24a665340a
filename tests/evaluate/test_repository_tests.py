"""The copy is the repository as it is wanted, and a program changes one file of it and runs the command."""

import subprocess
from concurrent.futures import Future

import pytest

from starcoder.errors import ConfigError
from starcoder.evaluate.repository import SourceFile, cut
from starcoder.evaluate.repository_tests import check, copy, with_tests
from starcoder.evaluate.sandbox.verdicts import Verdict

CODE = "first_value = 1\nsecond_value = '$HOME \\\\ `x`'\n"


class Bash:
    """Runs programs as they are: they are this test's own, and write below /tmp."""

    def __init__(self, place):
        self.place = place

    def submit(self, program):
        text = f"{program.source}\n{program.tests}".replace("/tmp/repository", str(self.place))
        done = subprocess.run(["bash", "-c", text], capture_output=True, text=True, check=False)
        subprocess.run(["rm", "-rf", str(self.place)], check=True)
        future = Future()
        future.set_result(Verdict("error" if done.returncode else "passed", done.stderr))
        return future


@pytest.fixture
def repository(tmp_path):
    root = tmp_path / "repository"
    (root / "src").mkdir(parents=True)
    (root / "src" / "a.py").write_text(CODE)
    (root / "b.txt").write_text("committed")
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "one"]):
        subprocess.run(["git", "-C", str(root), *command], check=True)
    (root / "b.txt").write_text("changed")
    return root


@pytest.mark.parametrize(("is_at_head", "text"), [(True, "committed"), (False, "changed")])
def test_the_copy_is_as_committed_or_as_on_the_disk(repository, tmp_path, is_at_head, text):
    found = copy(repository / "src", tmp_path / "copy", is_at_head=is_at_head)
    assert (found.inner, (found.root / "b.txt").read_text()) == ("src", text)
    assert not (found.root / ".git").exists()


def test_a_program_changes_one_file_and_runs_the_command(repository, tmp_path):
    source = copy(repository / "src", tmp_path / "copy", is_at_head=True)
    problems = cut([SourceFile(path="a.py", text=CODE)], kinds=["line"])
    [_, second] = with_tests(problems, source, "test -f b.txt && tail -n 1 src/a.py | grep -q 'x`'")
    judge = Bash(tmp_path / "running")
    verdicts = [
        judge.submit(second.program(text)).result().passed for text in (second.reference, "other = 2")
    ]
    assert verdicts == [True, False]
    assert (source.root / "src" / "a.py").read_text() == CODE
    check([second], judge)
    with pytest.raises(ConfigError, match="fail as it is"):
        check(with_tests(problems, source, "false"), judge)
