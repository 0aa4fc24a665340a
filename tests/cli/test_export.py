"""`starcoder export` says what it wrote; tests/checkpoint/test_gguf.py looks into the file."""

import json

import pytest

from starcoder.cli import main

pytest.importorskip("gguf", reason="needs the extra gguf")


def test_the_report_is_of_the_file(folder, tmp_path, capsys):
    output = tmp_path / "model.gguf"
    assert main(["export", str(folder), "--type", "q8_0", "-o", str(output), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["format"], found["type"], found["output"]) == ("gguf", "q8_0", str(output))
    assert found["size_bytes"] == output.stat().st_size
    assert main(["export", str(folder), "-o", str(output)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert output.stat().st_size == found["size_bytes"]
    assert main(["export", str(folder), "-o", str(output), "--force"]) == 0
    assert capsys.readouterr().out.endswith(f"written to {output}\n")
    assert output.stat().st_size > found["size_bytes"]


def test_mistakes_are_two_lines(folder, tmp_path, capsys):
    for arguments, error in (
        (["-o", str(tmp_path)], f"cannot write '{tmp_path}': it is a folder"),
        (["-o", str(tmp_path / "none" / "x.gguf")], "the folder does not exist"),
        (["-o", str(tmp_path / "x"), "--type", "q3_k"], "--type is 'q3_k'; expected one of f16, q8_0, q4_0"),
        (["-o", str(tmp_path / "x"), "--format", "onnx"], "--format is 'onnx'; expected one of gguf"),
    ):
        assert main(["export", str(folder), *arguments]) == 2, arguments
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 2 and error in lines[0], lines
