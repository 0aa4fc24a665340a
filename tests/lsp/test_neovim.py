"""Real Neovim (0.12 or later) with the settings of the documentation: ghost text appears and is accepted."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from starcoder.lsp.editors import settings
from tests.lsp.debian import UnavailableError, runnable, unpack
from tests.lsp.editor import ROOT, scripted

pytestmark = pytest.mark.slow
SOURCE = "def area(width, height):\n    return \n"


class Neovim:
    """A Neovim without a terminal, driven over its own socket."""

    def __init__(self, program: Path, root: Path, folder: Path, init: str):
        (folder / "init.lua").write_text(init)
        self.socket, self.program = folder / "nvim.sock", program
        self.environment = os.environ | {
            "VIMRUNTIME": str(root / "usr/share/nvim/runtime"),
            "LUA_CPATH": f"{root}/usr/lib/x86_64-linux-gnu/lua/5.1/?.so;;",
            "PYTHONPATH": str(ROOT),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            **{
                name: str(folder / name.lower())
                for name in ("XDG_STATE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME")
            },
        }
        self.process = subprocess.Popen(
            [program, "--headless", "--listen", self.socket, "-u", folder / "init.lua", folder / "a.py"],
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            stdin=subprocess.DEVNULL,
        )
        self.until(lambda: self.socket.exists(), "Neovim did not start")

    def type(self, keys: str) -> None:
        self._remote("--remote-send", keys)

    def lua(self, expression: str) -> Any:
        found = self._remote("--remote-expr", f"luaeval('vim.json.encode({expression})')")
        return json.loads(found)

    def ghost(self) -> str:
        """The text drawn at or below the cursor that is not in the buffer."""
        found = "vim.api.nvim_buf_get_extmarks(0, -1, 0, -1, {details=true})"
        marks = self.lua(f"vim.tbl_map(function(mark) return mark[4] end, {found})")
        drawn = [
            "".join(chunk[0] for chunk in line)
            for mark in marks
            for line in [*([mark["virt_text"]] if "virt_text" in mark else []), *mark.get("virt_lines", [])]
        ]
        return "\n".join(drawn)

    def lines(self) -> list[str]:
        return self.lua("vim.api.nvim_buf_get_lines(0, 0, -1, true)")

    def until(self, holds, complaint: str, timeout_s: float = 60) -> None:
        deadline = time.monotonic() + timeout_s
        while not holds():
            assert time.monotonic() < deadline, complaint
            time.sleep(0.05)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()

    def _remote(self, *arguments: str) -> str:
        command = [self.program, "--server", self.socket, *arguments]
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, check=True, timeout=30
        )
        return done.stdout + done.stderr


@pytest.fixture(scope="module")
def neovim(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("sid")
    try:
        root = unpack(folder, "neovim")
        program = runnable(root, "usr/bin/nvim", folder / "patchelf")
    except UnavailableError as error:
        pytest.skip(f"Neovim of Debian's unstable release cannot be had: {error}")
    return program, root


def test_ghost_text_appears_is_superseded_by_typing_and_accepted(neovim, tmp_path: Path) -> None:
    def answer(body):
        line = body["prompt"].rpartition("\n")[2]
        return {"    return ": "width * height", "    return he": "ight * width"}.get(line, "")

    (tmp_path / "a.py").write_text(SOURCE)
    with scripted(answer) as server:
        init = "vim.opt.swapfile = false\n" + settings("neovim", url=server.url)
        vim = Neovim(*neovim, tmp_path, init)
        try:
            vim.until(lambda: vim.lua("#vim.lsp.get_clients()") == 1, "no client started")
            vim.type("jA")
            vim.until(lambda: "width * height" in vim.ghost(), "no ghost text")
            vim.type("he")
            vim.until(lambda: "ight * width" in vim.ghost(), "the ghost text is not the newer one")
            assert "width * height" not in vim.ghost()
            vim.type("<Tab>")
            vim.until(lambda: vim.lines()[1] == "    return height * width", f"{vim.lines()}")
            assert all(body["suffix"] == "\n" for body in server.bodies)
        finally:
            vim.close()
