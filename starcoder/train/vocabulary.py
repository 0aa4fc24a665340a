"""Trains a byte-level BPE tokenizer with StarCoder's special tokens at ids 0 to 18; adds tokens."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from starcoder.files import copy_model_files, write_whole
from starcoder.layouts import FAMILIES
from starcoder.tokenizer import Tokenizer


def train_tokenizer(texts: Iterable[str], vocab_size: int, folder: Path, max_length: int) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json` under `folder`; digits stay single tokens."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers, trainers

    tokenizer = Backend(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(FAMILIES["starcoder"].special_tokens),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    end = FAMILIES["starcoder"].special_tokens[0]
    config = {
        "tokenizer_class": "GPT2TokenizerFast",
        "bos_token": end,
        "eos_token": end,
        "unk_token": end,
        "pad_token": "<fim_pad>",
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_length,
        "additional_special_tokens": list(FAMILIES["starcoder"].special_tokens[1:]),
    }
    write_whole(folder / "tokenizer_config.json", json.dumps(config, indent=1) + "\n")


def add_tokens(source: Path, folder: Path, texts: Sequence[str], chat_template: str | None) -> Tokenizer:
    """Load folder `source`'s tokenizer with more special tokens and a chat template, written to `folder`.

    Texts that are special already keep their ids; the new ones follow the vocabulary in the order given.
    """
    tokenizer = Tokenizer.load(source)
    new = [text for text in dict.fromkeys(texts) if text not in tokenizer.special_tokens]
    ids = {text: tokenizer.vocab_size + n for n, text in enumerate(new)}
    folder.mkdir(parents=True, exist_ok=True)
    copy_model_files(source, folder)
    document = json.loads((source / "tokenizer.json").read_text("utf-8"))
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added = [{"id": id, "content": text, **plain, "special": True} for text, id in ids.items()]
    document["added_tokens"] = [*document.get("added_tokens", []), *added]
    write_whole(folder / "tokenizer.json", json.dumps(document, ensure_ascii=False))
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    if new:
        key = "additional_special_tokens" if "additional_special_tokens" in config else "extra_special_tokens"
        config[key] = [*config.get(key, []), *new]
        decoder = {str(token["id"]): {k: v for k, v in token.items() if k != "id"} for token in added}
        if "added_tokens_decoder" in config:
            config["added_tokens_decoder"] |= decoder
    if chat_template is not None:
        config.pop("chat_template", None)
        (folder / "dialogue_template.json").unlink(missing_ok=True)  # readers would prefer it
        write_whole(folder / "chat_template.jinja", chat_template)
    write_whole(path, json.dumps(config, indent=1) + "\n")
    return Tokenizer.load(folder)
