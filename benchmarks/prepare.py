"""Times `prepare` on real source of this machine: seconds, MB/s and peak memory at several sizes.

    python benchmarks/prepare.py --corpus FOLDER --mb 50 100 200 --workers 2 [--save]

Copies text files of the folder (by hard links), each size in a folder of its own, in order of a hash of their
path, prepares it with the defaults and adds up the resident memory of all processes, read ten times a second.
The last line is JSON.
"""

import argparse
import hashlib
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from importlib.metadata import version
from pathlib import Path

from starcoder.prepare.languages import language_of

SCRIPT = """
import sys
from pathlib import Path
from starcoder.prepare.pipeline import prepare
from starcoder.prepare.settings import PrepareSettings
if __name__ == "__main__":
    settings = PrepareSettings(inputs=(sys.argv[1],), vendored=True, workers=int(sys.argv[3]))
    prepare(settings, Path(sys.argv[2]))
"""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--mb", type=int, nargs="+", default=[50, 100, 200])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--scratch", type=Path, default=None)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/prepare.json")
    options = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        files = source_files(options.corpus)
        for mb in options.mb:
            result = measure(files, mb, options.workers, Path(scratch))
            print(" ".join(f"{name}={value}" for name, value in result.items()), flush=True)
            results.append(result)
    machine = {"cpu": platform.machine(), "num_cpus": os.cpu_count(), "torch": version("torch")}
    report = {"benchmark": "prepare", "machine": machine, "workers": options.workers, "results": results}
    if options.save:
        path = Path(__file__).parent / "results" / "prepare.json"
        path.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report))


def source_files(corpus: Path) -> list[Path]:
    """Files of known languages up to 1 MB, in order of a hash of their path."""
    found = [p for p in corpus.rglob("*") if language_of(p.name) and p.is_file() and not p.is_symlink()]
    found = [path for path in found if 0 < path.stat().st_size <= 1_000_000]
    return sorted(found, key=lambda path: hashlib.sha256(str(path.relative_to(corpus)).encode()).digest())


def measure(files: list[Path], mb: int, workers: int, scratch: Path) -> dict[str, object]:
    """Prepare the first `mb` megabytes of the files."""
    source, output = scratch / f"source-{mb}", scratch / f"output-{mb}"
    size = 0
    for number, path in enumerate(files):
        if size >= mb * 10**6:
            break
        size += path.stat().st_size
        target = source / f"part{number // 500}" / f"{number}-{path.name}"
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            target.hardlink_to(path)
        except OSError:
            shutil.copyfile(path, target)
    script = scratch / "run.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, str(script), str(source), str(output), str(workers)], env=environment
    )
    peak: list[int] = [0]
    watcher = threading.Thread(target=watch, args=(process, peak), daemon=True)
    watcher.start()
    assert process.wait() == 0, "prepare failed"
    seconds = time.perf_counter() - start
    watcher.join()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    figures = json.loads((output / "dataset.json").read_text())
    return {
        "mb": round(size / 1e6, 1),
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu, 1),
        "mb_per_second": round(size / 1e6 / seconds, 2),
        "peak_mb": round(peak[0] / 1e6),
        "documents": figures["num_documents"],
        "seen": figures["num_seen"],
    }


def watch(process: "subprocess.Popen[bytes]", peak: list[int]) -> None:
    """Keep the largest sum of resident memory of the process and its children in `peak`."""
    while process.poll() is None:
        peak[0] = max(peak[0], sum(map(resident, [process.pid, *children(process.pid)])))
        time.sleep(0.1)


def children(pid: int) -> list[int]:
    """All processes below this one. Linux."""
    try:
        direct = [int(x) for x in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
    return [pid for child in direct for pid in (child, *children(child))]


def resident(pid: int) -> int:
    """Bytes of memory, shared pages counted in part where the kernel says so."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


if __name__ == "__main__":
    main()
