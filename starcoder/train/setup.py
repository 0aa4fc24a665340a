"""A recipe -> everything a run needs: data read and looked at, the model loaded, what learns made."""

import dataclasses
import math
import random
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rich.console import Console

from starcoder import checkpoint
from starcoder.adapters.adapter import Adapter
from starcoder.chat import ChatTemplate, tokens_of
from starcoder.checkpoint.adapter import add_adapter, load_adapter
from starcoder.devices import choose_device
from starcoder.errors import ConfigError
from starcoder.files import read_json, write_jsonl
from starcoder.model import Transformer
from starcoder.tokenizer import Tokenizer
from starcoder.train import bins, data_report, loop
from starcoder.train.data_files import BadRow
from starcoder.train.device import choose_precision
from starcoder.train.examples import Example, Formats, by_repository, choose
from starcoder.train.losses import sum_loss
from starcoder.train.nf4 import round_to_nf4
from starcoder.train.packing import Batch
from starcoder.train.progress import tell
from starcoder.train.recipe import Recipe
from starcoder.train.resize_vocab import add_noise, resize_vocab
from starcoder.train.settings import Precision
from starcoder.train.shapes import Conversation, Preference, Rated, Record, RowError, quoted
from starcoder.train.sources import Sources, Table, read
from starcoder.train.vocabulary import add_tokens

if TYPE_CHECKING:
    from starcoder.train.distributed import Processes
    from starcoder.train.preference import PreferencePairs


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
    report: data_report.DataReport
    max_steps: int
    precision: Precision


def prepare(recipe: Recipe, console: Console, group: "Processes | None" = None) -> Prepared:
    """Read the data, look at it, load the model, and make what learns.

    Raises:
        ConfigError: settings, data and model do not fit one another.
    """
    device = choose_device(recipe.device).device if group is None else group.device
    precision = choose_precision(device, recipe.precision)
    if recipe.init_adapter is not None and group is not None:
        raise ConfigError("--init-adapter does not run in several processes", "merge the adapter first")
    recipe = _with_base(recipe)
    folder = checkpoint.resolve(recipe.model)
    config = checkpoint.read_config(folder)
    positions = config.max_positions
    if recipe.seq_length > positions:
        raise ConfigError(
            f"seq_length is {recipe.seq_length}, the model has {positions} positions",
            f"--seq-length {positions}",
        )
    sources = read(recipe.source, seed=recipe.seed)
    tokenizer_folder, tokenizer, chat, new = _tokenizer(recipe, folder, sources, group)
    new = tuple(sorted({*new, *range(config.vocab_size, tokenizer.vocab_size)}))
    recipe = dataclasses.replace(recipe, adapter=dataclasses.replace(recipe.adapter, tokens=new))
    _check_kinds(recipe, sources)
    form = choose(
        sources.kinds,
        sources.train.columns,
        tokenizer,
        recipe.fim,
        recipe.form,
        chat,
        pair_columns=(recipe.source.prompt_column, recipe.source.completion_column),
    )
    sources = _grouped(sources, form, recipe.seed)
    shown = _Accepted(tokenizer, chat) if recipe.method == "dpo" else form
    looked_at = [record for _, record in sources.train.read(0, 0, 200)]
    masks = "text" not in sources.kinds and not recipe.form.learn_prompts
    found = data_report.report(looked_at, shown, recipe.seq_length, masks=masks)
    _show_report(found, sources, tokenizer, console)
    stream: bins.PackedExamples | PreferencePairs
    skipped = list(sources.skipped)
    if recipe.method == "dpo":
        stream, held_out = _pairs(recipe, sources, tokenizer, chat, skipped)
    else:
        stream = bins.PackedExamples(
            sources.train, form, tokenizer, seq_length=recipe.seq_length, seed=recipe.seed
        )
        held_out = bins.held_out(sources.validation, form, stream, recipe.source.validation_tokens)
    max_steps = recipe.max_steps or _steps(recipe, sources, stream)
    if isinstance(stream, bins.PackedExamples):
        skipped += [BadRow(sources.train.place(n), why) for n, why in stream.skipped.items()]
    if group is None or group.rank == 0:
        _report_skipped(skipped, sources, recipe, console)
    model, adapter = build(recipe, folder, tokenizer.vocab_size, device, precision, group)
    loss: loop.Loss = sum_loss
    if recipe.method == "dpo":
        from starcoder.train import preference

        assert adapter is not None, "dpo trains an adapter"
        # Its weights as they are before any checkpoint is restored.
        start = {n: x.clone() for n, x in adapter.state().items()} if recipe.init_adapter else None
        loss = preference.dpo(adapter, beta=recipe.beta, start=start)
    learning = sum(p.numel() for p in model.parameters() if p.requires_grad)
    row = "pairs" if recipe.method == "dpo" else f"x {recipe.seq_length} tokens"
    tell(
        console,
        f"{recipe.method}: {learning / 1e6:,.2f} M of {model.config.num_parameters / 1e6:,.1f} M parameters "
        f"learn, in {precision} on {device}; {max_steps} steps of "
        f"{recipe.batch_size * recipe.accumulation} {row}",
    )
    return Prepared(
        model, adapter, tokenizer, tokenizer_folder, stream, held_out, loss, found, max_steps, precision
    )


@dataclass(frozen=True, slots=True)
class _Accepted:
    """Of a preference, the accepted document: what is shown before and after."""

    tokenizer: Tokenizer
    chat: ChatTemplate | None

    def __call__(self, record: Record, room: int, rng: random.Random) -> list[Example]:
        from starcoder.train import preference

        pairs = preference.read_pairs([record], self.tokenizer, self.chat, room - 1)
        return [pair.examples[0] for pair in pairs]


def _check_kinds(recipe: Recipe, sources: Sources) -> None:
    wanted = {"dpo": "preference"}.get(recipe.method)
    is_wanted = sources.kinds == {wanted} if wanted else not sources.kinds & {"preference", "rated"}
    if not is_wanted:
        raise ConfigError(
            f"method {recipe.method} does not go with the columns {quoted(sources.train.columns)}",
            "dpo learns from prompt, accepted (or chosen) and rejected, and nothing else does",
        )


def _pairs(
    recipe: Recipe,
    sources: Sources,
    tokenizer: Tokenizer,
    chat: ChatTemplate | None,
    skipped: list[BadRow],
) -> tuple["PreferencePairs", list[Batch]]:
    from starcoder.train import preference

    if not isinstance(sources.train, Table):
        raise ConfigError("preferences cannot be streamed", "leave out --streaming")
    length = recipe.seq_length
    pairs: list[preference.Pair] = []
    for number, record in sources.train.all():
        try:
            pairs += preference.read_pairs([record], tokenizer, chat, length)
        except RowError as error:
            skipped.append(BadRow(sources.train.place(number), str(error)))
    stream = preference.PreferencePairs(pairs, tokenizer, seq_length=length, seed=recipe.seed)
    held: list[preference.Pair] = []
    for record in sources.validation:
        with suppress(RowError):
            held += preference.read_pairs([record], tokenizer, chat, length)
    limit = max(1, recipe.source.validation_tokens // length)
    return stream, [stream.collate(held[at : at + 4]) for at in range(0, min(limit, len(held)), 4)]


def _report_skipped(skipped: Sequence[BadRow], sources: Sources, recipe: Recipe, console: Console) -> None:
    """Write skipped.jsonl and say so.

    Raises:
        ConfigError: too many rows cannot be trained on.
    """
    if not skipped:
        return
    total = (sources.num_documents or 0) + len(sources.validation) + len(sources.skipped)
    if sources.num_documents is not None and len(skipped) > recipe.source.max_skipped_share * total:
        raise ConfigError(
            f"{skipped[0].place}: {skipped[0].reason}, and {len(skipped) - 1:,} more of {total:,} rows",
            "mend the data, or raise --max-skipped-share to train without such rows",
        )
    path = Path(recipe.output) / "skipped.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_jsonl(path, [{"place": one.place, "reason": one.reason} for one in skipped])
    tell(console, f"warning: {len(skipped):,} rows are skipped; {path} says which and why")


def build(
    recipe: Recipe,
    folder: Path,
    vocab_size: int,
    device: torch.device,
    precision: Precision,
    group: "Processes | None" = None,
) -> tuple[Transformer, Adapter | None]:
    """The model with what learns: weights of its own in float32, or an adapter on frozen ones.

    The vocabulary grows to `vocab_size`, or to the tokens of the recipe's adapter.
    """
    dtype = getattr(torch, precision)
    is_stored = checkpoint.scheme_of(folder) is not None
    scheme = recipe.quantize if recipe.method == "qlora" and not is_stored else None
    if scheme == "nf4":
        if recipe.init_adapter is not None:
            raise ConfigError("--init-adapter does not go with nf4", "--quantize int4, or merge the adapter")
        model, adapter = _on_nf4(recipe, folder, device, dtype, is_alone=group is None)
    elif group is not None:
        from starcoder.train import distributed

        model, adapter = distributed.build(
            folder,
            group,
            dtype=dtype,
            vocab_size=vocab_size,
            adapter=None if recipe.method == "full" else recipe.adapter,
            quantize=scheme,
            sharding="none" if scheme else recipe.sharding,
            offload=recipe.offload,
        )
    elif recipe.method == "full":
        model = checkpoint.load(folder, device=device, dtype=torch.float32)
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()  # loaded ones are mapped from the file
        resize_vocab(model, vocab_size)
        model.requires_grad_(True)
        adapter = None
    else:
        model = checkpoint.load(folder, device=device, dtype=dtype, quantize=scheme)
        adapter = _adapter(recipe, model, vocab_size)
    model.is_recomputed = recipe.is_recomputed
    if recipe.neftune_alpha:
        add_noise(model.embed, recipe.neftune_alpha, recipe.seq_length)
    return model.train(), adapter


def _adapter(recipe: Recipe, model: Transformer, vocab_size: int) -> Adapter:
    """A new adapter, or the one to continue from."""
    if recipe.init_adapter is None:
        return add_adapter(model, recipe.adapter)
    adapter = load_adapter(model, checkpoint.resolve_adapter(recipe.init_adapter), trainable=True)
    if adapter.vocab_size < vocab_size:
        raise ConfigError(
            "the adapter has no rows for the tokens that the chat template adds",
            "give the chat template that it was trained with, or merge it first",
        )
    return adapter


def _with_base(recipe: Recipe) -> Recipe:
    """The recipe with the model that the adapter to continue from names, where none is given."""
    if recipe.init_adapter is None or recipe.model is not None:
        return recipe
    config = read_json(checkpoint.resolve_adapter(recipe.init_adapter) / "adapter_config.json")
    return dataclasses.replace(recipe, model=config.get("base_model_name_or_path"))


def _on_nf4(
    recipe: Recipe, folder: Path, device: torch.device, dtype: torch.dtype, *, is_alone: bool
) -> tuple[Transformer, Adapter | None]:
    """An adapter on a base that is rounded on its way from the files to the device."""
    if device.type != "cuda" or not is_alone:
        where = f"on {device.type}" if is_alone else "in several processes"
        raise ConfigError(f"nf4 does not run {where}", "--quantize int4 does")
    model = checkpoint.load(folder, dtype=dtype)
    adapter = add_adapter(model, recipe.adapter)
    round_to_nf4(model.blocks, device, dtype)
    return model.to(device), adapter


def _tokenizer(
    recipe: Recipe, folder: Path, sources: Sources, group: "Processes | None"
) -> tuple[Path, Tokenizer, ChatTemplate | None, tuple[int, ...]]:
    """Folder and tokenizer to train with and to save, how dialogues are shown, and ids that are new."""
    folder = checkpoint.resolve_text(folder, recipe.init_adapter)
    tokenizer = Tokenizer.load(folder)
    if not _needs_chat(sources):
        return folder, tokenizer, None, ()
    template = ChatTemplate.find(recipe.form.chat_template, folder, tokenizer)
    if template is not None and template.problem is not None:
        raise template.problem
    is_own = template is not None and recipe.form.chat_template is None
    if template is None:  # a base model learns StarChat's format
        template = ChatTemplate.find("no_system", folder, tokenizer)
    assert template is not None, "StarChat's format is always there"
    spelled = template.source if template.dialogue is None else " ".join(template.dialogue.tokens)
    new = () if is_own else tokens_of(spelled)
    missing = [text for text in new if text not in tokenizer.special_tokens]
    is_first = group is None or group.rank == 0
    chosen = Path(recipe.output) / "tokenizer" if is_first else Path(tempfile.mkdtemp())
    grown = add_tokens(folder, chosen, new, None if is_own else template.source)
    return chosen, grown, template, tuple(grown.special_tokens[text] for text in missing)


def _needs_chat(sources: Sources) -> bool:
    """Whether a record is a conversation: rows of one column may hold text, and others messages."""

    def is_chat(record: Record) -> bool:
        match record:
            case Conversation():
                return True
            case Preference():
                return isinstance(record.chosen, Conversation)
            case Rated():
                return isinstance(record.completion, Conversation)
        return False

    if not isinstance(sources.train, Table):
        return "messages" in sources.kinds
    records = (record for _, record in sources.train.all())
    return any(map(is_chat, records)) or any(map(is_chat, sources.validation))


def _grouped(sources: Sources, form: Formats, seed: int) -> Sources:
    """One record for each repository where those are laid out whole."""
    if form.code.layout != "repository" or "text" not in sources.kinds:
        return sources
    if not isinstance(sources.train, Table):
        raise ConfigError("whole repositories cannot be streamed", "leave out --streaming, or --layout file")
    train = by_repository([record for _, record in sources.train.all()])
    table = Table(train, sources.train.columns, seed=seed)
    held = tuple(by_repository(sources.validation))
    return dataclasses.replace(sources, train=table, validation=held, num_documents=len(train))


def _steps(recipe: Recipe, sources: Sources, stream: "bins.PackedExamples | PreferencePairs") -> int:
    """Steps of the recipe's epochs, each packed to its last row. A batch never holds rows of two epochs."""
    if sources.num_documents is None:
        raise ConfigError("the length of streamed data is not known", "--max-steps says when to end")
    per_step = recipe.batch_size * recipe.accumulation
    whole = math.floor(recipe.epochs)
    steps = sum(math.ceil(stream.num_rows(epoch) / per_step) for epoch in range(whole))
    if part := recipe.epochs - whole:
        steps += math.ceil(part * math.ceil(stream.num_rows(whole) / per_step))
    return max(1, steps)


def _show_report(
    found: data_report.DataReport, sources: Sources, tokenizer: Tokenizer, console: Console
) -> None:
    documents = "streamed" if sources.num_documents is None else f"{sources.num_documents:,}"
    held = len(sources.validation)
    tell(console, f"{documents} documents to train on, {held:,} to validate on: {found.summary}")
    if sources.unused:
        tell(console, f"warning: nothing is learned from the columns {quoted(sources.unused)}")
    if sources.num_documents is not None and sources.num_documents < 10:
        tell(console, "warning: so few documents are soon memorized; watch the samples")
    for number, example in enumerate(found.samples, 1):
        tell(console, f"--- sample {number}: learned parts stand in ⟦⟧, green on a terminal")
        tell(console, data_report.colored(example, tokenizer))
