"""Files: replaced as a whole or not at all, JSON lines that only "\\n" ends, one list of a model's files."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from starcoder.errors import ConfigError
from starcoder.files import (
    bundled,
    copy_model_files,
    newline_of,
    read_jsonl,
    replace_atomically,
    unix_newlines,
    write_jsonl,
    write_whole,
)

ROWS = [{"a": "x\u2028y\x85z\x0b\x0c\x1c"}, {"b": "π\r"}, {"c": [1, None]}]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.jsonl.zst"])
def test_rows_come_back_whatever_characters_they_have(tmp_path: Path, name: str) -> None:
    if name.endswith("zst"):
        pytest.importorskip("pyarrow", reason="zstd is read by pyarrow")
    first, second = tmp_path / name, tmp_path / f"second-{name}"
    write_jsonl(first, ROWS)
    write_jsonl(second, ROWS)
    assert list(read_jsonl(first)) == ROWS == list(read_jsonl(first.read_bytes()))
    assert first.read_bytes() == second.read_bytes()


def test_a_name_does_not_decide_what_is_compressed(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(gzip.compress(b'{"a": 1}\n'))
    (tmp_path / "rows.gz").write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\r\n')
    assert list(read_jsonl(tmp_path / "rows.jsonl")) == list(read_jsonl(tmp_path / "rows.gz")) == [{"a": 1}]


@pytest.mark.parametrize(
    "line", ["[1]", '{"a": "x', "{" * 100_000, "[" * 100_000, '{"a": ' + "9" * 5000 + "}", "\udcff", "nul"]
)
def test_a_line_that_is_no_object_is_named_by_its_number(tmp_path: Path, line: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n\n' + line.encode("utf-8", "surrogateescape") + b"\n{}\n")
    with pytest.raises(ConfigError, match=r"rows\.jsonl:3 is not a JSON object"):
        list(read_jsonl(path))


def test_only_a_last_line_without_its_end_is_torn(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n{"a"')
    assert list(read_jsonl(path, skips_torn_line=True)) == [{"a": 1}]
    path.write_text('{"a": 1}\n{"a"\n')
    with pytest.raises(ConfigError, match=":2 "):
        list(read_jsonl(path, skips_torn_line=True))


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_damaged_compression_is_an_error_of_two_lines(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"rows.jsonl{suffix}"
    write_jsonl(path, [{"a": os.urandom(50).hex()} for _ in range(200)])
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ConfigError, match="damaged"):
        list(read_jsonl(path))


def test_a_failure_leaves_what_was_there_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_whole(path, "old")
    with pytest.raises(ZeroDivisionError), replace_atomically(path) as part:
        part.write_text("half")
        raise ZeroDivisionError
    with replace_atomically(path):
        pass  # nothing written, nothing replaced
    with pytest.raises(ZeroDivisionError), replace_atomically(tmp_path / "folder") as part:
        part.mkdir()
        (part / "file").touch()
        raise ZeroDivisionError
    assert (path.read_text(), [one.name for one in tmp_path.iterdir()]) == ("old", ["a"])


def test_a_replaced_file_has_the_rights_that_new_files_have(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.touch()
    with replace_atomically(tmp_path / "file") as part:
        part.touch(0o600)  # as safetensors does
    assert (tmp_path / "file").stat().st_mode == plain.stat().st_mode


def test_a_folder_replaces_no_folder_with_files(tmp_path: Path) -> None:
    write_whole(tmp_path / "keep", "")
    with pytest.raises(OSError, match="not empty"), replace_atomically(tmp_path) as part:
        part.mkdir()
    with replace_atomically(tmp_path / "new") as part:
        part.mkdir()
        (part / "file").touch()
    assert sorted(one.name for one in tmp_path.iterdir()) == ["keep", "new"]


def test_a_killed_writer_leaves_the_old_file(tmp_path: Path) -> None:
    write_whole(tmp_path / "file", "old")
    script = f"""import os, pathlib, starcoder.files as files
with files.replace_atomically(pathlib.Path({str(tmp_path / "file")!r})) as part:
    part.write_text("half"); os.kill(os.getpid(), 9)"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -9
    assert (tmp_path / "file").read_text() == "old"


def test_every_file_of_a_model_but_weights_and_configuration_is_copied(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "additional_chat_templates").mkdir(parents=True)
    (source / "chat_template.d").mkdir()  # a folder is no file of a model
    target.mkdir()
    kept = {
        "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "vocab.json",
        "merges.txt", "added_tokens.json", "generation_config.json", "chat_template.jinja",
        "chat_template.json", "dialogue_template.json", "additional_chat_templates/tools.jinja",
    }  # fmt: skip
    for name in (*kept, "config.json", "model.safetensors", "README.md"):
        (source / name).write_text(name)
    (target / "vocab.json").write_text("replaced")
    copy_model_files(source, target)
    copy_model_files(target, target)
    found = {
        path.relative_to(target).as_posix(): path.read_text()
        for path in target.rglob("*.*")
        if path.is_file()
    }
    assert found == {name: name for name in kept}


def test_line_ends_are_those_of_most_lines() -> None:
    assert [newline_of(text) for text in ("a\r\nb\r\nc\n", "a\r\nb\nc\n", "", "a")] == [
        "\r\n",
        "\n",
        "\n",
        "\n",
    ]
    assert unix_newlines("a\r\nb\rc\n") == "a\nb\rc\n"


def test_the_bundled_model_is_a_model_folder() -> None:
    assert json.loads((bundled() / "config.json").read_text())["vocab_size"] == 4096
