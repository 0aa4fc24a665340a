"""What every wire dialect is made of: the fields of a request, info about the server, errors and events.

A dialect is a module of pure functions: a JSON body becomes an `Exchange`, which holds the requests for
the engine and formats their answers. Fields are read leniently: null is absent, unknown keys are ignored.
pydantic stays in here and in the dialects; what leaves them is a `CompletionRequest`.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Protocol, Self, get_type_hints

from pydantic import (
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    StrictBool,
    ValidationError,
    WithJsonSchema,
)
from pydantic import create_model as _create_model

from starcoder import layouts
from starcoder.chat import ChatTemplate
from starcoder.errors import CapacityError, StarcoderError
from starcoder.prompts import MARKER, split_marker
from starcoder.request import (
    Chunk,
    Completion,
    CompletionRequest,
    ContextFile,
    Layout,
    PostprocessRule,
    SamplingParams,
)
from starcoder.server.settings import Compat

if TYPE_CHECKING:
    from starcoder.prepare.attribution import Index
    from starcoder.tokenizer import Tokenizer

Json = dict[str, object] | list[object]

MAX_SAMPLES = 128  # of one HTTP request, prompts times n
MAX_STOPS, MAX_STOP_CHARACTERS = 256, 16_384  # of one request
_MAX_INT = 2**31 - 1


class HTTPError(StarcoderError):
    """A request that is answered with `status`; `kind` is the error type in TGI's dialect."""

    def __init__(self, message: str, hint: str = "", *, status: int = 400, kind: str = "validation"):
        super().__init__(message, hint)
        self.status, self.kind = status, kind


class Overload(CapacityError):
    """Too much at once; the same request may be sent again after `retry_after_s`."""

    def __init__(self, message: str, hint: str = "", *, retry_after_s: int = 1):
        super().__init__(message, hint)
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True)
class ErrorFormat:
    """How a dialect formats errors: the body, and the status of a request that cannot be served."""

    body: Callable[[StarcoderError], Json]
    invalid: int = 400

    def status(self, error: StarcoderError) -> int:
        if isinstance(error, HTTPError):
            return error.status
        return 429 if isinstance(error, CapacityError) else self.invalid


def format_error(error: StarcoderError) -> str:
    """Message and hint as one text."""
    return f"{error.message}; {error.hint}" if error.hint else error.message


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerInfo:
    """What the codecs know of the server."""

    model: str  # the name it goes by
    tokenizer: "Tokenizer"
    context_length: int  # tokens of prompt and completion together
    aliases: tuple[str, ...] = ()  # other names, by which clients guess the prompt format
    compat: Compat = "lenient"
    trust_prompts: bool = False  # raw prompts with sentinels go to the model as they are
    default_max_tokens: int = 256  # where neither a request nor its contract names a limit
    chat: ChatTemplate | None = None  # None: a base model
    closed_objects: bool = True  # arguments of tools have no properties but those that are listed
    attribution: "Index | None" = None  # source files whose spans are reported

    @property
    def can_infill(self) -> bool:
        return self.tokenizer.sentinels.can_infill


class Exchange(Protocol):
    """One HTTP exchange: what is asked, and how the answer is formatted. Stateful while it streams."""

    requests: Sequence[CompletionRequest]

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
        """The event for an error in a stream that has begun."""


def sse(document: Json, *, space: str = " ", event: str = "") -> str:
    """One server-sent event of one JSON document; TGI writes no `space` after the colon."""
    name = f"event: {event}\n" if event else ""
    return f"{name}data:{space}{json.dumps(document, ensure_ascii=False, separators=(',', ':'))}\n\n"


class Body(BaseModel):
    """A JSON object of a request. `wire` names fields as the dialect spells them, the best spelling first."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False, protected_namespaces=())

    def __init_subclass__(cls, *, wire: Mapping[str, Sequence[str]] = MappingProxyType({}), **kwargs: Any):
        super().__init_subclass__(**kwargs)

    @classmethod
    def __pydantic_init_subclass__(
        cls, *, wire: Mapping[str, Sequence[str]] = MappingProxyType({}), **kwargs: Any
    ) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        for name, spellings in wire.items():
            cls.model_fields[name].validation_alias = AliasChoices(*spellings, name)
        if wire:
            cls.model_rebuild(force=True)

    @classmethod
    def read(cls, data: object, *, status: int = 400) -> Self:
        """Raises: HTTPError: not an object, or a field of the wrong type; the message names the field."""
        if not isinstance(data, dict):
            raise HTTPError(
                "the body is not a JSON object", 'send one, as in {"prompt": "def f"}', status=status
            )
        try:
            return cls.model_validate(without_nulls(data))
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False, include_context=False)[0]
            where = ".".join(map(str, first["loc"]))
            raise HTTPError(f"`{where}`: {first['msg']}", status=status) from None


# Keys whose values are schemas, or hold some: in these null is a value.
_WITH_SCHEMAS = ("json_schema", "schema", "grammar", "format", "tools", "functions", "parameters_schema")


def without_nulls(value: object) -> object:
    """The same JSON without keys whose value is null, schemas excepted."""
    if isinstance(value, dict):
        return {
            key: item if key in _WITH_SCHEMAS else without_nulls(item)
            for key, item in value.items()
            if item is not None
        }
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    return value


def _to_list(value: object) -> object:
    """A single stop string as a list, without empty ones."""
    values = [value] if isinstance(value, str) else value
    return [one for one in values if one != ""] if isinstance(values, list) else values


def _to_rules(value: object) -> object:
    """Postprocessing as a switch, one rule or a list of rules."""
    switches: dict[object, tuple[str, ...]] = {True: ("auto",), "on": ("auto",), False: (), "off": ()}
    if isinstance(value, bool | str):
        return switches.get(value, (value,))
    return value


def _check_ids(value: object, *kinds: type) -> list[Any]:
    """Token ids, checked in pieces: pydantic would stop every other thread while it checks a million."""
    if not isinstance(value, list):
        raise ValueError("expected a list of token ids")
    for at in range(0, len(value), 10_000):
        piece = value[at : at + 10_000]
        ids = [one for one in piece if type(one) is int]
        if not set(map(type, piece)) <= {int, *kinds} or (ids and not 0 <= min(ids) <= max(ids) <= _MAX_INT):
            raise ValueError(f"expected token ids: whole numbers from 0 to {_MAX_INT}")
    return value


def _to_ids(value: object) -> list[int]:
    return _check_ids(value)


def _to_biases(value: object) -> object:
    """OpenAI's `{"50256": -100}`, or llama.cpp's pairs, in which false bars a token."""
    if isinstance(value, dict):
        value = list(value.items())
    if not isinstance(value, list):
        return value
    return [
        [one[0], -100 if one[1] is False else one[1]]
        if isinstance(one, list | tuple) and len(one) == 2
        else one
        for one in value
    ]


def _to_mixed(value: object) -> str | list[int | str]:
    return value if isinstance(value, str) else _check_ids(value, str)


def _to_prompts(value: object) -> list[str | list[int]]:
    """One or several prompts, each a text or token ids, as a list."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        raise ValueError("expected a text, texts, or token ids")
    if not value:
        raise ValueError("is empty; give a text, texts or token ids")
    if isinstance(value[0], str):
        if not all(isinstance(one, str) for one in value):
            raise ValueError("expected texts only")
        return list(value)
    return [_to_ids(one) for one in value] if isinstance(value[0], list) else [_to_ids(value)]


_IDS_SCHEMA: dict[str, Any] = {
    "type": "array",
    "items": {"type": "integer", "minimum": 0, "maximum": _MAX_INT},
}
TokenIds = Annotated[list[int], PlainValidator(_to_ids), WithJsonSchema(_IDS_SCHEMA)]
MixedPrompt = Annotated[
    str | list[int | str],
    PlainValidator(_to_mixed),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array"}]}),
]
Prompts = Annotated[
    list[str | list[int]],
    PlainValidator(_to_prompts),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                {"type": "array", "items": {"type": "string"}},
                _IDS_SCHEMA,
                {"type": "array", "items": _IDS_SCHEMA},
            ]
        }
    ),
]
Postprocess = Annotated[tuple[PostprocessRule, ...], BeforeValidator(_to_rules)]

# Fields of `SamplingParams` that the dialects spell in forms of their own.
_OTHER_FORMS = ("logprobs", "grammar")
_TYPES: dict[str, Any] = {
    "stop": Annotated[tuple[str, ...], BeforeValidator(_to_list)],
    "logit_bias": Annotated[tuple[tuple[int, float], ...], BeforeValidator(_to_biases)],
}
_ALIASES = {"stop_ids": ("stop_token_ids",), "include_stop": ("include_stop_str_in_output",)}  # vLLM's names


def _sampling_fields() -> dict[str, Any]:
    """Every other field of `SamplingParams`: its type, and no value where a request names none."""
    types = get_type_hints(SamplingParams)
    names = [field.name for field in fields(SamplingParams) if field.name not in _OTHER_FORMS]
    defaults = {
        name: Field(default=None, validation_alias=AliasChoices(name, *others))
        for name, others in _ALIASES.items()
    }
    return {name: (_TYPES.get(name, types[name]) | None, defaults.get(name)) for name in names}


if TYPE_CHECKING:
    SamplingFields = Body
else:
    SamplingFields = _create_model("SamplingFields", __base__=Body, **_sampling_fields())
_SAMPLING_NAMES = frozenset(_sampling_fields())


class File(Body):
    """Another file that the model is shown."""

    text: str
    path: str = Field(default="", description="where it is in the repository")


class CompletionFields(SamplingFields):
    """What every request for a completion may say: `SamplingParams` and what to complete."""

    layout: Layout = "auto"
    heal: bool = Field(
        default=True, description="generate the tokens at the cursor again, so that text joins"
    )
    path: str | None = Field(default=None, description="of the file being completed")
    repo: str | None = None
    extras: tuple[File, ...] = Field(default=(), description="other files that the model is shown")
    postprocess: Postprocess = Field(
        default=(),
        validation_alias=AliasChoices("postprocess", "hygiene"),
        description="true, false, or the rules that may trim the text",
    )
    attribution: StrictBool = Field(default=False, description="report which spans are in known files")
    response_format: dict[str, Any] | None = Field(default=None, description="json_object, or a json_schema")
    json_schema: dict[str, Any] | bool | None = Field(default=None, description="the text must follow it")
    grammar: dict[str, Any] | str | None = Field(default=None, description="GBNF, or TGI's type and value")
    session: str | None = Field(default=None, description="the newest request of a session ends older ones")
    priority: int = Field(default=0, ge=-100, le=100)

    @property
    def given(self) -> dict[str, Any]:
        """The sampling fields that the request names."""
        return {name: getattr(self, name) for name in _SAMPLING_NAMES & self.model_fields_set}

    def params(
        self, *, default_max_tokens: int, logprobs: int | None = None, **changes: Any
    ) -> SamplingParams:
        """How to sample; `changes` replace fields of the request.

        Raises:
            RequestError: a value out of its range.
            HTTPError: too many samples, or an unknown form of grammar.
        """
        given = self.given | changes
        at_most(given.get("n", 1), "samples")
        _check_stops(given.get("stop", ()))
        grammar = None
        if not (self.response_format is self.json_schema is self.grammar is None):
            from starcoder.server import schemas

            grammar = schemas.wanted(self.response_format, self.json_schema, self.grammar)
        # Equal samples are of no use.
        given.setdefault("temperature", 0.0 if given.get("n", 1) == 1 else 1.0)
        if given.get("top_p") == 0:
            given["top_p"] = 1e-6  # only the most probable token
        given["top_k"] = min(max(given.get("top_k", 0), 0), _MAX_INT)
        if "seed" in given:
            given["seed"] = None if given["seed"] == -1 else given["seed"] % 2**63
        num_tokens = given.get("max_tokens", default_max_tokens)  # -1: as many as the context leaves
        given["max_tokens"] = _MAX_INT if num_tokens < 0 else min(max(1, num_tokens), _MAX_INT)
        given["ignore_eos"] = given.get("ignore_eos", False) and grammar is None
        return SamplingParams(logprobs=logprobs, grammar=grammar, **given)

    def infill(self, prefix: str, suffix: str | None, params: SamplingParams) -> CompletionRequest:
        """The request for text around a cursor; a `<FILL_HERE>` in the prefix marks one as well."""
        if suffix is None and MARKER in prefix:
            prefix, suffix = split_marker(prefix)
        return CompletionRequest(
            prefix=prefix,
            suffix=suffix,
            path=self.path,
            repo=self.repo,
            extras=tuple(ContextFile(path=file.path, text=file.text) for file in self.extras),
            layout=self.layout,
            heal=self.heal,
            sampling=params,
            session=self.session,
            priority=self.priority,
            postprocess=self.postprocess or None,
        )

    def prompt_request(self, text: str, params: SamplingParams, info: ServerInfo) -> CompletionRequest:
        """The request for a raw prompt: one in any family's sentinels is rebuilt for the loaded model.

        The model's own sentinels in a layout that is not known, and all with `trust_prompts`, go to it as
        they are.
        """
        parsed = None if info.trust_prompts else layouts.parse(text)
        if parsed is None and any(special in text for special in info.tokenizer.special_texts):
            return self.encoded(info.tokenizer.encode_with_special(text), params)
        if parsed is None:
            return self.infill(text, None, params)
        request = self.infill(parsed.prefix, parsed.suffix, params)
        return replace(  # path, repository and files of the body come before those in its prompt
            request,
            path=request.path or parsed.path,
            repo=request.repo or parsed.repo,
            extras=request.extras or tuple(ContextFile(path=path, text=text) for path, text in parsed.files),
        )

    def encoded(self, tokens: list[int], params: SamplingParams) -> CompletionRequest:
        """The request for a prompt that is tokens already."""
        return CompletionRequest(
            tokens=tuple(tokens), sampling=params, session=self.session, priority=self.priority
        )


def _check_stops(stops: Sequence[str]) -> None:
    """Raises: HTTPError: more stop strings than can be looked for at each token."""
    num_characters = sum(map(len, stops))
    if len(stops) > MAX_STOPS or num_characters > MAX_STOP_CHARACTERS:
        raise HTTPError(
            f"`stop` has {len(stops)} strings of {num_characters} characters together",
            f"send at most {MAX_STOPS} of {MAX_STOP_CHARACTERS} characters together",
        )


def at_most(count: int, what: str) -> None:
    """Raises: HTTPError: more samples than one request may ask for."""
    if not 1 <= count <= MAX_SAMPLES:
        raise HTTPError(f"{count} {what}; expected 1 to {MAX_SAMPLES}")
