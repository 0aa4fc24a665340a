"""A conversation in the terminal: turns are answered, Ctrl-C stops an answer and no more."""

import io
import json
import os
import pty
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from starcoder.chat import ChatTemplate
from starcoder.cli import main
from starcoder.cli.chat import Conversation
from starcoder.engine import local
from starcoder.errors import RequestError
from starcoder.request import CompletionRequest, SamplingParams

TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def chatting(folder):
    """The folder of a tiny model that has a chat template."""
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


def converse(monkeypatch, folder, text, *options):
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    return main(["chat", "--model", str(folder), "--max-tokens", "8", "--temperature", "0", *options])


def begin(folder, **params):
    model = local.load(folder)
    form = ChatTemplate.find(None, folder, model.tokenizer)
    return Conversation(model, form, SamplingParams(**params))


def test_a_script_gets_one_answer_a_line(chatting, monkeypatch, capsys):
    assert converse(monkeypatch, chatting, "Hello\n") == 0
    out = capsys.readouterr().out
    model = local.load(chatting)
    form = ChatTemplate.find(None, chatting, model.tokenizer)
    tokens = tuple(form.encode_prompt([{"role": "user", "content": "Hello"}], model.tokenizer))
    request = CompletionRequest(tokens=tokens, sampling=SamplingParams(max_tokens=8))
    assert out == "".join(chunk.text for chunk in model.generate([request])) + "\n"


def test_the_model_sees_what_was_said_before(chatting):
    talk = begin(chatting, max_tokens=4)
    first = "".join(talk.reply("One"))
    second = "".join(talk.reply("Two"))
    said = [(turn["role"], turn["content"]) for turn in talk.turns]
    assert said == [("user", "One"), ("assistant", first), ("user", "Two"), ("assistant", second)]
    assert f"user: One\nassistant: {first}\nuser: Two\n" in talk.form.render(talk.messages())


def test_an_answer_can_be_stopped_and_counts(chatting):
    talk = begin(chatting, max_tokens=300, ignore_eos=True)
    pieces = []
    for piece in talk.reply("Go on"):
        pieces.append(piece)
        talk.is_stopped = len(pieces) >= 3
    assert talk.model.engine.stats().generated_tokens < 10 and talk.model.engine.is_idle
    assert talk.turns[-1] == {"role": "assistant", "content": "".join(pieces)}


def test_a_message_that_cannot_be_answered_is_forgotten(chatting):
    talk = begin(chatting, max_tokens=4)
    with pytest.raises(RequestError) as caught:
        list(talk.reply("x" * 5000))
    assert "/reset" in caught.value.hint and talk.turns == []


def test_commands_save_reset_and_instruct(chatting, monkeypatch, capsys, tmp_path):
    path = tmp_path / "talk.jsonl"
    script = f"Hi\n/save {path}\n/system Be brief.\nA\\\nB\n/save {path}\n/system\n/help\n\n/reset\n"
    assert converse(monkeypatch, chatting, script) == 0
    first, second = [json.loads(line)["messages"] for line in path.read_text("utf-8").splitlines()]
    assert [turn["role"] for turn in first] == ["user", "assistant"]
    assert second[:2] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "A\nB"}]
    told = capsys.readouterr().err
    assert "saved 2 messages" in told and "Be brief." in told and "/save FILE" in told


@pytest.mark.parametrize(
    ("script", "message"),
    [("/save\n", "/save needs a file"), ("/save x\n", "nothing to save"), ("/jump\n", "no command '/jump'")],
)
def test_a_mistake_ends_a_script_with_two_lines(chatting, monkeypatch, capsys, script, message):
    assert converse(monkeypatch, chatting, script) == 2
    lines = capsys.readouterr().err.splitlines()
    assert message in lines[0] and lines[1].startswith("hint: ") and len(lines) == 2


def test_a_base_model_names_models_that_chat(folder, monkeypatch, capsys):
    assert converse(monkeypatch, folder, "Hi\n") == 2
    told = capsys.readouterr().err
    assert "base model" in told and "starcoder2-15b-instruct" in told
    assert converse(monkeypatch, folder, "Hi\n", "--template", "no_system") == 0


@pytest.mark.skipif(shutil.which("setsid") is None, reason="no setsid to give a process its terminal")
def test_a_terminal_keeps_history_and_survives_ctrl_c(chatting):
    parent, child = pty.openpty()
    command = ["setsid", "--ctty", sys.executable, "-m", "starcoder", "chat", "--model", str(chatting)]
    command += ["--max-tokens", "4", "--temperature", "0", "--threads", "1"]
    environment = {**os.environ, "TERM": "xterm", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdin=child, stdout=child, stderr=child, cwd=ROOT, env=environment
    ) as process:
        os.close(child)
        try:
            read_until(parent, "> ")
            os.write(parent, b"hello\r")
            first = read_until(parent, "> ", after="hello")
            os.write(parent, b"half a line")
            read_until(parent, "half a line")  # the terminal forgets what was not read before an interrupt
            time.sleep(0.5)  # input() sees an interrupt only while it waits for a key, not behind one
            os.write(parent, b"\x03")
            read_until(parent, "> ")
            os.write(parent, b"/reset\r")
            read_until(parent, "> ", after="/reset")
            os.write(parent, b"\x1b[A\x1b[A\r")  # two up: "hello" again
            assert read_until(parent, "> ", after="hello").split() == first.split()
            os.write(parent, b"/nothing\r")
            assert "no command" in read_until(parent, "> ", after="/nothing")
            os.write(parent, b"\x04")
            assert process.wait(timeout=20) == 0
        finally:
            process.kill()
            os.close(parent)


def read_until(terminal, text, *, after="", timeout_s=60.0):
    """What comes after `after`, up to the prompt at its end."""
    seen, end = "", time.monotonic() + timeout_s
    while after not in seen or not seen[seen.find(after) + len(after) :].endswith(text):
        assert time.monotonic() < end, repr(seen)
        if select.select([terminal], [], [], 0.2)[0]:
            seen += os.read(terminal, 4096).decode("utf-8", "replace")
    return seen[seen.find(after) + len(after) :].removesuffix(text)
