"""Language servers share one `starcoder serve`: started once, kept while one is left, gone with the last."""

import json
import os
import time
from pathlib import Path

from starcoder.files import bundled
from starcoder.lsp.process import SharedServer
from starcoder.lsp.settings import LspSettings
from tests.lsp.editor import Editor

SOURCE = "def area(width, height):\n    return \n"


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_editors_share_one_server_that_ends_with_the_last_even_if_killed(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / ".state"))
    settings = LspSettings(model=str(bundled()))
    record = SharedServer.of(settings).folder / "server.json"
    editors = [Editor(tmp_path, options={"model": settings.model, "timeout_s": 120}) for _ in range(2)]
    try:
        for vim in editors:
            vim.start()
            vim.uri_opened = vim.open("a.py", SOURCE)
        numbers = [vim.begin_complete(vim.uri_opened, 1, 11) for vim in editors]
        for vim, number in zip(editors, numbers, strict=True):
            answer = vim.wait(number, timeout_s=180)
            assert answer["result"]["items"][0]["insertText"].strip(), vim.messages()
        server = json.loads(record.read_text())
        addresses = {vim.command("starcoder.status")["server"] for vim in editors}
        assert addresses == {server["url"]}
        editors[0].process.kill()
        time.sleep(3)
        assert is_running(server["pid"]), "an editor is left"
        editors[1].process.kill()
        deadline = time.monotonic() + 60
        while record.exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not record.exists()
        assert not is_running(server["pid"])
    finally:
        for vim in editors:
            vim.close()


def test_a_server_that_cannot_start_is_one_message_with_its_own_words(tmp_path: Path) -> None:
    vim = Editor(tmp_path, options={"model": str(tmp_path / "no-such-model")})
    try:
        vim.start()
        uri = vim.open("a.py", SOURCE)
        assert vim.wait(vim.begin_complete(uri, 1, 11), timeout_s=120)["result"] is None
        (message,) = vim.messages()
        assert "no-such-model" in message
    finally:
        vim.close()
