"""Fits a request to the context: lowers `max_tokens` where prompt and completion would not fit together."""

from dataclasses import replace

from starcoder.errors import RequestError
from starcoder.prompts import Prompt, Vocabulary, build
from starcoder.request import CompletionRequest


def plan(request: CompletionRequest, vocabulary: Vocabulary, context: int) -> Prompt:
    """The prompt that the engine will run for `fitted(request, ...)`."""
    return build(request, vocabulary, budget=context - request.sampling.max_tokens)


def fitted(request: CompletionRequest, vocabulary: Vocabulary, context: int) -> CompletionRequest:
    """The same request with `max_tokens` lowered to what its prompt leaves; a quarter of the context stays.

    Editors ask for what suits their users' usual model; a smaller one should answer all the same.

    Raises:
        RequestError: the prompt cannot be cut and fills the context.
    """
    most = request.sampling.max_tokens
    if _upper_bound(request) + most <= context:
        return request
    num_prompt = len(request.tokens) if request.tokens is not None else 0
    if request.tokens is None:
        num_prompt = len(build(request, vocabulary, budget=context - 1).tokens)
    elif num_prompt >= context:
        raise RequestError(
            f"the prompt has {num_prompt} tokens, the context holds {context}",
            "shorten it, or use a model with a longer context",
        )
    least = 1 if request.tokens is not None else context // 4
    room = max(context - num_prompt, min(most, least))
    return replace(request, sampling=replace(request.sampling, max_tokens=min(most, room)))


def _upper_bound(request: CompletionRequest) -> int:
    """More tokens than the prompt can have: a token is a byte at least, a character four bytes at most."""
    if request.tokens is not None:
        return len(request.tokens)
    texts = [request.prefix, request.suffix or "", request.path or "", request.repo or ""]
    texts += [text for extra in request.extras for text in (extra.path, extra.text)]
    num_characters = sum(map(len, texts))
    if any(not text.isascii() for text in texts):
        num_characters *= 4
    return num_characters + 16 + 2 * len(request.extras)
