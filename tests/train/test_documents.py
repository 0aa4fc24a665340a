"""Documents are cut without losing a character, and infills are built as the family was trained."""

import ast
import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from starcoder.errors import ConfigError
from starcoder.tokenizer import Tokenizer
from starcoder.train.documents import cut_piece, read_texts, syntax_spans
from starcoder.train.settings import FimSettings
from tests.tiny import make_tokenizer

TEXT = "def größe(x):\n    return 'ü' * x  # 漢字 🙂\n\n" * 9


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return make_tokenizer("starcoder", tmp_path_factory.mktemp("tokenizer"))


def pieces(tokenizer: Tokenizer, fim: FimSettings, room: int, seed: int = 0) -> list[list[int]]:
    out, start, rng = [], 0, random.Random(seed)
    while start < len(TEXT):
        piece = cut_piece(TEXT, start, room, tokenizer, fim, rng)
        assert piece.end > start
        assert len(piece.tokens) <= room
        out.append(piece.tokens)
        start = piece.end
    return out


@pytest.mark.parametrize("room", [12, 33, 64, 10_000])
def test_pieces_left_to_right_join_to_the_document_and_end_it_once(tokenizer: Tokenizer, room: int) -> None:
    tokens = [token for piece in pieces(tokenizer, FimSettings(rate=0), room) for token in piece]
    eos = tokenizer.sentinels.eos
    assert tokens.count(eos) == 1
    assert tokens[-1] == eos
    assert tokenizer.decode(tokens[:-1]) == TEXT


@pytest.mark.parametrize("spm_rate", [0.0, 1.0])
def test_an_infilled_piece_holds_its_whole_text_in_the_trained_order(
    tokenizer: Tokenizer, spm_rate: float
) -> None:
    s = tokenizer.sentinels
    rebuilt = ""
    for piece in pieces(tokenizer, FimSettings(rate=1, spm_rate=spm_rate), 64):
        assert piece[-1] == s.eos, "every middle ends"
        body = piece[:-1]
        middle_at, suffix_at = body.index(s.fim_middle), body.index(s.fim_suffix)
        assert body[0] == s.fim_prefix
        suffix = body[suffix_at + 1 : middle_at]
        if spm_rate:  # prefix and middle stand together after the sentinel
            assert suffix_at == 1
            rebuilt += tokenizer.decode(body[middle_at + 1 :]) + tokenizer.decode(suffix)
        else:
            prefix, middle = body[1:suffix_at], body[middle_at + 1 :]
            rebuilt += "".join(map(tokenizer.decode, (prefix, middle, suffix)))
    assert rebuilt == TEXT


def test_the_shares_of_infills_and_of_spm_are_as_set(tokenizer: Tokenizer) -> None:
    s, fim = tokenizer.sentinels, FimSettings(rate=0.5, spm_rate=0.25)
    cut = [cut_piece(TEXT, 0, 64, tokenizer, fim, random.Random(seed)).tokens for seed in range(600)]
    infills = [tokens for tokens in cut if tokens[0] == s.fim_prefix]
    assert 250 < len(infills) < 350  # 4 standard deviations about 300
    spm = sum(tokens[1] == s.fim_suffix for tokens in infills) / len(infills)
    assert 0.15 < spm < 0.35


def test_reads_json_lines_and_folders(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"content": "a"}) + "\n" + json.dumps({"text": "b"}) + "\n")
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "m.py").write_text("x = 1\n")
    (tmp_path / "src" / "notes.txt").write_text("no code")
    assert read_texts(tmp_path / "a.jsonl") == ["a", "b"]
    assert read_texts(tmp_path / "src") == ["x = 1\n"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no documents"),
        ('{"other": 1}\n', r"document 1 of .*a\.jsonl' has no text"),
        ('{"text": "a"}\n{"te', "a.jsonl:2"),
    ],
)
def test_data_that_cannot_be_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(ConfigError, match=message):
        read_texts(tmp_path / "a.jsonl")


def test_data_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no training data"):
        read_texts(tmp_path / "nothing.jsonl")


LINE_ENDS = ["\n", "\r\n", "\r", "\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029"]


@given(
    st.lists(
        st.sampled_from(
            ["x = 1", "é = 'ü'", "def f(a):", "    return a + b", "'日本' + x", "# ü", *LINE_ENDS]
        ),
        max_size=14,
    )
)
def test_spans_of_syntax_are_those_of_pythons_own_parser(parts: list[str]) -> None:
    """Only \\n, \\r and \\r\\n end lines: str.splitlines also splits at U+2028 and the like."""
    text = "\n".join(parts)
    spans = syntax_spans(text)
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        assert spans == ()
        return
    nodes = (node for node in ast.walk(tree) if isinstance(node, ast.stmt | ast.expr))
    expected = {ast.get_source_segment(text, node) for node in nodes}
    assert {text[a:b] for a, b in spans} == {piece for piece in expected if piece and len(piece) >= 3}
