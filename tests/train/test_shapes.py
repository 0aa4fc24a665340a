"""Every public shape of data, one small file each: the text that is trained on and which of it is learned.

Learned text is between ⟦ and ⟧. Bad files are refused, or their bad rows skipped, with place and reason.
"""

import csv
import gzip
import io
import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from starcoder.chat import DIALOGUES, ChatTemplate
from starcoder.errors import ConfigError
from starcoder.tokenizer import Tokenizer
from starcoder.train.data_report import colored
from starcoder.train.examples import Example, choose
from starcoder.train.preference import read_pairs
from starcoder.train.settings import FimSettings, FormatSettings, SourceSettings
from starcoder.train.shapes import EXAMPLES, Preference, Rated, recognize
from starcoder.train.sources import Table, read
from starcoder.train.vocabulary import add_tokens
from tests.tiny import make_tokenizer

HI = {"role": "user", "content": "Hi"}
HELLO = {"role": "assistant", "content": "Hello."}
HI_HELLO = "<|system|>\n<|end|>\n<|user|>\nHi<|end|>\n<|assistant|>\n⟦Hello.<|end|>⟧\n⟦<|endoftext|>⟧"
WEATHER = {"type": "function", "function": {"name": "weather", "description": "Of a city."}}
CALL = {"name": "weather", "arguments": {"city": "Graz"}}
CALLED = (
    "<|system|>\nYou can call these functions:\n"
    '{"name": "weather", "description": "Of a city."}\n'
    'To call one, answer with nothing but {"name": NAME, "arguments": {...}}.<|end|>\n'
    '<|user|>\nWeather?<|end|>\n<|assistant|>\n⟦{"name": "weather", "arguments": {"city": "Graz"}}<|end|>⟧\n'
    "<|user|>\nResult of the function:\nsunny<|end|>\n<|assistant|>\n⟦Sunny.<|end|>⟧\n⟦<|endoftext|>⟧"
)
ASK, SUNNY = {"role": "user", "content": "Weather?"}, {"role": "assistant", "content": "Sunny."}
RESULT = {"role": "tool", "tool_call_id": "1", "content": "sunny"}
QA = "Question: 1 + 1?\n\nAnswer:⟦ 2<|endoftext|>⟧"


def jsonl(*rows: object) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def parquet(*rows: dict[str, object]) -> bytes:
    pyarrow = pytest.importorskip("pyarrow", reason="Parquet needs pyarrow, of the extra `train`")
    from pyarrow import parquet

    out = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(list(rows)), out)
    return out.getvalue()


def zstd(data: bytes) -> bytes:
    pyarrow = pytest.importorskip("pyarrow", reason=".zst needs pyarrow, of the extra `train`")
    return pyarrow.compress(data, codec="zstd", asbytes=True)


def table(*rows: dict[str, str], delimiter: str = ",") -> bytes:
    out = io.StringIO()
    writer = csv.DictWriter(out, [*rows[0]], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode()


PAIR = {"question": "1 + 1?", "answer": "2"}
# name of the file, its bytes, and the text of its only record
GOOD: dict[str, tuple[str, Callable[[], bytes] | bytes, str]] = {
    "question and answer": ("d.jsonl", jsonl(PAIR), QA),
    "prompt and completion": ("d.jsonl", jsonl({"prompt": "1 + 1?", "completion": "2"}), QA),
    "prompt and response": ("d.jsonl", jsonl({"prompt": "1 + 1?", "response": "2"}), QA),
    "problem and solution": ("d.jsonl", jsonl({"problem": "1 + 1?", "solution": "2"}), QA),
    "input and output": ("d.jsonl", jsonl({"input": "1 + 1?", "output": "2"}), QA),
    "Alpaca": (
        "d.json",
        json.dumps([{"instruction": "Sort.", "input": "[2, 1]", "output": "[1, 2]"}]).encode(),
        "Question: Sort.\n\n[2, 1]\n\nAnswer:⟦ [1, 2]<|endoftext|>⟧",
    ),
    "Alpaca without input": (
        "d.jsonl",
        jsonl({"instruction": "1 + 1?", "input": "", "output": "2"}),
        QA,
    ),
    "Alpaca with null input": (
        "d.jsonl",
        jsonl({"instruction": "1 + 1?", "input": None, "output": "2"}),
        QA,
    ),
    "Alpaca with its prompt spelled out": (
        "d.jsonl",
        jsonl({"instruction": "1 + 1?", "input": "", "output": "2", "prompt": "### 1 + 1? ### 2"}),
        QA,
    ),
    "OpenAI messages": ("d.jsonl", jsonl({"messages": [HI, HELLO]}), HI_HELLO),
    "ShareGPT": (
        "d.jsonl",
        jsonl({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]}),
        HI_HELLO,
    ),
    "ShareGPT with other roles": (
        "d.jsonl",
        jsonl({"conversation": [{"from": "USER", "value": "Hi"}, {"from": "ChatGPT", "value": "Hello."}]}),
        HI_HELLO,
    ),
    "a system column": (
        "d.jsonl",
        jsonl({"messages": [HI, HELLO], "system": "Be kind."}),
        HI_HELLO.replace("<|system|>\n", "<|system|>\nBe kind."),
    ),
    "a developer's message": (
        "d.jsonl",
        jsonl({"messages": [{"role": "developer", "content": "Be kind."}, HI, HELLO]}),
        HI_HELLO.replace("<|system|>\n", "<|system|>\nBe kind."),
    ),
    "parts of text": (
        "d.jsonl",
        jsonl({"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}, HELLO]}),
        HI_HELLO,
    ),
    "messages as JSON text": ("d.jsonl", jsonl({"messages": json.dumps([HI, HELLO])}), HI_HELLO),
    "messages as JSON text in CSV": ("d.csv", table({"messages": json.dumps([HI, HELLO])}), HI_HELLO),
    "messages of Parquet": ("d.parquet", lambda: parquet({"messages": [HI, HELLO]}), HI_HELLO),
    "answers of weight 0": (
        "d.jsonl",
        jsonl({"messages": [HI, HELLO | {"weight": 0}, HI, HELLO | {"weight": 1}]}),
        "<|system|>\n<|end|>\n<|user|>\nHi<|end|>\n<|assistant|>\nHello.<|end|>\n"
        "<|user|>\nHi<|end|>\n<|assistant|>\n⟦Hello.<|end|>⟧\n⟦<|endoftext|>⟧",
    ),
    "calls of tools": (
        "d.jsonl",
        jsonl(
            {
                "messages": [
                    ASK,
                    {
                        "role": "assistant",
                        "content": None,
                        "tool_calls": [{"id": "1", "type": "function", "function": CALL}],
                    },
                    RESULT,
                    SUNNY,
                ],
                "tools": [WEATHER],
            }
        ),
        CALLED,
    ),
    "calls of tools with arguments and tools as text": (
        "d.jsonl",
        jsonl(
            {
                "messages": [
                    ASK,
                    {
                        "role": "assistant",
                        "tool_calls": [{"function": {"name": "weather", "arguments": '{"city": "Graz"}'}}],
                    },
                    RESULT,
                    SUNNY,
                ],
                "tools": json.dumps([WEATHER["function"]]),
            }
        ),
        CALLED,
    ),
    "calls of functions, OpenAI's old form": (
        "d.jsonl",
        jsonl(
            {
                "messages": [
                    ASK,
                    {"role": "assistant", "content": None, "function_call": CALL},
                    {"role": "function", "name": "weather", "content": "sunny"},
                    SUNNY,
                ],
                "functions": [WEATHER["function"]],
            }
        ),
        CALLED,
    ),
    "calls of functions, LLaMA-Factory's form": (
        "d.jsonl",
        jsonl(
            {
                "conversations": [
                    {"from": "human", "value": "Weather?"},
                    {"from": "function_call", "value": json.dumps(CALL)},
                    {"from": "observation", "value": "sunny"},
                    {"from": "gpt", "value": "Sunny."},
                ],
                "tools": json.dumps([WEATHER["function"]]),
            }
        ),
        CALLED,
    ),
    "prompt and completion as messages": (
        "d.jsonl",
        jsonl({"prompt": [HI], "completion": [HELLO]}),
        HI_HELLO,
    ),
    "prompt as messages with an answer that is not learned": (
        "d.jsonl",
        jsonl({"prompt": [HI, HELLO, HI], "completion": [HELLO]}),
        "<|system|>\n<|end|>\n<|user|>\nHi<|end|>\n<|assistant|>\nHello.<|end|>\n"
        "<|user|>\nHi<|end|>\n<|assistant|>\n⟦Hello.<|end|>⟧\n⟦<|endoftext|>⟧",
    ),
    "prompt as text, completion as messages": (
        "d.jsonl",
        jsonl({"prompt": "Hi", "completion": [HELLO]}),
        HI_HELLO,
    ),
    "preferences": (
        "d.jsonl",
        jsonl({"prompt": "1 + 1 =", "chosen": " 2", "rejected": " 3"}),
        "1 + 1 =⟦ 2<|endoftext|>⟧ > 1 + 1 =⟦ 3<|endoftext|>⟧",
    ),
    "preferences of instructions": (
        "d.jsonl",
        jsonl({"instruction": "Add.", "accepted": "2", "rejected": "3"}),
        "Add.⟦2<|endoftext|>⟧ > Add.⟦3<|endoftext|>⟧",
    ),
    "preferences of whole conversations (UltraFeedback)": (
        "d.jsonl",
        jsonl({"prompt": "Hi", "chosen": [HI, HELLO], "rejected": [HI, HELLO | {"content": "What?"}]}),
        f"{HI_HELLO} > {HI_HELLO.replace('Hello.', 'What?')}",
    ),
    "preferences of conversations without a prompt": (
        "d.jsonl",
        jsonl({"chosen": [HI, HELLO], "rejected": [HI, HELLO | {"content": "What?"}]}),
        f"{HI_HELLO} > {HI_HELLO.replace('Hello.', 'What?')}",
    ),
    "preferences of messages": (
        "d.jsonl",
        jsonl({"prompt": [HI], "chosen": [HELLO], "rejected": [HELLO | {"content": "What?"}]}),
        f"{HI_HELLO} > {HI_HELLO.replace('Hello.', 'What?')}",
    ),
    "preferences of infills": (
        "d.jsonl",
        jsonl({"prefix": "a = ", "suffix": "\nb", "accepted": "1", "rejected": "2"}),
        "<fim_prefix>a = <fim_suffix>\nb<fim_middle>⟦1<|endoftext|>⟧"
        " > <fim_prefix>a = <fim_suffix>\nb<fim_middle>⟦2<|endoftext|>⟧",
    ),
    "KTO's labels": (
        "d.jsonl",
        jsonl({"prompt": "1 + 1 =", "completion": " 2", "label": True}),
        "wanted: 1 + 1 = 2",
    ),
    "infills": (
        "d.jsonl",
        jsonl({"prefix": "a = ", "suffix": "\nb", "middle": "1"}),
        "<fim_prefix>a = <fim_suffix>\nb<fim_middle>⟦1<|endoftext|>⟧",
    ),
    "text": ("d.jsonl", jsonl({"text": "a = 1\n"}), "⟦a = 1\n<|endoftext|>⟧"),
    "content with a path": (
        "d.jsonl",
        jsonl({"content": "a = 1\n", "path": "a.py", "repository": "me/r"}),
        "⟦<reponame>me/r<filename>a.py\na = 1\n<|endoftext|>⟧",
    ),
    "CommitPack": (
        "d.jsonl",
        jsonl({"old_contents": "a\n", "new_contents": "b\n", "subject": "Rename", "message": "Rename a"}),
        "⟦<commit_before>a\n<commit_msg>Rename a<commit_after>b\n<|endoftext|>⟧",
    ),
    "a text file": ("d.txt", b"a = 1\n", "⟦<filename>d.txt\na = 1\n<|endoftext|>⟧"),
    "JSONL with U+2028 inside": (
        "d.jsonl",
        jsonl({"text": "a\u2028b\u0085c"}),
        "⟦a\u2028b\u0085c<|endoftext|>⟧",
    ),
    "JSONL with a byte-order mark": ("d.jsonl", b"\xef\xbb\xbf" + jsonl(PAIR), QA),
    "JSONL in UTF-16": ("d.jsonl", jsonl(PAIR).decode().encode("utf-16"), QA),
    "JSONL with Windows line ends": ("d.jsonl", jsonl(PAIR).replace(b"\n", b"\r\n"), QA),
    "JSONL by gzip": ("d.jsonl.gz", gzip.compress(jsonl(PAIR)), QA),
    "JSONL by zstd": ("d.jsonl.zst", lambda: zstd(jsonl(PAIR)), QA),
    "JSON that holds a list": ("d.json", json.dumps({"version": 1, "data": [PAIR]}).encode(), QA),
    "CSV": ("d.csv", table(PAIR), QA),
    "CSV of Excel": ("d.csv", b"\xef\xbb\xbf" + table(PAIR), QA),
    "CSV with semicolons": ("d.csv", table(PAIR, delimiter=";"), QA),
    "CSV by gzip": ("d.csv.gz", gzip.compress(table(PAIR)), QA),
    "CSV with line breaks in a field": (
        "d.csv",
        table({"question": "1\n+\n1?", "answer": "2"}),
        QA.replace("1 + 1", "1\n+\n1"),
    ),
    "TSV": ("d.tsv", table(PAIR, delimiter="\t"), QA),
    "Parquet": ("d.parquet", lambda: parquet(PAIR), QA),
    "Parquet of bytes": (
        "d.parquet",
        lambda: parquet({"content": "é = 1\n".encode()}),
        "⟦é = 1\n<|endoftext|>⟧",
    ),
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("chat")
    make_tokenizer("starcoder", folder)
    return add_tokens(folder, folder, DIALOGUES["no_system"].tokens, None)


def settings(*data: Path, **more: object) -> SourceSettings:
    return SourceSettings(**{"data": tuple(map(str, data)), "validation_share": 0.0} | more)  # type: ignore[arg-type]


def shown(path: Path, tokenizer: Tokenizer) -> list[str]:
    """The text of every record of a file, with what is learned marked."""
    sources = read(settings(path))
    chat = ChatTemplate(source=DIALOGUES["no_system"].source)
    form = choose(
        sources.kinds,
        sources.train.columns,
        tokenizer,
        FimSettings(rate=0, spm_rate=0),
        FormatSettings(metadata_rate=1),
        chat,
    )

    def marked(example: Example) -> str:
        return colored(example, tokenizer).plain

    texts = []
    assert isinstance(sources.train, Table)
    for _, record in sources.train.all():
        if isinstance(record, Preference):
            [pair] = read_pairs([record], tokenizer, chat, 1000)
            texts.append(" > ".join(map(marked, pair.examples)))
        elif isinstance(record, Rated):
            pair = record.completion
            texts.append(f"{'wanted' if record.is_wanted else 'unwanted'}: {pair.prompt}{pair.completion}")  # type: ignore[union-attr]
        else:
            texts += map(marked, form(record, 1000, random.Random(0)))
    return texts


@pytest.mark.parametrize("name", GOOD)
def test_what_is_learned_of_every_public_shape(tmp_path: Path, tokenizer: Tokenizer, name: str) -> None:
    file, data, expected = GOOD[name]
    (tmp_path / file).write_bytes(data if isinstance(data, bytes) else data())
    assert shown(tmp_path / file, tokenizer) == [expected]


TALK = {"messages": [HI, HELLO]}
# name of the file, its bytes, and what is said about it
BAD: dict[str, tuple[str, Callable[[], bytes] | bytes, str]] = {
    "a null answer": (
        "d.jsonl",
        jsonl({"question": "a", "answer": None}),
        "row 1: column 'answer' holds null",
    ),
    "a missing answer": ("d.jsonl", jsonl(PAIR, {"question": "a"}), "row 2: column 'answer' holds null"),
    "an answer that is a number": (
        "d.jsonl",
        jsonl({"question": "a", "answer": 2}),
        "'answer' holds a number",
    ),
    "an answer that is a list": ("d.jsonl", jsonl({"question": "a", "answer": ["x"]}), "holds a list"),
    "content that is a list": (
        "d.parquet",
        lambda: parquet({"content": ["a", "b"]}),
        "'content' holds a list",
    ),
    "content that is a struct": ("d.parquet", lambda: parquet({"content": {"a": 1}}), "holds an object"),
    "bytes that are not UTF-8": (
        "d.parquet",
        lambda: parquet({"content": b"\xff\xfe"}),
        "bytes that are not",
    ),
    "a null message": ("d.jsonl", jsonl({"messages": [HI, None]}), "message 2 is null"),
    "null content": (
        "d.jsonl",
        jsonl({"messages": [HI, HELLO | {"content": None}]}),
        "message 2 has no content",
    ),
    "null messages": ("d.jsonl", jsonl({"messages": None}), "'messages' is null"),
    "no messages": ("d.jsonl", jsonl({"messages": []}), "is empty, expected a list of messages"),
    "messages that are text": ("d.jsonl", jsonl({"messages": "Hi"}), "text that is not JSON"),
    "an unknown role": ("d.jsonl", jsonl({"messages": [{"role": "narrator", "content": "x"}]}), "'narrator'"),
    "no role": ("d.jsonl", jsonl({"messages": [{"content": "x"}]}), "message 1 has no role"),
    "a picture": (
        "d.jsonl",
        jsonl({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}),
        "part of type 'image_url'",
    ),
    "a call without a name": (
        "d.jsonl",
        jsonl({"messages": [HI, {"role": "assistant", "tool_calls": [{"function": {}}]}]}),
        "a call without a name",
    ),
    "tools that are no tools": ("d.jsonl", jsonl(TALK | {"tools": [7]}), "a tool without a name"),
    "a null prompt of a preference": (
        "d.jsonl",
        jsonl({"prompt": None, "chosen": "a", "rejected": "b"}),
        "column 'prompt' holds null",
    ),
    "a null completion of a preference": (
        "d.jsonl",
        jsonl({"prompt": "a", "chosen": "b", "rejected": None}),
        "column 'rejected' holds null",
    ),
    "two completions that are the same": (
        "d.jsonl",
        jsonl({"prompt": "a", "chosen": "b", "rejected": "b"}),
        "are the same",
    ),
    "a preference of text and messages": (
        "d.jsonl",
        jsonl({"prompt": "a", "chosen": [HI, HELLO], "rejected": "b"}),
        "text and messages",
    ),
    "a label that is neither": (
        "d.jsonl",
        jsonl({"prompt": "a", "completion": "b", "label": "maybe"}),
        "expected true or false",
    ),
    "unknown columns": ("d.jsonl", jsonl({"x": "a", "y": "b"}), "it has 'x', 'y'"),
    "a line that is not JSON": ("d.jsonl", jsonl(PAIR) + b'{"question": ', "row 2: not JSON"),
    "a line that is a list": ("d.jsonl", jsonl(PAIR, [1]), "row 2: a list, expected an object"),
    "half of a surrogate pair": ("d.jsonl", b'{"text": "\\ud83d"}\n', "half of a surrogate pair"),
    "JSON of another form": ("d.json", b"7", "not a list of JSON objects"),
    "JSON that is damaged": ("d.json", b"[{", "is not JSON"),
    "JSONL in Latin-1": ("d.jsonl", '{"text": "é"}\n'.encode("latin-1"), "Windows-1252 or Latin-1"),
    "CSV in Latin-1": ("d.csv", "question,answer\né,1\n".encode("latin-1"), "Windows-1252 or Latin-1"),
    "UTF-16 without a mark": (
        "d.jsonl",
        jsonl(PAIR).decode().encode("utf-16-le"),
        "without a byte-order mark",
    ),
    "CSV with a field too many": ("d.csv", b"question,answer\n1,2,3\n", "3 fields, expected 2"),
    "CSV with a field too few": ("d.csv", b"question,answer\n1\n", "1 fields, expected 2"),
    "CSV without names": ("d.csv", b",answer\n1,2\n", "each needs a name"),
    "CSV with an open quote": ("d.csv", b'question,answer\n"1,2\n', "is not CSV"),
    "Parquet that is damaged": ("d.parquet", b"PAR1xxxx", "cannot be read"),
    "gzip that is cut": ("d.jsonl.gz", gzip.compress(jsonl(PAIR) * 100)[:-12], "is damaged"),
    "a program": ("d.exe", b"MZ", "no known form"),
    "an empty file": ("d.jsonl", b"", "holds no documents"),
    "a header alone": ("d.csv", b"question,answer\n", "holds no documents"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_read_is_refused_with_its_place_and_reason(tmp_path: Path, name: str) -> None:
    file, data, expected = BAD[name]
    (tmp_path / file).write_bytes(data if isinstance(data, bytes) else data())
    with pytest.raises(ConfigError) as caught:
        read(settings(tmp_path / file))
    assert expected in caught.value.message
    assert file in caught.value.message
    assert caught.value.hint


def test_there_are_enough_shapes() -> None:
    assert len(GOOD) >= 40
    assert len(BAD) >= 30


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_examples_of_the_table_are_read(name: str) -> None:
    shape = recognize(EXAMPLES[name])
    assert shape is not None
    assert shape.name == name.partition(",")[0]
    shape.read(EXAMPLES[name])


def test_a_few_bad_rows_are_skipped_and_listed(tmp_path: Path) -> None:
    rows = [PAIR | {"question": f"{n}?"} for n in range(40)]
    rows[30] = {"question": "q", "answer": None}
    (tmp_path / "d.jsonl").write_bytes(jsonl(*rows[:35]) + b"{broken\n" + jsonl(*rows[35:]))
    found = read(settings(tmp_path / "d.jsonl"))
    assert found.num_documents == 39
    assert sorted(bad.place.rpartition(" ")[2] for bad in found.skipped) == ["31", "36"]
    with pytest.raises(ConfigError, match="and 1 more of 41 rows"):
        read(settings(tmp_path / "d.jsonl", max_skipped_share=0.01))


def test_a_csv_field_may_be_as_long_as_a_file(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "d.csv").write_bytes(table({"question": "q", "answer": "x" * 200_000}))
    found = read(settings(tmp_path / "d.csv"))
    assert len(found.train.read(0, 0, 1)[0][1].completion) == 200_000  # type: ignore[union-attr]
    assert csv.field_size_limit() == 131_072, "the process's own limit is as it was"


@pytest.mark.parametrize(
    "names",
    [
        ("train.jsonl", "validation.jsonl", "test.jsonl"),
        ("my_train.jsonl", "my_val.jsonl", "my_test.jsonl"),
        ("data/train-00000-of-00001.jsonl", "data/dev-0.jsonl", "data/test-00000-of-00001.jsonl"),
        ("train/a.jsonl.gz", "valid/a.jsonl.gz", "test/a.jsonl.gz"),
    ],
)
def test_a_test_split_is_never_trained_on(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name, split in zip(names, ("train", "validation", "test"), strict=True):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        data = jsonl(*(PAIR | {"question": f"{split} {n}"} for n in range(12)))
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    found = read(settings(tmp_path))
    assert {record.prompt.split()[0] for _, record in found.train.read(0, 0, 99)} == {"train"}  # type: ignore[union-attr]
    assert {record.prompt.split()[0] for record in found.validation} == {"validation"}  # type: ignore[union-attr]


def test_only_a_test_split_is_refused(tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_bytes(jsonl(PAIR))
    with pytest.raises(ConfigError, match="not trained on"):
        read(settings(tmp_path))


def test_files_of_a_folder_may_be_of_different_shapes(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl({"content": "a = 1\n"}))
    (tmp_path / "b.jsonl").write_bytes(jsonl(PAIR))
    (tmp_path / "c.json").write_text("[]")  # settings of something: not named after a split
    assert shown(tmp_path, tokenizer) == ["⟦a = 1\n<|endoftext|>⟧", QA]


def test_a_folder_with_one_json_file_is_that_file(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "mydata.json").write_text(json.dumps([PAIR]))
    assert shown(tmp_path, tokenizer) == [QA]


def test_several_data_sets_have_weights(tmp_path: Path) -> None:
    for name in "abc":
        rows = [PAIR | {"question": f"{name}{n}"} for n in range(40)]
        (tmp_path / f"{name}.jsonl").write_bytes(jsonl(*rows))
    paths = [tmp_path / f"{name}.jsonl" for name in "abc"]
    found = read(settings(*paths, weights=(1.0, 2.0, 0.5))).train
    for epoch in range(3):
        records = found.read(epoch, 0, 1000)
        names = [record.prompt for _, record in records]  # type: ignore[union-attr]
        counts = {name: sum(one.startswith(name) for one in names) for name in "abc"}
        assert (counts["a"], counts["b"]) == (40, 80)
        assert 8 <= counts["c"] <= 32
        assert len({number for number, _ in records}) == len(records), "a second time is another number"
    with pytest.raises(ConfigError, match="2 weights for 3 data sets"):
        read(settings(*paths, weights=(1.0, 2.0)))


def test_columns_of_which_nothing_is_learned_are_named(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_bytes(jsonl(PAIR | {"context": "c", "id": "7", "lang": "de"}))
    assert read(settings(tmp_path / "d.jsonl")).unused == ("context",)


@pytest.mark.parametrize("name", ["nothing.jsonl", "data/nothere.jsonl", "./x", "a/b/c", "owner/set.csv.gz"])
def test_a_mistyped_path_is_not_looked_up_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="there is no data at"):
        read(SourceSettings(data=(name,)))
