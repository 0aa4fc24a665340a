"""`/v1/fim/render`: the prompt that a completion request would run, without running it."""

from starcoder.server import openai, tabby
from starcoder.server.exchange import Facts, Json, Refusal
from starcoder.server.fitting import fitted, plan
from starcoder.server.worker import Worker


async def render(data: object, facts: Facts, worker: Worker) -> Json:
    """Text, ids, budget and cache hit of the first prompt of a `/v1/completions` body, Tabby's included.

    Raises:
        StarcoderError: what the completion would be refused for.
    """
    is_tabby = isinstance(data, dict) and "segments" in data
    exchange = tabby.read_completion(data, facts) if is_tabby else openai.read_completion(data, facts)
    if not exchange.requests:
        raise Refusal("there is no prompt to render")
    request = fitted(exchange.requests[0], facts.tokenizer, facts.context_length)
    prompt = plan(request, facts.tokenizer, facts.context_length)
    cached = await worker.call(lambda engine: engine.cached_tokens(prompt.tokens))
    return {
        "text": facts.tokenizer.decode(prompt.tokens),
        "tokens": list(prompt.tokens),
        "layout": prompt.layout,
        "prompt_tokens": len(prompt.tokens),
        "cached_tokens": cached,
        "max_tokens": request.sampling.max_tokens,
        "context_length": facts.context_length,
        "budget": facts.context_length - request.sampling.max_tokens,
        "dropped_characters": {
            "context": prompt.dropped.context,
            "prefix": prompt.dropped.prefix,
            "suffix": prompt.dropped.suffix,
        },
    }
