"""`starcoder chat`: a conversation in the terminal, or with a script that writes one message a line."""

import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

from starcoder.cli import options
from starcoder.cli.flags import Section
from starcoder.cli.output import SHOWN
from starcoder.engine.settings import ModelSettings
from starcoder.errors import ConfigError, RequestError, StarcoderError
from starcoder.request import CompletionRequest, SamplingParams

if TYPE_CHECKING:
    from starcoder.chat import ChatTemplate
    from starcoder.engine.intake import PreparedRequest
    from starcoder.engine.local import Model

_HELP = """\
/reset        start a new conversation with the same system message
/system TEXT  start a new conversation with this system message; without TEXT show the current one
/save FILE    append the conversation as a line of JSON, as `starcoder finetune` reads it
/help         show this list
A line that ends with \\ continues on the next. Ctrl-C stops an answer, Ctrl-D leaves."""


def run(
    *,
    template: str | None = None,
    system: str | None = None,
    sampling: Annotated[SamplingParams, Section("Sampling", without=("n", "logprobs"))] = SamplingParams(
        max_tokens=512, temperature=0.2, top_p=0.95
    ),
    model: Annotated[ModelSettings, Section("Model")] = ModelSettings(),
    output: Annotated[options.OutputOptions, Section("Output", without=("json",))] = options.OutputOptions(),
) -> None:
    """Talk with an instruct model, turn by turn; answers appear as they are generated.

    /help lists the commands: /reset, /system TEXT, /save FILE. Ctrl-C stops an
    answer, Ctrl-D leaves. From a pipe every line is one message.

    $ starcoder chat --model HuggingFaceH4/starchat-beta --quantize int4
    $ echo "Write a haiku about recursion." | starcoder chat --model ./my-chat-model

    Args:
        template: no_system, default, alpaca or a Jinja file; the checkpoint's own by default.
        system: System message: instructions that precede the conversation.
    """
    from starcoder import checkpoint
    from starcoder.chat import INSTRUCT_MODELS, ChatTemplate, base_model
    from starcoder.tokenizer import Tokenizer

    output.start_logging()
    folder = checkpoint.resolve_text(model.model, model.adapter)
    # Before the weights are loaded, so that a base model is refused at once.
    form = ChatTemplate.find(template, folder, Tokenizer.load(folder))
    if form is None:
        raise ConfigError(
            base_model(model.model or "the bundled model"),
            f"choose --model, such as {INSTRUCT_MODELS}, or --template default",
        )
    if form.problem is not None:
        raise form.problem
    talk = Conversation(options.load(model), form, sampling, system=system)
    _Console(talk, is_terminal=sys.stdin.isatty()).run()


@dataclass
class Conversation:
    """The messages so far, and the model that answers them."""

    model: "Model"
    form: "ChatTemplate"
    params: SamplingParams
    system: str | None = None
    turns: list[dict[str, str]] = field(default_factory=list)
    is_stopped: bool = False  # set from outside, by Ctrl-C: ends the answer within a step

    def messages(self) -> list[dict[str, str]]:
        """The turns, after the system message if there is one."""
        return [*([{"role": "system", "content": self.system}] if self.system else []), *self.turns]

    def reply(self, text: str) -> Iterator[str]:
        """Add a message of the user, and the answer to it piece by piece.

        The text up to a stop counts as the answer; an empty answer adds nothing.

        Raises:
            RequestError: the conversation no longer fits the context.
        """
        self.is_stopped = False
        self.turns.append({"role": "user", "content": text})
        engine, answer = self.model.engine, ""
        try:
            request_id = engine.enqueue(self._prepared())
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

    def _prepared(self) -> "PreparedRequest":
        from dataclasses import replace

        tokens = tuple(self.form.encode_prompt(self.messages(), self.model.tokenizer))
        params = replace(self.params, stop=(*self.form.stops(self.model.tokenizer), *self.params.stop))
        request = CompletionRequest(tokens=tokens, sampling=params)
        try:
            return self.model.engine.prepare(request, fit=True)
        except RequestError as error:
            raise RequestError(error.message, "/reset starts a new conversation") from None


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
        """The next message or command, with continued lines joined; None at the end."""
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
                lines = []  # as in a shell: the line is dropped, the program continues
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
