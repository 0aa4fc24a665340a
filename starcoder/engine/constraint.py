"""Structured output: which tokens may come next, so that a completion follows a JSON schema or a grammar.

llguidance (extra `structured`) does the parsing. Limits: a completion that ends by `max_tokens` or a deadline
is a beginning of what the grammar allows.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from threading import Lock
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from starcoder.errors import MissingExtraError, RequestError
from starcoder.request import Grammar

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer
    from llguidance._lib import JsonCompileOptions

    from starcoder.tokenizer import Tokenizer

# Blanks as models write them, and never more: with free ones a model can fill its answer with line ends.
_JSON_STYLE: "JsonCompileOptions" = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
}

_MAX_COMPILED = 64  # grammars that are remembered: programs send the same schema over and over


class Constraint:
    """Follows one sample through its grammar."""

    def __init__(self, matcher: "LLMatcher", byte_tokens: Mapping[int, int]):
        """`byte_tokens` are the tokens that spell a single byte."""
        self._matcher, self._byte_tokens = matcher, byte_tokens

    @property
    def problem(self) -> str | None:
        """Why the grammar cannot be followed any further: a limit of the parser, or a dead end."""
        if not self._matcher.is_error():
            return None
        return self._matcher.get_error().strip().partition("\n")[0] or "unknown"

    def allowed(self, logits_V: Tensor) -> Tensor:
        """The same logits, minus infinity where the grammar forbids the token."""
        bias = torch.frombuffer(bytearray(self._matcher.compute_logit_bias()), dtype=torch.uint8)
        allowed_V = torch.zeros(logits_V.size(0), dtype=torch.bool)
        length = min(len(bias), len(allowed_V))
        allowed_V[:length] = bias[:length] > 0
        return logits_V.masked_fill(~allowed_V.to(logits_V.device), float("-inf"))

    def accept(self, token: int) -> None:
        """Follow the sample to this token."""
        self._matcher.consume_token(token)

    def accept_bytes(self, text: bytes) -> None:
        """Follow the sample to the end of a token that began in the prompt."""
        for byte in text:
            self._matcher.consume_token(self._byte_tokens[byte])

    def allows(self, texts: Iterable[bytes]) -> list[bool]:
        """Which of these the completion may begin with."""
        bias = self._matcher.compute_logit_bias()
        first = {byte for byte, token in self._byte_tokens.items() if bias[token]}
        return [not text or (text[0] in first and self._is_beginning(text)) for text in texts]

    def _is_beginning(self, text: bytes) -> bool:
        tokens = [self._byte_tokens[byte] for byte in text if byte in self._byte_tokens]
        return len(tokens) == len(text) == self._matcher.validate_tokens(tokens)


class Grammars:
    """Makes constraints for one vocabulary, which is indexed at the first use."""

    def __init__(self, tokenizer: "Tokenizer"):
        self._tokenizer = tokenizer
        self._vocabulary: LLTokenizer | None = None
        self._byte_tokens: dict[int, int] = {}
        self._compiled: OrderedDict[Grammar, LLMatcher] = OrderedDict()  # at their start, newest last
        self._lock = Lock()

    def constraint(self, grammar: Grammar) -> Constraint:
        """A constraint at its start. May be called from any thread.

        Raises:
            ConfigError: llguidance is not installed.
            RequestError: the grammar is not valid.
        """
        with self._lock:
            matcher = self._compiled.get(grammar)
        if matcher is None:
            matcher = self._compile(grammar)  # without the lock, for which the engine's thread may wait
        with self._lock:
            self._compiled[grammar] = matcher
            self._compiled.move_to_end(grammar)
            if len(self._compiled) > _MAX_COMPILED:
                self._compiled.popitem(last=False)
            return Constraint(matcher.deep_copy(), self._byte_tokens)

    def _compile(self, grammar: Grammar) -> "LLMatcher":
        """Raises: ConfigError, RequestError: as `constraint`."""
        try:
            from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper
        except ImportError:
            raise MissingExtraError(
                "structured output needs llguidance, which is not installed", "structured"
            ) from None
        if self._vocabulary is None:
            view = _View(self._tokenizer)
            ends = [view.eos_token_id, *sorted(self._tokenizer.sentinels.end_ids - {view.eos_token_id})]
            self._byte_tokens = {text[0]: token for token, text in enumerate(view.tokens) if len(text) == 1}
            self._vocabulary = LLTokenizer(TokenizerWrapper(view), eos_token=ends)
        matcher = LLMatcher(self._vocabulary, _source(grammar), log_level=0)
        begun = matcher.deep_copy()
        if not begun.is_error():
            begun.compute_logit_bias()  # what allows no beginning at all shows only here
        if begun.is_error():
            reason = begun.get_error().strip().partition("\n")[0]
            raise RequestError(f"the {grammar.kind} is not valid: {reason}", "send a valid one, or none")
        return matcher


class _View:
    """The vocabulary as llguidance looks at it."""

    bos_token_id = None

    def __init__(self, tokenizer: "Tokenizer"):
        self._tokenizer = tokenizer
        self.eos_token_id = tokenizer.sentinels.eos
        self.tokens = [tokenizer.token_bytes(token) for token in range(tokenizer.vocab_size)]
        self.special_token_ids = list(tokenizer.special_tokens.values())

    def __call__(self, text: str | bytes) -> list[int]:
        text = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
        return self._tokenizer.encode(text)


def _source(grammar: Grammar) -> str:
    """Raises: RequestError: not a grammar of its kind at all."""
    from llguidance import LLMatcher
    from llguidance.gbnf_to_lark import gbnf_to_lark

    try:
        match grammar.kind:
            case "json_schema":
                return LLMatcher.grammar_from_json_schema(grammar.text, overrides=_JSON_STYLE)
            case "regex":
                return LLMatcher.grammar_from_regex(grammar.text)
            case "gbnf":
                return LLMatcher.grammar_from_lark(gbnf_to_lark(grammar.text))
            case "lark":
                return LLMatcher.grammar_from_lark(grammar.text)
    except Exception as error:  # the converters raise what their parsers raise
        raise RequestError(f"the {grammar.kind} is not valid: {error}", "send a valid one, or none") from None
