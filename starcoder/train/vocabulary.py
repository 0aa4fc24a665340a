"""Trains a byte-level BPE tokenizer with StarCoder's special tokens at ids 0 to 18."""

import json
from collections.abc import Iterable
from pathlib import Path

# Source: bigcode/starcoder's tokenizer, serving facts in its tokenizer_config.json.
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<fim_prefix>",
    "<fim_middle>",
    "<fim_suffix>",
    "<fim_pad>",
    "<filename>",
    "<gh_stars>",
    "<issue_start>",
    "<issue_comment>",
    "<issue_closed>",
    "<jupyter_start>",
    "<jupyter_text>",
    "<jupyter_code>",
    "<jupyter_output>",
    "<empty_output>",
    "<commit_before>",
    "<commit_msg>",
    "<commit_after>",
    "<reponame>",
)


def train_tokenizer(texts: Iterable[str], vocab_size: int, folder: Path, max_length: int) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json` under `folder`; digits stay single tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    end = SPECIAL_TOKENS[0]
    config = {
        "tokenizer_class": "GPT2TokenizerFast",
        "bos_token": end,
        "eos_token": end,
        "unk_token": end,
        "pad_token": "<fim_pad>",
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_length,
        "additional_special_tokens": list(SPECIAL_TOKENS[1:]),
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")
