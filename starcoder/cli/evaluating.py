"""What `starcoder evaluate` needs to run: models one at a time, progress, its folder, bits per byte."""

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self, cast

from starcoder.cli.table import aligned
from starcoder.errors import ConfigError
from starcoder.evaluate.settings import EvaluateSettings
from starcoder.files import write_whole

if TYPE_CHECKING:
    from starcoder.engine.local import Model
    from starcoder.evaluate.recipes import Recipe
    from starcoder.evaluate.results import About
    from starcoder.model import Transformer
    from starcoder.request import Chunk, CompletionRequest, Generator
    from starcoder.tokenizer import Tokenizer

_Scheme = Literal["int8", "int4"]


@dataclass(frozen=True, slots=True)
class Variant:
    """A model as it is measured: which, with which adapter, quantized how."""

    model: str | None
    adapter: str | None = None
    quantize: _Scheme | None = None

    @property
    def name(self) -> str:
        return self.adapter or self.model or "nano"

    @property
    def label(self) -> str:
        return f"{self.name}, {self.quantize}" if self.quantize else self.name


class Models:
    """Loads models when they are first asked, and holds one at a time."""

    def __init__(self, settings: EvaluateSettings):
        self._settings = settings
        self._loaded: tuple[Variant, Model] | None = None

    def variants(self) -> list[Variant]:
        """All that are to be measured.

        Raises:
            ConfigError: a scheme that is not known.
        """
        settings = self._settings
        if settings.endpoint is not None or settings.samples is not None:
            return [Variant(settings.model or str(settings.endpoint or settings.samples))]
        schemes: list[_Scheme | None] = []
        for name in settings.quantize.split(","):
            if name not in ("none", "int8", "int4"):
                raise ConfigError(
                    f"quantize is {name!r}; expected none, int8 or int4", "separate several by commas"
                )
            schemes.append(None if name == "none" else cast("_Scheme", name))
        compare = settings.compare
        bases: list[tuple[str | None, str | None]] = [(settings.model, None)]
        if compare is not None:
            is_adapter = (Path(compare).expanduser() / "adapter_config.json").exists()
            bases.append((settings.model, compare) if is_adapter else (compare, None))
        return [Variant(model, adapter, scheme) for model, adapter in bases for scheme in schemes]

    def dtype(self, recipe: "Recipe") -> str:
        """The data type of the weights, as far as it is known."""
        settings = self._settings
        if settings.endpoint is not None or settings.samples is not None:
            return "unknown"
        if settings.dtype or recipe.dtype:
            return settings.dtype or str(recipe.dtype)
        from starcoder import devices  # imports torch

        return "float32" if devices.choose_device(settings.device).device.type == "cpu" else "as stored"

    def generator(self, variant: Variant, recipe: "Recipe") -> "Generator":
        """What answers for a variant. Nothing is loaded before it is asked."""
        settings = self._settings
        if settings.endpoint is not None:
            from starcoder.evaluate.client import Endpoint

            endpoint = Endpoint(
                url=settings.endpoint,
                model=settings.model or "",
                api_key=os.environ.get("OPENAI_API_KEY", ""),
                concurrency=settings.concurrency,
                cut=_cut,
            )
            return endpoint.named()
        return _Lazy(self, variant, recipe.dtype)

    def load(self, variant: Variant, dtype: str | None = None) -> "Model":
        """The model of a variant; the one before is dropped first."""
        if self._loaded is None or self._loaded[0] != variant:
            self._loaded = None
            self._loaded = variant, _load(self._settings, variant, dtype)
        return self._loaded[1]


class _Lazy:
    """A generator that loads its model at its first request: a finished run needs none."""

    def __init__(self, models: Models, variant: Variant, dtype: str | None):
        self._models, self._variant, self._dtype = models, variant, dtype

    def generate(self, requests: Sequence["CompletionRequest"]) -> Iterator["Chunk"]:
        return self._models.load(self._variant, self._dtype).generate(requests)


class _Whole:
    """A decoder of one token, which is a whole answer."""

    def __init__(self, text: str):
        self._text = text

    def push(self, token: int, skip: int = 0) -> str:
        return self._text[skip:]

    def flush(self) -> str:
        return ""


def _cut(request: "CompletionRequest", text: str) -> str:
    """The text up to where this package's engine would have ended it."""
    from starcoder.engine.stopping import CursorContext, Stopper

    sampling = replace(request.sampling, max_tokens=2, stop_ids=())
    cursor = CursorContext(before=request.prefix, after=request.suffix)
    stopper = Stopper(sampling, _Whole(text), cursor=cursor)
    first = stopper.push(0)
    return first.text if first.finish_reason is not None else first.text + stopper.end("length")


def _load(settings: EvaluateSettings, variant: Variant, dtype: str | None) -> "Model":
    from starcoder.engine import local

    load = local.load if variant.adapter is None else partial(local.load, adapter=variant.adapter)
    return load(
        variant.model,
        device=settings.device,
        dtype=settings.dtype or dtype,
        quantize=variant.quantize,
        threads=settings.threads,
    )


class ProgressBar:
    """How far a task is, on stderr where that is a terminal."""

    def __init__(self, label: str):
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        console = Console(stderr=True)
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        self._bar = Bar(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._row = self._bar.add_task(label, total=None)

    def __call__(self, done: int, total: int, label: str | None = None) -> None:
        self._bar.update(self._row, completed=done, total=total, description=label)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()


def begin(output: Path | None, about: "About") -> Path | None:
    """The file of samples of a run, new or to go on with; None without a folder.

    Raises:
        ConfigError: the folder has the samples of another run under this name.
    """
    if output is None:
        return None
    name = "-".join(
        re.sub(r"[^\w.-]+", "-", part).strip("-")
        for part in (about.task, about.model, about.quantize)
        if part != "none"
    )
    samples, mark = output / f"{name}.samples.jsonl", output / f"{name}.run.json"
    output.mkdir(parents=True, exist_ok=True)
    if mark.exists():
        found = json.loads(mark.read_text("utf-8")).get("fingerprint")
        if found != about.fingerprint:
            raise ConfigError(
                f"{str(samples)!r} belongs to a run with other options",
                "give another --output, or delete the file to start again",
            )
    elif samples.exists():
        raise ConfigError(f"{str(samples)!r} belongs to no run", "give another --output")
    write_whole(mark, json.dumps({"fingerprint": about.fingerprint, **_flat(about)}, indent=2) + "\n")
    return samples


def _flat(about: "About") -> dict[str, object]:
    return asdict(about) | {"recipe": about.recipe.name, "recipe_hash": about.recipe.hash}


def perplexity(settings: EvaluateSettings, models: Models, *, as_json: bool) -> None:
    """Print what every model's predictions of the user's files cost.

    Raises:
        ConfigError: no files, or a server, which does not tell enough.
    """
    from starcoder.evaluate import perplexity as measuring
    from starcoder.evaluate.recipes import named

    if settings.dataset is None or settings.endpoint is not None or settings.samples is not None:
        raise ConfigError(
            "perplexity predicts files with a model of this machine", "name them with --dataset PATH"
        )
    files = measuring.files(settings.dataset, suffixes=settings.suffix)[: settings.limit]
    texts = [file.read_text("utf-8", errors="replace") for file in files]
    rows: list[tuple[str, ...]] = [("model", "bits per byte", "perplexity", "tokens", "bytes", "files")]
    documents: list[dict[str, object]] = []
    for variant in models.variants():
        found = measuring.measure(*_network(settings, variant), texts)
        bits, ppl = found.bits_per_byte, found.perplexity
        counts = [f"{number:,}" for number in (found.num_tokens, found.num_bytes, found.num_files)]
        rows.append((variant.label, f"{bits:.4f}", f"{ppl:.3f}", *counts))
        documents.append(
            {
                "task": "perplexity",
                "model": variant.name,
                "quantize": variant.quantize or "none",
                "dtype": models.dtype(named(settings.ask.recipe)),
                "bits_per_byte": round(bits, 6),
                "perplexity": round(ppl, 6),
                "num_tokens": found.num_tokens,
                "num_bytes": found.num_bytes,
                "num_files": found.num_files,
            }
        )
    print(json.dumps({"results": documents, "differences": []}) if as_json else aligned(rows))


def _network(settings: EvaluateSettings, variant: Variant) -> tuple["Transformer", "Tokenizer"]:
    """The network of a variant and its tokenizer, without an engine."""
    import torch

    from starcoder import checkpoint, devices
    from starcoder.tokenizer import Tokenizer

    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    device = devices.choose_device(settings.device).device
    name = settings.dtype or ("float32" if device.type == "cpu" else None)
    folder = checkpoint.resolve(variant.model)
    network = checkpoint.load(
        folder,
        device=device,
        dtype=None if name is None else getattr(torch, name),
        quantize=variant.quantize,
        adapter=variant.adapter,
    )
    return network, Tokenizer.load(folder)
