"""Small random models, a tokenizer of letters and a reference without a cache, for the engine's tests."""

from collections.abc import Sequence

import torch

from starcoder.config import ModelConfig
from starcoder.engine.cache import bytes_per_token
from starcoder.engine.engine import Engine
from starcoder.engine.settings import EngineSettings
from starcoder.layouts import Sentinels
from starcoder.model import Transformer, causal
from starcoder.request import CompletionRequest, SamplingParams
from starcoder.tokenizer import TokenIndex

VOCAB = 97

# What the engine must tell apart: one, some or all key/value heads, learned or rotary positions, a window.
VARIANTS: dict[str, dict[str, float | int | None]] = {
    "multi-query": {"num_kv_heads": 1},
    "multi-head": {"num_kv_heads": 4},
    "grouped-rotary": {"num_kv_heads": 2, "rope_theta": 1e4},
    "window": {"num_kv_heads": 2, "rope_theta": 1e4, "sliding_window": 9},
}


def make_model(variant: str = "multi-query", *, seed: int = 0) -> Transformer:
    shape = {
        "num_layers": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 4,
        "max_positions": 128,
    }
    config = ModelConfig(family="gpt_bigcode", vocab_size=VOCAB, **shape, **VARIANTS[variant])
    model = Transformer(config)
    # Weights large enough that greedy tokens differ from prompt to prompt.
    model.initialize(torch.Generator().manual_seed(seed), std=0.4)
    return model.eval()


class LetterStream:
    def push(self, token: int, skip: int = 0) -> str:
        return Letters.text(token)[skip:]

    def flush(self) -> str:
        return ""


class Letters:
    """A tokenizer whose every token is one printable character; token 0 ends the text."""

    sentinels = Sentinels(style="starcoder", eos=0, end_ids=frozenset({0}))
    vocab_size = VOCAB

    @staticmethod
    def text(token: int) -> str:
        return "\n" if token == 96 else chr(31 + token)

    def encode(self, text: str) -> list[int]:
        return [96 if char == "\n" else ord(char) - 31 for char in text]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(map(self.text, ids))

    def token_text(self, token: int, skip: int = 0) -> str:
        return self.text(token)[skip:]

    def token_bytes(self, token: int) -> bytes:
        return self.text(token).encode()

    @property
    def index(self) -> TokenIndex:
        return TokenIndex({token: self.token_bytes(token) for token in range(1, VOCAB)})

    def pieces(self, text: str) -> list[int]:
        return [1] * len(text)

    def stream(self) -> LetterStream:
        return LetterStream()


def make_engine(
    model: Transformer, *, num_blocks: int = 256, block_size: int = 4, clock=None, **settings
) -> Engine:
    cache_bytes = num_blocks * block_size * bytes_per_token(model.config, torch.float32)
    chosen = EngineSettings(block_size=block_size, cache_bytes=cache_bytes, **settings)
    return Engine(model, Letters(), settings=chosen, **({"clock": clock} if clock else {}))


def ask(
    tokens: Sequence[int], *, priority: int = 0, session: str | None = None, **sampling
) -> CompletionRequest:
    """A request of ready tokens; 12 of them come back unless told otherwise, whatever they are."""
    params = SamplingParams(**{"max_tokens": 12, "ignore_eos": True} | sampling)
    return CompletionRequest(tokens=tuple(tokens), sampling=params, priority=priority, session=session)


@torch.inference_mode()
def whole_logits(model: Transformer, tokens: Sequence[int]) -> torch.Tensor:
    """Logits (T, V) of one plain forward pass."""
    positions = torch.arange(len(tokens))[None]
    hidden = model(torch.tensor([list(tokens)]), positions, causal(model.config.sliding_window))
    return model.head(hidden[0])


def greedy(model: Transformer, tokens: Sequence[int], length: int = 12) -> tuple[int, ...]:
    """Greedy tokens, each from a whole forward pass over everything before it."""
    text = list(tokens)
    for _ in range(length):
        text.append(int(whole_logits(model, text)[-1].argmax()))
    return tuple(text[len(tokens) :])
