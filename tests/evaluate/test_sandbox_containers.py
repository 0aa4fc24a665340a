"""The docker driver asks for every layer and judges by the nonce; against a stand-in for its command."""

import os
import stat

import pytest

from starcoder.errors import SandboxError
from starcoder.evaluate.sandbox.containers import ContainerWorker
from starcoder.evaluate.sandbox.pool import Sandbox
from starcoder.evaluate.sandbox.verdicts import Limits, Program

# Runs the container's script here, with the two folders it knows put elsewhere.
DOCKER = """#!/bin/sh
[ "$1" = info ] && exit 0
[ "$1" = kill ] && exit 0
for word; do
  case "$previous" in --volume) program="${word%%:*}";; esac
  previous="$word"
done
mkdir -p "$program/tmp"
script=$(printf %s "$word" | sed "s#/tmp/#@@/#g; s#/program/#$program/#g; s#@@/#$program/tmp/#g")
exec sh -c "$script"
"""
TESTS = "assert add(2, 3) == 5\n"


@pytest.fixture
def docker(tmp_path, monkeypatch):
    command = tmp_path / "docker"
    command.write_text(DOCKER)
    command.chmod(command.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return command


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("def add(a, b): return a + b", "unconfirmed"),
        ("def add(a, b): return a - b", "assertion"),
        ("import os; os._exit(0)", "exit"),
        ("def add(a, b) return", "syntax"),
        ("def add(a, b):\n  while True: pass", "timeout"),
    ],
)
def test_verdicts_come_from_the_nonce(docker, source, kind):
    with Sandbox(workers=1, driver="docker", limits=Limits(timeout_s=1)) as sandbox:
        assert sandbox.submit(Program(source, TESTS)).result().kind == kind


def test_every_layer_is_asked_for(tmp_path):
    worker = ContainerWorker("podman", {}, str(tmp_path))
    command = worker.command("name", "image", "script", Limits())
    joined = " ".join(command)
    for layer in ("--network none", "--read-only", "--cap-drop ALL", "no-new-privileges", "--pids-limit",
                 "--memory", "--user 65534:65534", ":/program:ro"):  # fmt: skip
        assert layer in joined
    assert command[:2] == ["podman", "run"] and command[-3:] == ["image", "-c", "script"]


def test_an_image_may_be_given_and_an_unknown_language_is_unavailable(docker):
    with Sandbox(workers=1, driver="docker", images={"perl": "mine"}) as sandbox:
        assert sandbox.available("perl")
        assert sandbox.submit(Program("", "", "cobol")).result().kind == "unavailable"


def test_a_driver_that_is_not_there_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SandboxError, match="podman is not installed"):
        Sandbox(workers=1, driver="podman")


def test_a_daemon_that_does_not_answer_is_refused(docker):
    docker.write_text("#!/bin/sh\necho 'Cannot connect to the daemon' >&2\nexit 1\n")
    with pytest.raises(SandboxError, match="docker does not answer: Cannot connect to the daemon"):
        Sandbox(workers=1, driver="docker")
