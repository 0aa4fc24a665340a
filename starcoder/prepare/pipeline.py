"""Prepares a dataset in stages that a killed run takes up again: list, take, deduplicate, plan, write, card.

Each stage leaves a file in `OUTPUT/.work` that is either whole or absent; the next run starts behind the last
whole one and ends with the same bytes. Memory: a batch of texts in each worker, and about a kilobyte for each
document.
"""

import hashlib
import json
import logging
import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import wait
from pathlib import Path

import numpy as np

from starcoder.errors import ConfigError
from starcoder.prepare import card, shards
from starcoder.prepare.converting import changed_text
from starcoder.prepare.decontaminate import Benchmarks
from starcoder.prepare.dedup import Duplicates, find_duplicates
from starcoder.prepare.inputs import Item, Listing, Repository, list_inputs
from starcoder.prepare.plan import make_plan
from starcoder.prepare.settings import PrepareSettings
from starcoder.prepare.taking import Batch, Taker, read_batch, texts_of, write_whole
from starcoder.tokenizer import Tokenizer

log = logging.getLogger(__name__)

FORMAT = 1  # of the dataset and of the stages' files; another number is other work
_BATCH_BYTES = 4_000_000
_BATCH_ITEMS = 500
BUNDLED = Path(__file__).parent.parent / "bundled" / "nano"


@dataclass(frozen=True, slots=True)
class Job:
    """Items of one repository that are taken together."""

    number: int
    repository: Repository
    items: tuple[Item, ...]


def prepare(settings: PrepareSettings, output: Path) -> dict[str, object]:
    """Write the dataset and return its figures, which also lie in `output`/dataset.json.

    A finished dataset of the same settings is left as it is.

    Raises:
        ConfigError: inputs that are not there, an output folder that holds something else, or no document
            that stays.
    """
    shards.require_pyarrow()
    benchmarks = Benchmarks.read(settings.benchmarks, settings.contamination)
    tokenizer = Tokenizer.load(Path(settings.tokenizer) if settings.tokenizer else BUNDLED)
    style = tokenizer.sentinels.style
    if settings.pack_tokens and style != settings.family:
        raise ConfigError(
            f"rows packed for {settings.family!r} need its tokenizer; the one given is of {style!r}",
            "--tokenizer names the folder of the model to train, --family its family",
        )
    work = _open(settings, output)
    if work is None:
        return read_figures(output)
    listings = _listed(settings, work)
    jobs = list(_jobs(listings))
    _take_all(jobs, Taker(settings, tokenizer, benchmarks), work, settings.workers)
    batches = [read_batch(_target(work, job.number)) for job in jobs]
    rows = [(job.number, row) for job, batch in zip(jobs, batches, strict=True) for row in batch.rows]
    if not rows:
        reasons = card.dropped(listings, batches)
        raise ConfigError(
            f"no document stays; left out: {reasons}", "lower the filters, or name other inputs"
        )
    duplicates = _deduplicated(jobs, batches, work, settings)
    final = work / "final"
    stays = [index for index in range(len(rows)) if duplicates.stays(index)]
    plan = make_plan([(rows[index][0], rows[index][1]) for index in stays], settings)
    write = shards.Writer(final, lambda number: _target(work, number), settings, tokenizer)
    write.all(plan)
    figures = card.figures(settings, listings, batches, duplicates, plan)
    figures |= {"fingerprint": _fingerprint(settings), "packed_rows": write.packed_rows()}
    card.write(figures, final)
    write_whole(work / "finished", b"")
    _publish(work, output)
    return read_figures(output)


def read_figures(output: Path) -> dict[str, object]:
    """The figures of a prepared dataset.

    Raises:
        ConfigError: there is none.
    """
    try:
        figures: dict[str, object] = json.loads((output / "dataset.json").read_bytes())
    except (OSError, ValueError):
        raise ConfigError(
            f"{str(output)!r} holds no prepared dataset", "name one that prepare wrote"
        ) from None
    return figures


def _open(settings: PrepareSettings, output: Path) -> Path | None:
    """The folder of the stages, new or left by a killed run; None: the dataset is there."""
    asked = _fingerprint(settings)
    work = output / ".work"
    if (work / "finished").exists():
        _publish(work, output)
    if (output / "dataset.json").exists():
        if read_figures(output).get("fingerprint") != asked:
            raise ConfigError(
                f"{str(output)!r} holds a dataset of other settings", "name another folder, or remove it"
            )
        return None
    known = work / "settings"
    if known.exists():
        if known.read_text() != asked:
            raise ConfigError(
                f"{str(output)!r} holds the unfinished work of other settings",
                "name another folder, or remove it",
            )
    elif output.is_dir() and any(path.name != ".work" for path in output.iterdir()):
        raise ConfigError(f"{str(output)!r} is not empty", "name a new folder")
    work.mkdir(parents=True, exist_ok=True)
    write_whole(known, asked.encode())
    return work


def _fingerprint(settings: PrepareSettings) -> str:
    """A name of everything that the result depends on, but the inputs' state."""
    document = asdict(replace(settings, workers=1))
    text = json.dumps([FORMAT, document], sort_keys=True, default=sorted)
    return hashlib.sha256(text.encode()).hexdigest()


def _listed(settings: PrepareSettings, work: Path) -> list[Listing]:
    """The inputs as the first run found them: commits that came since are for another dataset."""
    path = work / "listing"
    if not path.exists():
        found = [asdict(listing) for listing in list_inputs(settings, work)]
        write_whole(path, json.dumps(found).encode())
    listings = [
        Listing(
            repository=Repository(**row["repository"]),
            items=tuple(Item(**item) for item in row["items"]),
            dropped=row["dropped"],
        )
        for row in json.loads(path.read_bytes())
    ]
    log.info("listed %d documents", sum(len(listing.items) for listing in listings))
    return listings


def _jobs(listings: list[Listing]) -> Iterator[Job]:
    number = 0
    for listing in listings:
        start, size = 0, 0
        for end, item in enumerate(listing.items, 1):
            size += item.size
            if size >= _BATCH_BYTES or end - start >= _BATCH_ITEMS or end == len(listing.items):
                yield Job(number, listing.repository, listing.items[start:end])
                number, start, size = number + 1, end, 0


def _target(work: Path, number: int) -> Path:
    return work / f"batch-{number:06}"


def _take_all(jobs: list[Job], taker: Taker, work: Path, workers: int) -> None:
    """Take what is not taken yet, in processes if there are several workers."""
    left = [job for job in jobs if not _target(work, job.number).with_suffix(".json").exists()]
    if workers == 1 or len(left) < 2:
        for job in left:
            taker.take(job.repository, job.items, _target(work, job.number))
        return
    context = multiprocessing.get_context("spawn")
    settings, folder = taker.settings, str(work)
    with ProcessPoolExecutor(workers, context, _start_worker, (settings,)) as pool:
        for _ in pool.map(_take_one, [(job, folder) for job in left]):
            pass


class _Worker(threading.local):
    """What a worker process keeps between batches."""

    taker: Taker | None = None


_WORKER = _Worker()


def _start_worker(settings: PrepareSettings) -> None:
    tokenizer = Tokenizer.load(Path(settings.tokenizer) if settings.tokenizer else BUNDLED)
    benchmarks = Benchmarks.read(settings.benchmarks, settings.contamination)
    _WORKER.taker = Taker(settings, tokenizer, benchmarks)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _take_one(task: tuple[Job, str]) -> None:
    job, folder = task
    assert _WORKER.taker is not None, "the worker was started"
    _WORKER.taker.take(job.repository, job.items, _target(Path(folder), job.number))


def _end_with_parent() -> None:
    """Ends this worker when the run is killed: nobody else would."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)


def _deduplicated(jobs: list[Job], batches: list[Batch], work: Path, settings: PrepareSettings) -> Duplicates:
    path = work / "duplicates.npz"
    if not path.exists():
        texts = (
            changed_text(text) if row.kind == "commit" else text
            for job, batch in zip(jobs, batches, strict=True)
            for row, text in zip(batch.rows, texts_of(_target(work, job.number), batch.rows), strict=True)
        )
        found = find_duplicates(texts, settings.dedup, workers=settings.workers, scratch=work)
        part = work / f"duplicates.{os.getpid()}.part.npz"
        np.savez(part, original=found.original, is_exact=found.is_exact)
        part.replace(path)
    with np.load(path) as stored:
        return Duplicates(stored["original"], stored["is_exact"])


def _publish(work: Path, output: Path) -> None:
    """Move the finished dataset to its place, its sign of being whole last."""
    final = work / "final"
    names = sorted(path.name for path in final.iterdir()) if final.is_dir() else []
    for name in sorted(names, key=lambda name: name == "dataset.json"):
        (final / name).replace(output / name)
    shutil.rmtree(work)
