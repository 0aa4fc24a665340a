"""Fine-tuning the bundled model: it learns a package, forgets little, and ends its turns."""

import importlib.util
import json
from pathlib import Path

import pytest
from rich.console import Console

import starcoder
from starcoder import checkpoint
from starcoder.adapters.settings import AdapterSettings
from starcoder.checkpoint.adapter import load_adapter
from starcoder.tokenizer import Tokenizer
from starcoder.train import bins, finetune, loop, samples
from starcoder.train.examples import choose
from starcoder.train.packing import Batch
from starcoder.train.settings import FimSettings, FormatSettings, OptimizerSettings, SourceSettings
from starcoder.train.sources import Shape, Table

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (checkpoint.BUNDLED / "config.json").is_file(), reason="the bundled model is not trained yet"
    ),
]
SEQ = 512


def general(tokenizer: Tokenizer) -> list[Batch]:
    """Sources of other packages, none of which the bundled model has seen; as many tokens of each."""
    form = choose(
        Shape("text", ("content",)), ["content"], tokenizer, FimSettings(rate=0), FormatSettings(), None
    )
    batches = []
    for name in ("cyclopts", "huggingface_hub", "safetensors"):
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.submodule_search_locations
        files = sorted(Path(spec.submodule_search_locations[0]).rglob("*.py"))
        rows = [{"content": file.read_text("utf-8")} for file in files if file.stat().st_size > 200]
        table = Table(rows, ["content"], seed=0)
        stream = bins.PackedExamples(table, form, tokenizer, seq_length=SEQ, seed=0)
        batches += bins.held_out(rows, form, stream, 16_000)
    return batches


def test_a_package_is_learned_and_little_else_is_forgotten(tmp_path: Path) -> None:
    """Stated: 0.12 nats a token off the package's held-out files, at most 0.08 onto other packages.

    The package is this one as it stands: two states of it gave 0.162 off both times, 0.049 and 0.062 on.
    """
    recipe = finetune.Recipe(
        output=str(tmp_path / "run"),
        source=SourceSettings(data=(str(Path(starcoder.__file__).parent),), validation_share=0.2),
        form=FormatSettings(layout="plain"),
        adapter=AdapterSettings(rank=32, alpha=64, dropout=0.05),
        optimizer=OptimizerSettings(learning_rate=1e-3, warmup_steps=5, weight_decay=0.0, betas=(0.9, 0.999)),
        seq_length=SEQ,
        max_steps=120,
        batch_size=4,
        accumulation=1,
        eval_every=40,
        device="cpu",
    )
    result = finetune.run(recipe, Console(quiet=True))
    base, tuned = checkpoint.load(checkpoint.BUNDLED), checkpoint.load(checkpoint.BUNDLED)
    load_adapter(tuned, tmp_path / "run")
    others = general(Tokenizer.load(checkpoint.BUNDLED))
    before, after = (loop.evaluate(model, others) for model in (base, tuned))
    figures = {"package": (result.held_out_before, result.held_out_after), "general": (before, after)}
    (tmp_path / "figures.json").write_text(json.dumps(figures))
    assert result.held_out_before is not None and result.held_out_after is not None
    assert result.held_out_after < result.held_out_before - 0.12
    assert after < before + 0.08


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_chat_run_learns_to_end_its_turn(tmp_path: Path, method: finetune.Method) -> None:
    rows = []
    for n in range(200):
        talk = [
            {"role": "user", "content": f"Write a function that adds {n}."},
            {"role": "assistant", "content": f"def add_{n}(x):\n    return x + {n}"},
        ]
        rows.append(json.dumps({"messages": talk}))
    (tmp_path / "chat.jsonl").write_text("\n".join(rows))
    recipe = finetune.Recipe(
        output=str(tmp_path / "run"),
        source=SourceSettings(data=(str(tmp_path / "chat.jsonl"),)),
        method=method,
        optimizer=OptimizerSettings(
            learning_rate=1e-3 if method == "full" else 5e-3, warmup_steps=5, betas=(0.9, 0.999)
        ),
        seq_length=SEQ,
        max_steps=60,
        batch_size=2,
        accumulation=1,
        device="cpu",
    )
    finetune.run(recipe, Console(quiet=True))
    tokenizer = Tokenizer.load(tmp_path / "run")
    if method == "full":
        model = checkpoint.load(tmp_path / "run")
    else:
        model = checkpoint.load(checkpoint.BUNDLED, adapter=tmp_path / "run")
    end = tokenizer.special_tokens["<|end|>"]
    ends = 0
    for n in range(1000, 1020):
        prompt = f"<|user|>\nWrite a function that adds {n}.<|end|>\n<|assistant|>\n"
        written = samples.complete(
            model, tokenizer.encode_with_special(prompt), 64, tokenizer.sentinels.end_ids
        )
        ends += written[-1] == end
    assert ends >= 18, "of 20 prompts that it has not seen"
