"""Fields that the dialects share, read leniently: null is absent, unknown keys are ignored.

pydantic stays in here and in the dialects; what leaves them is a `CompletionRequest`.
"""

from dataclasses import replace
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, ValidationError

from starcoder.prompts import MARKER, split_marker
from starcoder.request import CompletionRequest, ContextFile, Layout, PostprocessRule, SamplingParams, StopAt
from starcoder.server import rawprompt, structure
from starcoder.server.exchange import Facts, Refusal

MAX_SAMPLES = 128  # of one HTTP request, prompts times n
_MOST = 2**31 - 1


def _listed(value: object) -> object:
    """A single stop string as a list, without empty ones."""
    values = [value] if isinstance(value, str) else value
    return [one for one in values if one != ""] if isinstance(values, list) else values


TokenId = Annotated[int, Field(ge=0, le=_MOST)]
Stop = Annotated[tuple[str, ...], BeforeValidator(_listed)]


def _switched(value: object) -> object:
    """Postprocess as a switch, one rule or a list of rules."""
    switches: dict[object, tuple[str, ...]] = {True: ("auto",), "on": ("auto",), False: (), "off": ()}
    if isinstance(value, bool | str):
        return switches.get(value, (value,))
    return value


Postprocess = Annotated[tuple[PostprocessRule, ...], BeforeValidator(_switched)]


class Body(BaseModel):
    """A JSON object of a request."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False, protected_namespaces=())

    @classmethod
    def read(cls, data: object, *, status: int = 400) -> Self:
        """Raises: Refusal: not an object, or a field of the wrong type; the message names the field."""
        if not isinstance(data, dict):
            raise Refusal(
                "the body is not a JSON object", 'send one, as in {"prompt": "def f"}', status=status
            )
        try:
            return cls.model_validate(without_nulls(data))
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False, include_context=False)[0]
            where = ".".join(map(str, first["loc"]))
            raise Refusal(f"`{where}`: {first['msg']}", status=status) from None


_AS_THEY_ARE = ("json_schema", "grammar", "format", "tools")  # in schemas null is a value


def without_nulls(value: object) -> object:
    """The same JSON without keys whose value is null."""
    if isinstance(value, dict):
        return {
            key: item if key in _AS_THEY_ARE else without_nulls(item)
            for key, item in value.items()
            if item is not None
        }
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    return value


class File(Body):
    """Another file that the model is shown."""

    text: str
    path: str = ""


class Common(Body):
    """What every completion request may say beside its dialect's own names."""

    temperature: float | None = Field(default=None, description="0 is greedy, and so is none")
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    seed: int | None = None
    stop: Stop = ()
    ignore_eos: bool = False
    stop_at: StopAt | None = Field(default=None, description="end with this scope of the code")
    min_indent: int | None = Field(default=None, description="end before a line that is indented less")
    max_lines: int | None = None
    deadline_ms: float | None = Field(default=None, description="end after this time")
    deadline_at: Literal["token", "line"] = Field(default="token", description="line: end at a whole line")
    postprocess: Postprocess = Field(default=(), description="true, false, or the rules that may trim")
    layout: Layout = "auto"
    path: str | None = Field(default=None, description="of the file being completed")
    repo: str | None = None
    extras: tuple[File, ...] = Field(default=(), description="other files that the model is shown")
    attribution: StrictBool = Field(default=False, description="tell which spans stand in known files")
    response_format: dict[str, Any] | None = Field(default=None, description="json_object, or a json_schema")
    json_schema: dict[str, Any] | bool | None = Field(default=None, description="the text must follow it")
    grammar: dict[str, Any] | str | None = Field(default=None, description="GBNF, or TGI's type and value")
    session: str | None = Field(default=None, description="the newest request of a session ends older ones")
    priority: int = Field(default=0, ge=-100, le=100)

    def params(self, *, max_tokens: int, n: int = 1, logprobs: int | None = None) -> SamplingParams:
        """Raises: RequestError, Refusal: a value out of its range, or no grammar."""
        temperature = self.temperature
        if temperature is None:
            temperature = 0.0 if n == 1 else 1.0  # equal samples help nobody
        grammar = structure.wanted(self.response_format, self.json_schema, self.grammar)
        return SamplingParams(
            max_tokens=min(max_tokens, _MOST),
            temperature=temperature,
            top_p=1.0 if self.top_p is None else self.top_p or 1e-6,  # 0: only the most probable token
            top_k=min(max(self.top_k or 0, 0), _MOST),
            stop=self.stop,
            ignore_eos=self.ignore_eos and grammar is None,
            seed=None if self.seed is None or self.seed == -1 else self.seed % 2**63,
            n=n,
            logprobs=logprobs,
            repetition_penalty=1.0 if self.repetition_penalty is None else self.repetition_penalty,
            frequency_penalty=self.frequency_penalty or 0.0,
            presence_penalty=self.presence_penalty or 0.0,
            stop_at=self.stop_at,
            min_indent=self.min_indent,
            max_lines=self.max_lines,
            deadline_ms=self.deadline_ms,
            deadline_at=self.deadline_at,
            grammar=grammar,
        )

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
            sampling=params,
            session=self.session,
            priority=self.priority,
            postprocess=self.postprocess or None,
        )

    def prompt_request(self, text: str, params: SamplingParams, facts: Facts) -> CompletionRequest:
        """The request for a raw prompt: one with sentinels is taken apart and planned anew.

        Sentinels that tell of no known layout, and with `trust_prompts` all, go to the model as they are.
        """
        if not rawprompt.has_sentinels(text):
            return self.infill(text, None, params)
        parsed = None if facts.trust_prompts else rawprompt.parse(text)
        if parsed is None:
            return self.encoded(facts.tokenizer.encode_with_special(text), params)
        return _with_context(self.infill(parsed.prefix, parsed.suffix, params), parsed)

    def encoded(self, tokens: list[int], params: SamplingParams) -> CompletionRequest:
        """The request for a prompt that is tokens already."""
        return CompletionRequest(
            tokens=tuple(tokens), sampling=params, session=self.session, priority=self.priority
        )


def _with_context(request: CompletionRequest, parsed: CompletionRequest) -> CompletionRequest:
    """What the body says of path, repository and files goes before what its prompt says."""
    return replace(
        request,
        path=request.path or parsed.path,
        repo=request.repo or parsed.repo,
        extras=request.extras or parsed.extras,
    )


def at_most(count: int, what: str) -> None:
    """Raises: Refusal: more samples than one request may ask for."""
    if not 1 <= count <= MAX_SAMPLES:
        raise Refusal(f"{count} {what}; expected 1 to {MAX_SAMPLES}")
