"""The command line prints what it promises, answers every mistake with two lines and an exit code."""

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from starcoder import __version__
from starcoder.cli import main
from starcoder.cli.source import Cursor
from starcoder.errors import ConfigError
from starcoder.request import Chunk, CompletionRequest, TokenLogprob, Usage
from tests.tiny import make_checkpoint, make_tokenizer

USAGE = Usage(prompt_tokens=7, cached_tokens=2, queue_ms=0.5, prefill_ms=3.0, decode_ms=4.0)


class Scripted:
    """A generator whose samples are known: sample i says the words, each its own chunk and token."""

    def __init__(self, words: Sequence[str]):
        self.words, self.requests = words, list[CompletionRequest]()

    def generate(self, requests: Sequence[CompletionRequest]) -> Iterator[Chunk]:
        self.requests.extend(requests)
        (request,) = requests
        for at, word in enumerate(self.words):
            for index in range(request.sampling.n):
                logprobs = (TokenLogprob(at, word, -0.5, ((at, -0.5),)),) if request.sampling.logprobs else ()
                last = at == len(self.words) - 1
                yield Chunk(
                    request_id="r",
                    index=index,
                    text=word,
                    tokens=(at,),
                    logprobs=logprobs,
                    finish_reason="length" if last else None,
                    usage=USAGE if last else None,
                )


@pytest.fixture
def scripted(monkeypatch):
    """Replaces the model; the test sees the requests that reach it."""
    generator = Scripted([" return", " a\r\n", "\x1b[31m+ b"])
    monkeypatch.setattr("starcoder.cli.options.load", lambda model: generator)
    return generator


@pytest.fixture
def pipe(monkeypatch):
    """Sets what stdin holds."""

    def fill(data: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))

    fill(b"")
    return fill


@pytest.fixture
def terminal(monkeypatch, capsys):
    """Makes stdout claim to be a terminal."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(type(sys.stdout), "isatty", lambda self: True)


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A folder with one file of every kind, as the current one."""
    (tmp_path / "app.py").write_bytes("def f(x):\r\n    retur\nπ = 3\n".encode())
    (tmp_path / "binary.bin").write_bytes(b"\x7fELF\0\1")
    (tmp_path / "latin.py").write_bytes("café".encode("latin-1"))
    (tmp_path / "typo.toml").write_text("max_tokns = 3")
    (tmp_path / "broken.toml").write_text("max_tokens = ")
    (tmp_path / "kind.toml").write_text('temperature = "hot"')
    (tmp_path / "table.toml").write_text("[generate]\nmax_tokens = 3")
    (tmp_path / "good.toml").write_text('max_tokens = 5\nstop = ["a", "-b"]\nignore_eos = true\nseed = 3\n')
    monkeypatch.chdir(tmp_path)
    return tmp_path


MISTAKES = {
    "generate hi --max-tokns 3": ("unknown option '--max-tokns'", "did you mean '--max-tokens'?"),
    "generate --max-tokns 3 hi": ("unknown option '--max-tokns'", "did you mean '--max-tokens'?"),
    "generate --max-tokns=3": ("unknown option '--max-tokns=3'", "did you mean '--max-tokens'?"),
    "generate hi -x": ("unknown option '-x'", "`starcoder generate --help` lists the options"),
    "genrate hi": ("unknown verb 'genrate'", "did you mean 'generate'?"),
    "frobnicate": ("unknown verb 'frobnicate'", "the verbs are attribution, bench, "),
    "--frobnicate": ("unknown option '--frobnicate'", "the verbs are attribution, bench, "),
    "generate def f": ("unexpected argument 'f'", "put quotes around text that has spaces in it"),
    "generate hi --seed": ("--seed needs a value", "`starcoder generate --help` lists the options"),
    "generate hi --seed x": ("--seed is 'x'; expected a whole number", "`starcoder generate --help` lists"),
    "generate hi --dtype int3": (
        "--dtype is 'int3'; expected one of float32, bfloat16, float16",
        "`starcoder",
    ),
    "generate hi --layout mps": ("--layout is 'mps'; expected one of auto, psm, spm", "`starcoder generate"),
    "generate hi --max-tokens 0": (
        "max_tokens is 0; expected at least 1",
        "`starcoder generate --help` lists the options",
    ),
    "generate hi --threads 0": (
        "threads is 0; expected at least 1",
        "`starcoder generate --help` lists the options",
    ),
    "generate hi --logprobs 2": ("--logprobs shows only in JSON", "add --json"),
    "generate hi --config nope.toml": (
        "cannot read config 'nope.toml': No such file",
        "--config takes the path",
    ),
    "generate hi --config typo.toml": (
        "unknown key 'max_tokns' in 'typo.toml'",
        "did you mean 'max_tokens'?",
    ),
    "generate hi --config broken.toml": (
        "'broken.toml' is not TOML: Invalid value",
        "a line is `name = value`",
    ),
    "generate hi --config kind.toml": (
        "temperature is 'hot' in 'kind.toml'; expected a number",
        "`starcoder",
    ),
    "generate hi --config table.toml": (
        "config 'table.toml' has a table [generate]",
        "put options at the top",
    ),
    "generate": ("the prompt is empty", "give the start of some code"),
    "generate -": ("the prompt is empty", "give the start of some code"),
    "generate <FILL_HERE>a<FILL_HERE>": ("the prompt has 2 markers", "fill one hole at a time"),
    "complete": ("the prompt is empty", "give the start of some code"),
    "complete --suffix=": ("the prompt is empty", "give code before or after the cursor"),
    "complete app.py:1:1 --prefix a": (
        "both a file and --prefix or --suffix are given",
        "give one of the two",
    ),
    "complete app.py": ("'app.py' is not FILE:LINE:COL", "line and column count from 1"),
    "complete app.py:x:1": ("'app.py:x:1' is not FILE:LINE:COL", "line and column count from 1"),
    "complete nope.py:1:1": ("cannot read 'nope.py': No such file or directory", "paths start from"),
    "complete .:1:1": ("cannot read '.': Is a directory", "paths start from"),
    "complete app.py:5:1": ("line 5 is outside 'app.py'", "its lines go from 1 to 4"),
    "complete app.py:0:1": ("line 0 is outside 'app.py'", "its lines go from 1 to 4"),
    "complete app.py:1:11": (
        "column 11 is outside line 1 of 'app.py'",
        "the columns of this line go from 1 to 10",
    ),
    "complete app.py:3:7": (
        "column 7 is outside line 3 of 'app.py'",
        "the columns of this line go from 1 to 6",
    ),
    "complete binary.bin:1:1": ("'binary.bin' is a binary file", "only text can be completed"),
    "complete latin.py:1:1": (
        "'latin.py' is not UTF-8: byte 0xe9 at offset 3",
        "convert it, for example with",
    ),
    "pretrain": ("RECIPE is missing", "`starcoder pretrain --help` lists the options"),
    "pretrain nope.toml": ("cannot read recipe 'nope.toml': No such file or directory", ""),
}


def two_lines(text: str) -> tuple[str, str]:
    """The message and the hint of a failure, which is all there is on stderr."""
    error, hint = text.splitlines()
    assert error.startswith("error: ") and hint.startswith("hint: ") and text.endswith("\n")
    return error.removeprefix("error: "), hint.removeprefix("hint: ")


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_two_lines_and_exit_code_2(line, files, pipe, scripted, capsys):
    assert main(line.split()) == 2
    out, err = capsys.readouterr()
    message, hint = two_lines(err)
    expected_message, expected_hint = MISTAKES[line]
    assert (message[: len(expected_message)], hint[: len(expected_hint)]) == MISTAKES[line]
    assert (out, scripted.requests) == ("", [])


def test_a_prompt_that_is_not_utf8_is_refused(scripted, capsys):
    assert main(["generate", os.fsdecode(b"caf\xe9")]) == 2
    assert two_lines(capsys.readouterr().err)[0] == "the prompt is not UTF-8"


@pytest.mark.parametrize("data", [b"caf\xe9", b"a\0b"])
def test_stdin_must_be_text(data, pipe, scripted, capsys):
    pipe(data)
    assert main(["generate", "-"]) == 2
    assert two_lines(capsys.readouterr().err)[0].startswith("stdin is ")


def test_an_unknown_model_is_exit_code_1(files, capsys):
    assert main(["generate", "hi", "--model", "no/such/folder"]) == 1
    two_lines(capsys.readouterr().err)


def test_a_folder_that_is_no_checkpoint_is_exit_code_1(files, capsys):
    assert main(["generate", "hi", "--model", str(files)]) == 1
    assert str(files) in two_lines(capsys.readouterr().err)[0]


def test_generate_sends_the_prompt_and_the_options(scripted, files, pipe):
    line = "--max-tokens 9 --temperature 0.5 --top-p 0.9 --top-k 4 --stop -x --stop y --seed 1 --ignore-eos"
    assert main(["generate", "def f", *line.split(), "--layout", "spm"]) == 0
    (request,) = scripted.requests
    chosen = request.sampling
    assert (request.prefix, request.suffix, request.layout) == ("def f", None, "spm")
    assert (chosen.max_tokens, chosen.temperature, chosen.top_p, chosen.top_k) == (9, 0.5, 0.9, 4)
    assert (chosen.stop, chosen.seed, chosen.ignore_eos, chosen.n) == (("-x", "y"), 1, True, 1)


def test_the_last_of_repeated_options_wins(scripted):
    assert main(["generate", "a", "--seed", "1", "--max-tokens", "2", "--seed", "3"]) == 0
    assert scripted.requests[0].sampling.seed == 3


def test_the_marker_makes_an_infill(scripted):
    assert main(["generate", "def add(a, b):<FILL_HERE>    return c"]) == 0
    assert (scripted.requests[0].prefix, scripted.requests[0].suffix) == ("def add(a, b):", "    return c")


def test_a_text_may_begin_with_hyphens(scripted):
    assert main(["generate", "-- returns the sum", "--stop=--", "--stop", "-"]) == 0
    assert scripted.requests[0].prefix == "-- returns the sum"
    assert scripted.requests[0].sampling.stop == ("--", "-")


@pytest.mark.parametrize("arguments", [["generate", "-"], ["generate"], ["complete"]])
def test_stdin_is_the_prompt(arguments, scripted, pipe):
    pipe("a = 'π'\r\n<FILL_HERE>b".encode())
    assert main(arguments) == 0
    assert (scripted.requests[0].prefix, scripted.requests[0].suffix) == ("a = 'π'\r\n", "b")


def test_complete_splits_the_file_at_the_cursor(scripted, files):
    assert main(["complete", "app.py:2:10"]) == 0
    request = scripted.requests[0]
    assert (request.prefix, request.suffix) == ("def f(x):\r\n    retur", "\nπ = 3\n")


def test_complete_takes_the_file_from_stdin(scripted, pipe):
    pipe(b"\xef\xbb\xbfab\ncd\n")
    assert main(["complete", "-:1:2"]) == 0
    assert (scripted.requests[0].prefix, scripted.requests[0].suffix) == ("a", "b\ncd\n")


def test_complete_takes_prefix_and_suffix(scripted):
    assert main(["complete", "--prefix", "- a", "--suffix", "--b"]) == 0
    assert main(["complete", "--prefix", "a"]) == 0
    assert [(r.prefix, r.suffix) for r in scripted.requests] == [("- a", "--b"), ("a", None)]


@pytest.mark.parametrize("text", ["", "a", "a\n", "ab\r\nc\n\nd", "π\n\U0001f600x"])
def test_every_cursor_inside_the_text_splits_it_in_two(text):
    for number, line in enumerate(text.split("\n"), 1):
        for column in range(1, len(line.removesuffix("\r")) + 2):
            before, after = Cursor("f", number, column).split(text)
            assert before + after == text
            assert before.split("\n")[-1] == line[: column - 1]
            assert before.count("\n") == number - 1


def test_a_cursor_may_have_colons_in_its_path():
    assert Cursor.parse("C:/a:b.py:3:4") == Cursor("C:/a:b.py", 3, 4)
    with pytest.raises(ConfigError):
        Cursor.parse(":3:4")


def test_options_may_come_from_toml_and_the_command_line_wins(scripted, files):
    assert main(["generate", "hi", "--config", "good.toml", "--seed", "4"]) == 0
    chosen = scripted.requests[0].sampling
    assert (chosen.max_tokens, chosen.stop, chosen.ignore_eos, chosen.seed) == (5, ("a", "-b"), True, 4)


def test_a_pipe_gets_the_completion_alone_byte_for_byte(scripted, capsysbinary):
    assert main(["generate", "def f<FILL_HERE>end"]) == 0
    assert capsysbinary.readouterr() == (b" return a\r\n\x1b[31m+ b", b"")


def test_echo_shows_the_prompt_in_a_pipe(scripted, capsysbinary):
    assert main(["generate", "def f<FILL_HERE>end", "--echo"]) == 0
    assert capsysbinary.readouterr().out == b"def f return a\r\n\x1b[31m+ bend"


def test_a_terminal_shows_the_prompt_dimmed_and_no_foreign_control_characters(scripted, terminal, capsys):
    assert main(["generate", "def f<FILL_HERE>end"]) == 0
    assert capsys.readouterr().out == "\x1b[2mdef f\x1b[0m return a\r\n␛[31m+ b\x1b[2mend\x1b[0m\n"


def test_no_color_and_no_echo_are_obeyed(scripted, terminal, capsys, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    assert main(["generate", "def f"]) == 0
    assert main(["generate", "def f", "--no-echo"]) == 0
    assert capsys.readouterr().out == "def f return a\r\n␛[31m+ b\n return a\r\n␛[31m+ b\n"


def test_text_appears_as_it_is_made(monkeypatch, capsys):
    seen = []

    class Watching(Scripted):
        def generate(self, requests):
            for chunk in super().generate(requests):
                yield chunk
                seen.append(capsys.readouterr().out)

    monkeypatch.setattr("starcoder.cli.options.load", lambda model: Watching(["a", "b"]))
    assert main(["generate", "x"]) == 0
    assert seen == ["a", "b"]


def test_several_samples_are_printed_one_after_the_other(scripted, capsys):
    assert main(["generate", "def f", "--n", "2"]) == 0
    one = " return a\r\n\x1b[31m+ b\n"
    assert capsys.readouterr().out == f"--- 1 of 2\n{one}--- 2 of 2\n{one}"


def test_json_is_one_document(scripted, terminal, capsys):
    assert main(["complete", "--prefix", "def f", "--json"]) == 0
    out, err = capsys.readouterr()
    document = json.loads(out)
    timings = document.pop("timings_ms")
    assert document == {
        "index": 0,
        "text": " return a\r\n\x1b[31m+ b",
        "tokens": [0, 1, 2],
        "finish_reason": "length",
        "prompt_tokens": 7,
        "cached_tokens": 2,
    }
    assert (timings["queue"], timings["prefill"], timings["decode"]) == (0.5, 3.0, 4.0)
    assert timings["total"] >= timings["load"] >= 0
    assert err == ""


def test_json_of_several_samples_lists_them(scripted, capsys):
    assert main(["generate", "def f", "--json", "--n", "3", "--logprobs", "1"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [sample["index"] for sample in document["completions"]] == [0, 1, 2]
    assert document["completions"][0]["text"] == document["text"]
    assert document["logprobs"][0] == {"token": 0, "text": " return", "logprob": -0.5, "top": [[0, -0.5]]}


def test_verbose_reports_on_stderr_alone(scripted, capsys):
    assert main(["generate", "def f", "-v"]) == 0
    out, err = capsys.readouterr()
    assert out == " return a\r\n\x1b[31m+ b"
    assert "7 prompt tokens (2 cached) in 3 ms; 3 tokens in 4 ms, 500.0/s; finish: length" in err
    assert err.count("\n") == 1


def test_version_and_help_go_to_stdout(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr() == (f"{__version__}\n", "")
    assert main(["--help"]) == 0
    out, err = capsys.readouterr()
    assert all(verb in out for verb in ("complete", "doctor", "generate", "pretrain")) and err == ""


@pytest.mark.parametrize("verb", ["complete", "doctor", "generate", "pretrain"])
def test_help_of_a_verb_has_an_example(verb, capsys):
    assert main([verb, "--help"]) == 0
    assert f"$ starcoder {verb} " in capsys.readouterr().out


def test_help_is_quick():
    """Half a second is what feels immediate; processor time, because the machine may be busy."""
    took = []
    for _ in range(3):
        before = os.times()
        subprocess.run([sys.executable, "-m", "starcoder", "--help"], check=True, stdout=subprocess.DEVNULL)
        after = os.times()
        took.append(sum(after[2:4]) - sum(before[2:4]))
    assert min(took) < 0.5


def test_doctor_reports_versions(capsys):
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["starcoder"] == __version__ and report["torch"].startswith("2.")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A tiny random model with room for a very long completion."""
    folder = make_checkpoint(
        "starcoder2", tmp_path_factory.mktemp("tiny"), max_position_embeddings=20_000, sliding_window=None
    )
    make_tokenizer("starcoder2", folder)
    return folder


def test_a_real_model_answers_json(checkpoint, capsys):
    assert (
        main(
            ["generate", "def f(", "--model", str(checkpoint), "--max-tokens", "5", "--ignore-eos", "--json"]
        )
        == 0
    )
    document = json.loads(capsys.readouterr().out)
    assert (len(document["tokens"]), document["finish_reason"], document["cached_tokens"]) == (5, "length", 0)


def test_streamed_text_equals_the_json_text(checkpoint, files, capsys):
    line = ["complete", "app.py:2:10", "--model", str(checkpoint), "--temperature", "1", "--seed", "5"]
    assert main(line) == 0
    streamed = capsys.readouterr().out
    assert main([*line, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["text"] == streamed != ""


def test_a_prompt_longer_than_the_context_is_exit_code_2(tmp_path, capsys, pipe):
    folder = make_checkpoint("bigcode", tmp_path / "short", n_positions=64)
    make_tokenizer("starcoder", folder)
    pipe(b"x = [1, 2, 3]\n" * 40)
    capsys.readouterr()  # transformers showed its progress while it wrote the checkpoint
    assert main(["generate", "-", "--model", str(folder), "--max-tokens", "60"]) == 2
    two_lines(capsys.readouterr().err)


def start(arguments: Sequence[str], **options: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options
    )


def test_ctrl_c_in_the_stream_is_two_lines_and_exit_code_130(checkpoint):
    line = ["generate", "def f(", "--model", str(checkpoint), "--max-tokens", "15000", "--ignore-eos"]
    with start(["-m", "starcoder", *line]) as process:
        assert process.stdout.read(1) != b""
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert two_lines(err.decode())[0] == "interrupted"


@pytest.mark.parametrize("module", ["starcoder.cli.source", "torch.version"])
def test_ctrl_c_while_starting_is_two_lines_and_exit_code_130(module, checkpoint):
    line = ["generate", "def f(", "--model", str(checkpoint)]
    with start(["-X", "importtime", "-m", "starcoder", *line]) as process:
        imported = next(text for text in process.stderr if text.rstrip().endswith(module.encode()))
        assert imported
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    rest = "".join(
        text for text in err.decode().splitlines(keepends=True) if not text.startswith("import time:")
    )
    assert two_lines(rest)[0] == "interrupted"


def test_a_reader_that_leaves_early_is_no_error(checkpoint):
    line = ["generate", "def f(", "--model", str(checkpoint), "--max-tokens", "15000", "--ignore-eos"]
    with start(["-m", "starcoder", *line]) as process:
        assert process.stdout.read(1) != b""
        process.stdout.close()
        err = process.stderr.read()
        assert (process.wait(timeout=60), err) == (141, b"")


def test_python_dash_m_is_the_same_program():
    done = subprocess.run(
        [sys.executable, "-m", "starcoder", "genrate"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert two_lines(done.stderr)[0] == "unknown verb 'genrate'"
