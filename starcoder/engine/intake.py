"""Intake: from a request to what the engine queues. Checked, planned in its session, its prompt built once.

Nothing here touches the network or the cache, so a server prepares requests outside the engine's thread.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from starcoder.engine.constraint import Grammars
from starcoder.engine.healing import Boundary, find_boundary
from starcoder.engine.sessions import SessionPlan, Sessions
from starcoder.errors import RequestError
from starcoder.prompts import Prompt, build
from starcoder.request import CompletionRequest

if TYPE_CHECKING:
    from starcoder.tokenizer import Tokenizer

# A prompt that is cut to fit leaves this share of the context to the completion.
_COMPLETION_SHARE = 4

# Tokens that are kept free for healing, in a context of 256 and more.
_HEALING_MARGIN = 16


@dataclass(frozen=True, slots=True)
class PreparedRequest:
    """A request that was checked, with the prompt that the model will see."""

    request: CompletionRequest  # as its sender has it, but for a lowered `max_tokens`
    plan: SessionPlan
    prompt: Prompt
    boundary: Boundary | None = None  # where the prompt is cut back to be healed; None: not at all

    @property
    def tokens(self) -> tuple[int, ...]:
        """What is computed before the first token is drawn."""
        return self.prompt.tokens if self.boundary is None else self.boundary.tokens

    @property
    def text_to_heal(self) -> bytes:
        """The end of the prompt that has to be generated again, at most a token for each byte."""
        return b"" if self.boundary is None else self.boundary.text


class Intake:
    """Prepares requests for one model. Its methods may be called from any thread."""

    def __init__(self, tokenizer: "Tokenizer", sessions: Sessions, *, context_length: int, vocab_size: int):
        self._tokenizer, self._sessions = tokenizer, sessions
        self._context_length, self._vocab_size = context_length, vocab_size
        self.grammars = Grammars(tokenizer)

    def prepare(self, request: CompletionRequest, *, fit: bool) -> PreparedRequest:
        """Check and plan a request and build its prompt.

        `fit` lowers `max_tokens` to what the prompt leaves of the context. A prompt that has to be cut then
        leaves a quarter of the context, or `max_tokens` if that is less.

        Raises:
            RequestError: an empty prompt, too many tokens, or a broken grammar.
            ConfigError: the request needs an extra that is not installed.
        """
        self.check(request, fit=fit)
        return self.build(request, self._sessions.plan(request), fit=fit)

    def check(self, request: CompletionRequest, *, fit: bool) -> None:
        """Raises: RequestError: no prompt could make the request fit."""
        length, max_tokens = self._context_length, request.sampling.max_tokens
        for token, _ in request.sampling.logit_bias:
            if not 0 <= token < self._vocab_size:
                raise RequestError(
                    f"logit_bias names token {token}, outside the vocabulary of {self._vocab_size}"
                )
        if not fit and max_tokens >= length:
            raise RequestError(
                f"max_tokens {max_tokens} leaves no prompt room in a context of {length}",
                f"ask for fewer than {length} tokens, prompt included",
            )
        if fit and request.tokens is not None and len(request.tokens) >= length:
            raise RequestError(
                f"the prompt has {len(request.tokens)} tokens, the context holds {length}",
                "shorten it, or use a model with a longer context",
            )

    def build(self, request: CompletionRequest, plan: SessionPlan, *, fit: bool = False) -> PreparedRequest:
        """The rest of `prepare`. Raises: RequestError, ConfigError: as `prepare`."""
        params, length = request.sampling, self._context_length
        if params.max_tokens == -1:
            params, fit = replace(params, max_tokens=length), True
        reserved = params.max_tokens
        if fit:
            least = 1 if request.tokens is not None else length // _COMPLETION_SHARE
            reserved = min(reserved, max(1, least))
        heals = request.heal and request.tokens is None
        # A text may take more tokens when it is generated again than its own.
        margin = min(_HEALING_MARGIN, length // 16) if heals else 0
        prompt = build(plan.request, self._tokenizer, budget=length - reserved - margin)
        if not all(0 <= token < self._vocab_size for token in prompt.tokens):
            raise RequestError(
                f"the prompt has a token outside the vocabulary of {self._vocab_size}",
                "is the tokenizer of the same checkpoint as the weights?",
            )
        if params.grammar is not None:
            self.grammars.constraint(params.grammar)  # its faults must show now
        boundary = find_boundary(prompt.tokens, prompt.num_open, self._tokenizer) if heals else None
        if boundary is not None and len(boundary.tokens) + len(boundary.text) + reserved > length:
            boundary = None
        prepared = PreparedRequest(request, plan, prompt, boundary)
        num_prompt = max(len(prompt.tokens), len(prepared.tokens) + len(prepared.text_to_heal))
        max_tokens = min(params.max_tokens, length - num_prompt)
        if max_tokens != request.sampling.max_tokens:
            request = replace(request, sampling=replace(params, max_tokens=max_tokens))
        return replace(prepared, request=request)
