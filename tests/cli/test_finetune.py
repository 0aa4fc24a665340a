"""`starcoder finetune` from flags and recipes to an output folder, with the old scripts' flag names."""

import io
import json
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from starcoder import checkpoint
from starcoder.chat import ChatTemplate
from starcoder.checkpoint.adapter import load_adapter
from starcoder.cli import main
from starcoder.errors import StarcoderError
from starcoder.model import causal
from starcoder.tokenizer import Tokenizer
from starcoder.train.progress import read_metrics
from starcoder.train.recipe import Recipe

RECIPES = sorted(Path(__file__).parents[2].glob("recipes/*.toml"))
OLD = """finetune --model_path="bigcode/starcoder" --dataset_name="ArmelR/stack-exchange-instruction"
 --subset="data/finetune" --split="train" --size_valid_set 10000 --streaming --seq_length 2048
 --max_steps 1000 --batch_size 1 --input_column_name="question" --output_column_name="response"
 --gradient_accumulation_steps 16
 --learning_rate 1e-4 --lr_scheduler_type="cosine" --num_warmup_steps 100 --weight_decay 0.05
 --output_dir="./checkpoints" """


def parsed(line: str, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """The recipe that the verb makes of a command line."""
    recipes: list[Recipe] = []

    def run(recipe: Recipe, console: object, should_stop: object) -> None:
        recipes.append(recipe)
        raise StarcoderError("enough is known")

    monkeypatch.setattr("starcoder.train.finetune.run", run)
    assert main(shlex.split(line)) == 1
    return recipes[0]


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    rows = [{"question": f"add {n} and one", "answer": f"return {n} + 1"} for n in range(60)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def finetune(folder: Path, data: Path, output: Path, *flags: str) -> int:
    small = {"--seq-length": "128", "--batch-size": "1", "--gradient-accumulation-steps": "2"}
    small |= {"--device": "cpu", "--learning-rate": "5e-3"}
    defaults = [word for name, value in small.items() if name not in flags for word in (name, value)]
    places = ["--model", str(folder), "--data", str(data), "--output", str(output)]
    return main(["finetune", *places, *defaults, *flags])


def test_the_original_projects_own_command_is_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = parsed(f"{OLD} --seq_length 2048", monkeypatch)
    source = recipe.source
    assert recipe.model == "bigcode/starcoder"
    assert (source.data, source.subset) == (("ArmelR/stack-exchange-instruction",), "data/finetune")
    assert source.streaming
    assert source.validation_documents == 10_000
    assert (source.prompt_column, source.completion_column) == ("question", "response")
    assert (recipe.max_steps, recipe.batch_size, recipe.accumulation) == (1000, 1, 16)
    optimizer = recipe.optimizer
    assert (optimizer.learning_rate, optimizer.schedule, optimizer.warmup_steps) == (1e-4, "cosine", 100)
    assert recipe.output == "./checkpoints"


def test_the_other_flags_of_the_original_are_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = parsed(
        "finetune --lora_r 8 --lora_alpha 16 --lora_dropout 0.1 --eval_freq 7 --save_freq 9 --no_fp16 --bf16 "
        "--no_gradient_checkpointing --log_freq 3 --num_workers=2 --seed 5 --local_rank 0 "
        "--shuffle_buffer 10 -o run",
        monkeypatch,
    )
    assert (recipe.adapter.rank, recipe.adapter.alpha, recipe.adapter.dropout) == (8, 16, 0.1)
    assert (recipe.eval_every, recipe.save_every, recipe.seed, recipe.adapter.seed) == (7, 9, 5, 5)
    assert recipe.source.shuffle_buffer == 10


def test_rows_are_as_long_as_a_small_model_takes_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    line = "finetune --data src --output run"
    assert parsed(line, monkeypatch).seq_length == 1024  # the bundled model's positions
    assert parsed(f"{line} --seq-length 300", monkeypatch).seq_length == 300


@pytest.mark.parametrize("recipe", [r for r in RECIPES if r.stem != "nano"], ids=lambda path: path.stem)
def test_every_recipe_is_understood(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = parsed(f"finetune {recipe} --output elsewhere --seq-length 64", monkeypatch)
    assert found.output == "elsewhere", "the command line overrides the recipe"
    assert found.source.data


@pytest.mark.parametrize("method", ["lora", "full"])
def test_every_file_of_a_model_but_its_weights_survives(
    folder: Path, pairs: Path, tmp_path: Path, method: str
) -> None:
    kept = {
        "dialogue_template.json",
        "tokenizer.model",
        "additional_chat_templates/tools.jinja",
        "merges.txt",
    }
    (folder / "additional_chat_templates").mkdir()
    for name in kept:
        (folder / name).write_text("{}")
    assert finetune(folder, pairs, tmp_path / "run", "--method", method, "--max-steps", "1") == 0
    assert {name: (tmp_path / "run" / name).read_text() for name in kept} == dict.fromkeys(kept, "{}")


def test_an_adapter_learns_and_goes_back_on_its_model(
    folder: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert finetune(folder, pairs, tmp_path / "run", "--max-steps", "30", "--json", "--eval-every", "10") == 0
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert report["steps"] == 30
    assert report["held_out_loss_after"] < report["held_out_loss_before"] - 0.5
    assert "⟦ return" in err
    run = tmp_path / "run"
    assert {row["when"] for row in map(json.loads, (run / "samples.jsonl").read_text().splitlines())} == {
        "before",
        "after",
    }
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG")
    rows = read_metrics(run / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 31))
    assert all(row["mfu"] > 0 for row in rows)
    base, tuned = checkpoint.load(folder), checkpoint.load(folder)
    load_adapter(tuned, run)
    ids = torch.tensor([Tokenizer.load(run).encode("Question: add 3 and one\n\nAnswer: return 3")])
    positions = torch.arange(ids.size(1))[None]
    with torch.no_grad():
        before, after = (m.head(m(ids, positions, causal())) for m in (base, tuned))
    assert float((before - after).abs().max()) > 0.1


def test_a_chat_is_learned_in_full_with_tokens_of_its_own(folder: Path, tmp_path: Path) -> None:
    data, run = chat_data(tmp_path), tmp_path / "run"
    assert finetune(folder, data, run, "--method", "full", "--max-steps", "40", "--fim-rate", "0") == 0
    tokenizer, model = Tokenizer.load(run), checkpoint.load(run)
    end = tokenizer.special_tokens["<|end|>"]
    assert model.config.vocab_size == tokenizer.vocab_size > checkpoint.load(folder).config.vocab_size
    prompt = tokenizer.encode_with_special("<|user|>\nHi<|end|>\n<|assistant|>\nYes.")
    ids = torch.tensor([prompt])
    with torch.no_grad():
        hidden = model(ids, torch.arange(len(prompt))[None], causal())
    assert int(model.head(hidden[0, -1]).argmax()) == end, "it learned how its turn ends"
    assert tokenizer.chat_template is not None
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(run)
    assert theirs("<|user|>")["input_ids"] == [tokenizer.special_tokens["<|user|>"]]


def chat_data(folder: Path) -> Path:
    data = folder / "chat.jsonl"
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes."}]
    data.write_text(f"{json.dumps({'messages': talk})}\n" * 20)
    return data


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("dialogue_template.json", json.dumps({"system": "Be kind.", "user_token": "### Ask:"})),
        (
            "chat_template.jinja",
            "{% for m in messages %}{{ m.role }}={{ m.content }};{% endfor %}"
            "{% if add_generation_prompt %}assistant={% endif %}",
        ),
    ],
)
def test_a_models_own_chat_template_is_trained_with_and_survives(
    folder: Path, tmp_path: Path, name: str, content: str, method: str
) -> None:
    (folder / name).write_text(content)
    tokenizer, run = Tokenizer.load(folder), tmp_path / "run"
    before = ChatTemplate.find(None, folder, tokenizer)
    assert before is not None
    assert finetune(folder, chat_data(tmp_path), run, "--method", method, "--max-steps", "1") == 0
    after = ChatTemplate.find(None, run, Tokenizer.load(run))
    assert after == before
    (sample, *_) = (json.loads(line) for line in (run / "samples.jsonl").read_text().split("\n") if line)
    turns = [{"role": "user", "content": "Hi"}]
    assert sample["prompt"] == before.render(turns, add_generation_prompt=True)


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What `starcoder chat` says to a script's "Hi"."""

    def ask(model: Path, *options: str) -> str:
        monkeypatch.setattr("sys.stdin", io.StringIO("Hi\n"))
        capsys.readouterr()
        flags = ["--threads", "1", "--max-tokens", "12", "--temperature", "0"]
        assert main(["chat", "--model", str(model), *flags, *options]) == 0
        return capsys.readouterr().out

    return ask


def test_a_chat_is_learned_by_an_adapter_with_tokens_of_its_own(
    folder: Path, tmp_path: Path, answers: Callable[..., str]
) -> None:
    run, merged = tmp_path / "run", tmp_path / "merged"
    flags = ["--max-steps", "40", "--fim-rate", "0", "--learning-rate", "1e-2"]
    assert finetune(folder, chat_data(tmp_path), run, *flags) == 0
    config = json.loads((run / "adapter_config.json").read_text())
    size = checkpoint.load(folder).config.vocab_size
    assert config["trainable_token_indices"] == {"wte": [size, size + 1, size + 2, size + 3]}
    tokenizer = Tokenizer.load(run)
    assert tokenizer.special_tokens["<|end|>"] == size + 3
    assert answers(folder, "--adapter", str(run)) == "Yes.\n"
    assert main(["merge", str(run), "--output", str(merged)]) == 0
    assert checkpoint.load(merged).config.vocab_size == tokenizer.vocab_size
    assert answers(merged) == "Yes.\n"
    from transformers import AutoModelForCausalLM, AutoTokenizer

    theirs, words = AutoModelForCausalLM.from_pretrained(merged), AutoTokenizer.from_pretrained(merged)
    said = words.apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, return_tensors="pt"
    )["input_ids"]
    end = words.convert_tokens_to_ids("<|end|>")
    out = theirs.generate(said, max_new_tokens=12, do_sample=False, eos_token_id=end, pad_token_id=0)
    assert words.decode(out[0, said.size(1) :]) == "Yes.<|end|>"


def test_new_tokens_learn_beside_rounded_weights(folder: Path, tmp_path: Path) -> None:
    run, data = tmp_path / "run", chat_data(tmp_path)
    assert finetune(folder, data, run, "--method", "qlora", "--max-steps", "20", "--fim-rate", "0") == 0
    rows = read_metrics(run / "metrics.jsonl")
    assert rows[-1]["loss"] < rows[0]["loss"] / 2
    assert json.loads((run / "adapter_config.json").read_text())["trainable_token_indices"]


def test_kinds_that_hold_no_rows_of_tokens_are_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert finetune(folder, chat_data(tmp_path), tmp_path / "run", "--adapter-kind", "loha") == 2
    assert "choose lora" in capsys.readouterr().err


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_chat_run_that_stopped_goes_on_bit_for_bit(folder: Path, tmp_path: Path, method: str) -> None:
    data, runs = chat_data(tmp_path), (tmp_path / "whole", tmp_path / "stopped")
    flags = ["--method", method, "--max-steps", "6", "--save-every", "2", "--dropout", "0.1"]
    for run in runs:
        assert finetune(folder, data, run, *flags) == 0
    last = runs[1] / "checkpoints" / "step-00000006.pt"
    last.unlink()  # as if killed before it was there
    (runs[1] / "metrics.jsonl").unlink()
    assert finetune(folder, data, runs[1], *flags) == 0
    assert [row["step"] for row in read_metrics(runs[1] / "metrics.jsonl")] == [5, 6]
    name = "model.safetensors" if method == "full" else "adapter_model.safetensors"
    assert (runs[0] / name).read_bytes() == (runs[1] / name).read_bytes()


def losses_of(num_processes: int, folder: Path, data: Path, run: Path, *flags: object) -> list[float]:
    """What a run over so many processes writes, each of one thread."""
    common = ["--seq-length", 64, "--batch-size", 1, "--gradient-accumulation-steps", 4, "--threads", 1]
    common += ["--device", "cpu", "--learning-rate", "1e-3", "--dropout", 0]
    verb = [*map(str, ["finetune", "--model", folder, "--data", data, "-o", run, *common, *flags])]
    if num_processes == 1:
        assert main(verb) == 0
    else:
        launcher = ["-m", "torch.distributed.run", "--nproc_per_node", str(num_processes), "-m", "starcoder"]
        done = subprocess.run([sys.executable, *launcher, *verb], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
    return [row["loss"] for row in read_metrics(run / "metrics.jsonl")]


@pytest.mark.parametrize("method", [pytest.param("lora", marks=pytest.mark.slow), "full"])
def test_two_processes_add_tokens_as_one_does(folder: Path, tmp_path: Path, method: str) -> None:
    data, run = chat_data(tmp_path), tmp_path / "two"
    one = losses_of(1, folder, data, tmp_path / "one", "--max-steps", 3, "--method", method)
    two = losses_of(2, folder, data, run, "--max-steps", 3, "--method", method)
    assert two == pytest.approx(one, rel=1e-4)
    made = checkpoint.load(folder, adapter=run) if method == "lora" else checkpoint.load(run)
    assert made.config.vocab_size == Tokenizer.load(run).vocab_size


@pytest.mark.parametrize("method", ["qlora", "full"])
def test_methods_learn_plain_code(folder: Path, tmp_path: Path, method: str) -> None:
    source = tmp_path / "project"
    source.mkdir()
    for n in range(12):
        (source / f"m{n}.py").write_text(f"def add_{n}(first, second):\n    return first + second\n" * 4)
    run = tmp_path / "run"
    assert finetune(folder, source, run, "--method", method, "--max-steps", "20", "--eval-every", "5") == 0
    rows = read_metrics(run / "metrics.jsonl")
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert (run / ("adapter_model.safetensors" if method == "qlora" else "model.safetensors")).is_file()


def test_preferences_are_learned_with_the_adapter_off_as_the_reference(folder: Path, tmp_path: Path) -> None:
    data, run = tmp_path / "pairs.jsonl", tmp_path / "run"
    rows = [{"prompt": f"x_{n} =", "chosen": " 1\n", "rejected": " None\n"} for n in range(40)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert finetune(folder, data, run, "--method", "dpo", "--max-steps", "25", "--eval-every", "5") == 0
    seen = read_metrics(run / "metrics.jsonl")
    assert seen[0]["loss"] == pytest.approx(0.6931, abs=1e-3), "log 2: the model is still its reference"
    assert seen[-1]["held_out_loss"] < 0.5
    assert (run / "adapter_model.safetensors").is_file()


def test_a_method_and_data_that_do_not_go_together_are_refused(
    folder: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert finetune(folder, pairs, tmp_path / "run", "--method", "dpo") == 2
    assert "does not go with the columns 'question', 'answer'" in capsys.readouterr().err


def test_two_processes_train_as_one_does(folder: Path, pairs: Path, tmp_path: Path) -> None:
    """FSDP2 over gloo: the first loss is the same, the following ones up to the order of sums."""
    one = losses_of(1, folder, pairs, tmp_path / "one", "--max-steps", 4)
    two = losses_of(2, folder, pairs, tmp_path / "two", "--max-steps", 4)
    assert two == pytest.approx(one, rel=1e-4)
    assert all((tmp_path / run / "adapter_model.safetensors").is_file() for run in ("one", "two"))


def test_packing_is_verified_on_the_users_own_model_and_data(
    folder: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert finetune(folder, pairs, tmp_path / "run", "--method", "full", "--verify-packing") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["is_equal"]
    assert report["num_documents"] > 1
    assert max(report["logits"], report["gradients"]) < 1e-5
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--prompt-column", "question", "--completion-column", "response "], "no column 'response '"),
        (["--seq-length", "0"], "expected at least 1"),
        (["--seq-length", "4096"], "the model has 512 positions"),
        (["--fim-rate", "2"], "expected 0 to 1"),
        (["--optimizer", "adamw8bit"], "8-bit AdamW needs"),
        (["--template", "{prompt}"], "once each"),
        (["--precision", "float16"], "does not train on cpu"),
    ],
)
def test_mistakes_are_two_lines(
    folder: Path,
    pairs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    message: str,
) -> None:
    assert finetune(folder, pairs, tmp_path / "run", *flags) == 2
    *_, error, hint = capsys.readouterr().err.splitlines()
    assert error.startswith("error: ")
    assert message in error
    assert hint.startswith("hint: ")


def test_another_recipe_does_not_go_on_with_a_run(
    folder: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert finetune(folder, pairs, tmp_path / "run", "--max-steps", "2") == 0
    assert finetune(folder, pairs, tmp_path / "run", "--max-steps", "2", "--seed", "1") == 1
    assert "of another recipe" in capsys.readouterr().err


def start(folder: Path, pairs: Path, output: Path, steps: int) -> subprocess.Popen[bytes]:
    flags = [
        "--max-steps",
        steps,
        "--save-every",
        2,
        "--eval-every",
        10,
        "--seq-length",
        64,
        "--batch-size",
        2,
    ]
    flags += [
        "--gradient-accumulation-steps",
        1,
        "--threads",
        1,
        "--device",
        "cpu",
        "--learning-rate",
        "1e-3",
        "--dropout",
        "0.05",
    ]
    command = [
        sys.executable,
        "-m",
        "starcoder",
        "finetune",
        "--model",
        folder,
        "--data",
        pairs,
        "-o",
        output,
    ]
    return subprocess.Popen(
        list(map(str, [*command, *flags])), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def wait_for_checkpoint(process: subprocess.Popen[bytes], output: Path, step: int) -> None:
    folder = output / "checkpoints"
    while process.poll() is None:
        newest = max((int(p.stem[5:]) for p in folder.glob("step-*.pt")), default=0)
        if newest >= step:
            return
        time.sleep(0.002)


def killed_again_and_again(folder: Path, pairs: Path, tmp_path: Path, steps: int, at: list[int]) -> None:
    """Kill a run with LoRA, dropout and infills at these steps; it ends in the weights of one left alone."""
    assert start(folder, pairs, tmp_path / "whole", steps).wait() == 0
    killed = tmp_path / "killed"
    for step in at:
        process = start(folder, pairs, killed, steps)
        wait_for_checkpoint(process, killed, step)
        time.sleep(0.001 * (step * 7 % 23))  # anywhere in a step, or in writing a checkpoint
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert start(folder, pairs, killed, steps).wait() == 0
    weights = [(x / "adapter_model.safetensors").read_bytes() for x in (tmp_path / "whole", killed)]
    assert weights[0] == weights[1]
    losses = [
        [row["loss"] for row in read_metrics(tmp_path / x / "metrics.jsonl")] for x in ("whole", "killed")
    ]
    assert losses[0] == losses[1]


@pytest.mark.slow
def test_a_run_killed_twice_ends_in_the_same_adapter(folder: Path, pairs: Path, tmp_path: Path) -> None:
    killed_again_and_again(folder, pairs, tmp_path, 60, [4, 30])


@pytest.mark.slow
def test_a_run_killed_twenty_times_ends_in_the_same_adapter(
    folder: Path, pairs: Path, tmp_path: Path
) -> None:
    killed_again_and_again(folder, pairs, tmp_path, 800, [n * 38 + n % 5 for n in range(1, 21)])


def test_a_run_told_to_end_saves_and_resumes(folder: Path, pairs: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start(folder, pairs, run, 5000)
    wait_for_checkpoint(process, run, 2)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 143
    last = read_metrics(run / "metrics.jsonl")[-1]["step"]
    assert (run / "checkpoints" / f"step-{last:08d}.pt").is_file()


def test_the_last_of_a_repeated_flag_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = parsed(
        "finetune --data d --output r --max-steps 5 --lora_r 4 --max_steps=7 --rank 8", monkeypatch
    )
    assert (recipe.max_steps, recipe.adapter.rank) == (7, 8)


def test_the_launcher_puts_its_flag_before_the_verb(monkeypatch: pytest.MonkeyPatch) -> None:
    for flag in ("--local-rank=0", "--local_rank=3"):
        assert parsed(f"{flag} finetune --data d --output r --max_steps 5", monkeypatch).max_steps == 5


@pytest.mark.slow
def test_the_originals_own_launch_form_runs(folder: Path, pairs: Path, tmp_path: Path) -> None:
    """`python -m torch.distributed.launch` as the original's README has it, with underscores."""
    run = tmp_path / "run"
    launcher = ["-m", "torch.distributed.launch", "--nproc_per_node", "1", "-m", "starcoder"]
    flags = f"--model_path={folder} --dataset_name={pairs} --seq_length 128 --max_steps 1 --batch_size 1"
    flags += f" --gradient_accumulation_steps 2 --num_warmup_steps 1 --output_dir={run} --device cpu"
    done = subprocess.run(
        [sys.executable, *launcher, "finetune", *flags.split()], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert [row["step"] for row in read_metrics(run / "metrics.jsonl")] == [1]


def test_a_finished_run_is_lengthened(folder: Path, pairs: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert finetune(folder, pairs, run, "--epochs", "1") == 0
    first = read_metrics(run / "metrics.jsonl")
    assert finetune(folder, pairs, run, "--epochs", "2") == 0
    rows = read_metrics(run / "metrics.jsonl")
    assert rows[: len(first)] == first
    assert [row["step"] for row in rows] == list(range(1, 2 * len(first) + 1))
    assert rows[-1]["tokens"] == 2 * first[-1]["tokens"], "each epoch learns the same tokens once"
    assert finetune(folder, pairs, run, "--epochs", "1") == 0, "it is longer already"
    assert read_metrics(run / "metrics.jsonl") == rows


def test_preferences_are_learned_after_fine_tuning_without_a_merge(
    folder: Path, pairs: Path, tmp_path: Path
) -> None:
    data = tmp_path / "preferences.jsonl"
    rows = [{"prompt": f"add {n}", "chosen": f" {n} + 1", "rejected": " nothing"} for n in range(20)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert finetune(folder, pairs, tmp_path / "sft", "--max-steps", "2") == 0
    flags = ["--method", "dpo", "--init-adapter", str(tmp_path / "sft"), "--max-steps", "2"]
    assert finetune(folder, data, tmp_path / "dpo", *flags) == 0
    (first, *_) = read_metrics(tmp_path / "dpo" / "metrics.jsonl")
    assert first["loss"] == pytest.approx(0.6931, abs=1e-3), "the reference is where it began"
    tuned = [load_file(tmp_path / name / "adapter_model.safetensors") for name in ("sft", "dpo")]
    assert tuned[0].keys() == tuned[1].keys()
    differences = [float((tuned[0][key] - tuned[1][key]).abs().max()) for key in tuned[0]]
    assert 0 < max(differences) < 0.1, "it went on from the first"
