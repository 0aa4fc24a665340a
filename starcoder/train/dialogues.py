"""Dialogues as tokens: messages in a jinja chat template, with a mask of what the assistant says.

What an assistant says is marked while the template runs, so any template works that shows messages as they
are; a turn ends with the special token that follows, and that is learnt too. What spells a special token in
a message stays plain text.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from starcoder.errors import ConfigError
from starcoder.prompts import compile_chat_template
from starcoder.tokenizer import Tokenizer

if TYPE_CHECKING:
    from jinja2 import Template

# Source: bigcode-project/starcoder: chat/dialogues.py, the format of StarChat. The generation prompt ends in
# a line end here, as the trained turns do.
STARCHAT = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
STARCHAT_TOKENS = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")

_SAID, _SPELLED = "\ue000", "\ue001"  # private-use characters around what the assistant says, and a number
_MARKS = re.compile(f"[{_SAID}{_SPELLED}]")
_ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """A template that turns messages into the text of a dialogue."""

    source: str
    compiled: "Template"

    @classmethod
    def of(cls, source: str) -> "ChatTemplate":
        """Raises: ConfigError: the template is not valid, or jinja is not installed."""

        def refuse(message: str) -> NoReturn:
            raise ConfigError(f"the chat template refuses a dialogue: {message}")

        return cls(source, compile_chat_template(source, refuse, extra="train"))

    def encode(self, messages: object, tokenizer: Tokenizer) -> tuple[list[int], list[bool]]:
        """Tokens of a whole dialogue, and which of them are learnt; end-of-text stands once at its end.

        Raises:
            ConfigError: not a list of messages, or messages that the template refuses.
        """
        turns = list(_turns(messages))
        while turns and turns[-1]["role"] != "assistant":  # nothing is learnt from what nobody answers
            turns.pop()
        if not turns:
            return [], []
        special = re.compile("|".join(map(re.escape, sorted(tokenizer.special_texts, key=len, reverse=True))))
        spelled: list[str] = []

        def hide(match: re.Match[str]) -> str:
            spelled.append(match.group())
            return f"{_SPELLED}{len(spelled) - 1}{_SPELLED}"

        for turn in turns:
            text = special.sub(hide, _MARKS.sub("", turn["content"]))
            turn["content"] = f"{_SAID}{text}{_SAID}" if turn["role"] == "assistant" else text
        pieces = self._render(turns, tokenizer).split(_SAID)
        tokens: list[int] = []
        learnt: list[bool] = []
        for at, piece in enumerate(pieces):
            ids = _encode(piece, spelled, tokenizer)
            is_said = at % 2 == 1
            num_learnt = len(ids) if is_said else _end_of_turn(ids, tokenizer) if at else 0
            tokens += ids
            learnt += [True] * num_learnt + [False] * (len(ids) - num_learnt)
        return _ended(tokens, learnt, tokenizer.sentinels.eos)

    def _render(self, turns: list[dict[str, str]], tokenizer: Tokenizer) -> str:
        from jinja2 import TemplateError

        end = tokenizer.token_text(tokenizer.sentinels.eos)
        try:
            text = self.compiled.render(
                messages=turns, add_generation_prompt=False, bos_token=end, eos_token=end
            )
        except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as error:
            raise ConfigError(f"the chat template cannot show a dialogue: {error}") from None
        if text.count(_SAID) != 2 * sum(turn["role"] == "assistant" for turn in turns):
            raise ConfigError(
                "the chat template does not show what the assistant says as it is",
                "give a simpler one with --chat-template",
            )
        return text


def _encode(text: str, spelled: list[str], tokenizer: Tokenizer) -> list[int]:
    ids: list[int] = []
    for at, piece in enumerate(text.split(_SPELLED)):
        ids += tokenizer.encode(spelled[int(piece)]) if at % 2 else tokenizer.encode_with_special(piece)
    return ids


def _end_of_turn(ids: list[int], tokenizer: Tokenizer) -> int:
    """How many of the tokens after an assistant's words end its turn: up to the first special token.

    Without one, as in templates of plain words, end-of-text alone ends a dialogue.
    """
    special = set(tokenizer.special_tokens.values())
    first = next((at for at, id in enumerate(ids) if id in special), None)
    return 0 if first is None or tokenizer.decode(ids[:first]).strip() else first + 1


def _ended(tokens: list[int], learnt: list[bool], eos: int) -> tuple[list[int], list[bool]]:
    if tokens and tokens[-1] == eos:  # the template's own
        return tokens, [*learnt[:-1], True]
    return [*tokens, eos], [*learnt, True]


def _turns(messages: object) -> Iterable[dict[str, str]]:
    """Messages with `role` and `content`; `from` and `value` are read as well."""
    if not isinstance(messages, list) or not messages:
        raise ConfigError(
            f"messages are {messages!r:.80}; expected a list of them", "each has role and content"
        )
    for message in messages:
        if not isinstance(message, dict):
            raise ConfigError(f"a message is {message!r:.80}; expected an object", "with role and content")
        found: dict[str, Any] = message
        role, content = found.get("role", found.get("from")), found.get("content", found.get("value"))
        if not isinstance(role, str) or not isinstance(content, str):
            raise ConfigError(
                f"a message has the keys {', '.join(map(repr, found))}; expected role and content",
                "both are texts",
            )
        yield {"role": _ROLES.get(role, role), "content": content}


def tokens_of(source: str) -> tuple[str, ...]:
    """Texts in a template that look like special tokens: `<|...|>`."""
    return tuple(dict.fromkeys(re.findall(r"<\|\w+\|>", source)))
