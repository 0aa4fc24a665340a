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
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from multiprocessing.connection import wait
from pathlib import Path

import numpy as np

from starcoder.errors import ConfigError
from starcoder.files import replace_atomically, write_whole
from starcoder.prepare import card, shards
from starcoder.prepare.dedup import Duplicates, find_duplicates
from starcoder.prepare.dedup_ray import find_duplicates_of_batches
from starcoder.prepare.ingest import Batch, Ingestor, compared_texts, read_batch
from starcoder.prepare.inputs import list_inputs
from starcoder.prepare.plan import make_plan
from starcoder.prepare.records import Dropped, Listing, Record, Repository
from starcoder.prepare.settings import PrepareSettings

log = logging.getLogger(__name__)

FORMAT = 1  # of the dataset and of the stages' files; another number is other work
_BATCH_BYTES = 4_000_000
_BATCH_RECORDS = 500

Tell = Callable[[str, int, int], None]  # what is being done, how many of it are done, and of how many


@dataclass(frozen=True, slots=True)
class Job:
    """Records of one repository that are read together."""

    number: int
    repository: Repository
    records: tuple[Record, ...]


def prepare(
    settings: PrepareSettings, output: Path, *, tell: Tell = lambda stage, done, total: None
) -> dict[str, object]:
    """Write the dataset and return its figures, which also lie in `output`/dataset.json.

    A finished dataset of the same settings is left as it is. `tell` hears of each step.

    Raises:
        ConfigError: inputs that are not there, an output folder that holds something else, or no document
            that stays.
    """
    if not settings.inputs and not settings.issues:
        raise ConfigError("there is nothing to prepare", "name folders, repositories or their URLs")
    shards.require_pyarrow()
    ingestor = Ingestor.of(settings)
    style = ingestor.tokenizer.sentinels.style
    if settings.pack_tokens and style != settings.family:
        raise ConfigError(
            f"rows packed for {settings.family!r} need its tokenizer; the one given is of {style!r}",
            "--tokenizer names the folder of the model to train, --family its family",
        )
    work = _open(settings, output)
    if work is None:
        return read_figures(output)
    tell("listing", 0, 1)
    listings = _listed(settings, work)
    jobs = list(_jobs(listings))
    _ingest_all(jobs, ingestor, work, tell)
    batches = [read_batch(_target(work, job.number)) for job in jobs]
    rows = [(job.number, row) for job, batch in zip(jobs, batches, strict=True) for row in batch.rows]
    if not rows:
        reasons = card.dropped(listings, batches)
        raise ConfigError(
            f"no document stays; left out: {reasons}", "lower the filters, or name other inputs"
        )
    duplicates = _deduplicated(jobs, batches, work, settings, tell)
    final = work / "final"
    stays = [index for index in range(len(rows)) if duplicates.stays(index)]
    plan = make_plan([(rows[index][0], rows[index][1]) for index in stays], settings)
    write = shards.Writer(final, lambda number: _target(work, number), settings, ingestor.tokenizer)
    tell("writing", 0, 1)
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
    document = asdict(replace(settings, workers=1, ray=False))
    text = json.dumps([FORMAT, document], sort_keys=True, default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(value: object) -> object:
    return sorted(value) if isinstance(value, frozenset) else str(value)


def _listed(settings: PrepareSettings, work: Path) -> list[Listing]:
    """The inputs as the first run found them: commits that came since are for another dataset."""
    path = work / "listing"
    if not path.exists():
        found = [asdict(listing) for listing in list_inputs(settings, work)]
        write_whole(path, json.dumps(found).encode())
    listings = [
        Listing(
            repository=Repository(**row["repository"]),
            records=tuple(Record(**record) for record in row["records"]),
            dropped=tuple(Dropped(**one) for one in row["dropped"]),
        )
        for row in json.loads(path.read_bytes())
    ]
    log.info("listed %d documents", sum(len(listing.records) for listing in listings))
    return listings


def _jobs(listings: list[Listing]) -> Iterator[Job]:
    number = 0
    for listing in listings:
        start, size = 0, 0
        for end, record in enumerate(listing.records, 1):
            size += record.size
            if size >= _BATCH_BYTES or end - start >= _BATCH_RECORDS or end == len(listing.records):
                yield Job(number, listing.repository, listing.records[start:end])
                number, start, size = number + 1, end, 0


def _target(work: Path, number: int) -> Path:
    return work / f"batch-{number:06}"


def _ingest_all(jobs: list[Job], ingestor: Ingestor, work: Path, tell: Tell) -> None:
    """Take what is not taken yet, in processes if there are several workers."""
    left = [job for job in jobs if not _target(work, job.number).with_suffix(".json").exists()]
    sizes = {job.number: len(job.records) for job in jobs}
    done, total = sum(sizes.values()) - sum(len(job.records) for job in left), sum(sizes.values())
    with ExitStack() as stack:
        if ingestor.settings.workers == 1 or len(left) < 2:
            done_jobs: Iterator[int] = map(partial(_ingested, ingestor, work), left)
        else:
            context = multiprocessing.get_context("spawn")
            workers = ProcessPoolExecutor(
                ingestor.settings.workers, context, _start_worker, (ingestor.settings,)
            )
            done_jobs = stack.enter_context(workers).map(_ingest_one, [(job, str(work)) for job in left])
        tell("reading", done, total)
        for number in done_jobs:
            done += sizes[number]
            tell("reading", done, total)


def _ingested(ingestor: Ingestor, work: Path, job: Job) -> int:
    """The job's number once it is done."""
    ingestor.ingest(job.repository, job.records, _target(work, job.number))
    return job.number


class _Worker(threading.local):
    """What a worker process keeps between batches."""

    ingestor: Ingestor | None = None


_WORKER = _Worker()


def _start_worker(settings: PrepareSettings) -> None:
    _WORKER.ingestor = Ingestor.of(settings)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _ingest_one(task: tuple[Job, str]) -> int:
    job, folder = task
    assert _WORKER.ingestor is not None, "the worker was started"
    return _ingested(_WORKER.ingestor, Path(folder), job)


def _end_with_parent() -> None:
    """Ends this worker when the run is killed: nobody else would."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)


def _deduplicated(
    jobs: list[Job], batches: list[Batch], work: Path, settings: PrepareSettings, tell: Tell
) -> Duplicates:
    path = work / "duplicates.npz"
    targets = [_target(work, job.number) for job in jobs]

    def texts() -> Iterator[str]:
        for number, (target, batch) in enumerate(zip(targets, batches, strict=True)):
            tell("comparing", number, len(targets))
            yield from compared_texts(target, batch.rows)

    if not path.exists():
        if settings.ray:
            found = find_duplicates_of_batches(targets, settings.dedup, scratch=work)
        else:
            found = find_duplicates(texts(), settings.dedup, workers=settings.workers, scratch=work)
        with replace_atomically(path) as part, part.open("wb") as file:
            np.savez(file, original=found.original, is_exact=found.is_exact)
    with np.load(path) as stored:
        return Duplicates(stored["original"], stored["is_exact"])


def _publish(work: Path, output: Path) -> None:
    """Move the finished dataset to its place, its sign of being whole last."""
    final = work / "final"
    names = sorted(path.name for path in final.iterdir()) if final.is_dir() else []
    for name in sorted(names, key=lambda name: name == "dataset.json"):
        (final / name).replace(output / name)
    shutil.rmtree(work)
