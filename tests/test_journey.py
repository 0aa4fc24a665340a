"""The whole way on a real repository, through the command line and over HTTP.

Prepare, fine-tune, evaluate before and after, index, serve with the adapter, complete a line of a file the
model has not seen, and be told where that line stands.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.repos.repositories import git

pytest.importorskip("pyarrow", reason="shards are Parquet; pip install 'starcoder-kit[prepare]'")
pytest.importorskip("peft", reason="adapters need peft; pip install 'starcoder-kit[train]'")
pytest.importorskip("fastapi", reason="the server needs fastapi; pip install 'starcoder-kit[serve]'")
httpx = pytest.importorskip("httpx", reason="the test asks with httpx")

CODECS = Path(sysconfig.get_path("stdlib"), "encodings")
# Files of one house style: short modules, alike in form and different in what they name.
SEEN = (
    *("big5", "big5hkscs", "cp932", "cp949", "cp950", "euc_jis_2004", "euc_jisx0213", "euc_jp", "euc_kr"),
    *("gb18030", "gb2312", "gbk", "hz", "iso2022_jp", "iso2022_jp_1", "iso2022_jp_2", "iso2022_jp_2004"),
    *("iso2022_jp_3", "iso2022_jp_ext", "iso2022_kr"),
)
UNSEEN = ("johab", "shift_jis", "shift_jis_2004", "shift_jisx0213")
LINE, ANSWER = "class StreamReader(Codec,", " mbc.MultibyteStreamReader, codecs.StreamReader):"


@dataclass(frozen=True)
class Place:
    """Where the journey takes place."""

    root: Path

    def run(self, *arguments: str) -> dict:
        """What a verb prints with --json."""
        done = subprocess.run(
            [sys.executable, "-m", "starcoder", *arguments, "--json"],
            cwd=self.root,
            env=environment(),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    @contextmanager
    def server(self, *arguments: str) -> Iterator["httpx.Client"]:
        command = [sys.executable, "-m", "starcoder", "serve", "--port", "0", *arguments]
        with (self.root / "server.log").open("w+") as log:
            process = subprocess.Popen(
                command, cwd=self.root, env=environment(), stderr=subprocess.PIPE, stdout=log, text=True
            )
            try:
                assert process.stderr is not None
                line = next((line for line in process.stderr if line.startswith("serving ")), "")
                assert line, "the server ended before it served"
                with httpx.Client(base_url=line.split()[-1], timeout=120, trust_env=False) as client:
                    yield client
            finally:
                process.terminate()
                process.communicate(timeout=30)
        assert process.returncode in (0, -15, 143)


def environment() -> dict[str, str]:
    root = str(Path(__file__).parents[1])
    return {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def commit(repository: Path, names: tuple[str, ...], message: str) -> None:
    for name in names:
        shutil.copyfile(CODECS / f"{name}.py", repository / f"{name}.py")
    git(repository, "add", ".")
    git(repository, "commit", "-qm", message)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """A folder with a git repository of codecs, the last commit of which nobody learns."""
    repository = tmp_path / "codecs"
    repository.mkdir()
    git(repository, "init", "-q")
    commit(repository, SEEN, "Add codecs of the mainland, Taiwan and Korea")
    commit(repository, UNSEEN, "Add what is left")
    return Place(tmp_path)


@pytest.mark.slow
def test_from_a_repository_to_a_completion_that_tells_its_source(place: Place) -> None:
    figures = place.run("prepare", "codecs@HEAD~1", "--output", "data", "--validation-share", "0.1")
    assert (figures["num_documents"], figures["num_seen"]) == (len(SEEN), len(SEEN))

    settings = ("--seq-length", "512", "--gradient-accumulation-steps", "2", "--learning-rate", "3e-3")
    trained = place.run(
        "finetune", "--data", "data", "--output", "mine", "--epochs", "10", *settings, "--device", "cpu"
    )
    assert trained["held_out_loss_after"] < trained["held_out_loss_before"]

    asked = ("--holdout-commits", "1", "--limit", "4", "--max-tokens", "32", "--compare", "mine")
    measured = place.run("evaluate", "my-repo", "--repo", "codecs", *asked, "--threads", "1")
    before, after = (result["exact_match"] for result in measured["results"])
    assert after > before, "it learned the house's style"

    place.run("attribution", "build", "data")
    unseen = (place.root / "codecs" / "shift_jis.py").read_text()
    head, _, rest = unseen.partition(LINE)
    assert rest.startswith(ANSWER)
    request = {
        "prompt": head + LINE,
        "max_tokens": 24,
        "temperature": 0,
        "stop": ["\n"],
        "attribution": True,
    }
    with place.server("--adapter", "mine", "--attribution", "data/attribution") as http:
        answer = http.post("/v1/completions", json=request).json()
        told = http.post("/overlap", json={"document": unseen}).json()
    assert answer["choices"][0]["text"] == ANSWER
    (span,) = answer["attribution"][0]
    assert (span["start"], span["end"]) == (0, len(ANSWER))
    assert span["sources"], "files that it learned from have this line"
    for source in span["sources"]:
        assert source["repository"] == "codecs"
        text = (place.root / "codecs" / source["path"]).read_text()
        assert LINE + ANSWER in text.split("\n", source["line"] - 1)[-1]
    start, end = max(told["spans"], key=lambda span: span[1] - span[0])
    assert LINE + ANSWER in unseen[start:end]
