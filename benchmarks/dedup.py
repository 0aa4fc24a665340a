"""Near-duplicates beside datasketch on the same files, time at growing sizes, and masking of secrets.

    python benchmarks/dedup.py --corpus FOLDER --peer PYTHON_WITH_DATASKETCH [--save]

Files of the folder are taken in a shuffled order until the size is reached. datasketch runs in its own
interpreter and process, with its defaults and the same shingles, permutations and threshold; it reads, like
us, texts that are in memory, and unlike us it does not verify its candidates. One thread for both; the sizes
after that run with two. The last line is one JSON document.
"""

import argparse
import json
import os
import platform
import random
import resource
import subprocess
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from pathlib import Path

from starcoder.prepare import secrets, shingles
from starcoder.prepare.dedup import find_duplicates
from starcoder.prepare.settings import DedupSettings

PEER = """
import json, re, sys, time
from datasketch import MinHash, MinHashLSH, __version__
texts = json.load(open(sys.argv[1]))
token = re.compile(rb"[A-Za-z0-9_\\x80-\\xff]+")
begin = time.perf_counter()
lsh, num = MinHashLSH(threshold=0.7, num_perm=256), 0
for number, text in enumerate(texts):
    tokens = token.findall(text.encode())
    grams = {b" ".join(tokens[i : i + 5]) for i in range(len(tokens) - 4)}
    if not grams:
        continue
    signature = MinHash(num_perm=256)
    signature.update_batch(list(grams))
    num += bool(lsh.query(signature))
    lsh.insert(number, signature)
print(json.dumps({"seconds": time.perf_counter() - begin, "dropped": num, "version": __version__}))
"""


def read(corpus: Path, size_bytes: int) -> list[str]:
    """Source files of the corpus, in a shuffled order, up to this size."""
    files = sorted(path for path in corpus.rglob("*.py") if path.is_file() and not path.is_symlink())
    random.Random(0).shuffle(files)
    texts, size = [], 0
    for path in files:
        if size >= size_bytes:
            return texts
        data = path.read_bytes()
        if len(data) <= 1_000_000:
            texts.append(data.decode("utf-8", "replace"))
            size += len(data)
    raise SystemExit(f"{corpus} holds {size / 1e6:.0f} MB only")


def ours(texts: list[str], *, workers: int) -> tuple[float, int]:
    """Seconds, and how many documents are dropped."""
    begin = time.perf_counter()
    found = find_duplicates(texts, DedupSettings(), workers=workers)
    return time.perf_counter() - begin, found.num_exact + found.num_near


def peer(python: str, texts: list[str]) -> dict[str, float]:
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(texts, file)
        file.flush()
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [python, "-c", PEER, file.name], capture_output=True, text=True, check=True, env=environment
        )
    return json.loads(done.stdout)


def masking(texts: list[str]) -> float:
    """Seconds to mask the texts with two processes."""
    begin = time.perf_counter()
    with ProcessPoolExecutor(2) as pool:
        for _ in pool.map(secrets.mask, texts, chunksize=64):
            pass
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--peer", required=True, help="an interpreter that has datasketch")
    parser.add_argument("--peer-mb", type=int, default=8)
    parser.add_argument("--mb", type=int, nargs="*", default=[50, 100, 200])
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/dedup.json")
    options = parser.parse_args()

    few = read(options.corpus, options.peer_mb * 10**6)
    seconds, dropped = ours(few, workers=1)
    theirs = peer(options.peer, few)
    ratio = theirs["seconds"] / seconds
    print(f"{options.peer_mb} MB, {len(few)} files: {seconds:.2f} s; datasketch {theirs['seconds']:.2f} s")
    sizes = []
    for megabytes in options.mb:
        texts = read(options.corpus, megabytes * 10**6)
        taken, num = ours(texts, workers=2)
        sizes.append({"mb": megabytes, "files": len(texts), "seconds": round(taken, 2), "dropped": num})
        print(f"{megabytes} MB, {len(texts)} files: {taken:.2f} s, {num} dropped")
    mask_s = masking(texts)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"masking {options.mb[-1]} MB with two processes: {mask_s:.1f} s; peak {peak:.0f} MB with the texts"
    )
    document = {
        "benchmark": "dedup",
        "machine": {"cpu": platform.machine(), "num_cpus": os.cpu_count(), "torch": version("torch")},
        "native": shingles.native() is not None,
        "peer_mb": options.peer_mb,
        "seconds": round(seconds, 3),
        "dropped": dropped,
        "datasketch": theirs | {"seconds": round(theirs["seconds"], 3)},
        "ratio": round(ratio, 2),
        "sizes": sizes,
        "mask_s": round(mask_s, 2),
        "peak_mb": round(peak),
    }
    if options.save:
        path = Path(__file__).parent / "results" / "dedup.json"
        path.write_text(json.dumps(document, indent=2) + "\n")
    print(json.dumps(document))


if __name__ == "__main__":
    main()
