"""Chat templates: how messages become a prompt, and how they are encoded.

A checkpoint's own template comes first: `chat_template` (jinja, sandboxed) or StarChat's
`dialogue_template.json`. Text of a message can never become a special token.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from starcoder.errors import ConfigError
from starcoder.prompts import compile_chat_template
from starcoder.server.codec import HTTPError

if TYPE_CHECKING:
    from starcoder.tokenizer import Tokenizer

Turns = Sequence[dict[str, str]]  # role, content


@dataclass(frozen=True, kw_only=True, slots=True)
class Dialogue:
    """StarChat's template: tokens around each turn. Source: the keys of a `dialogue_template.json`."""

    system: str = ""
    system_token: str = "<|system|>"
    user_token: str = "<|user|>"
    assistant_token: str = "<|assistant|>"
    end_token: str = "<|end|>"

    def render(self, turns: Turns) -> str:
        """The prompt up to where the assistant begins; training had a line end after its token."""
        first = turns[0]["content"] if turns and turns[0]["role"] == "system" else self.system
        rest = [turn for turn in turns if turn["role"] != "system"]
        tokens = {"user": self.user_token, "assistant": self.assistant_token}
        said = [(self.system_token, first)]
        said += [(tokens.get(turn["role"], self.user_token), turn["content"]) for turn in rest]
        return "".join(f"{token}\n{text}{self.end_token}\n" for token, text in said) + (
            f"{self.assistant_token}\n"
        )


# Source: bigcode-project/starcoder: chat/dialogues.py; the texts are part of what was trained.
DIALOGUES = {
    "no_system": Dialogue(),
    "default": Dialogue(
        system="Below is a dialogue between a human user and an AI assistant. The assistant is happy to help "
        "with almost anything, and will do its best to understand exactly what is needed."
    ),
    "alpaca": Dialogue(
        system="Below is an instruction that describes a task. Write a response that appropriately completes "
        "the request.",
        user_token="### Instruction:",
        assistant_token="### Response:",
    ),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatFormat:
    """How messages become a prompt, and what ends an answer."""

    render: Callable[[Turns], str]  # raises HTTPError: the template refuses the messages
    source: str  # the template as `/props` shows it
    stop: tuple[str, ...] = ()

    @classmethod
    def find(cls, name: str | None, folder: Path, tokenizer: "Tokenizer") -> "ChatFormat | None":
        """By name or path of a jinja file; None takes what the checkpoint has, if anything.

        Raises:
            ConfigError: no such template, or not a valid one.
        """
        own = folder / "dialogue_template.json"
        if name in DIALOGUES:
            return cls.of_dialogue(DIALOGUES[name], tokenizer)
        if name is not None:
            try:
                return cls.of_jinja(Path(name).read_text("utf-8"), tokenizer)
            except (OSError, UnicodeDecodeError):
                raise ConfigError(
                    f"there is no chat template {name!r}",
                    f"give a jinja file, or one of {', '.join(DIALOGUES)}",
                ) from None
        if own.is_file():
            return cls.of_dialogue(_read_dialogue(own), tokenizer)
        return cls.of_jinja(tokenizer.chat_template, tokenizer) if tokenizer.chat_template else None

    @classmethod
    def of_dialogue(cls, dialogue: Dialogue, tokenizer: "Tokenizer") -> "ChatFormat":
        texts = (dialogue.end_token, dialogue.user_token)
        is_token = [len(tokenizer.encode_with_special(text)) == 1 for text in texts]
        stop = tuple(text for text, one in zip(texts, is_token, strict=True) if not one)
        return cls(render=dialogue.render, source=dialogue.render(()), stop=stop)

    @classmethod
    def of_jinja(cls, source: str, tokenizer: "Tokenizer") -> "ChatFormat":
        """Raises: ConfigError: the template is not valid, or jinja2 is not installed."""

        def refuse(message: str) -> NoReturn:
            raise HTTPError(f"the chat template refuses: {message}")

        template = compile_chat_template(source, refuse, extra="serve")
        from jinja2 import TemplateError

        end = tokenizer.token_text(tokenizer.sentinels.eos)

        def render(turns: Turns) -> str:
            try:
                return template.render(
                    messages=[dict(turn) for turn in turns],
                    add_generation_prompt=True,
                    bos_token=end,
                    eos_token=end,
                )
            except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as error:
                raise HTTPError(f"the chat template cannot show these messages: {error}") from None

        return cls(render=render, source=source)


def _read_dialogue(path: Path) -> Dialogue:
    """Raises: ConfigError: not a dialogue template."""
    names = ("system", "system_token", "user_token", "assistant_token", "end_token")
    try:
        found = json.loads(path.read_text("utf-8"))
        return Dialogue(**{name: str(found[name]) for name in names if found.get(name) is not None})
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise ConfigError(
            f"{str(path)!r} is no dialogue template: {error}", "choose --chat-template"
        ) from None


# Models that chat, for whoever asks a base model to.
INSTRUCT_MODELS = "HuggingFaceH4/starchat-beta or bigcode/starcoder2-15b-instruct-v0.1"


def base_model(name: str) -> str:
    """Why a model without a template cannot chat."""
    return f"{name} is a base model: it completes code and has no chat template"


# Private-use characters that stand for special tokens spelled in a message while the template runs.
_MARK = "\ue000\ue001\ue000"


def encode(turns: Turns, chat: ChatFormat, tokenizer: "Tokenizer") -> list[int]:
    """Ids of the messages in their template. What spells a special token in a message stays plain text."""
    special = re.compile("|".join(map(re.escape, sorted(tokenizer.special_texts, key=len, reverse=True))))
    spelled: list[str] = []

    def hide(match: re.Match[str]) -> str:
        spelled.append(match.group())
        return f"{_MARK}{len(spelled) - 1}{_MARK}"

    hidden = [
        {name: special.sub(hide, text.replace(_MARK, "")) for name, text in turn.items()} for turn in turns
    ]
    ids: list[int] = []
    for at, piece in enumerate(chat.render(hidden).split(_MARK)):
        ids += tokenizer.encode(spelled[int(piece)]) if at % 2 else tokenizer.encode_with_special(piece)
    return ids
