"""`starcoder chat`: a conversation in the terminal, or with a script that writes one message a line."""

import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from cyclopts import Group, Parameter

from starcoder.cli.options import ModelOptions
from starcoder.cli.output import SHOWN
from starcoder.errors import ConfigError, RequestError, StarcoderError
from starcoder.request import CompletionRequest, SamplingParams

if TYPE_CHECKING:
    from starcoder.engine.local import Model
    from starcoder.server.templates import ChatFormat

_HELP = """\
/reset        begin anew; the system message stays
/system TEXT  tell the model how to behave, and begin anew; without TEXT show what it is told
/save FILE    append the conversation as a line of JSON, as `starcoder finetune` reads it
/help         this
A line that ends with \\ goes on in the next. Ctrl-C stops an answer, Ctrl-D leaves."""


@Parameter(name="*", group=Group("Chat", sort_key=1))
@dataclass(frozen=True, kw_only=True, slots=True)
class ChatOptions:
    """How the model answers."""

    template: str | None = None
    """no_system, default, alpaca or a jinja file; the checkpoint's own if not given."""
    system: str | None = None
    """What the model is told before the conversation."""
    max_tokens: int = 512
    """Tokens of an answer at most."""
    temperature: float = 0.2
    """0 always takes the most probable token; higher is more varied."""
    top_p: float = 0.95
    """Keep the most probable tokens that together have this probability."""
    seed: int | None = None
    """Makes sampling repeatable."""
    config: Path | None = None
    """TOML file with options of the same names; the command line goes before it."""

    def params(self) -> SamplingParams:
        """As the engine takes them. Raises: RequestError: a value out of its range."""
        return SamplingParams(
            max_tokens=self.max_tokens, temperature=self.temperature, top_p=self.top_p, seed=self.seed
        )


def run(*, options: ChatOptions = ChatOptions(), model: ModelOptions = ModelOptions()) -> None:
    """Talk with an instruct model, turn by turn; answers appear as they are made.

    /help lists the commands: /reset, /system TEXT, /save FILE. Ctrl-C stops an
    answer, Ctrl-D leaves. From a pipe every line is one message.

    $ starcoder chat --model HuggingFaceH4/starchat-beta --quantize int4
    $ echo "Write a haiku about recursion." | starcoder chat --model ./my-chat-model
    """
    params = options.params()
    _Console(_load(options, model, params), is_terminal=sys.stdin.isatty()).run()


def _load(options: ChatOptions, model: ModelOptions, params: SamplingParams) -> "Conversation":
    from starcoder import checkpoint
    from starcoder.server.templates import INSTRUCT_MODELS, ChatFormat, base_model
    from starcoder.tokenizer import Tokenizer

    folder = checkpoint.resolve_text(model.model, model.adapter)
    # Before the weights: a base model is told at once.
    form = ChatFormat.find(options.template, folder, Tokenizer.load(folder))
    if form is None:
        raise ConfigError(
            base_model(model.model or "the bundled model"),
            f"choose --model, such as {INSTRUCT_MODELS}, or --template default",
        )
    loaded = model.load()
    return Conversation(loaded, form, params, system=options.system)


@dataclass
class Conversation:
    """What was said, and a model that goes on with it."""

    model: "Model"
    form: "ChatFormat"
    params: SamplingParams
    system: str | None = None
    turns: list[dict[str, str]] = field(default_factory=list)
    is_stopped: bool = False  # set from outside, by Ctrl-C: ends the answer within a step

    def messages(self) -> list[dict[str, str]]:
        """The turns, after the system message if there is one."""
        return [*([{"role": "system", "content": self.system}] if self.system else []), *self.turns]

    def reply(self, text: str) -> Iterator[str]:
        """Add a message of the user, and the answer to it piece by piece.

        What was said until it is stopped counts as the answer; nothing is added if there is none.

        Raises:
            RequestError: the conversation no longer fits the context.
        """
        self.is_stopped = False
        self.turns.append({"role": "user", "content": text})
        engine, answer = self.model.engine, ""
        try:
            request_id = engine.add(self._request())
            while not engine.is_idle:
                for chunk in engine.step():
                    answer += chunk.text
                    yield chunk.text
                if self.is_stopped:
                    engine.abort(request_id)
        finally:
            if answer:
                self.turns.append({"role": "assistant", "content": answer})
            else:
                self.turns.pop()

    def _request(self) -> CompletionRequest:
        from dataclasses import replace

        from starcoder.server.templates import encode
        from starcoder.server.worker import fit

        tokens = tuple(encode(self.messages(), self.form, self.model.tokenizer))
        params = replace(self.params, stop=self.form.stop)
        request = CompletionRequest(tokens=tokens, sampling=params)
        try:
            return fit(request, self.model.tokenizer, self.model.engine.context_length)
        except RequestError as error:
            raise RequestError(error.message, "/reset begins anew") from None


class _Console:
    """Reads messages and commands, prints answers. A failed message ends a script, not a person's session."""

    def __init__(self, talk: Conversation, *, is_terminal: bool):
        self._talk, self._is_terminal = talk, is_terminal
        self._is_shown = sys.stdout.isatty()

    def run(self) -> None:
        if self._is_terminal:
            import readline  # noqa: F401  # gives `input` its history and arrow keys

            sys.stderr.write("/help lists the commands; Ctrl-D leaves\n")
        while (line := self._read()) is not None:
            try:
                self._obey(line)
            except StarcoderError as error:
                if not self._is_terminal:
                    raise
                sys.stderr.write(f"error: {error.message}\nhint: {error.hint}\n")

    def _read(self) -> str | None:
        """The next message or command, lines that go on joined; None at the end."""
        lines: list[str] = []
        while not lines or lines[-1].endswith("\\"):
            try:
                lines.append(input(("... " if lines else "> ") if self._is_terminal else ""))
            except EOFError:
                if self._is_terminal:
                    print()
                if not lines:
                    return None
                break
            except KeyboardInterrupt:
                if not self._is_terminal:
                    raise
                print()
                lines = []  # as in a shell: the line is given up, the program stays
        return "\n".join(line.removesuffix("\\") for line in lines)

    def _obey(self, line: str) -> None:
        """Raises: StarcoderError: it cannot be done."""
        command, _, rest = line.strip().partition(" ")
        rest = rest.strip()
        match command:
            case "":
                pass
            case "/help":
                sys.stderr.write(_HELP + "\n")
            case "/reset":
                self._talk.turns.clear()
            case "/system" if not rest:
                sys.stderr.write(f"{self._talk.system or '(no system message)'}\n")
            case "/system":
                self._talk.system = rest
                self._talk.turns.clear()
            case "/save":
                self._save(rest)
            case _ if command.startswith("/") and command[1:].isalpha():
                raise ConfigError(f"there is no command {command!r}", "/help lists them")
            case _:
                self._answer(line)

    def _answer(self, text: str) -> None:
        with _stopping(self._talk):
            for piece in self._talk.reply(text):
                sys.stdout.write(piece.translate(SHOWN) if self._is_shown else piece)
                sys.stdout.flush()
        print(flush=True)

    def _save(self, name: str) -> None:
        """Raises: ConfigError: no name, nothing to save, or a file that cannot be written."""
        if not name or not self._talk.turns:
            raise ConfigError(
                "there is nothing to save" if name else "/save needs a file", "/save FILE, after an answer"
            )
        try:
            with Path(name).expanduser().open("a", encoding="utf-8") as file:
                file.write(json.dumps({"messages": self._talk.messages()}, ensure_ascii=False) + "\n")
        except OSError as error:
            raise ConfigError(f"cannot write {name!r}: {error.strerror}", "choose another file") from None
        sys.stderr.write(f"saved {len(self._talk.turns)} messages\n")


@contextmanager
def _stopping(talk: Conversation) -> Iterator[None]:
    """Meanwhile Ctrl-C stops the answer: a step that runs is not torn apart."""

    def stop(number: int, frame: FrameType | None) -> None:
        talk.is_stopped = True

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
