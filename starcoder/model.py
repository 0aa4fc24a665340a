"""The network: one `Transformer` for GPTBigCode (SantaCoder, StarCoder, StarChat), Starcoder2, Llama's shape.

It knows nothing of caches, batches or phases: it calls `attend` once per layer.

Shapes, everywhere in this package:
    B sequences   T new tokens   S tokens attended to   D hidden   F feed-forward   V vocabulary
    N query heads   K key/value heads   H head size
"""

import inspect
import math
from collections.abc import Callable, Sequence
from functools import cache, partial
from itertools import accumulate
from typing import Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from starcoder.config import Activation, ModelConfig, RotaryScaling


class Attend(Protocol):
    """How one layer's queries meet keys and values, past and present.

    Training passes `causal` or `documents`; the engine passes a cache that stores the new keys and
    values first. Returns (B, T, N, H).
    """

    def __call__(self, layer: int, q_BTNH: Tensor, k_BTKH: Tensor, v_BTKH: Tensor) -> Tensor: ...


def causal(window: int | None = None) -> Attend:
    """Plain causal attention over the tokens given; `window` limits how many a query sees."""

    def attend(layer: int, q_BTNH: Tensor, k_BTKH: Tensor, v_BTKH: Tensor) -> Tensor:
        return causal_attention(q_BTNH, k_BTKH, v_BTKH, window)

    return attend


def documents(lengths: Sequence[Sequence[int]], window: int | None = None) -> Attend:
    """Causal attention inside each document of a packed batch, never across.

    `lengths[row]` are the document lengths of that row, in order; they add up to T. One call for all of them
    where `takes_varlen`, else one for each; no square mask.
    """
    flat = [length for row in lengths for length in row]
    longest = max(flat, default=0)

    @cache
    def starts_on(device: torch.device) -> Tensor:
        return torch.tensor(list(accumulate(flat, initial=0)), dtype=torch.int32, device=device)

    def attend(layer: int, q_BTNH: Tensor, k_BTKH: Tensor, v_BTKH: Tensor) -> Tensor:
        varlen = _varlen(v_BTKH)
        if varlen is None:
            return _each_document(q_BTNH, k_BTKH, v_BTKH, lengths, window)
        # Under autocast rotation gives queries and keys in float32.
        q, k, v = (x.to(v_BTKH.dtype).flatten(0, 1) for x in (q_BTNH, k_BTKH, v_BTKH))
        starts, left = starts_on(v.device), -1 if window is None else window - 1
        out = varlen(q, k, v, starts, starts, longest, longest, window_size=(left, 0), enable_gqa=True)
        return out.view(q_BTNH.shape)

    return attend


def _each_document(
    q_BTNH: Tensor, k_BTKH: Tensor, v_BTKH: Tensor, lengths: Sequence[Sequence[int]], window: int | None
) -> Tensor:
    rows = []
    for row, row_lengths in enumerate(lengths):
        inputs = (x[row : row + 1] for x in (q_BTNH, k_BTKH, v_BTKH))
        parts = zip(*(torch.split(x, list(row_lengths), dim=1) for x in inputs), strict=True)
        rows.append(torch.cat([causal_attention(q, k, v, window) for q, k, v in parts], dim=1))
    return torch.cat(rows)


def takes_varlen(device_type: str, capability: tuple[int, int], dtype: torch.dtype, head_size: int) -> bool:
    """Whether torch's attention over documents of several lengths runs: FlashAttention on Ampere and later.

    Its backward pass takes larger heads on some devices only; this family's have 128 at most.
    """
    is_half = dtype in (torch.bfloat16, torch.float16)
    return (
        device_type == "cuda" and capability >= (8, 0) and is_half and head_size % 8 == 0 and head_size <= 128
    )


class _Varlen(Protocol):
    """`torch.nn.attention.varlen.varlen_attn`, as much as is used of it."""

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cu_seq_q: Tensor,
        cu_seq_k: Tensor,
        max_q: int,
        max_k: int,
        *,
        window_size: tuple[int, int],
        enable_gqa: bool,
    ) -> Tensor: ...


def _varlen(v_BTKH: Tensor) -> _Varlen | None:
    """Torch's function where it can be used for such values."""
    if v_BTKH.device.type != "cuda":
        return None
    capability = torch.cuda.get_device_capability(v_BTKH.device)
    if not takes_varlen("cuda", capability, v_BTKH.dtype, v_BTKH.size(-1)):
        return None
    return _torch_varlen()


@cache
def _torch_varlen() -> _Varlen | None:
    """None: this torch has none, has no kernel for it, or has one that knows no window or shared heads."""
    if torch.version.cuda is None or not torch.backends.cuda.is_flash_attention_available():
        return None
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    is_supported = {"window_size", "enable_gqa"} <= inspect.signature(varlen_attn).parameters.keys()
    return cast(_Varlen, varlen_attn) if is_supported else None


def causal_attention(q_BTNH: Tensor, k_BTKH: Tensor, v_BTKH: Tensor, window: int | None = None) -> Tensor:
    """Softmax attention of every position over itself and those before it; (B, T, N, H)."""
    q, k, v = (x.transpose(1, 2) for x in (q_BTNH, k_BTKH, v_BTKH))
    T = q.size(2)
    mask = None
    if window is not None and window < T:
        mask = torch.ones(T, T, dtype=torch.bool, device=q.device).tril().triu(1 - window)
    gqa = q.size(1) != k.size(1)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=gqa)
    return out.transpose(1, 2)


class Attention(nn.Module):
    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.layer, self.config = layer, config
        self.qkv = nn.Linear(config.hidden_size, config.qkv_size, bias=config.has_qkv_bias)
        self.out = nn.Linear(config.attention_size, config.hidden_size, bias=config.has_out_bias)
        self.q_norm = self.k_norm = None
        if config.has_qk_norm:
            self.q_norm, self.k_norm = (_norm(config, config.head_size) for _ in range(2))

    def forward(self, x_BTD: Tensor, rotary: tuple[Tensor, Tensor] | None, attend: Attend) -> Tensor:
        N, K, H = self.config.num_heads, self.config.num_kv_heads, self.config.head_size
        q, k, v = self.qkv(x_BTD).unflatten(-1, (N + 2 * K, H)).split([N, K, K], dim=2)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if rotary is not None:
            q, k = _rotate(q, *rotary), _rotate(k, *rotary)
        out: Tensor = self.out(attend(self.layer, q, k, v).flatten(2))
        return out


class FeedForward(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self._activation, self._is_gated = _ACTIVATIONS[config.activation], config.is_gated
        # Where it is gated, the gate's rows come first.
        self.up = nn.Linear(config.hidden_size, config.up_size, bias=config.has_mlp_bias)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.has_mlp_bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        out: Tensor = self.down(self.activate(self.up(x_BTD)))
        return out

    def activate(self, up: Tensor) -> Tensor:
        """What `down` gets of the outputs of `up`."""
        if not self._is_gated:
            return self._activation(up)
        gate, up = up.chunk(2, dim=-1)
        return self._activation(gate) * up


_ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "gelu": F.gelu,
    "silu": F.silu,
}


def _norm(config: ModelConfig, size: int) -> nn.LayerNorm | nn.RMSNorm:
    kind = nn.RMSNorm if config.has_rms_norm else nn.LayerNorm
    return kind(size, eps=config.norm_eps)


class Block(nn.Module):
    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.norm1 = _norm(config, config.hidden_size)
        self.attention = Attention(config, layer)
        self.norm2 = _norm(config, config.hidden_size)
        self.feed_forward = FeedForward(config)

    def forward(self, x_BTD: Tensor, rotary: tuple[Tensor, Tensor] | None, attend: Attend) -> Tensor:
        x_BTD = x_BTD + self.attention(self.norm1(x_BTD), rotary, attend)
        out: Tensor = x_BTD + self.feed_forward(self.norm2(x_BTD))
        return out


class Transformer(nn.Module):
    """Embedding, blocks and last norm; `head` turns the hidden states you need into logits.

    Made with placeholder weights: `initialize` gives it random ones, `checkpoint.load` those of a file.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.embed = _table(config.vocab_size, config.hidden_size)
        self.positions = None if config.rope_theta else _table(config.max_positions, config.hidden_size)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        self.norm = _norm(config, config.hidden_size)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.is_recomputed = False  # training: forget what is inside blocks, compute it again for gradients
        self.tie()

    def tie(self) -> None:
        """Share the embedding with the head where the config says so (again after loading by assignment)."""
        if self.config.tied_embeddings:
            self.head.weight = self.embed.weight

    def forward(self, tokens_BT: Tensor, positions_BT: Tensor, attend: Attend) -> Tensor:
        """Hidden states (B, T, D) after the last norm."""
        x_BTD: Tensor = self.embed(tokens_BT)
        rotary = None
        if self.positions is not None:
            x_BTD = x_BTD + self.positions(positions_BT)
        else:
            rotary = _rotary(self.config, positions_BT, x_BTD.dtype)
        for block in self.blocks:
            if self.is_recomputed and torch.is_grad_enabled():
                x_BTD = checkpoint(block, x_BTD, rotary, attend, use_reentrant=False)
            else:
                x_BTD = block(x_BTD, rotary, attend)
        out: Tensor = self.norm(x_BTD)
        return out

    @torch.no_grad()
    def initialize(self, generator: torch.Generator, std: float = 0.02) -> None:
        """Random weights: normal, residual outputs scaled by 1/sqrt(2 L). Source: GPT-2, Radford 2019."""
        residual = std / (2 * self.config.num_layers) ** 0.5
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                scale = residual if name.endswith(("attention.out.weight", "down.weight")) else std
                parameter.normal_(0.0, scale, generator=generator)
            else:
                parameter.fill_(1.0 if name.endswith("weight") else 0.0)


def rotary_frequencies(config: ModelConfig, device: torch.device | None = None) -> Tensor:
    """Angle of one position for each pair of a head's values: (H / 2,) float32, scaled for longer texts.

    Source: Su et al. 2021, arXiv:2104.09864; scalings: transformers `modeling_rope_utils.py`.
    """
    assert config.rope_theta is not None, "called for rotary models only"
    H, scaling = config.head_size, config.rope_scaling
    exponents = torch.arange(0, H, 2, device=device, dtype=torch.float32) / H
    frequencies = 1.0 / (config.rope_theta**exponents)
    if scaling is None:
        return frequencies
    if scaling.kind == "linear":
        return frequencies / scaling.factor
    kept = _kept_llama3(frequencies, scaling) if scaling.kind == "llama3" else _kept_yarn(config, scaling)
    return frequencies / scaling.factor * (1 - kept) + frequencies * kept


def _kept_llama3(frequencies: Tensor, scaling: RotaryScaling) -> Tensor:
    """How much of each frequency stays: all of the fast ones. Source: meta-llama/llama-models `model.py`."""
    turns = scaling.original_positions * frequencies / (2 * math.pi)
    return ((turns - scaling.low) / (scaling.high - scaling.low)).clamp(0, 1)


def _kept_yarn(config: ModelConfig, scaling: RotaryScaling) -> Tensor:
    """The same for YaRN, along the dimensions. Source: Peng et al. 2023, arXiv:2309.00071, section 3.2."""
    H, theta = config.head_size, config.rope_theta
    assert theta is not None, "called for rotary models only"

    def dimension(turns: float) -> float:
        length = scaling.original_positions / (turns * 2 * math.pi)
        return H * math.log(length) / (2 * math.log(theta))

    low, high = dimension(scaling.high), dimension(scaling.low)
    if scaling.is_truncated:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, H - 1)
    ramp = (torch.arange(H // 2, dtype=torch.float32) - low) / (high - low or 0.001)
    return 1 - ramp.clamp(0, 1)


def _rotary(config: ModelConfig, positions_BT: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines (B, T, 1, H), half-split."""
    frequencies = rotary_frequencies(config, positions_BT.device)
    angles = (positions_BT[..., None].float() * frequencies).repeat(1, 1, 2)[:, :, None]
    scale = config.rope_scaling.attention_factor if config.rope_scaling else 1.0
    return (angles.cos() * scale).to(dtype), (angles.sin() * scale).to(dtype)


def _table(num_rows: int, width: int) -> nn.Embedding:
    # nn.Embedding's own start draws normal numbers; on the meta device that first imports 800 modules
    # of torch (2 s, 72 MB measured), which every load would pay.
    zeros = torch.zeros(num_rows, width)
    table: nn.Embedding = nn.Embedding.from_pretrained(zeros, freeze=False)  # type: ignore[no-untyped-call]
    return table


def _rotate(x_BTNH: Tensor, cos_BT1H: Tensor, sin_BT1H: Tensor) -> Tensor:
    left, right = x_BTNH.chunk(2, dim=-1)
    return x_BTNH * cos_BT1H + torch.cat([-right, left], dim=-1) * sin_BT1H
