"""Preparing promises: counted, the same bytes again and after kills, and nothing malformed stops it."""

import gzip
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from starcoder.cli import main
from starcoder.errors import ConfigError
from starcoder.files import bundled
from starcoder.prepare import attribution, card
from starcoder.prepare.attribution_data import documents_of
from starcoder.prepare.pipeline import prepare, read_figures
from starcoder.prepare.secrets import mask
from starcoder.prepare.settings import DedupSettings, PrepareSettings
from starcoder.tokenizer import Tokenizer
from tests.prepare.planting import plants
from tests.prepare.test_dedup import dropped_exactly, shingle_set, similar_pairs
from tests.repos.repositories import git

pytest.importorskip("pyarrow", reason="shards are Parquet; pip install 'starcoder-kit[prepare]'")

FUNCTION = '''def {name}_{n}(first, second):
    """Combine {name} number {n} with care."""
    total = first * {n} + second
    for step in range({n}):
        total += step * len("{name}")
    return total, "{name}"
'''
WORDS = ("river", "mountain", "forest", "harbor", "garden", "window", "lantern", "marble", "copper", "willow")


def read_rows(folder, split="*"):
    from pyarrow import parquet

    files = sorted((folder / "data").glob(f"{split}-*.parquet"))
    return [row for file in files for row in parquet.read_table(file).to_pylist()]


def content_of(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


@pytest.fixture
def tree(tmp_path):
    """A folder of small files, of which the second half imports the first."""
    root = tmp_path / "tree"
    rng = random.Random(0)
    for number in range(24):
        word = WORDS[number % 10]
        folder = root / f"part{number % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        body = "".join(
            FUNCTION.format(name=rng.choice(WORDS) + word, n=rng.randrange(1000)) for _ in range(6)
        )
        (folder / f"{word}{number}.py").write_text(body)
    (root / "LICENSE").write_text("This project is free for all.\nIt is licensed under the MIT License.\n")
    return root


@pytest.fixture
def repository(tmp_path):
    """A repository of three commits; the last one changes one file by a line."""
    root = tmp_path / "repo"
    root.mkdir()
    git(root, "init", "-q")
    (root / ".gitattributes").write_text("made.py linguist-generated\nlib/** linguist-vendored\n")
    (root / "made.py").write_text(FUNCTION.format(name="made", n=1))
    (root / "lib").mkdir()
    (root / "lib" / "theirs.py").write_text(FUNCTION.format(name="theirs", n=2))
    (root / "own.py").write_text(FUNCTION.format(name="own", n=3))
    git(root, "add", ".")
    git(root, "commit", "-qm", "Begin")
    (root / "other.py").write_text(FUNCTION.format(name="quite_another", n=77) * 2 + "VALUE = [1, 2, 3]\n")
    git(root, "add", ".")
    git(root, "commit", "-qm", "Add another module")
    (root / "own.py").write_text(FUNCTION.format(name="own", n=3) + "\nLIMIT = 10\n")
    git(root, "commit", "-qam", "Give the module a limit\n\nSigned-off-by: T <t@example.org>")
    return root


def test_figures_equal_an_independent_count(tree, tmp_path):
    (tree / "part0" / "copy.py").write_bytes(next((tree / "part1").iterdir()).read_bytes())
    settings = PrepareSettings(inputs=(str(tree),), validation_share=0.2)
    figures = prepare(settings, tmp_path / "out")
    rows = read_rows(tmp_path / "out")
    encode = Tokenizer.load(bundled()).encode
    assert figures["num_documents"] == len(rows)
    assert figures["num_seen"] == sum(path.is_file() for path in tree.rglob("*"))
    assert figures["num_seen"] == figures["num_documents"] + sum(figures["dropped"].values())
    assert figures["num_characters"] == sum(len(row["content"]) for row in rows)
    assert figures["num_tokens"] == sum(len(encode(row["content"])) for row in rows)
    assert figures["duplicates"]["exact"] == 1
    languages = Counter(row["language"] for row in rows)
    assert {name: sums["documents"] for name, sums in figures["languages"].items()} == dict(languages)
    for split, sums in figures["splits"].items():
        assert sums["documents"] == len(read_rows(tmp_path / "out", split))
    assert {row["license"] for row in rows} == {"MIT"}


def test_a_second_run_and_more_workers_give_the_same_bytes(tree, repository, tmp_path):
    inputs = (str(tree), str(repository))
    for name, workers in (("one", 1), ("two", 2)):
        settings = PrepareSettings(
            inputs=inputs, commits=True, family="starcoder", pack_tokens=64, workers=workers
        )
        prepare(settings, tmp_path / name)
    assert content_of(tmp_path / "one") == content_of(tmp_path / "two")


def test_a_finished_dataset_is_left_alone_and_other_settings_are_refused(tree, tmp_path):
    settings = PrepareSettings(inputs=(str(tree),))
    first = prepare(settings, tmp_path / "out")
    assert prepare(settings, tmp_path / "out") == first
    with pytest.raises(ConfigError, match="other settings"):
        prepare(PrepareSettings(inputs=(str(tree),), seed=1), tmp_path / "out")


@pytest.mark.parametrize("num_kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_a_killed_run_goes_on_to_the_same_bytes(num_kills, tree, tmp_path):
    inputs = [str(tree)] * 12 if num_kills == 3 else [sysconfig.get_path("stdlib") + "/asyncio", str(tree)]
    prepare(PrepareSettings(inputs=tuple(inputs), family="starcoder", pack_tokens=64), tmp_path / "whole")
    script = (
        "import sys, pathlib; from starcoder.prepare.pipeline import prepare; "
        "from starcoder.prepare.settings import PrepareSettings as S; "
        "settings = S(inputs=tuple(sys.argv[2:]), family='starcoder', pack_tokens=64); "
        "prepare(settings, pathlib.Path(sys.argv[1]))"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "killed"), *inputs]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    rng = random.Random(num_kills)
    for _ in range(num_kills):
        process = subprocess.Popen(command, env=environment)
        time.sleep(rng.uniform(0.1, 1.5))
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(command, env=environment, check=True)
    assert content_of(tmp_path / "killed") == content_of(tmp_path / "whole")


@pytest.mark.parametrize("place", ["write_whole", "card", "publish"])
def test_a_run_that_ends_in_any_stage_goes_on(place, tree, tmp_path, monkeypatch):
    from starcoder.prepare import pipeline

    settings = PrepareSettings(inputs=(str(tree),))
    prepare(settings, tmp_path / "whole")

    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if place == "write_whole":
            patch.setattr(pipeline, "find_duplicates", stop)
        elif place == "card":
            patch.setattr(pipeline.card, "write", stop)
        else:
            patch.setattr(pipeline.shutil, "rmtree", stop)
        with pytest.raises(KeyboardInterrupt):
            prepare(settings, tmp_path / "out")
    prepare(settings, tmp_path / "out")
    assert content_of(tmp_path / "out") == content_of(tmp_path / "whole")


def test_malformed_input_is_counted_and_stops_nothing(tree, tmp_path):
    bad = tree / "bad"
    bad.mkdir()
    (bad / "broken.py").write_bytes(b"x = '\xff\xfe\xfa\x81\x8d\x8f' " * 20)
    (bad / "line.py").write_text("x = '" + "word " * 20_000 + "'\n")
    with (bad / "gigabyte.py").open("wb") as file:
        file.truncate(2**30)
    (bad / "loop").symlink_to(tree)
    (bad / "self.py").symlink_to(bad / "self.py")
    (bad / "bomb.py").write_bytes(gzip.compress(bytes(10**7)))
    (bad / "two\nlines.py").write_text(FUNCTION.format(name="lines", n=5))
    (tree / "notes.ipynb").write_text("{ no notebook")
    os.mkfifo(bad / "pipe.py")
    os.mkfifo(bad / ".gitignore")
    hidden = bad / "hidden.py"
    hidden.write_text(FUNCTION.format(name="hidden", n=6))
    hidden.chmod(0)
    cut = tree / "cut"
    (cut / ".git" / "objects").mkdir(parents=True)
    (cut / ".git" / "HEAD").write_text("ref: refs/heads/main\n")
    (cut / "still.py").write_text(FUNCTION.format(name="still", n=88) * 3)
    figures = prepare(PrepareSettings(inputs=(str(tree),)), tmp_path / "out")
    expected = {
        "encoding": 1,
        "filter line_mean": 1,
        "huge": 1,
        "symbolic link": 2,
        "binary": 1,
        "path with control characters or of no encoding": 1,
        "notebook without cells": 1,
        "not a regular file": 2,
        "repository without a readable commit": 1,
    }
    if os.geteuid() != 0:
        expected["unreadable"] = 1
    assert expected.items() <= figures["dropped"].items()
    assert "tree/cut" in figures["repositories"]


def test_a_repository_gives_its_revision_and_what_gitattributes_leaves(repository, tmp_path):
    (repository / "untracked.py").write_text(FUNCTION.format(name="untracked", n=9))
    figures = prepare(PrepareSettings(inputs=(str(repository),), commits=True), tmp_path / "out")
    rows = read_rows(tmp_path / "out")
    assert sorted(row["path"] for row in rows if row["kind"] == "file") == ["other.py", "own.py"]
    assert {row["revision"] for row in rows} == {figures["revisions"]["repo"]}
    (change,) = [row["content"] for row in rows if row["kind"] == "commit"]
    assert change.startswith("<commit_before>def own_3")
    assert "<commit_msg>Give the module a limit<commit_after>" in change
    assert change.endswith("LIMIT = 10\n")
    older = prepare(PrepareSettings(inputs=(f"{repository}@HEAD~2",)), tmp_path / "older")
    assert older["num_documents"] == 1
    every = PrepareSettings(inputs=(str(repository),), worktree=True)
    prepare(every, tmp_path / "worktree")
    assert "untracked.py" in {row["path"] for row in read_rows(tmp_path / "worktree")}


def test_a_url_is_cloned_and_its_password_shown_nowhere(repository, tmp_path):
    figures = prepare(PrepareSettings(inputs=(f"file://{repository}",)), tmp_path / "out")
    assert figures["num_documents"] == 2
    broken = "https://someone:hunter2secret@127.0.0.1:9/owner/name.git"
    settings = PrepareSettings(inputs=(str(repository), broken))
    prepare(settings, tmp_path / "partly")
    assert read_figures(tmp_path / "partly")["dropped"]["repository that cannot be cloned"] == 1
    assert not any(b"hunter2secret" in data for data in content_of(tmp_path / "partly").values())


def test_splits_hold_out_whole_repositories_or_the_newest_files(tree, repository, tmp_path):
    by_repository = PrepareSettings(inputs=(str(tree), str(repository)), split_by="repository")
    prepare(by_repository, tmp_path / "by_repository")
    parts = [
        {row["repository"] for row in read_rows(tmp_path / "by_repository", s)} for s in ("train", "valid*")
    ]
    assert parts[0] and parts[1] and not parts[0] & parts[1]
    by_time = PrepareSettings(inputs=(str(repository),), split_by="time", validation_share=0.5)
    prepare(by_time, tmp_path / "by_time")
    assert {row["committed_at"] is None for row in read_rows(tmp_path / "by_time")} == {False}
    with pytest.raises(ConfigError, match="one repository"):
        prepare(PrepareSettings(inputs=(str(tree),), split_by="repository"), tmp_path / "impossible")


def test_secrets_and_benchmarks_are_in_no_file(tree, tmp_path):
    secret = "AKIAQ3EGRXKPLMZ7TWUV"
    (tree / "part0" / "keys.py").write_text(f'{FUNCTION.format(name="keys", n=4)}\nKEY = "{secret}"\n')
    problem = FUNCTION.format(name="benchmark", n=4242)
    (tree / "part1" / "solved.py").write_text("import os\n\n" + problem)
    (tmp_path / "bench.jsonl").write_text(json.dumps({"prompt": problem}) + "\n")
    settings = PrepareSettings(
        inputs=(str(tree),),
        benchmark=(tmp_path / "bench.jsonl",),
        family="starcoder",
        pack_tokens=64,
    )
    figures = prepare(settings, tmp_path / "out")
    assert figures["dropped"]["contaminated by a benchmark"] == 1
    assert sum(figures["masked"].values()) == 1
    assert "part1/solved.py" not in {row["path"] for row in read_rows(tmp_path / "out")}
    assert not any(secret in row["content"] for row in read_rows(tmp_path / "out"))
    assert not any(secret.encode() in data for data in content_of(tmp_path / "out").values())


@pytest.mark.parametrize("num", [48, pytest.param(320, marks=pytest.mark.slow)])
def test_planted_secrets_are_in_no_output_log_card_or_index(num, tmp_path, caplog):
    caplog.set_level("DEBUG")
    planted = plants(num, seed=0)
    for number, plant in enumerate(planted):
        (tmp_path / "code").mkdir(exist_ok=True)
        (tmp_path / "code" / f"file{number}.py").write_text(plant.text)
    settings = PrepareSettings(inputs=(str(tmp_path / "code"),), dedup=DedupSettings(similarity=1.0))
    figures = prepare(settings, tmp_path / "out")
    attribution.build(documents_of(tmp_path / "out"), tmp_path / "out" / "attribution")
    assert figures["num_documents"] == num - sum(figures["dropped"].values())
    assert sum(figures["masked"].values()) > 0.9 * figures["num_documents"]
    everything = [row["content"].encode() for row in read_rows(tmp_path / "out")]
    everything += [*content_of(tmp_path / "out").values(), caplog.text.encode(), str(figures).encode()]
    haystack = b"\n".join(everything)
    left = [plant.kind for plant in planted if plant.secret.encode() in haystack]
    assert left == []


def test_each_stage_is_told_of(tree, tmp_path):
    told = []
    settings = PrepareSettings(inputs=(str(tree),))
    prepare(settings, tmp_path / "out", tell=lambda *step: told.append(step))
    assert list(dict.fromkeys(stage for stage, _, _ in told)) == [
        "listing",
        "reading",
        "comparing",
        "writing",
    ]
    assert all(done <= total for _, done, total in told)
    assert ("reading", 25, 25) in told  # the license is one of them


def test_datasets_loads_the_folder_with_its_splits(tree, tmp_path):
    datasets = pytest.importorskip("datasets", reason="the extra `train` brings datasets")
    settings = PrepareSettings(inputs=(str(tree),), validation_share=0.3, family="starcoder", pack_tokens=64)
    figures = prepare(settings, tmp_path / "out")
    loaded = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert {name: len(part) for name, part in loaded.items()} == {
        name: sums["documents"] for name, sums in figures["splits"].items()
    }
    packed = datasets.load_dataset(str(tmp_path / "out"), "packed", cache_dir=str(tmp_path / "cache"))
    assert {len(row["input_ids"]) for part in packed.values() for row in part} == {64}


def test_the_card_is_what_explain_prints(tree, tmp_path):
    prepare(PrepareSettings(inputs=(str(tree),)), tmp_path / "out")
    figures = read_figures(tmp_path / "out")
    readme = (tmp_path / "out" / "README.md").read_text()
    assert readme.endswith(card.text(figures, "plots/" in readme))
    assert readme.startswith("---\npretty_name")


def test_rows_are_packed_for_the_family_of_the_tokenizer_alone(tree, tmp_path):
    settings = PrepareSettings(inputs=(str(tree),), family="starcoder2", pack_tokens=64)
    with pytest.raises(ConfigError, match="need its tokenizer"):
        prepare(settings, tmp_path / "out")


@pytest.mark.slow
def test_the_standard_library_is_counted_right(tmp_path):
    """A real tree, and in it a package whose files are near duplicates of one another: the codecs' tables."""
    stdlib = Path(sysconfig.get_path("stdlib"))
    inputs = (str(stdlib / "encodings"), str(stdlib / "test"), str(stdlib / "asyncio"))
    figures = prepare(PrepareSettings(inputs=inputs, workers=2), tmp_path / "out")
    rows = read_rows(tmp_path / "out")
    assert figures["num_documents"] == len(rows)
    assert figures["num_seen"] == figures["num_documents"] + sum(figures["dropped"].values())
    assert figures["num_characters"] == sum(len(row["content"]) for row in rows)
    assert figures["duplicates"]["near"] > 20
    assert len({row["content"] for row in rows}) == len(rows)


@pytest.mark.slow
def test_a_package_of_many_near_duplicates_is_counted_right(tmp_path):
    """transformers' models, whose families are copies of one another, against exact Jaccard."""
    package = pytest.importorskip("transformers", reason="its models are the package that is prepared")
    tree = tmp_path / "models"
    for kind in ("configuration", "tokenization", "image", "processing", "feature", "convert"):
        for path in sorted((Path(package.__file__).parent / "models").glob(f"*/{kind}_*.py")):
            (tree / path.parent.name).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, tree / path.parent.name / path.name)
    settings = PrepareSettings(inputs=(str(tree),), validation_share=0)
    figures = prepare(settings, tmp_path / "out")
    rows = read_rows(tmp_path / "out")
    files = [path for path in tree.rglob("*") if path.is_file()]
    texts = [mask(path.read_text()).text for path in sorted(files, key=lambda path: path.as_posix())]
    texts = [text for text in texts if text.strip() and "automatically generated" not in text[:500]]
    assert (figures["num_seen"], figures["num_documents"]) == (len(files), len(rows))
    assert figures["num_seen"] == len(rows) + sum(figures["dropped"].values())
    dropped = dropped_exactly(len(texts), similar_pairs([shingle_set(text) for text in texts], 0.7))
    found = figures["duplicates"]["near"] + figures["duplicates"]["exact"]
    assert len(dropped) > 25, "the package has many near duplicates"
    assert found == pytest.approx(len(dropped), abs=2)  # a filter may have dropped one of them before
    again = PrepareSettings(inputs=(str(tree),), validation_share=0, workers=2)
    prepare(again, tmp_path / "again")
    assert content_of(tmp_path / "again") == content_of(tmp_path / "out")


@pytest.mark.slow
def test_a_history_of_500_commits_is_counted_right(tmp_path):
    root = tmp_path / "history"
    root.mkdir()
    git(root, "init", "-q")
    rng = random.Random(1)
    texts = {name: [FUNCTION.format(name=name, n=n) for n in range(8)] for name in WORDS}
    for number in range(510):
        name = WORDS[number % 10]
        texts[name].append(FUNCTION.format(name=f"{rng.choice(WORDS)}_{name}", n=rng.randrange(10**6)))
        (root / f"{name}.py").write_text("".join(texts[name][-12:]))
        git(root, "add", ".")
        git(root, "commit", "-qm", f"Add function number {number} to the module {name}")
    settings = PrepareSettings(inputs=(str(root),), commits=True, split_by="time", validation_share=0.2)
    figures = prepare(settings, tmp_path / "out")
    assert figures["num_seen"] == 10 + 500  # ten commits add a file, the others change one
    kinds = Counter(row["kind"] for row in read_rows(tmp_path / "out"))
    assert {kind: sums["documents"] for kind, sums in figures["kinds"].items()} == dict(kinds)
    assert kinds["commit"] > 300
    newest = {row["committed_at"] for row in read_rows(tmp_path / "out", "validation")}
    assert min(newest) >= max(row["committed_at"] for row in read_rows(tmp_path / "out", "train"))


def test_secrets_of_messages_and_issues_are_not_even_in_unfinished_work(repository, tmp_path, monkeypatch):
    from starcoder.prepare import pipeline

    secret = "AKIAQ3EGRXKPLMZ7TWUV"
    (repository / "own.py").write_text(FUNCTION.format(name="own", n=3) + "\nLIMIT = 11\n")
    git(repository, "commit", "-qam", f"Use the key {secret} for the limit")
    issue = {"title": "The key", "body": f"{secret} works no more since the last update", "number": 7}
    (tmp_path / "issues.json").write_text(json.dumps([issue]))
    settings = PrepareSettings(inputs=(str(repository),), issues=(tmp_path / "issues.json",), commits=True)
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "find_duplicates", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepare(settings, tmp_path / "out")
    assert not any(secret.encode() in data for data in content_of(tmp_path / "out").values())
    figures = prepare(settings, tmp_path / "out")
    assert (figures["kinds"]["issue"]["documents"], figures["kinds"]["commit"]["documents"]) == (1, 2)
    assert sum(figures["masked"].values()) == 2
    assert not any(secret in row["content"] for row in read_rows(tmp_path / "out"))


def test_the_trainer_reads_the_folder_with_its_splits(tree, tmp_path):
    from starcoder.train.settings import SourceSettings
    from starcoder.train.sources import read

    settings = PrepareSettings(inputs=(str(tree),), validation_share=0.3, family="starcoder", pack_tokens=64)
    figures = prepare(settings, tmp_path / "out")
    sources = read(SourceSettings(data=(str(tmp_path / "out"),)))
    splits = {name: sums["documents"] for name, sums in figures["splits"].items()}
    assert {"train": sources.num_documents, "validation": len(sources.validation)} == splits
    assert sources.kinds == {"text"}


def test_what_was_left_out_and_masked_is_listed_and_explained(tree, tmp_path, capsys):
    from pyarrow import parquet

    copied = next((tree / "part1").iterdir())
    (tree / "part2" / "copy.py").write_bytes(copied.read_bytes())
    (tree / "part2" / "long.py").write_text("x = '" + "word " * 20_000 + "'\n")
    (tree / "part2" / "who.py").write_text(
        FUNCTION.format(name="who", n=9) * 3 + "# mail jane.roe@corp.net\n"
    )
    (tree / "jane.roe@corp.net.bin").write_bytes(b"\0")
    figures = prepare(PrepareSettings(inputs=(str(tree),), validation_share=0), tmp_path / "out")
    left_out = parquet.read_table(tmp_path / "out" / "dropped.parquet").to_pylist()
    assert len(left_out) == sum(figures["dropped"].values()) == figures["num_seen"] - figures["num_documents"]
    by_path = {row["path"]: row for row in left_out}
    names = sorted([f"part1/{copied.name}", "part2/copy.py"])
    assert by_path[names[1]]["duplicate_of"] == f"tree:{names[0]}"
    assert by_path["part2/long.py"]["reason"].startswith("filter line_")
    assert not any("jane" in str(row) for row in left_out)
    (masked,) = parquet.read_table(tmp_path / "out" / "masked.parquet").to_pylist()
    assert (masked["path"], masked["kind"], masked["num"]) == ("part2/who.py", "email", 1)
    assert main(["prepare", "part2/long.py", "who.py", "--explain", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert "dropped: repository tree, path part2/long.py, reason filter line_" in shown
    assert "kept: split train, repository tree, path part2/who.py" in shown
    assert "masked: repository tree, path part2/who.py, document file, kind email, num 1" in shown
    assert main(["prepare", "nowhere.py", "--explain", str(tmp_path / "out")]) == 2


@pytest.mark.parametrize("wrong", ["revision", "export", "filter"])
def test_a_failed_start_leaves_nothing_in_the_way_of_the_corrected_one(wrong, repository, tmp_path):
    right = PrepareSettings(inputs=(str(repository),))
    changes = {
        "revision": {"inputs": (f"{repository}@typo",)},
        "export": {"issues": (tmp_path / "none.json",)},
        "filter": {"languages": ("Rust",)},
    }
    with pytest.raises(ConfigError):
        prepare(replace(right, **changes[wrong]), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert prepare(right, tmp_path / "out")["num_documents"] == 2


def test_a_base_leaves_what_is_new(tree, repository, tmp_path):
    base = prepare(PrepareSettings(inputs=(str(repository),), validation_share=0), tmp_path / "base")
    known = {row["content"] for row in read_rows(tmp_path / "base")}
    (tree / "part0" / "known.py").write_text((repository / "own.py").read_text())
    settings = PrepareSettings(
        inputs=(str(tree), str(repository)), base=tmp_path / "base", validation_share=0
    )
    figures = prepare(settings, tmp_path / "next")
    assert figures["repositories"].keys() == {"tree"}
    assert figures["dropped"]["repository at a commit that the base has"] == 1
    assert figures["dropped"]["exact duplicate"] == 1
    assert known.isdisjoint(row["content"] for row in read_rows(tmp_path / "next"))
    (repository / "fresh.py").write_text(FUNCTION.format(name="entirely_fresh", n=5) * 3)
    git(repository, "add", ".")
    git(repository, "commit", "-qm", "Add a fresh module")
    again = PrepareSettings(inputs=(str(repository),), base=tmp_path / "base", validation_share=0)
    newer = prepare(again, tmp_path / "newer")
    assert [row["path"] for row in read_rows(tmp_path / "newer")] == ["fresh.py"]
    assert newer["revisions"] != base["revisions"]


def test_named_repositories_are_held_out_and_none_dominates(tree, repository, tmp_path):
    settings = PrepareSettings(
        inputs=(str(tree), str(repository)), held_out=("re*",), max_repository_bytes=9000
    )
    figures = prepare(settings, tmp_path / "out")
    assert {row["repository"] for row in read_rows(tmp_path / "out", "validation")} == {"repo"}
    assert {row["repository"] for row in read_rows(tmp_path / "out", "train")} == {"tree"}
    assert sum(len(row["content"].encode()) for row in read_rows(tmp_path / "out", "train")) <= 9000
    assert figures["dropped"]["repository above max_repository_bytes"] > 10
    with pytest.raises(ConfigError, match="no repository is named 'none'"):
        prepare(replace(settings, held_out=("none",)), tmp_path / "other")


def test_pretraining_reads_what_was_prepared(tree, tmp_path):
    pytest.importorskip("torch", reason="the trainer needs torch")
    from starcoder.train.documents import read_texts
    from starcoder.train.pretrain import Recipe

    prepare(PrepareSettings(inputs=(str(tree),), validation_share=0.3), tmp_path / "out")
    for split in ("train", "validation"):
        rows = read_rows(tmp_path / "out", split)
        assert read_texts(tmp_path / "out", split=split) == [row["content"] for row in rows]
    recipe = Recipe.read(Path(__file__).parents[2] / "recipes" / "nano.toml")
    assert (recipe.data.train, recipe.data.held_out) == ("runs/nano/data", None)
