"""What every wire dialect is made of: facts about the server, an exchange, and how refusals are told.

A dialect is a module of pure functions: a JSON body becomes an `Exchange`, which holds the requests for
the engine and says what comes back in the dialect's own words.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from starcoder.errors import CapacityError, StarcoderError
from starcoder.request import Chunk, Completion, CompletionRequest

if TYPE_CHECKING:
    from starcoder.prepare.attribution import Index
    from starcoder.server.templates import ChatFormat
    from starcoder.tokenizer import Tokenizer

Json = dict[str, object] | list[object]
Compat = Literal["lenient", "tgi-strict"]


class Refusal(StarcoderError):
    """A request that the HTTP layer answers with `status`; `kind` is TGI's word for it."""

    def __init__(self, message: str, hint: str = "", *, status: int = 400, kind: str = "validation"):
        super().__init__(message, hint)
        self.status, self.kind = status, kind


class Overload(CapacityError):
    """Too much at once; the same request may be sent again after `retry_after_s`."""

    def __init__(self, message: str, hint: str = "", *, retry_after_s: int = 1):
        super().__init__(message, hint)
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True)
class Errors:
    """How a dialect tells of errors: the body, and the status of a request that cannot be served."""

    body: Callable[[StarcoderError], Json]
    invalid: int = 400

    def status(self, error: StarcoderError) -> int:
        if isinstance(error, Refusal):
            return error.status
        return 429 if isinstance(error, CapacityError) else self.invalid


def told(error: StarcoderError) -> str:
    """Message and hint as one text."""
    return f"{error.message}; {error.hint}" if error.hint else error.message


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What the codecs know of the server they speak for."""

    model: str  # the name it goes by
    tokenizer: "Tokenizer"
    context_length: int  # tokens of prompt and completion together
    aliases: tuple[str, ...] = ()  # other names, by which clients guess the prompt format
    compat: Compat = "lenient"
    trust_prompts: bool = False  # raw prompts with sentinels go to the model as they are
    default_max_tokens: int = 256  # where a request and its contract name none
    chat: "ChatFormat | None" = None  # None: a base model
    attribution: "Index | None" = None  # source files whose spans are told of

    @property
    def can_infill(self) -> bool:
        return self.tokenizer.sentinels.can_infill


class Exchange(Protocol):
    """One HTTP exchange: what is asked, and how the answer is said. Stateful while it streams."""

    @property
    def requests(self) -> Sequence[CompletionRequest]: ...

    @property
    def is_stream(self) -> bool: ...

    @property
    def media_type(self) -> str:
        """Of a stream."""

    def whole(self, samples: Sequence[Sequence[Completion]]) -> Json:
        """The answer in one piece, from the samples of each request."""

    def events(self, position: int, chunk: Chunk) -> Iterable[str]:
        """What a chunk of the request at `position` adds to the stream."""

    def end(self) -> str:
        """What closes a stream after the last chunk of all."""

    def failure(self, error: StarcoderError) -> str:
        """How a stream that has begun tells of an error."""


def text_of(completion: Completion, facts: Facts) -> str:
    """The text of a sample; with TGI's own rules the stop string stays in it."""
    keeps_stop = facts.compat == "tgi-strict" and isinstance(completion.stop, str)
    return completion.text + str(completion.stop) if keeps_stop else completion.text
