"""`serve` and `editor-config` on the command line."""

import json
import sys
import tomllib

import pytest

import starcoder.server
from starcoder.cli import main
from starcoder.lsp.editors import EDITORS


def test_a_missing_extra_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "starcoder.server.serving", raising=False)
    monkeypatch.delattr(starcoder.server, "serving", raising=False)
    assert main(["serve"]) == 2
    error, hint = capsys.readouterr().err.splitlines()
    assert error == "error: the server needs uvicorn, which is not installed"
    assert hint == "hint: pip install 'starcoder-kit[serve]'"


@pytest.mark.parametrize("editor", EDITORS)
def test_settings_name_the_server(editor, capsys):
    url = "http://box:9000/"
    assert main(["editor-config", editor, "--url", url, "--model", "starcoder2", "--key", "k3y"]) == 0
    out, err = capsys.readouterr()
    assert "http://box:9000" in out and "http://box:9000//" not in out and "@" not in out
    assert err.startswith("paste into ")
    assert "k3y" in out or "key goes into" in err


def test_settings_are_well_formed(capsys):
    for editor, read in {
        "zed": json.loads,
        "llm-vscode": json.loads,
        "kate": json.loads,
        "sublime": json.loads,
        "tabby": tomllib.loads,
        "helix": tomllib.loads,
    }.items():
        main(["editor-config", editor, "--key", "k"])
        assert read(capsys.readouterr().out)


def test_an_unknown_editor_is_told(capsys):
    assert main(["editor-config", "ed"]) == 2
    assert "expected one of neovim, helix" in capsys.readouterr().err
