"""How well a model predicts files: bits per byte, and perplexity per token.

Every token of a file is predicted from at least half a window of what stands before it, as far as there is
so much; the first one from the end-of-text token, which stood between documents in training. Bits per byte
do not depend on the tokenizer and so compare models; perplexity does.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from starcoder.errors import ConfigError
from starcoder.model import Transformer, causal
from starcoder.repos.walk import source_files

if TYPE_CHECKING:
    from starcoder.tokenizer import Tokenizer

WINDOW = 2048  # tokens, or the model's context if that is less
_ROWS = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class Surprise:
    """What a model's predictions of some text cost."""

    bits: float
    num_tokens: int
    num_bytes: int
    num_files: int

    @property
    def bits_per_byte(self) -> float:
        return self.bits / self.num_bytes

    @property
    def perplexity(self) -> float:
        """Two to the bits of a token."""
        return float(2 ** (self.bits / self.num_tokens))


def files(path: Path, *, suffixes: Sequence[str] = (".py",)) -> list[Path]:
    """A file, or the files of a folder with these suffixes, sorted.

    Raises:
        ConfigError: there are none.
    """
    if path.is_file():
        return [path]
    found = [file for file in source_files(path) if file.suffix in suffixes]
    if not found:
        raise ConfigError(
            f"{str(path)!r} has no files that end in {', '.join(suffixes)}",
            "--suffix names other ends of file names",
        )
    return found


def measure(
    model: Transformer, tokenizer: "Tokenizer", texts: Iterable[str], *, window: int | None = None
) -> Surprise:
    """Predict texts, each from its own start; empty ones are left out.

    Raises:
        ConfigError: a window of less than two tokens, or nothing to predict.
    """
    window = min(window or WINDOW, model.config.max_positions)
    if window < 2:
        raise ConfigError(f"window is {window}; expected at least 2")
    bits, num_tokens, num_bytes, num_files = 0.0, 0, 0, 0
    for text in texts:
        tokens = tokenizer.encode(text)
        if not tokens:
            continue
        bits += _nats(model, [tokenizer.sentinels.eos, *tokens], window) / math.log(2)
        num_tokens, num_bytes, num_files = (
            num_tokens + len(tokens),
            num_bytes + len(text.encode()),
            num_files + 1,
        )
    if not num_tokens:
        raise ConfigError("there is no text to predict", "--dataset takes a file or a folder with text in it")
    return Surprise(bits=bits, num_tokens=num_tokens, num_bytes=num_bytes, num_files=num_files)


@torch.inference_mode()
def _nats(model: Transformer, tokens: Sequence[int], window: int) -> float:
    """Of predicting all but the first, in windows that overlap by half."""
    device = model.norm.weight.device
    tokens_T = torch.tensor(tokens, device=device)
    total, known = 0.0, 1  # tokens before `known` are predicted, or the first
    while known < len(tokens):
        start = max(0, known - window // 2) if known > 1 else 0
        end = min(start + window, len(tokens) - 1)
        inputs_BT = tokens_T[None, start:end]
        positions_BT = torch.arange(end - start, device=device)[None]
        hidden_BTD = model(inputs_BT, positions_BT, causal(model.config.sliding_window))
        wanted_T = tokens_T[known : end + 1]
        # A row of logits has 49k columns: a few rows at a time.
        hidden_TD = hidden_BTD[0, known - 1 - start :]
        for row in range(0, len(wanted_T), _ROWS):
            logits_TV = model.head(hidden_TD[row : row + _ROWS]).float()
            total += F.cross_entropy(logits_TV, wanted_T[row : row + _ROWS], reduction="sum").item()
        known = end + 1
    return total
