"""The vocabulary of asking: what a caller wants and what comes back, in process or over HTTP.

Every wire dialect is a codec of these values; they hold no tensors and import no torch.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from numbers import Integral, Real
from typing import Literal, Protocol, get_args

from starcoder.errors import RequestError

Layout = Literal["auto", "psm", "spm"]
# "error": the grammar cannot be followed any further, or the logits are not finite; `Chunk.error` says so.
FinishReason = Literal["eos", "stop", "length", "deadline", "abort", "error"]
StopAt = Literal["line", "block", "function", "indent"]
GrammarKind = Literal["json_schema", "regex", "gbnf", "lark"]
PostprocessRule = Literal["auto", "loop", "prefix", "suffix", "brackets", "blank"]


@dataclass(frozen=True, slots=True)
class Grammar:
    """What a completion must follow from its first character to its last."""

    kind: GrammarKind
    text: str  # a JSON schema, a regular expression, or a grammar in the notation of `kind`


def _is_whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _is_tuple_of(check: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: isinstance(value, tuple) and all(map(check, value))


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_bias(value: object) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and _is_whole(value[0]) and _is_number(value[1])


# How a field's annotation is checked. Others have their own checks, as the words of a Literal do.
_TYPES: dict[str, tuple[Callable[[object], bool], str]] = {
    "int": (_is_whole, "a whole number"),
    "float": (_is_number, "a finite number"),
    "bool": (lambda value: isinstance(value, bool), "True or False"),
    "str": (_is_text, "text"),
    "tuple[str, ...]": (_is_tuple_of(_is_text), "a tuple of texts"),
    "tuple[int, ...]": (_is_tuple_of(_is_whole), "a tuple of whole numbers"),
    "tuple[tuple[int, float], ...]": (_is_tuple_of(_is_bias), "pairs of a token and a finite number"),
}


def _check_types(values: "SamplingParams | CompletionRequest") -> None:
    """Raises: RequestError: a field that holds another type than it names."""
    for field in fields(values):
        annotation = str(getattr(field.type, "__name__", field.type) if field.type in _PLAIN else field.type)
        kind, _, none = annotation.partition(" | ")
        value = getattr(values, field.name)
        if kind not in _TYPES or (none == "None" and value is None):
            continue
        check, expected = _TYPES[kind]
        if not check(value):
            raise RequestError(f"{field.name} is {value!r}; expected {expected}")


_PLAIN = (int, float, bool, str)


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingParams:
    """How tokens are chosen and when they end. Validated when made: `RequestError` names the field."""

    max_tokens: int = 64
    """Maximum number of tokens to generate; -1 until the model ends or the context is full."""
    temperature: float = 0.0
    """0 always takes the most probable token; higher values vary more."""
    top_p: float = 1.0
    """Sample from the smallest set of tokens whose probabilities add up to this."""
    top_k: int = 0
    """Sample from this many of the most probable tokens; 0 means all."""
    min_p: float = 0.0
    """Drop tokens less probable than this share of the most probable one's; 0 is off."""
    logit_bias: tuple[tuple[int, float], ...] = ()  # (token, added to its score)
    repetition_penalty: float = 1.0
    """Divide the scores of tokens that already occur by this; 1 is off."""
    frequency_penalty: float = 0.0
    """Subtract this from a token's score for every time it was generated."""
    presence_penalty: float = 0.0
    """Subtract this once from the score of every token that was generated."""
    stop: tuple[str, ...] = ()
    """Stop before this text; may be given several times."""
    stop_at: StopAt | None = None
    """Stop at the end of the current line, block, function or indentation level."""
    min_indent: int | None = None
    """Stop before a line that is indented by fewer characters."""
    max_lines: int | None = None
    """Maximum number of lines; the rest of the cursor's line is the first."""
    stop_ids: tuple[int, ...] = ()  # in addition to the model's own end tokens
    include_stop: bool = False
    """Keep the stop string at the end of the text."""
    min_tokens: int = 0
    """Number of tokens before which no end token and none of `stop_ids` ends the text."""
    ignore_eos: bool = False
    """Continue after the model's end-of-text token; stop strings still apply."""
    seed: int | None = None
    """Make sampling repeatable."""
    n: int = 1
    """Number of completions of the prompt."""
    logprobs: int | None = None
    """Return the log-probability of each token and of this many alternatives."""
    deadline_ms: float | None = None
    """Return what is there after so many milliseconds, waiting in the queue included."""
    deadline_at: Literal["token", "line"] = "token"
    """Where a deadline cuts: after any token, or after the last whole line if there is one."""
    grammar: Grammar | None = None  # needs the extra `structured`

    def __post_init__(self) -> None:
        def need(holds: bool, field: str, expected: str) -> None:
            if not holds:
                raise RequestError(f"{field} is {getattr(self, field)!r}; expected {expected}")

        _check_types(self)
        need(self.max_tokens >= 1 or self.max_tokens == -1, "max_tokens", "at least 1, or -1 (until the end)")
        need(0 <= self.min_p <= 1, "min_p", "between 0 and 1")
        need(all(-100 <= bias <= 100 for _, bias in self.logit_bias), "logit_bias", "between -100 and 100")
        at_most = self.min_tokens if self.max_tokens == -1 else self.max_tokens
        need(0 <= self.min_tokens <= at_most, "min_tokens", "between 0 and max_tokens")
        need(self.temperature >= 0, "temperature", "0 (greedy) or more")
        need(0 < self.top_p <= 1, "top_p", "above 0 and at most 1")
        need(self.top_k >= 0, "top_k", "0 (off) or more")
        need(self.repetition_penalty > 0, "repetition_penalty", "above 0")
        need(-2 <= self.frequency_penalty <= 2, "frequency_penalty", "between -2 and 2")
        need(-2 <= self.presence_penalty <= 2, "presence_penalty", "between -2 and 2")
        need(all(self.stop), "stop", "no empty string")
        need(self.seed is None or 0 <= self.seed < 2**63, "seed", "between 0 and 2**63 - 1")
        need(1 <= self.n <= 1024, "n", "between 1 and 1024")
        need(self.logprobs is None or 0 <= self.logprobs <= 100, "logprobs", "between 0 and 100")
        need(self.deadline_ms is None or self.deadline_ms > 0, "deadline_ms", "above 0")
        scopes = get_args(StopAt)
        need(self.stop_at is None or self.stop_at in scopes, "stop_at", f"one of {', '.join(scopes)}")
        need(self.min_indent is None or self.min_indent >= 0, "min_indent", "0 or more")
        need(self.max_lines is None or self.max_lines >= 1, "max_lines", "at least 1")
        need(
            self.grammar is None or not self.ignore_eos,
            "ignore_eos",
            "False with a grammar, which ends by it",
        )
        need(self.deadline_at in ("token", "line"), "deadline_at", "token or line")


@dataclass(frozen=True, kw_only=True, slots=True)
class ContextFile:
    """Another file shown to the model before the one being completed."""

    path: str
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class CompletionRequest:
    """Complete `prefix`, or infill between `prefix` and `suffix`."""

    prefix: str = ""
    suffix: str | None = None  # None: left to right; "" and more: infill
    path: str | None = None
    """Path of the file within its repository, shown to models that were trained with paths."""
    repo: str | None = None
    """Name of the repository, shown to models that were trained with names."""
    extras: tuple[ContextFile, ...] = ()
    tokens: tuple[int, ...] | None = None  # a prompt already encoded, used as it is instead of all above
    layout: Layout = "auto"
    """Order of an infill's parts: prefix-suffix-middle, suffix-prefix-middle, or the model's own."""
    heal: bool = True
    """Generate the tokens at the cursor again, so that the completion joins the text; not with `tokens`."""
    sampling: SamplingParams = SamplingParams()
    """Sampling"""
    session: str | None = None  # newest request of a session wins
    priority: int = 0  # higher runs first
    postprocess: tuple[PostprocessRule, ...] | None = None  # rules that trim; "auto": those that suit

    def __post_init__(self) -> None:
        _check_types(self)
        if self.layout not in get_args(Layout):
            raise RequestError(f"layout is {self.layout!r}; expected one of {', '.join(get_args(Layout))}")
        known = get_args(PostprocessRule)
        for rule in self.postprocess or ():
            if rule not in known:
                raise RequestError(f"postprocess has {rule!r}; expected rules among {', '.join(known)}")


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Natural-log probability of a token, before temperature and penalties."""

    token: int
    text: str
    logprob: float
    top: tuple[tuple[int, float], ...] = ()  # (token, logprob) of the best, most probable first


@dataclass(frozen=True, kw_only=True, slots=True)
class Usage:
    """What a finished sample cost."""

    prompt_tokens: int
    cached_tokens: int  # of the prompt, from the prefix cache; all of them: the model did not run at all
    dropped_characters: int = 0  # of prefix, suffix and other files, for which the context had no room
    queue_ms: float
    prefill_ms: float  # from leaving the queue to the first token
    decode_ms: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Chunk:
    """New text of one sample. The last chunk of a sample has `finish_reason` and `usage`."""

    request_id: str
    index: int = 0  # which of the request's n samples
    text: str = ""
    tokens: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    stop: str | int | None = None  # the stop string or stop id that ended it
    usage: Usage | None = None
    error: str = ""  # with finish_reason "error": what is wrong with the model; "": the grammar is at fault
    trimmed: tuple[str, ...] = ()  # on a last chunk: the postprocess rules that took something away


@dataclass(frozen=True, kw_only=True, slots=True)
class Completion:
    """One whole sample."""

    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason
    usage: Usage
    index: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()
    stop: str | int | None = None
    trimmed: tuple[str, ...] = ()


class Generator(Protocol):
    """Whatever turns requests into chunks: the engine in process, or a client of a server."""

    def generate(self, requests: Sequence[CompletionRequest]) -> Iterator[Chunk]: ...


def collect(chunks: Iterable[Chunk]) -> dict[str, list[Completion]]:
    """Whole samples per request id, in order of index; the inverse of streaming."""
    open_: dict[tuple[str, int], Chunk] = {}
    done: dict[str, list[Completion]] = {}
    for chunk in chunks:
        key = chunk.request_id, chunk.index
        before = open_.get(key)
        if before is not None:
            chunk = replace(
                chunk,
                text=before.text + chunk.text,
                tokens=before.tokens + chunk.tokens,
                logprobs=before.logprobs + chunk.logprobs,
            )
        open_[key] = chunk
        if chunk.finish_reason is not None:
            assert chunk.usage is not None, "a last chunk carries its usage"
            done.setdefault(chunk.request_id, []).append(
                Completion(
                    text=chunk.text,
                    tokens=chunk.tokens,
                    finish_reason=chunk.finish_reason,
                    usage=chunk.usage,
                    index=chunk.index,
                    logprobs=chunk.logprobs,
                    stop=chunk.stop,
                    trimmed=chunk.trimmed,
                )
            )
    for samples in done.values():
        samples.sort(key=lambda sample: sample.index)
    return done
