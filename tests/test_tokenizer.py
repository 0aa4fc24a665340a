"""Tokens and text: user text is safe, decoding is exact, streaming equals decoding at once."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from starcoder.errors import CheckpointError, RequestError
from starcoder.tokenizer import BYTE_OF_CHARACTER, Tokenizer
from tests.tiny import SPECIAL_TOKENS, TokenizerStyle, make_tokenizer

STYLES = get_args(TokenizerStyle)
EVERY_SPECIAL = sorted({text for texts in SPECIAL_TOKENS.values() for text in texts})
TEXT = st.text(max_size=40)
# Text with sentinels and their parts in it, as a user or an attacker would write it.
HOSTILE = st.lists(
    st.one_of(st.text(max_size=5), st.sampled_from([*EVERY_SPECIAL, "<fim", "_prefix>", "<|", " "]))
).map("".join)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {style: tmp_path_factory.mktemp(style) for style in STYLES}
    for style, folder in folders.items():
        make_tokenizer(style, folder)
    return folders


@pytest.fixture(scope="module")
def tokenizers(folders: dict[str, Path]) -> dict[str, Tokenizer]:
    return {style: Tokenizer.load(folder) for style, folder in folders.items()}


@pytest.fixture(scope="module")
def oracles(folders: dict[str, Path]) -> dict[str, Any]:
    from transformers import PreTrainedTokenizerFast

    return {style: PreTrainedTokenizerFast.from_pretrained(folder) for style, folder in folders.items()}


def changed(folder: Path, to: Path, **changes: Any) -> Path:
    """A copy of the folder's tokenizer.json with other top-level or `model__` keys."""
    document = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    for key, value in changes.items():
        owner = document["model"] if key.startswith("model__") else document
        owner[key.removeprefix("model__")] = value
    to.mkdir(exist_ok=True)
    (to / "tokenizer.json").write_text(json.dumps(document), "utf-8")
    return to


def without(document: dict[str, Any], *texts: str) -> dict[str, Any]:
    document["added_tokens"] = [t for t in document["added_tokens"] if t["content"] not in texts]
    document["model"]["vocab"] = {t: id for t, id in document["model"]["vocab"].items() if t not in texts}
    return document


def special_ids(tokenizer: Tokenizer, style: TokenizerStyle) -> set[int]:
    return {tokenizer.encode_with_special(text)[0] for text in SPECIAL_TOKENS[style]}


# Encoding


@given(text=TEXT, style=st.sampled_from(STYLES))
def test_decoding_gives_back_what_was_encoded(tokenizers, text, style):
    assert tokenizers[style].decode(tokenizers[style].encode(text)) == text


@given(text=HOSTILE, style=st.sampled_from(STYLES))
def test_user_text_never_becomes_a_special_token(tokenizers, text, style):
    tokenizer = tokenizers[style]
    ids = tokenizer.encode(text)
    assert special_ids(tokenizer, style).isdisjoint(ids)
    assert tokenizer.decode(ids) == text


def test_user_text_never_becomes_an_added_token_that_is_not_marked_special(folders, tmp_path):
    document = json.loads((folders["starcoder"] / "tokenizer.json").read_text("utf-8"))
    for token in document["added_tokens"]:
        token["special"] = False
    folder = changed(folders["starcoder"], tmp_path, added_tokens=document["added_tokens"])
    tokenizer = Tokenizer.load(folder)
    ids = tokenizer.encode("a<fim_prefix>b<issue_start>")
    assert special_ids(tokenizer, "starcoder").isdisjoint(ids)
    assert tokenizer.decode(ids) == "a<fim_prefix>b<issue_start>"


def test_user_text_never_becomes_a_sentinel_that_is_only_in_the_vocabulary(folders, tmp_path):
    """Not even where words are looked up whole before merging."""
    folder = changed(
        folders["starcoder"],
        tmp_path,
        added_tokens=[],
        model__ignore_merges=True,
        pre_tokenizer={
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": True,
            "use_regex": False,
        },
    )
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.encode_with_special("<fim_prefix>") == [1]
    assert 1 not in tokenizer.encode("<fim_prefix>")
    assert tokenizer.decode(tokenizer.encode("<fim_prefix>")) == "<fim_prefix>"


@given(text=TEXT, style=st.sampled_from(STYLES))
def test_user_text_encodes_as_in_transformers(tokenizers, oracles, text, style):
    expected = oracles[style].encode(text, add_special_tokens=False, split_special_tokens=True)
    assert expected == tokenizers[style].encode(text)


@given(text=HOSTILE, style=st.sampled_from(STYLES))
def test_raw_prompts_encode_as_in_transformers(tokenizers, oracles, text, style):
    expected = oracles[style].encode(text, add_special_tokens=False)
    assert expected == tokenizers[style].encode_with_special(text)


def test_settings_for_batches_do_not_change_what_is_encoded(folders, tmp_path, tokenizers):
    folder = changed(
        folders["starcoder"],
        tmp_path,
        truncation={"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
        padding={
            "strategy": {"Fixed": 64},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "<|endoftext|>",
        },
    )
    text = "def add(first):"
    assert tokenizers["starcoder"].encode(text) == Tokenizer.load(folder).encode(text)


def test_half_a_surrogate_pair_is_refused(tokenizers):
    with pytest.raises(RequestError, match="surrogate"):
        tokenizers["starcoder"].encode("a\ud800")


def test_vocab_size_counts_the_special_tokens(tokenizers, oracles):
    assert {s: len(o) for s, o in oracles.items()} == {s: t.vocab_size for s, t in tokenizers.items()}


# Decoding


@given(data=st.data(), style=st.sampled_from(STYLES))
def test_any_tokens_decode_as_in_transformers(tokenizers, oracles, data, style):
    ids = data.draw(st.lists(st.integers(0, tokenizers[style].vocab_size - 1)))
    expected = oracles[style].decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    assert expected == tokenizers[style].decode(ids)


@given(data=st.data(), style=st.sampled_from(STYLES))
def test_a_stream_of_any_tokens_joins_to_their_decoding(tokenizers, data, style):
    tokenizer = tokenizers[style]
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size + 9)))
    stream = tokenizer.stream()
    assert tokenizer.decode(ids) == "".join([*map(stream.push, ids), stream.flush()])


@given(text=st.text("aé€😀\n ", max_size=20), style=st.sampled_from(STYLES))
def test_a_stream_never_splits_a_character(tokenizers, text, style):
    """Every piece is whole characters of the text, and nothing that is complete is held back."""
    tokenizer = tokenizers[style]
    stream, given_out, seen = tokenizer.stream(), "", b""
    for id in tokenizer.encode(text):
        given_out += stream.push(id)
        seen += tokenizer.token_bytes(id)
        assert seen.decode("utf-8", errors="ignore") == given_out
    assert (given_out, stream.flush()) == (text, "")


def test_a_stream_cut_off_inside_a_character_ends_in_a_replacement(tokenizers):
    tokenizer = tokenizers["starcoder"]
    *most, _ = tokenizer.encode("😀")
    stream = tokenizer.stream()
    assert [stream.push(id) for id in most] == [""] * len(most)
    assert stream.flush() == "\ufffd"


def test_spaces_before_punctuation_are_kept(tokenizers):
    tokenizer = tokenizers["starcoder"]
    text = "a , b . 'm  n't ? !"
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_tokens_past_the_vocabulary_are_empty(tokenizers):
    assert tokenizers["starcoder"].decode([10**6]) == ""


def test_special_tokens_decode_to_their_text(tokenizers):
    tokenizer = tokenizers["santacoder"]
    assert tokenizer.token_text(tokenizer.sentinels.fim_prefix) == "<fim-prefix>"


def test_the_byte_alphabet_is_the_librarys():
    from tokenizers import pre_tokenizers

    split = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    assert set(pre_tokenizers.ByteLevel.alphabet()) == BYTE_OF_CHARACTER.keys()
    for code in range(0x80):
        ((character, _),) = split.pre_tokenize_str(chr(code))
        assert BYTE_OF_CHARACTER[character] == code


# Loading


@pytest.mark.parametrize("where", ["chat_template.jinja", "tokenizer_config.json"])
def test_the_chat_template_is_found(folders, tmp_path, where):
    folder = changed(folders["starcoder"], tmp_path)
    template = "{{ messages[0].content }}"
    content = template if where.endswith("jinja") else json.dumps({"chat_template": template})
    (folder / where).write_text(content, "utf-8")
    assert Tokenizer.load(folder).chat_template == template


def test_a_folder_without_a_chat_template_has_none(tokenizers):
    assert tokenizers["starcoder"].chat_template is None


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"tokenizer\.json' is missing") as caught:
        Tokenizer.load(tmp_path)
    assert caught.value.hint


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"model": 1}', b"{}", b"\xff\xfe"])
def test_a_broken_file_is_named(tmp_path, content):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json") as caught:
        Tokenizer.load(tmp_path)
    assert caught.value.hint


def test_a_truncated_file_is_named(folders, tmp_path):
    whole = (folders["starcoder"] / "tokenizer.json").read_bytes()
    (tmp_path / "tokenizer.json").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        Tokenizer.load(tmp_path)


def test_another_kind_of_tokenizer_is_refused(folders, tmp_path):
    folder = changed(folders["starcoder"], tmp_path, decoder={"type": "Metaspace"})
    with pytest.raises(CheckpointError, match="Metaspace, expected BPE with decoder ByteLevel"):
        Tokenizer.load(folder)


def test_merges_written_as_strings_load_the_same(folders, tmp_path, tokenizers):
    document = json.loads((folders["starcoder"] / "tokenizer.json").read_text("utf-8"))
    merges = [" ".join(merge) for merge in document["model"]["merges"]]
    folder = changed(folders["starcoder"], tmp_path, model__merges=merges)
    text = "return first + second"
    assert tokenizers["starcoder"].encode(text) == Tokenizer.load(folder).encode(text)


def test_a_sentinel_that_is_not_one_token_is_an_error(folders, tmp_path):
    document = json.loads((folders["starcoder"] / "tokenizer.json").read_text("utf-8"))
    (tmp_path / "tokenizer.json").write_text(json.dumps(without(document, "<fim_middle>")), "utf-8")
    with pytest.raises(CheckpointError, match="missing: '<fim_middle>'"):
        Tokenizer.load(tmp_path)


def test_a_model_without_sentinels_cannot_infill_but_loads(folders, tmp_path):
    document = json.loads((folders["starcoder"] / "tokenizer.json").read_text("utf-8"))
    bare = without(document, "<fim_prefix>", "<fim_middle>", "<fim_suffix>", "<fim_pad>")
    (tmp_path / "tokenizer.json").write_text(json.dumps(bare), "utf-8")
    sentinels = Tokenizer.load(tmp_path).sentinels
    assert (sentinels.can_infill, sentinels.fim_prefix, sentinels.eos) == (False, None, 0)


def test_importing_the_module_does_not_import_the_library():
    script = (
        "import sys, starcoder.tokenizer; print({'tokenizers', 'torch', 'transformers'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
