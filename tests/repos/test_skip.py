"""What is skipped: .gitignore and .gitattributes are read as git reads them."""

import subprocess
from pathlib import Path

import pytest

from starcoder.repos.skip import Attributes, IgnoreRules, is_made

PATHS = (
    *("a.log", "s/a.log", "build/x", "s/build/x", "doc/x.txt", "doc/a/b/x.txt", "abc", "ac", "a.py"),
    *("c.py", "keep.log", "x/y", "z/x/y", "x/y2", "s/keep.log", "#a", "!a", "trail ", "d/e/f.md", "d/g.md"),
)
PATTERNS = """*.log /build/
 doc/**/*.txt a?c [ab].py !keep.log x/y **/x x/** d/* d/*.md [[a]* \\#a \\!a [!a].py
 [z-a].py [a /* s s/ ** * d/**/f.md"""


@pytest.mark.parametrize("text", ["", "   ", "trail\\ ", *PATTERNS.split()])
def test_ignore_patterns_agree_with_git(text: str, tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    (tmp_path / ".gitignore").write_text(f"*.log\n{text}\n")
    asked = ["git", "-C", str(tmp_path), "check-ignore", "--no-index", "--stdin", "-z"]
    done = subprocess.run(asked, input="\0".join(PATHS), capture_output=True, text=True, check=False)
    rules = IgnoreRules()
    rules.add(f"*.log\n{text}\n", "")

    def is_ignored(path: str) -> bool:
        above = ["/".join(path.split("/")[:n]) for n in range(1, path.count("/") + 1)]
        return any(rules.is_ignored(one, is_directory=True) for one in above) or rules.is_ignored(path)

    assert [path for path in PATHS if is_ignored(path)] == [path for path in done.stdout.split("\0") if path]


def test_rules_of_deeper_folders_come_first() -> None:
    rules = IgnoreRules()
    rules.add("*.log\r\n", "")
    rules.add("!keep.log\n", "s")
    asked = ("keep.log", "s/keep.log", "s/t/keep.log", "s/a.log", "sx/keep.log")
    assert [rules.is_ignored(path) for path in asked] == [True, False, False, True, True]


@pytest.mark.parametrize(
    "text", ["*.py", "d", "d/", "d/*", "d/**", "/d/e", "d/e/f.md", "**/f.md", "x/y", "[ab].py", "!a.py"]
)
def test_attributes_agree_with_git(text: str, tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    (tmp_path / ".gitattributes").write_text(f"{text} linguist-generated\n")
    asked = ["git", "-C", str(tmp_path), "check-attr", "linguist-generated", "--stdin"]
    done = subprocess.run(asked, input="\n".join(PATHS), capture_output=True, text=True, check=False)
    expected = [line.endswith(": set") for line in done.stdout.splitlines()]
    attributes = Attributes()
    attributes.add(f"{text} linguist-generated\n", "")
    assert [attributes.of(path) == {"linguist-generated": "true"} for path in PATHS] == expected


def test_later_attributes_win() -> None:
    attributes = Attributes()
    lines = "*.js linguist-generated linguist-language=Python\nown.js -linguist-generated\n"
    attributes.add(lines, "lib")
    assert attributes.of("lib/a/b.js") == {"linguist-generated": "true", "linguist-language": "Python"}
    assert attributes.of("lib/own.js")["linguist-generated"] == ""
    assert attributes.of("b.js") == {}
    attributes.add("[attr]mine binary\n# linguist-vendored\n*.js linguist-generated=false\n", "lib")
    assert attributes.of("lib/a/b.js")["linguist-generated"] == ""


def test_folders_that_tools_make_are_known() -> None:
    made = ("a/node_modules/b.js", ".venv/a.py", "build/x.py", "a/.hidden", "x/__pycache__/y")
    assert all(map(is_made, made))
    assert not any(map(is_made, ("a/builder/b.py", "build", "src/dist.py")))
