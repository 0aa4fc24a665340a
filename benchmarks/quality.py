"""What rounding weights costs, for each scheme, beside llama.cpp's: python benchmarks/quality.py

Two models: a trained one (--model, the bundled one if not given), whose loss is measured on Python it has
never seen, this repository's own sources; and a random one of 164M parameters, for sizes as they are used.
For each variant: mean loss (trained model only) and mean Kullback-Leibler divergence of its next-token
distribution from that of the float32 weights, both in nats.

`as run` is our int8 or int4 model as it serves: packed weights, activations rounded to 8 bits. `weights`
holds the same weights as floats in the float32 network. llama.cpp's Q8_0 and Q4_0 are stood in for: every
matrix is rounded by gguf's own `quants.quantize` and back, and runs in our float32 network, so what is
compared is the error of the weights exactly, without that of its arithmetic. Its Q4_0 files hold the
embedding in Q6_K, which gguf cannot write; Q8_0 stands for it, at more bits and with less error. So the
rows `weights of blocks` compare like with like: there tables and head are left as they are on both sides.
Prints one JSON line at the end. Needs the extra gguf.
"""

import argparse
import json
import os
import platform
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import gguf
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from starcoder import checkpoint
from starcoder.model import Transformer, causal
from starcoder.plan import KNOWN
from starcoder.quantize import Method, QuantizedEmbedding, QuantizedLinear, Scheme, quantize
from starcoder.tokenizer import Tokenizer

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results" / "quality.json"
SCHEMES: tuple[Scheme, ...] = ("int8", "int4")
Variant = tuple[str, Callable[[Transformer], tuple[Transformer, float]]]  # name -> model, bits per weight


def variants() -> Iterator[Variant]:
    for scheme in SCHEMES:
        yield f"{scheme}, as run", lambda model, scheme=scheme: ours(model, scheme)
        yield f"{scheme}, weights", lambda model, scheme=scheme: as_floats(*ours(model, scheme))
    yield "int4 nearest, weights", lambda model: as_floats(*ours(model, "int4", "nearest"))
    for name in ("Q8_0", "Q4_0"):
        yield f"llama.cpp {name}, weights", lambda model, name=name: theirs(model, name)
    for scheme in SCHEMES:
        yield f"{scheme}, weights of blocks", lambda model, scheme=scheme: our_blocks(model, scheme)
    for name in ("Q8_0", "Q4_0"):
        yield (
            f"llama.cpp {name}, weights of blocks",
            lambda model, name=name: theirs(model, name, blocks_only=True),
        )


def ours(model: Transformer, scheme: Scheme, method: Method = "search") -> tuple[Transformer, float]:
    """Our quantized model, and its bits per weight."""
    report = quantize(model, scheme, method=method)
    return model, report.bits_per_weight


def our_blocks(model: Transformer, scheme: Scheme) -> tuple[Transformer, float]:
    """The matrices of the blocks rounded, and their own bits per weight; tables and head as they were."""
    embed, positions, head = model.embed, model.positions, model.head
    layers = [layer for layer in quantize(model, scheme).layers if layer.name.startswith("blocks.")]
    as_floats(model, 0.0)
    model.embed, model.positions, model.head = embed, positions, head
    weights = sum(layer.columns * layer.inputs for layer in layers)
    return model, 8 * sum(layer.size_bytes for layer in layers) / weights


def as_floats(model: Transformer, bits: float) -> tuple[Transformer, float]:
    """The same weights in plain float32 layers."""
    for name, module in list(model.named_modules()):
        parent, _, attribute = name.rpartition(".")
        if isinstance(module, QuantizedLinear):
            plain: nn.Module = nn.Linear(module.in_features, module.out_features, device="meta")
            plain.weight = nn.Parameter(module.dequantized(), requires_grad=False)
            plain.register_parameter("bias", module.bias)
        elif isinstance(module, QuantizedEmbedding):
            plain = nn.Embedding.from_pretrained(module.dequantized())
        else:
            continue
        setattr(model.get_submodule(parent), attribute, plain)
    return model, bits


def theirs(model: Transformer, name: str, *, blocks_only: bool = False) -> tuple[Transformer, float]:
    """Matrices rounded as llama.cpp rounds them, and bits per weight: of the model, or of the blocks' own."""
    total = size_bytes = 0
    for full_name, parameter in model.named_parameters():
        is_rounded = parameter.dim() == 2 and not full_name.startswith("positions")
        if blocks_only and not (is_rounded and full_name.startswith("blocks.")):
            continue
        total += parameter.numel()
        if not is_rounded:
            size_bytes += parameter.nbytes
            continue
        is_table = full_name.startswith(("embed", "head"))
        kind = gguf.GGMLQuantizationType["Q8_0" if is_table else name]
        packed = gguf.quants.quantize(parameter.detach().numpy(), kind)
        parameter.data = torch.from_numpy(gguf.quants.dequantize(packed, kind))
        size_bytes += packed.nbytes
    return model, 8 * size_bytes / total


@torch.inference_mode()
def logits(model: Transformer, tokens_BT: Tensor) -> Tensor:
    positions_BT = torch.arange(tokens_BT.size(1)).expand_as(tokens_BT)
    out: Tensor = model.head(model(tokens_BT, positions_BT, causal(model.config.sliding_window)))
    return out


def measure(reference: Transformer, windows: list[Tensor], *, is_trained: bool) -> list[dict[str, Any]]:
    """A row for each variant, and first one for float32."""
    expected = [logits(reference, window).log_softmax(-1) for window in windows]

    def loss(log_probabilities: list[Tensor]) -> float:
        pairs = zip(log_probabilities, windows, strict=True)
        parts = [F.nll_loss(p[0, :-1], window[0, 1:]) for p, window in pairs]
        return float(torch.stack(parts).mean())

    baseline = loss(expected)
    rows = [{"variant": "float32", "bits_per_weight": 32.0, "kl": 0.0}]
    rows[0] |= {"loss": round(baseline, 5)} if is_trained else {}
    for name, make in variants():
        model, bits = make(deepcopy(reference))
        found = [logits(model, window).log_softmax(-1) for window in windows]
        pairs = zip(found, expected, strict=True)
        kl = torch.stack([F.kl_div(q[0], p[0], log_target=True, reduction="batchmean") for q, p in pairs])
        row = {"variant": name, "bits_per_weight": round(bits, 3), "kl": float(f"{kl.mean():.4g}")}
        if is_trained:
            row |= {"loss": round(loss(found), 5), "loss_more": round(loss(found) - baseline, 5)}
        rows.append(row)
        print(json.dumps(row), flush=True)
    return rows


def own_sources(tokenizer: Tokenizer, length: int, count: int) -> list[Tensor]:
    """Windows (1, length) from the beginnings of this package's files, the longest first."""
    texts = [path.read_text("utf-8") for path in (ROOT / "starcoder").rglob("*.py")]
    encoded = [tokenizer.encode(text) for text in sorted(texts, key=len, reverse=True)]
    return [torch.tensor([ids[:length]]) for ids in encoded if len(ids) >= length][:count]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=None)
    parser.add_argument("--windows", type=int, default=24)
    parser.add_argument("--random-windows", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    folder = checkpoint.resolve(options.model)
    trained = checkpoint.load(folder, dtype=torch.float32)
    length = min(1024, trained.config.max_positions)
    texts = own_sources(Tokenizer.load(folder), length, options.windows)
    report: dict[str, Any] = {
        "benchmark": "quality",
        "machine": {"cpu": platform.machine(), "num_cpus": os.cpu_count(), "torch": torch.__version__},
        "trained": {
            "model": folder.name,
            "num_parameters": trained.config.num_parameters,
            "tokens": length * len(texts),
            "rows": measure(trained, texts, is_trained=True),
        },
    }
    generator = torch.Generator().manual_seed(0)
    random = Transformer(KNOWN["bigcode/tiny_starcoder_py"])
    random.initialize(generator)
    noise = [torch.randint(49152, (1, 256), generator=generator) for _ in range(options.random_windows)]
    report["random"] = {
        "num_parameters": random.config.num_parameters,
        "tokens": 256 * len(noise),
        "rows": measure(random.eval(), noise, is_trained=False),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
