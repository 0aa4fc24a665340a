"""`starcoder prepare` from folders to a data set and its card, in two lines where it cannot."""

import json

import pytest

from starcoder.cli import main

pytest.importorskip("pyarrow", reason="shards are Parquet; pip install 'starcoder-kit[prepare]'")

SOURCE = '''def area(width: int, height: int) -> int:
    """How large a rectangle is."""
    return width * height
'''


def test_prepare_writes_a_data_set_and_explains_it(tmp_path, capsys):
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "shapes.py").write_text(SOURCE)
    output = str(tmp_path / "data")
    assert main(["prepare", str(tmp_path / "code"), "--output", output, "--workers", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["num_documents"] == 1
    assert main(["prepare", "--explain", output]) == 0
    assert f"| Python | 1 | {len(SOURCE)} |" in capsys.readouterr().out


def test_a_terminal_sees_the_stages_and_a_pipe_does_not(tmp_path, capsys, monkeypatch):
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "shapes.py").write_text(SOURCE)
    for name, is_terminal in (("piped", False), ("shown", True)):
        if is_terminal:
            monkeypatch.setenv("TTY_COMPATIBLE", "1")  # what rich takes for a terminal
        output = str(tmp_path / name)
        assert main(["prepare", str(tmp_path / "code"), "--output", output, "--workers", "1"]) == 0
        assert ("writing" in capsys.readouterr().err) == is_terminal


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere-at-all", "-o", "x"], "there is no folder 'nowhere-at-all'"),
        (["."], "there is no folder to write to"),
        (["-o", "x"], "there is nothing to prepare"),
        (["--explain", "nowhere"], "'nowhere' holds no prepared dataset"),
        ([".", "-o", "x", "--languages", "pythn"], "there is no language 'pythn'"),
        ([".", "-o", "x", "--skip-filter", "none"], "there is no filter 'none'"),
    ],
)
def test_mistakes_are_two_lines(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["prepare", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 2
