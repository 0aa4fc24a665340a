"""Spans against a brute-force search; what an index holds; the command line."""

import json
import random
import sysconfig
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from starcoder.cli import main
from starcoder.errors import ConfigError
from starcoder.prepare import attribution, suffixes
from starcoder.prepare.attribution import Document, Index, build
from starcoder.prepare.attribution_data import documents_of
from tests.prepare.planting import plants


def is_word(character: str) -> bool:
    return not character.isascii() or character.isalnum() or character == "_"


def starts(text: str) -> list[int]:
    return [i for i, c in enumerate(text) if is_word(c) and (i == 0 or not is_word(text[i - 1]))]


def spans_by_force(text: str, documents: list[str], min_characters: int) -> list[tuple[int, int]]:
    """The longest match from every word start with every word start of every document."""
    found, covered = [], 0
    for start in starts(text):
        end = start
        for document in documents:
            for place in starts(document):
                size = 0
                while (
                    start + size < len(text)
                    and place + size < len(document)
                    and text[start + size] == document[place + size]
                ):
                    size += 1
                end = max(end, start + size)
        if end > covered and end - start >= min_characters:
            found.append((start, end))
            covered = end
    return found


def indexed(folder: Path, texts: list[str]) -> Index:
    build((Document(path=f"{n}.py", text=text, license="MIT") for n, text in enumerate(texts)), folder)
    return Index(folder)


SMALL = st.text(alphabet="ab_ \n(é\U0001f600\0", max_size=40)


@settings(max_examples=150, deadline=None)
@given(st.lists(SMALL, min_size=1, max_size=5), SMALL, st.integers(1, 6))
def test_spans_equal_brute_force(tmp_path_factory, documents, text, min_characters):
    index = indexed(tmp_path_factory.mktemp("index") / "index", documents)
    found = index.find(text, min_characters=min_characters)
    assert [(span.start, span.end) for span in found] == spans_by_force(text, documents, min_characters)
    for span in found:
        match = text[span.start : span.end]
        holding = [n for n, document in enumerate(documents) if match in document]
        assert span.num_sources >= 1
        assert {int(source.path.removesuffix(".py")) for source in span.sources} <= set(holding)


@pytest.fixture(scope="module")
def library() -> list[Document]:
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[:60]
    return [
        Document(
            path=path.name, text=path.read_text("utf-8", "replace"), repository="cpython", license="PSF-2.0"
        )
        for path in files
    ]


def masked(documents: list[Document]) -> list[str]:
    return [attribution.secrets.mask(document.text).text for document in documents]


def test_spans_of_real_code_are_found_in_several_shards(library, tmp_path, monkeypatch):
    monkeypatch.setattr(attribution, "_SHARD_BYTES", 300_000)
    build(library, tmp_path / "index")
    assert len(list((tmp_path / "index").glob("*.text"))) > 2
    index, texts = Index(tmp_path / "index"), masked(library)
    generator = random.Random(3)
    for _ in range(40):
        number = generator.randrange(len(texts))
        lines = texts[number].splitlines(keepends=True)
        first = generator.randrange(max(1, len(lines) - 8))
        piece = "".join(lines[first : first + 8]).strip()
        if len(piece) < 100 or not is_word(piece[0]):
            continue
        own = "zq_unheard_of = frobnicate_nothing\n"
        (span,) = [s for s in index.find(own + piece + "\n§§ unheard") if s.start <= len(own) < s.end]
        assert span.start == len(own)
        assert span.end >= len(own) + len(piece)
        holding = {document.path for document, text in zip(library, texts, strict=True) if piece in text}
        assert {source.path for source in span.sources} <= holding
        assert span.num_sources >= len(holding)
        for source in span.sources:
            text = texts[[document.path for document in library].index(source.path)]
            assert (source.repository, source.license) == ("cpython", "PSF-2.0")
            assert piece.splitlines()[0] in text.splitlines()[source.line - 1]


def test_matches_longer_than_the_sorted_depth_are_whole(tmp_path):
    generator = random.Random(4)
    words = " ".join(f"w{generator.randrange(10**6)}" for _ in range(2000))
    texts = [words[:9000] + "(one", words[:12000] + "(two", words[:6000] + "(three"]
    index = indexed(tmp_path / "index", texts)
    (span,) = index.find(words)
    assert (span.start, span.end) == (0, 12000)
    assert [source.path for source in span.sources] == ["1.py"]


def test_suffixes_are_sorted():
    text = Path(json.__file__).read_bytes() * 3
    order = suffixes.sort_suffixes(text).tolist()
    keys = [text[p : p + suffixes.DEPTH].ljust(suffixes.DEPTH, b"\0") for p in order]
    assert keys == sorted(keys)
    np.testing.assert_array_equal(np.sort(order), suffixes.word_starts(text))


def test_equal_texts_are_stored_once_and_all_told(tmp_path):
    text = "def merge_sort(values):\n    return sorted(values, key=lambda value: value.weight)\n"
    build([Document(path=f"copy{n}.py", text=text) for n in range(7)], tmp_path / "index")
    (span,) = Index(tmp_path / "index").find("x\n" + text)
    assert span.num_sources == 7
    assert [source.path for source in span.sources] == [f"copy{n}.py" for n in range(5)]
    assert [source.line for source in span.sources] == [1] * 5
    assert (tmp_path / "index" / "shard-0000.text").stat().st_size == len(text) + 1


def test_no_masked_secret_is_in_the_index(tmp_path):
    planted = plants(64, seed=21)
    documents = [
        Document(path=f"{n}.py", text=plant.text, repository="https://bot:s3cr3tX9@host/r.git")
        for n, plant in enumerate(planted)
    ]
    counts = build(documents, tmp_path / "index")
    assert counts.num_masked >= 64
    held = b"".join(path.read_bytes() for path in sorted((tmp_path / "index").iterdir()))
    for plant in planted:
        assert plant.secret[:64].encode() not in held, plant.kind
    assert b"s3cr3tX9" not in held


def test_spans_of_completions_may_begin_before_them(tmp_path):
    source = "def area(width, height):\n    return float(width) * float(height) + 0.125\n"
    index = indexed(tmp_path / "index", [source])
    prefix, text = "import os\n\n" + source[:25], source[25:] + "unheard"
    (span,) = index.find_in_completion(prefix, text)
    assert (span.start, text[: span.end]) == (0, source[25:])
    assert span.sources[0].line == 1
    assert index.find_in_completion(source, "unheard") == ()
    assert index.find_in_completion("", source[:30]) == ()


def test_an_index_is_replaced_and_nothing_else(tmp_path):
    build([Document(path="a", text="alpha")], tmp_path / "index")
    build([Document(path="b", text="beta")], tmp_path / "index")
    assert Index(tmp_path / "index").find("beta", min_characters=4)
    assert not Index(tmp_path / "index").find("alpha", min_characters=4)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="holds something else"):
        build([Document(path="a", text="alpha")], tmp_path / "mine")
    with pytest.raises(ConfigError, match="no documents"):
        build([], tmp_path / "new")
    with pytest.raises(ConfigError, match="no attribution index"):
        Index(tmp_path / "mine")


def test_documents_of_source_files_and_json_lines(tmp_path):
    code = tmp_path / "code"
    (code / "sub").mkdir(parents=True)
    (code / ".git").mkdir()
    (code / ".git" / "config").write_text("hidden")
    (code / "LICENSE").write_text("SPDX-License-Identifier: MIT\n")
    (code / "sub" / "a.py").write_text("x = 1\n")
    (code / "sub" / "binary.so").write_bytes(b"\x7fELF\0\0")
    (code / "sub" / "latin.py").write_bytes(b"\xff\xfe")
    found = {document.path: document for document in documents_of(code)}
    assert sorted(found) == ["LICENSE", "sub/a.py"]
    assert (found["sub/a.py"].license, found["sub/a.py"].repository) == ("MIT", "code")
    rows = [{"path": "p.py", "content": "text", "license": "ISC", "package": "lib"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (document,) = documents_of(tmp_path / "rows.jsonl")
    assert (document.path, document.text, document.license, document.repository) == (
        "p.py",
        "text",
        "ISC",
        "lib",
    )
    (tmp_path / "bad.jsonl").write_text("[]\n")
    with pytest.raises(ConfigError, match=r"bad\.jsonl:1 is not"):
        list(documents_of(tmp_path / "bad.jsonl"))


def test_documents_of_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    table = pyarrow.table(
        {
            "path": ["a.py"],
            "repository": ["r"],
            "revision": ["abc"],
            "license": [None],
            "content": ["x = 1"],
            "n": [1],
        }
    )
    (tmp_path / "train").mkdir()
    parquet.write_table(table, tmp_path / "train" / "0.parquet")
    (document,) = documents_of(tmp_path)
    assert document == Document(path="a.py", text="x = 1", repository="r", revision="abc")


def test_command_line(tmp_path, capsys):
    code = tmp_path / "code"
    code.mkdir()
    body = "def weighted(values):\n    return sum(value.weight * value.amount for value in values)\n"
    (code / "w.py").write_text("# SPDX-License-Identifier: MIT\n" + body)
    (tmp_path / "mine.py").write_text("import os\n\n\n" + body)
    assert main(["attribution", "build", str(code)]) == 0
    assert "1 documents" in capsys.readouterr().out
    arguments = ["attribution", "find", str(tmp_path / "mine.py"), "--index", str(code / "attribution")]
    assert main(arguments) == 0
    told = capsys.readouterr().out
    assert told == f"{tmp_path / 'mine.py'}:4:1: {len(body)} characters: code/w.py:2 (MIT)\n"
    assert main([*arguments, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["spans"][0]["sources"][0]["line"] == 2
    assert main(["attribution", "build", str(code)]) == 0, "its own index is no source file"
    assert "1 documents" in capsys.readouterr().out
    assert main(["attribution", "find", "missing.py", "--index", str(code / "attribution")]) == 2
    assert main([*arguments, "--min-characters", "0"]) == 2


def test_data_files_among_sources_are_no_documents_and_ignored_files_are_left_out(tmp_path):
    code = tmp_path / "code"
    (code / "node_modules").mkdir(parents=True)
    (code / "node_modules" / "a.js").write_text("theirs()\n")
    (code / ".gitignore").write_text("secret.py\n")
    (code / "secret.py").write_text("mine = 1\n")
    (code / "a.py").write_text("x = 1\r\n")
    (code / "events.jsonl").write_text('{"time": 1}\n')
    (code / "mix").mkdir()
    (code / "mix" / "t.parquet").write_bytes(b"PAR1")
    assert [(one.path, one.text) for one in documents_of(code)] == [("a.py", "x = 1\n")]


SNIPPET = """def collect(values, limit):
    kept = []
    for value in values:
        if value < limit:
            kept.append(value)
    return kept
"""


def test_line_ends_do_not_matter_and_offsets_are_the_texts_own(tmp_path):
    attribution.build([Document(path="a.py", text=SNIPPET.replace("\n", "\r\n"))], tmp_path / "index")
    index = Index(tmp_path / "index")
    windows = "\r\n" + SNIPPET.replace("\n", "\r\n")
    (span,) = index.find(windows)
    assert windows[span.start : span.end] == SNIPPET.replace("\n", "\r\n")
    (unix,) = index.find("\n" + SNIPPET)
    assert (unix.start, unix.end, span.start) == (1, 1 + len(SNIPPET), 2)


def test_indentation_is_ignored_where_the_index_says_so(tmp_path):
    documents = [Document(path="a.py", text="class A:\n" + SNIPPET)]
    deeper = "".join(f"\t{line}\n" for line in SNIPPET.split("\n")[:-1])
    for ignores, num in ((True, 1), (False, 0)):
        attribution.build(documents, tmp_path / str(ignores), ignore_indentation=ignores)
        spans = Index(tmp_path / str(ignores)).find(deeper, min_characters=100)
        assert len(spans) == num
    (span,) = Index(tmp_path / "True").find(deeper, min_characters=100)
    assert (deeper[span.start : span.end], span.sources[0].line) == (deeper[1:], 2)


FILES = (
    "documents.jsonl documents.npy places.npy shard-0000.text shard-0000.suffixes.npy shard-0000.starts.npy"
)


@pytest.mark.parametrize("name", ["index.json", *FILES.split()])
@pytest.mark.parametrize("harm", ["cut", "changed", "empty", "missing", "longer"])
def test_a_damaged_index_is_never_an_all_clear(tmp_path, name, harm):
    attribution.build([Document(path="a.py", text=SNIPPET * 3)], tmp_path / "index")
    path = tmp_path / "index" / name
    data = path.read_bytes()
    changed = {
        "cut": data[:-9],
        "changed": bytes([data[0] ^ 1]) + data[1:],
        "empty": b"",
        "longer": data + data,
    }
    if harm == "missing":
        path.unlink()
    else:
        path.write_bytes(changed[harm])
    with pytest.raises(ConfigError, match=r"damaged|no attribution index"):
        Index(tmp_path / "index")


@pytest.mark.parametrize(
    "text", ["[]", "{}", "7", '{"format": 2}', '{"format": 2, "num_shards": "x"}', "[" * 99999]
)
def test_an_index_of_odd_json_is_two_lines(tmp_path, text):
    (tmp_path / "index.json").write_text(text)
    with pytest.raises(ConfigError, match="damaged"):
        Index(tmp_path)


def test_a_folder_that_is_no_index_is_not_replaced(tmp_path):
    (tmp_path / "index.json").write_text("{}")
    with pytest.raises(ConfigError, match="something else"):
        attribution.build([Document(path="a.py", text=SNIPPET)], tmp_path)


def test_boilerplate_is_marked(tmp_path):
    license = "# Copyright 2024 The Authors\n# Licensed under the Apache License, Version 2.0 (the License)\n"
    imports = "import collections.abc\nfrom typing import (\n    Any,\n    Callable,\n)\nimport numpy as np\n"
    attribution.build([Document(path="a.py", text="\n\n".join([license, imports, SNIPPET]))], tmp_path / "i")
    index = Index(tmp_path / "i")
    texts = (license, imports, SNIPPET, imports + "\n\n" + SNIPPET)
    assert [index.find(text)[0].is_boilerplate for text in texts] == [
        True, True, False, False,
    ]  # fmt: skip
