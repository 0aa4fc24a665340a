"""Adapters merged into the model that they were trained on: a checkpoint folder that stands alone.

The base is taken as it is stored, never quantized, and keeps its dtype. What comes out is compared with the
base and its adapters before the folder appears.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from starcoder.checkpoint.adapter import load_adapter
from starcoder.checkpoint.files import scheme_of
from starcoder.checkpoint.hub import BUNDLED, resolve, resolve_adapter
from starcoder.checkpoint.reader import load, unmergeable
from starcoder.checkpoint.writer import require_free, save
from starcoder.errors import CheckpointError, ConfigError
from starcoder.files import copy_model_files, read_json, replace_atomically
from starcoder.model import Transformer, causal

_CHECKED_TOKENS = 64
# Of an adapter's config, on the card.
_TOLD = (
    *("peft_type", "r", "lora_alpha", "lora_dropout", "use_dora", "use_rslora", "target_modules"),
    "trainable_token_indices",
)
# Of the largest logit: what rounding of sums costs in each dtype.
_TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.02}


@dataclass(frozen=True, slots=True)
class MergeReport:
    """What was merged, and how far it is from the model with its adapters beside it."""

    output: str
    base: str
    adapters: tuple[tuple[str, float], ...]  # with their weights
    dtype: str
    num_parameters: int
    logit_difference: float  # the largest over some tokens
    largest_logit: float


def merge_folder(
    adapters: Sequence[tuple[str | Path, float]], output: Path, *, base: str | Path | None = None
) -> MergeReport:
    """Write base and adapters as one checkpoint to `output`, which appears when it is whole, or not at all.

    `base` None is the model that the adapters name. Tokenizer and templates are the last adapter's that has
    them, else the base's.

    Raises:
        CheckpointError: a file is missing or broken, an adapter is of another model, or merging loses
            too much.
        ConfigError: the base is quantized or not known, several adapters are not plain LoRA, or there is
            something at `output`.
    """
    assert adapters, "callers require one"
    require_free(output)
    folders = [resolve_adapter(adapter) for adapter, _ in adapters]
    name = _base_of(folders) if base is None else str(base)
    base_folder = resolve(name)
    if (stored := scheme_of(base_folder)) is not None:
        raise unmergeable(name, stored)
    _require_same(folders, name, base_folder)
    network = load(base_folder)
    difference, largest = 0.0, 0.0
    for folder, (_, weight) in zip(folders, adapters, strict=True):
        lost, peak = _merge(network, folder, weight, is_alone=len(adapters) == 1)
        difference, largest = max(difference, lost), max(largest, peak)
    texts = next((f for f in reversed(folders) if (f / "tokenizer.json").is_file()), base_folder)
    dtype = network.norm.weight.dtype
    report = MergeReport(
        output=str(output),
        base=name if name != str(BUNDLED) else "starcoder-nano",
        adapters=tuple((str(adapter), weight) for adapter, weight in adapters),
        dtype=str(dtype).removeprefix("torch."),
        num_parameters=network.config.num_parameters,
        logit_difference=difference,
        largest_logit=largest,
    )
    if difference > _TOLERANCES[dtype] * max(1.0, largest):
        raise CheckpointError(
            f"merged in {report.dtype}, logits differ by {difference:.2g} of {largest:.2g}",
            "is the adapter damaged, or trained on other weights?",
        )
    _write(network, output, base_folder, texts, _card(report, folders))
    return report


def _base_of(folders: Sequence[Path]) -> str:
    named = {_named_base(folder) for folder in folders}
    if len(named) > 1:
        raise CheckpointError(
            f"the adapters are of different models: {', '.join(sorted(map(str, named)))}",
            "merge adapters of one model",
        )
    (name,) = named
    if not name:
        raise ConfigError("the adapter does not say which model it is of", "name it with --model")
    return name


def _named_base(folder: Path) -> str | None:
    path = folder / "adapter_config.json"
    if not path.is_file():
        raise CheckpointError(
            f"'{folder}' has no adapter_config.json, so it is not an adapter",
            "a model that was fine-tuned in full needs no merging",
        )
    name = read_json(path).get("base_model_name_or_path")
    return name if isinstance(name, str) else None


def _require_same(folders: Sequence[Path], name: str, base: Path) -> None:
    """That the adapters name this base, if they name one; folders may have moved, hub ids do not."""
    for folder in folders:
        named = _named_base(folder)
        if named and named != name and not Path(named).exists() and not Path(name).exists():
            raise CheckpointError(f"'{folder}' is an adapter of {named}, not of {name}", f"--model {named}")
        if named and Path(named).is_dir() and Path(named).resolve() != base.resolve():
            raise CheckpointError(
                f"'{folder}' is an adapter of '{named}', not of '{name}'", f"--model {named}"
            )


def _merge(network: Transformer, folder: Path, weight: float, *, is_alone: bool) -> tuple[float, float]:
    """Merge one adapter; the largest difference of logits, and the largest logit."""
    adapter = load_adapter(network, folder)
    if not is_alone or weight != 1.0:
        adapter.weigh(weight)
    expected = _logits(network)
    adapter.merge()
    return float((_logits(network) - expected).abs().max()), float(expected.abs().max())


@torch.no_grad()
def _logits(network: Transformer) -> Tensor:
    """Of some tokens, the same at every call."""
    generator = torch.Generator().manual_seed(0)
    length = min(_CHECKED_TOKENS, network.config.max_positions)
    tokens = torch.randint(0, network.config.vocab_size, (1, length), generator=generator)
    hidden = network(tokens, torch.arange(length)[None], causal(network.config.sliding_window))
    out: Tensor = network.head(hidden).float()
    return out


def _write(network: Transformer, output: Path, base: Path, texts: Path, card: str) -> None:
    with replace_atomically(output) as part:
        save(network, part, extra_config=read_json(base / "config.json"))
        # The base's first: an adapter may hold some of these files only.
        for source in dict.fromkeys((base, texts)):
            copy_model_files(source, part)
        (part / "README.md").write_text(card, "utf-8")
        require_free(output)


def _card(report: MergeReport, folders: Sequence[Path]) -> str:
    """The model card: from what, by which recipe and on which data it was made."""
    is_id = not Path(report.base).is_dir() and "/" in report.base
    lines = [
        "---",
        *([f"base_model: {report.base}"] if is_id else []),
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "tags: [code, starcoder]",
        "---",
        "",
        f"# {Path(report.output).name}",
        "",
        f"{Path(report.base).name if not is_id else report.base} with {_listed(report, folders)}, merged in "
        f"{report.dtype} by starcoder.",
        "",
        f"Logits of {_CHECKED_TOKENS} tokens differ by at most {report.logit_difference:.2g} from those with "
        f"the adapter beside the model; the largest is {report.largest_logit:.3g}.",
    ]
    for folder in folders:
        config = read_json(folder / "adapter_config.json")
        adapter = {word: config[word] for word in _TOLD if config.get(word)}
        lines += ["", f"## {folder.name}", "", "```json", json.dumps(adapter, indent=1), "```"]
        if (folder / "recipe.json").is_file():
            recipe = read_json(folder / "recipe.json")
            source = recipe.get("source")
            data = source.get("data") if isinstance(source, dict) else None
            lines += ["", f"Trained on {data}.", "", "```json", json.dumps(recipe, indent=1), "```"]
    return "\n".join([*lines, ""])


def _listed(report: MergeReport, folders: Sequence[Path]) -> str:
    weighted = [(folder.name, weight) for folder, (_, weight) in zip(folders, report.adapters, strict=True)]
    names = [name if weight == 1 else f"{weight:g} times {name}" for name, weight in weighted]
    return f"the adapter{'s' if names[1:] else ''} {' and '.join(names)}"
