"""`resolve` finds the bundled model, folders and hub ids, on a hub of our own, and says why it cannot."""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from starcoder import checkpoint
from tests.checkpoint.spoil import WEIGHTS, as_bin, assert_fails, assert_same_weights
from tests.tiny import make_model


def test_no_model_named_is_the_bundled_one():
    assert checkpoint.resolve(None) == checkpoint.BUNDLED
    assert checkpoint.BUNDLED.parent.name == "bundled"


def test_home_folder_is_expanded(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    assert checkpoint.resolve("~/model") == folder


@pytest.mark.parametrize("model", ["no/such/folder", "./missing", "missing", "/no/where", "a b/c"])
def test_neither_folder_nor_hub_id(model):
    assert_fails(model, f"'{model}'", "a folder with config.json", "bigcode/starcoder2-3b")


def test_a_path_object_is_never_looked_up_on_the_hub():
    assert_fails(Path("org/model"), "there is no folder 'org/model'")


def test_a_file_instead_of_its_folder(folder):
    assert_fails(folder / "config.json", "is a file", "give the folder")


class Hub(ThreadingHTTPServer):
    """As much of the hub as downloads need: id -> files, or (status, error code) of a refusal."""

    commit = "0123456789abcdef0123456789abcdef01234567"

    def __init__(self, repositories):
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.repositories, self.requests = repositories, []


class HubHandler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        self.server.requests.append(f"{self.command} {self.path}")
        parts = self.path.split("?")[0].strip("/").split("/")
        is_api = parts[:2] == ["api", "models"]
        owner, name, *rest = parts[2:] if is_api else parts
        files = self.server.repositories.get(f"{owner}/{name}")
        if files is None:
            self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif isinstance(files, tuple) and not is_api:
            status, code = files
            self.answer(status, b"{}", {"X-Error-Code": code})
        elif is_api:
            known = {"config.json": b"", WEIGHTS: b""} if isinstance(files, tuple) else files
            self.answer(200, json.dumps(self.listing(rest[0], known)).encode())
        else:
            content = files[rest[2]]
            etag = f'"{hash(content) & 0xFFFFFFFF:040x}"'
            self.answer(200, content, {"ETag": etag, "X-Repo-Commit": self.server.commit})

    def listing(self, what, files):
        if what == "revision":
            return {"id": "x", "sha": self.server.commit, "siblings": [{"rfilename": name} for name in files]}
        return [{"type": "file", "path": name, "size": len(x), "oid": "0" * 40} for name, x in files.items()]

    def answer(self, status, content, headers=()):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **dict(headers)}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)


RESOLVE = """
import json, sys
from starcoder import checkpoint, errors
assert "huggingface_hub" not in sys.modules, "imported before a hub id was asked for"
for model in sys.argv[1:]:
    try:
        resolve = checkpoint.resolve_config if model.startswith("config:") else checkpoint.resolve
        answer = {"folder": str(resolve(model.removeprefix("config:")))}
    except errors.CheckpointError as error:
        answer = {"message": error.message, "hint": error.hint}
    print(json.dumps(answer))
"""


def resolve_elsewhere(endpoint, home, *models):
    """What `resolve` answers in a process whose hub is `endpoint` and whose cache is in `home`."""
    settings = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "*"}
    run = subprocess.run(
        [sys.executable, "-c", RESOLVE, *models],
        env={k: v for k, v in os.environ.items() if not k.startswith("HF_")} | settings,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 0, run.stderr
    return [json.loads(line) for line in run.stdout.splitlines()]


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A hub on this machine, and what it served."""
    folder = tmp_path_factory.mktemp("hub")
    checkpoint.save(make_model("bigcode"), folder)
    complete = {path.name: path.read_bytes() for path in folder.iterdir()} | {"tokenizer.json": b"{}"}
    as_bin(folder)
    old = {path.name: path.read_bytes() for path in folder.iterdir()} | {"tokenizer.json": b"{}"}
    unwanted = {"pytorch_model.bin": b"twice the download", "modeling.py": b"code", "onnx/model.onnx": b"x"}
    repositories = {
        "org/complete": complete | unwanted,
        "org/old": old,
        "org/gated": (401, "GatedRepo"),
        "org/refused": (403, "GatedRepo"),
        "org/denied": (403, "TokenLacksPermission"),
        "org/empty": (404, "EntryNotFound"),
    }
    with Hub(repositories) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def downloads(hub, tmp_path_factory):
    """Every kind of repository, asked for once in one process."""
    home = tmp_path_factory.mktemp("home")
    models = ["org/complete", "org/old", "org/gated", "org/refused", "org/denied", "org/missing"]
    answers = resolve_elsewhere(f"http://127.0.0.1:{hub.server_port}", home, *models)
    return home, dict(zip(models, answers, strict=True))


def test_a_hub_id_is_downloaded(downloads):
    folder = Path(downloads[1]["org/complete"]["folder"])

    assert_same_weights(checkpoint.load(folder), make_model("bigcode"))
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", WEIGHTS, "tokenizer.json"]


def test_bin_weights_are_downloaded_where_there_are_no_others(downloads):
    assert_same_weights(checkpoint.load(downloads[1]["org/old"]["folder"]), make_model("bigcode"))


def test_of_a_model_to_be_planned_config_json_alone_is_downloaded_and_once(hub, tmp_path):
    endpoint = f"http://127.0.0.1:{hub.server_port}"
    models = ["config:org/complete", "config:org/missing", "config:org/gated", "config:org/empty"]
    complete, missing, gated, empty = resolve_elsewhere(endpoint, tmp_path, *models)

    folder = Path(complete["folder"])
    assert [path.name for path in folder.iterdir()] == ["config.json"]
    assert checkpoint.read_config(folder) == make_model("bigcode").config
    assert "on the hub no such repository" in missing["message"]
    assert "'org/gated' is gated" in gated["message"]
    assert empty["message"] == "'org/empty' has no config.json, so it is not a checkpoint"
    asked = len(hub.requests)
    assert resolve_elsewhere(endpoint, tmp_path, models[0]) == [complete]
    assert len(hub.requests) == asked


@pytest.mark.parametrize("repository", ["org/gated", "org/refused"])
def test_a_gated_repository_names_its_license_page(downloads, repository):
    answer = downloads[1][repository]

    assert f"'{repository}' is gated" in answer["message"]
    assert f"https://huggingface.co/{repository}" in answer["hint"]
    assert "hf auth login" in answer["hint"]


def test_a_refused_download_names_the_reason_and_the_license_page(downloads):
    answer = downloads[1]["org/denied"]

    assert "'org/denied' failed" in answer["message"]
    assert "403" in answer["message"]
    assert "https://huggingface.co/org/denied" in answer["hint"]


def test_a_repository_that_is_not_there(downloads):
    answer = downloads[1]["org/missing"]

    assert "'org/missing'" in answer["message"]
    assert "no such repository" in answer["message"]
    assert "check the name" in answer["hint"]


def test_without_network_what_is_cached_loads_and_what_is_not_says_so(downloads, hub):
    home, answers = downloads
    num_requests = len(hub.requests)
    complete = Path(answers["org/complete"]["folder"])
    (Path(answers["org/old"]["folder"]) / "pytorch_model.bin").unlink()

    again, part, new = resolve_elsewhere("http://127.0.0.1:9", home, "org/complete", "org/old", "org/new")

    assert again == {"folder": str(complete)}
    assert len(hub.requests) == num_requests
    for answer, name in ((part, "org/old"), (new, "org/new")):
        assert f"'{name}'" in answer["message"]
        assert "cannot be reached" in answer["message"]
        assert "connect to the network" in answer["hint"]
