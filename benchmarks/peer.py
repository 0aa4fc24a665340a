"""One peer's speed, in a process of its own for `decode.py`: python benchmarks/peer.py ctranslate2 FOLDER

Times a prompt of --prompt tokens with one new token, and --new tokens of one stream behind a prompt of 8,
after a shorter one of each that warms up. Prints one JSON line. `ctranslate2` wants a folder that its
converter wrote with `--quantization int8`; `transformers` a checkpoint, whose linear layers torch's dynamic
int8 replaces: the fastest of what it offers on a CPU here. The two packages are no dependencies of this
project.
"""

import argparse
import json
import random
import time
import warnings
from collections.abc import Callable
from pathlib import Path

Generate = Callable[[list[int], int], int]  # prompt, new tokens -> tokens made
SHORT = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("peer", choices=["ctranslate2", "transformers"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--new", type=int, default=64)
    options = parser.parse_args()
    make = ctranslate2_peer if options.peer == "ctranslate2" else transformers_peer
    version, generate = make(options.folder, options.threads)
    rng = random.Random(0)

    def timed(length: int, new: int) -> float:
        prompt = [rng.randrange(100, 49000) for _ in range(length)]
        start = time.perf_counter()
        made = generate(prompt, new)
        wall_s = time.perf_counter() - start
        assert made == new, f"{options.peer} made {made} tokens of {new}"
        return wall_s

    timed(SHORT, 4), timed(64, 1)  # warm-up
    prefill_s = timed(options.prompt, 1)
    decode_s = timed(SHORT, options.new + 1) - timed(SHORT, 1)
    found = {"prefill": options.prompt / prefill_s, "decode": options.new / decode_s, "version": version}
    print(json.dumps(found))


def ctranslate2_peer(folder: Path, threads: int) -> tuple[str, Generate]:
    import ctranslate2

    model = ctranslate2.Generator(str(folder), device="cpu", compute_type="int8", intra_threads=threads)
    vocabulary = json.loads((folder / "vocabulary.json").read_text("utf-8"))

    def generate(prompt: list[int], new: int) -> int:
        words = [vocabulary[token] for token in prompt]
        [out] = model.generate_batch(
            [words],
            max_length=new,
            min_length=new,
            sampling_topk=1,
            include_prompt_in_result=False,
            end_token=[],
        )
        return len(out.sequences_ids[0])

    return ctranslate2.__version__, generate


def transformers_peer(folder: Path, threads: int) -> tuple[str, Generate]:
    import torch
    import transformers

    torch.set_num_threads(threads)
    transformers.logging.set_verbosity_error()
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces the end of this module
        model = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, torch.qint8, inplace=True)

    @torch.inference_mode()
    def generate(prompt: list[int], new: int) -> int:
        tokens = torch.tensor([prompt])
        out = model.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=new,
            min_new_tokens=new,
            do_sample=False,
            pad_token_id=0,
        )
        return int(out.shape[1] - tokens.shape[1])

    return transformers.__version__, generate


if __name__ == "__main__":
    main()
