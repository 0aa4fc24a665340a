"""`starcoder finetune`: a model, data and a method -> an adapter or a fine-tuned checkpoint.

Limits: adapters on a vocabulary that grows are refused, for adapter files hold no embeddings; train such
chats in full, or give a template whose tokens are there.
"""

import dataclasses
import json
import logging
import math
import random
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from rich.console import Console

from starcoder import checkpoint
from starcoder.adapters import Adapter, AdapterSettings
from starcoder.checkpoint.adapting import add_adapter
from starcoder.errors import CheckpointError, ConfigError
from starcoder.model import Transformer
from starcoder.tokenizer import Tokenizer
from starcoder.train import bins, loop, samples, survey
from starcoder.train.checkpoints import Checkpoints
from starcoder.train.device import choose_device, choose_precision, peak_flops
from starcoder.train.dialogues import STARCHAT, STARCHAT_TOKENS, ChatTemplate, tokens_of
from starcoder.train.documents import FimSettings
from starcoder.train.examples import Code, Example, Format, FormatSettings, by_repository, choose
from starcoder.train.growing import add_noise, flops_per_token, grow
from starcoder.train.losses import sum_loss
from starcoder.train.optimizer import OptimizerSettings
from starcoder.train.packing import Batch
from starcoder.train.progress import Progress, Service, Silent, connect
from starcoder.train.sources import Row, Sources, SourceSettings, Table, read
from starcoder.train.verify import PackingReport, verify_packing
from starcoder.train.vocabulary import TOKENIZER_FILES, add_tokens

if TYPE_CHECKING:
    from starcoder.train.distributed import Processes

log = logging.getLogger(__name__)

Method = Literal["lora", "qlora", "full", "dpo"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """A whole fine-tuning run."""

    output: str
    source: SourceSettings
    model: str | None = None
    method: Method = "lora"
    seq_length: int = 2048
    epochs: float = 1.0
    max_steps: int | None = None  # None: as many as `epochs` take
    batch_size: int = 1  # rows at a time
    accumulation: int = 16  # times that before a step
    eval_every: int = 100
    save_every: int = 200
    keep_checkpoints: int = 2
    fim: FimSettings = field(default_factory=FimSettings)
    form: FormatSettings = field(default_factory=FormatSettings)
    adapter: AdapterSettings = field(default_factory=AdapterSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    quantize: Literal["int4", "int8"] = "int4"  # of qlora's base
    precision: loop.Precision | None = None
    is_recomputed: bool = False
    neftune_alpha: float = 0.0
    device: str | None = None
    seed: int = 0
    report_to: tuple[Service, ...] = ()
    beta: float = 0.1  # dpo: how dear it is to leave the reference
    sharding: Literal["full", "none"] = "full"  # of several processes
    offload: bool = False  # sharded weights wait in the CPU's memory


@dataclass(frozen=True, slots=True)
class Result:
    """What a run left in its output folder."""

    folder: Path
    outcome: loop.Outcome
    held_out_before: float | None
    held_out_after: float | None


@dataclass(slots=True)
class Prepared:
    """Everything a run needs, ready to train."""

    model: Transformer
    adapter: Adapter | None
    tokenizer: Tokenizer
    tokenizer_folder: Path
    stream: loop.Stream
    held_out: list[Batch]
    loss: loop.Loss
    survey: survey.Survey
    max_steps: int
    precision: loop.Precision


def run(recipe: Recipe, console: Console, *, should_stop: Callable[[], bool] = lambda: False) -> Result:
    """Carry out `recipe`, going on where an earlier run of it stopped.

    Raises:
        ConfigError: settings, data and model do not fit one another.
        CheckpointError: the output folder is of another recipe.
    """
    if not torch.distributed.is_torchelastic_launched():
        return _run(recipe, console, should_stop, None)
    from starcoder.train import distributed  # only several processes pay for its imports

    with distributed.processes(choose_device(recipe.device).type) as group:

        def anyone_should_stop() -> bool:
            return group.total(float(should_stop())) > 0

        shown = console if group.rank == 0 else Console(quiet=True)
        return _run(recipe, shown, anyone_should_stop, group)


def _run(
    recipe: Recipe,
    console: Console,
    should_stop: Callable[[], bool],
    group: "Processes | None",
) -> Result:
    output, is_first = Path(recipe.output), group is None or group.rank == 0
    if is_first:
        _claim(recipe, output)
    ready = prepare(recipe, console, group)
    progress = _progress(recipe, ready, console) if is_first else Silent(output, console)
    store = Checkpoints(output / "checkpoints", keep=recipe.keep_checkpoints)
    if group is not None:
        from starcoder.train import distributed

        store = distributed.ShardedCheckpoints(store.folder, group, keep=store.keep)
    _show_samples(ready, output, "before", console, writes=is_first)
    before = _evaluate(ready)
    outcome = loop.train(
        ready.model,
        ready.stream,
        _loop_settings(recipe, ready),
        recipe.optimizer,
        output,
        progress=progress,
        held_out=ready.held_out,
        loss=ready.loss,
        group=group,
        checkpoints=store,
        should_stop=should_stop,
    )
    if not outcome.is_complete:
        return Result(output, outcome, before, None)
    if outcome.best is not None and outcome.best[0] < outcome.step:
        store.load_best(ready.model)
        console.print(f"the best weights are those of step {outcome.best[0]}; they are kept", highlight=False)
    after = _evaluate(ready)
    _export(recipe, ready, output, group)
    _show_samples(ready, output, "after", console, writes=is_first)
    return Result(output, outcome, before, after)


def _progress(recipe: Recipe, ready: Prepared, console: Console) -> Progress:
    output = Path(recipe.output)
    trackers = tuple(connect(service, output, asdict(recipe)) for service in recipe.report_to)
    peak = peak_flops(ready.model.norm.weight.device, ready.precision) / flops_per_token(ready.model)
    return Progress(output, console, peak_tokens_per_s=peak, trackers=trackers)


def _loop_settings(recipe: Recipe, ready: Prepared) -> loop.LoopSettings:
    return loop.LoopSettings(
        max_steps=ready.max_steps,
        batch_size=recipe.batch_size * recipe.accumulation,
        micro_batch_size=recipe.batch_size,
        eval_every=recipe.eval_every,
        save_every=recipe.save_every,
        keep_checkpoints=recipe.keep_checkpoints,
        keep_best=bool(ready.held_out),
        precision=ready.precision,
        seed=recipe.seed,
    )


def check_packing(recipe: Recipe, console: Console) -> PackingReport:
    """Compare packed with separate on this recipe's model and data, in float32, and train nothing."""
    if recipe.method == "dpo":
        raise ConfigError("pairs are not packed", "--verify-packing goes with the other methods")
    ready = prepare(dataclasses.replace(recipe, precision="float32"), console)
    return verify_packing(ready.model, ready.stream.next_batch(max(1, recipe.batch_size)))


def prepare(recipe: Recipe, console: Console, group: "Processes | None" = None) -> Prepared:
    """Read the data, look at it, load the model, and make what learns.

    Raises:
        ConfigError: settings, data and model do not fit one another.
    """
    device = choose_device(recipe.device) if group is None else group.device
    precision = choose_precision(device, recipe.precision)
    folder = checkpoint.resolve(recipe.model)
    positions = checkpoint.read_config(folder).max_positions
    if recipe.seq_length > positions:
        raise ConfigError(
            f"seq_length is {recipe.seq_length}, the model has {positions} positions",
            f"--seq-length {positions}",
        )
    sources = read(recipe.source, seed=recipe.seed)
    tokenizer_folder, tokenizer, chat = _tokenizer(recipe, folder, sources, group)
    form = _form(recipe, sources, tokenizer, chat)
    sources = _grouped(sources, form, recipe.seed)
    looked_at = [row for _, row in sources.train.read(0, 0, 200)]
    found = survey.survey(looked_at, form, recipe.seq_length)
    _show_survey(found, sources, tokenizer, console)
    model, adapter = build(recipe, folder, tokenizer.vocab_size, device, precision, group)
    if recipe.method == "dpo":
        from starcoder.train import preference

        assert adapter is not None, "dpo trains an adapter"
        stream, held_out = _pairs(recipe, sources, tokenizer)
        loss = preference.dpo(adapter, beta=recipe.beta)
    else:
        stream = bins.PackedExamples(
            sources.train, form, tokenizer, seq_length=recipe.seq_length, seed=recipe.seed
        )
        held_out = bins.held_out(sources.validation, form, stream, recipe.source.validation_tokens)
        loss = sum_loss
    max_steps = recipe.max_steps or _steps(recipe, sources, found)
    learning = sum(p.numel() for p in model.parameters() if p.requires_grad)
    console.print(
        f"{recipe.method}: {learning / 1e6:,.2f} M of {model.config.num_parameters / 1e6:,.1f} M parameters "
        f"learn, in {precision} on {device}; {max_steps} steps of "
        f"{recipe.batch_size * recipe.accumulation} x {recipe.seq_length} tokens",
        highlight=False,
    )
    return Prepared(
        model, adapter, tokenizer, tokenizer_folder, stream, held_out, loss, found, max_steps, precision
    )


@dataclass(frozen=True, slots=True)
class _Accepted:
    """Of a preference, the accepted document: what is shown before and after."""

    tokenizer: Tokenizer

    def __call__(self, row: Row, room: int, rng: random.Random) -> list[Example]:
        from starcoder.train import preference

        pairs = preference.read_pairs([dict(row)], self.tokenizer, room - 1)
        return [
            Example(pair.prompt + pair.accepted, [False] * len(pair.prompt) + [True] * len(pair.accepted))
            for pair in pairs
        ]


def _form(recipe: Recipe, sources: Sources, tokenizer: Tokenizer, chat: ChatTemplate | None) -> Format:
    is_preference = sources.shape.kind == "preference"
    if is_preference != (recipe.method == "dpo"):
        found = ", ".join(map(repr, sources.train.columns))
        raise ConfigError(
            f"method {recipe.method} does not go with the columns {found}",
            "dpo learns from prompt, accepted (or chosen) and rejected, and nothing else does",
        )
    if is_preference:
        return _Accepted(tokenizer)
    return choose(sources.shape, sources.train.columns, tokenizer, recipe.fim, recipe.form, chat)


def _pairs(recipe: Recipe, sources: Sources, tokenizer: Tokenizer) -> tuple[loop.Stream, list[Batch]]:
    from starcoder.train import preference

    if not isinstance(sources.train, Table):
        raise ConfigError("preferences cannot be streamed", "leave out --streaming")
    length = recipe.seq_length
    train = preference.read_pairs([dict(row) for row in sources.train.all()], tokenizer, length)
    stream = preference.PreferencePairs(list(train), tokenizer, seq_length=length, seed=recipe.seed)
    if not sources.validation:
        return stream, []
    held = list(preference.read_pairs([dict(row) for row in sources.validation], tokenizer, length))
    limit = max(1, recipe.source.validation_tokens // length)
    return stream, [stream.collate(held[at : at + 4]) for at in range(0, min(limit, len(held)), 4)]


def build(
    recipe: Recipe,
    folder: Path,
    vocab_size: int,
    device: torch.device,
    precision: loop.Precision,
    group: "Processes | None" = None,
) -> tuple[Transformer, Adapter | None]:
    """The model with what learns: weights of its own in float32, or an adapter on frozen ones."""
    dtype = getattr(torch, precision)
    is_stored = checkpoint.scheme_of(folder) is not None
    scheme = recipe.quantize if recipe.method == "qlora" and not is_stored else None
    if group is not None:
        from starcoder.train import distributed

        model, adapter = distributed.build(
            folder,
            group,
            dtype=dtype,
            adapter=None if recipe.method == "full" else recipe.adapter,
            quantize=scheme,
            sharding="none" if scheme else recipe.sharding,
            offload=recipe.offload,
        )
    elif recipe.method == "full":
        model = checkpoint.load(folder, device=device, dtype=torch.float32)
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()  # loaded ones are mapped from the file
        grow(model, vocab_size)
        model.requires_grad_(True)
        adapter = None
    else:
        model = checkpoint.load(folder, device=device, dtype=dtype, quantize=scheme)
        adapter = add_adapter(model, recipe.adapter)
    model.is_recomputed = recipe.is_recomputed
    if recipe.neftune_alpha:
        add_noise(model.embed, recipe.neftune_alpha, recipe.seq_length)
    return model.train(), adapter


def _tokenizer(
    recipe: Recipe, folder: Path, sources: Sources, group: "Processes | None"
) -> tuple[Path, Tokenizer, ChatTemplate | None]:
    """The folder of the tokenizer to train with and to save, what is in it, and how dialogues are shown."""
    tokenizer = Tokenizer.load(folder)
    if sources.shape.kind != "messages":
        return folder, tokenizer, None
    if recipe.form.chat_template is not None:
        try:
            source = Path(recipe.form.chat_template).read_text("utf-8")
        except OSError as error:
            raise ConfigError(f"cannot read {recipe.form.chat_template!r}: {error.strerror}") from None
        new = tokens_of(source)
    elif tokenizer.chat_template:
        source, new = tokenizer.chat_template, ()
    else:
        source, new = STARCHAT, STARCHAT_TOKENS
    missing = [text for text in new if text not in tokenizer.special_tokens]
    if missing and (recipe.method != "full" or group is not None):
        raise ConfigError(
            f"the chat template needs new tokens ({', '.join(missing)}), which adapters do not hold",
            "--method full in one process, or --chat-template with one whose tokens are in the vocabulary",
        )
    is_first = group is None or group.rank == 0
    chosen = Path(recipe.output) / "tokenizer" if is_first else Path(tempfile.mkdtemp())
    return chosen, add_tokens(folder, chosen, new, source), ChatTemplate.of(source)


def _grouped(sources: Sources, form: Format, seed: int) -> Sources:
    """One row for each repository where those are laid out whole."""
    if not isinstance(form, Code) or form.layout != "repository":
        return sources
    if not isinstance(sources.train, Table):
        raise ConfigError("whole repositories cannot be streamed", "leave out --streaming, or --layout file")
    train = by_repository(sources.train.all())
    table = Table(train, sources.train.columns, seed=seed)
    return Sources(table, tuple(by_repository(sources.validation)), sources.shape, len(train))


def _steps(recipe: Recipe, sources: Sources, found: survey.Survey) -> int:
    if sources.num_documents is None:
        raise ConfigError("the length of streamed data is not known", "--max-steps says when to end")
    if recipe.method == "dpo":
        pairs = sources.num_documents * recipe.epochs
        return max(1, math.ceil(pairs / (recipe.batch_size * recipe.accumulation)))
    tokens = sources.num_documents * found.tokens_per_document * recipe.epochs
    per_step = recipe.seq_length * recipe.batch_size * recipe.accumulation
    return max(1, math.ceil(tokens / per_step))


def _show_survey(found: survey.Survey, sources: Sources, tokenizer: Tokenizer, console: Console) -> None:
    documents = "streamed" if sources.num_documents is None else f"{sources.num_documents:,}"
    held = len(sources.validation)
    console.print(
        f"{documents} documents to train on, {held:,} to validate on: {found.summary}", highlight=False
    )
    if sources.num_documents is not None and sources.num_documents < 10:
        console.print(
            "warning: so few documents are soon learnt by heart; watch the samples", highlight=False
        )
    for number, example in enumerate(found.samples, 1):
        console.print(f"--- sample {number}: learnt parts stand in ⟦⟧, green on a terminal", highlight=False)
        console.print(survey.colored(example, tokenizer), highlight=False)


def _show_samples(ready: Prepared, output: Path, when: str, console: Console, *, writes: bool) -> None:
    """Complete the surveyed samples and keep what the model wrote; a resumed run has those from before."""
    path = output / "samples.jsonl"
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []
    has_before = any(row["when"] == "before" for row in rows)
    # Processes that share a model complete together, whatever the first one has on disk.
    if torch.distributed.is_initialized() or not (has_before and when == "before"):
        rows = [row for row in rows if row["when"] != when]
        for example in ready.survey.samples:
            made = samples.sample(ready.model, ready.tokenizer, example)
            rows.append({"when": when} | asdict(made))
            line = f"--- {when}: ...{made.prompt[-80:]!r} -> {made.completion!r}"
            console.print(line, highlight=False, markup=False)
    if writes:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")


def _evaluate(ready: Prepared) -> float | None:
    if not ready.held_out:
        return None
    return loop.evaluate(ready.model, ready.held_out, loss=ready.loss, precision=ready.precision)


def _export(recipe: Recipe, ready: Prepared, output: Path, group: "Processes | None") -> None:
    """Write the adapter or the whole model beside the run's records, with its tokenizer."""
    is_first = group is None or group.rank == 0
    if ready.adapter is not None and is_first:
        ready.adapter.save(output, base=recipe.model or str(checkpoint.BUNDLED))
    elif ready.adapter is not None:
        ready.adapter.state()  # shares are gathered by all
    elif group is not None:
        from starcoder.train import distributed

        distributed.save(ready.model, output, group)
    else:
        checkpoint.save(ready.model, output)
    if not is_first:
        return
    for name in TOKENIZER_FILES:
        if (ready.tokenizer_folder / name).is_file():
            (output / name).write_bytes((ready.tokenizer_folder / name).read_bytes())


# What may differ between a run and its resumption without changing what is learnt.
_FREE = ("save_every", "keep_checkpoints", "report_to", "device", "output")


def _claim(recipe: Recipe, output: Path) -> None:
    """Write the recipe into the output folder, or check that the one there is the same."""
    path = output / "recipe.json"
    own = json.loads(json.dumps(asdict(recipe), default=str))
    has_checkpoints = any((output / "checkpoints").glob("step-*.pt"))
    if path.exists() and has_checkpoints:
        there: Mapping[str, object] = json.loads(path.read_text("utf-8"))
        changed = sorted(k for k in own if k not in _FREE and own[k] != there.get(k))
        if changed:
            raise CheckpointError(
                f"{str(output)!r} holds a run of another recipe: {', '.join(changed)} differ",
                "go on with the same settings, or give another --output",
            )
    output.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(own, indent=1) + "\n", "utf-8")
