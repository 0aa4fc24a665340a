"""The verbs that train have torch put large tensors on large pages, unless the user said otherwise."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import starcoder
from starcoder.cli.large_pages import ask_for_large_pages

NAME = "THP_MEM_ALLOC_ENABLE"
ROOT = Path(starcoder.__file__).parents[1]
# Stands in for what the verb starts: a tensor of 64 MiB, and how much of this process is on large pages.
SCRIPT = """
import dataclasses, re, sys, types
from starcoder.cli import main

def seen(*args, **kwargs):
    import torch
    tensor = torch.empty(16 << 20).fill_(1.0)
    rollup = open("/proc/self/smaps_rollup").read()
    large = int(re.search(r"AnonHugePages: +([0-9]+)", rollup)[1]) >> 10
    sys.stderr.write(str(large))
    raise SystemExit

@dataclasses.dataclass
class Recipe:
    read = classmethod(lambda cls, path: cls())

name = sys.argv[1]
fake = types.ModuleType(f"starcoder.train.{name}")
fake.run, fake.Recipe = seen, Recipe if name == "pretrain" else dict
sys.modules[fake.__name__] = fake
assert "torch" not in sys.modules
main(sys.argv[1:])
"""
VERBS = {"finetune": ["--seq-length", "8", "--output", "unused"], "pretrain": ["unused.toml"]}
PROBE = """
import mmap, re
room = mmap.mmap(-1, 64 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
room.madvise(mmap.MADV_HUGEPAGE)
room.write(bytes(len(room)))
print(re.search(r"AnonHugePages: +([0-9]+)", open("/proc/self/smaps_rollup").read())[1])
"""


def megabytes_on_large_pages(verb: str) -> int:
    """Where the verb's work would start."""
    command = [sys.executable, "-c", SCRIPT, verb, *VERBS[verb]]
    plain = {name: value for name, value in os.environ.items() if name != NAME}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=plain)
    assert re.fullmatch(r"\d+", done.stderr), done.stderr
    return int(done.stderr)


def gives_large_pages() -> bool:
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=False)
    return done.returncode == 0 and int(done.stdout) > 32 << 10


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("verb", VERBS)
def test_a_training_verbs_tensors_are_on_large_pages(verb: str) -> None:
    if not gives_large_pages():
        pytest.skip("this kernel gives no large pages to memory that asks")
    assert megabytes_on_large_pages(verb) > 32


def test_what_the_user_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NAME, "0")
    ask_for_large_pages()
    assert os.environ[NAME] == "0"
