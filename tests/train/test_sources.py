"""Rows come from every kind of place; what is mistyped or empty is an error that says what is there."""

import csv
import json
from pathlib import Path

import pytest

from starcoder.errors import ConfigError
from starcoder.train.settings import SourceSettings
from starcoder.train.shapes import recognize
from starcoder.train.sources import Stream, read

ROWS = [{"question": f"q{i}", "answer": f"a{i}", "id": i} for i in range(40)]


TALK = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes."}]


def record(number: int, row):
    return recognize(row).read(row)


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow", reason="Parquet needs pyarrow, of the extra `train`")
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def seen(rows, count: int = 1000, epoch: int = 0, start: int = 0) -> list[str]:
    return [record.prompt for _, record in rows.read(epoch, start, count)]


@pytest.mark.parametrize("name", ["d.jsonl", "d.json", "d.csv", "d.parquet"])
def test_every_format_gives_the_same_rows_and_shape(tmp_path: Path, name: str) -> None:
    found = read(SourceSettings(data=(str(write(tmp_path / name, ROWS)),), validation_share=0))
    assert found.kinds == {"pair"}
    assert sorted(seen(found.train)) == sorted(str(row["question"]) for row in ROWS)


def test_epochs_are_shuffled_apart_and_read_from_any_place(tmp_path: Path) -> None:
    rows = read(SourceSettings(data=(str(write(tmp_path / "d.jsonl", ROWS)),)), seed=3).train
    first, second = seen(rows), seen(rows, epoch=1)
    assert first != second
    assert sorted(first) == sorted(second)
    assert seen(rows, 5, start=7) == first[7:12]
    assert rows.read(0, len(first), 5) == []


def test_documents_are_split_by_what_they_say(tmp_path: Path) -> None:
    settings = SourceSettings(
        data=(str(write(tmp_path / "d.jsonl", ROWS + ROWS)),), validation_share=0.2, validation_documents=None
    )
    found = read(settings)
    held = {record.prompt for record in found.validation}
    assert len(held) == 8
    assert len(found.validation) == 16, "copies are on one side"
    assert not held & set(seen(found.train))
    longer = write(
        tmp_path / "e.jsonl", [*ROWS[:20], {"question": "new", "answer": "x", "id": 1}, *ROWS[20:]]
    )
    again = {
        record.prompt for record in read(SourceSettings(data=(str(longer),), validation_share=0.2)).validation
    }
    assert len(held & again) >= 7, "one more row moves the border by at most one"


def test_a_set_with_a_split_of_its_own_keeps_it(tmp_path: Path) -> None:
    """The layout that `starcoder prepare` writes, as folders and as files."""
    columns = {"repository": "r", "revision": "1", "language": "Python", "license": "MIT"}
    rows = [{**columns, "path": f"{i}.py", "content": f"x = {i}"} for i in range(5)]
    write(tmp_path / "a" / "train" / "part-0.parquet", rows[:3])
    write(tmp_path / "a" / "validation" / "part-0.parquet", rows[3:])
    write(tmp_path / "b" / "train.parquet", rows[:3])
    write(tmp_path / "b" / "validation.parquet", rows[3:])
    for name in ("a", "b"):
        found = read(SourceSettings(data=(str(tmp_path / name),)))
        assert [record.path for record in found.validation] == ["3.py", "4.py"]
        assert (found.kinds, found.num_documents) == ({"text"}, 3)
        assert set(found.train.columns) >= {"repository", "path", "language", "license"}


def test_a_tree_of_sources_is_read_with_its_paths(tmp_path: Path) -> None:
    for name, text in {
        "src/a.py": "a = 1\n",
        "b.rs": "fn main() {}\n",
        ".git/c.py": "hidden",
        "node_modules/d.js": "installed",
        "e.bin": "no source",
        "empty.py": "",
        "package.json": "{}",
        "evaluate/starter.jsonl": '{"content": "data of a program"}',
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "f.py").write_bytes(b"\xff\xfe")
    found = read(SourceSettings(data=(str(tmp_path),)))
    rows = [row for _, row in found.train.read(0, 0, 9)]
    assert sorted((row.path, row.text) for row in rows) == [
        ("b.rs", "fn main() {}\n"),
        ("src/a.py", "a = 1\n"),
    ]
    assert {row.repository for row in rows} == {tmp_path.name}


def test_a_text_file_is_one_document(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("whole\nfile\n")
    found = read(SourceSettings(data=(str(tmp_path / "a.txt"),)))
    assert found.train.read(0, 0, 2)[0][1].text == "whole\nfile\n"


def test_a_folder_of_texts_is_documents_and_one_beside_code_is_not(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("a.txt", "sub/b.txt", "c.md"):
        (tmp_path / name).write_text(f"{name}\n")

    def paths() -> list[str]:
        found = read(SourceSettings(data=(str(tmp_path),)))
        return sorted(row.path for _, row in found.train.read(0, 0, 9))

    assert paths() == ["a.txt", "c.md", "sub/b.txt"]
    (tmp_path / "code.py").write_text("x = 1\n")
    assert paths() == ["c.md", "code.py"]


def test_a_folder_with_a_table_and_what_tells_of_it_is_the_table(tmp_path: Path) -> None:
    (tmp_path / "qa.csv").write_text("question,answer\n" + "".join(f"{n},{n}\n" for n in range(20)))
    (tmp_path / "README.md").write_text("Questions.\n")
    assert read(SourceSettings(data=(str(tmp_path),))).kinds == {"pair"}


def test_columns_of_any_name_can_be_chosen(tmp_path: Path) -> None:
    data = str(write(tmp_path / "d.jsonl", [{"in": "1", "out": "2", "text": "3", "talk": TALK}] * 12))
    pair = read(SourceSettings(data=(data,), prompt_column="in", completion_column="out"))
    assert pair.kinds == {"pair"}
    assert pair.train.read(0, 0, 1)[0][1].completion == "2"
    assert read(SourceSettings(data=(data,), text_column="out")).train.read(0, 0, 1)[0][1].text == "2"
    assert read(SourceSettings(data=(data,), messages_column="talk")).kinds == {"messages"}


@pytest.mark.parametrize(
    ("rows", "chosen", "message", "hint"),
    [
        (
            ROWS,
            {"prompt_column": "question", "completion_column": "answer "},
            "no column 'answer '",
            "'answer'",
        ),
        (ROWS, {"prompt_column": "question"}, "go together", "'question', 'answer', 'id'"),
        ([{"x": 1}], {}, "none of the columns", "--text-column"),
        ([], {}, "holds no documents", "at least one row"),
        ([{"x": 1}], {"text_column": "y"}, "no column 'y'", "'x'"),
    ],
)
def test_mistyped_columns_and_empty_sets_are_errors_that_list_what_is_there(
    tmp_path: Path, rows: list[dict[str, object]], chosen: dict[str, str], message: str, hint: str
) -> None:
    data = str(write(tmp_path / "d.jsonl", rows))
    with pytest.raises(ConfigError, match=message) as caught:
        read(SourceSettings(data=(data,), **chosen))  # type: ignore[arg-type]
    assert hint in caught.value.hint


def test_places_without_data_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no data at"):
        read(SourceSettings(data=(str(tmp_path / "nothing.jsonl"),)))
    with pytest.raises(ConfigError, match="no data to train on"):
        read(SourceSettings())
    (tmp_path / "d.jsonl").write_text('{"text": "a"}\n{"te')
    with pytest.raises(ConfigError, match=r"d\.jsonl, row 2: not JSON"):
        read(SourceSettings(data=(str(tmp_path / "d.jsonl"),)))
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigError, match="holds no documents"):
        read(SourceSettings(data=(str(tmp_path / "folder"),)))


def test_streamed_rows_resume_and_leave_validation_out(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="streaming needs datasets, of the extra `train`")
    path = write(tmp_path / "d.jsonl", ROWS)
    streamed = datasets.load_dataset(
        "json", data_files=str(path), split="train", streaming=True, cache_dir=str(tmp_path)
    )
    stream = Stream(streamed, ROWS[0], record, lambda one: one.prompt in ("q1", "q5"))
    whole = seen(stream)
    assert whole == [row["question"] for row in ROWS if row["question"] not in ("q1", "q5")]
    assert seen(stream, 4, start=10) == whole[10:14]
    assert seen(stream, 4, start=14) == whole[14:18]
    assert stream.read(0, 38, 4) == []
    assert seen(stream, 2, epoch=1) == whole[:2]


def test_a_set_of_the_hub_is_asked_for_as_the_flags_say(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", reason="the hub needs datasets, of the extra `train`")
    asked: list[tuple[str, dict[str, object]]] = []

    def load(name: str, /, **options: object) -> object:
        asked.append((name, options))
        rows = datasets.Dataset.from_list(ROWS)
        return rows.to_iterable_dataset() if options["streaming"] else rows

    monkeypatch.setattr(datasets, "load_dataset", load)
    settings = SourceSettings(data=("me/set",), subset="data/finetune", streaming=True, validation_share=0.3)
    found = read(settings)
    assert found.num_documents is None
    assert len(found.validation) + len(found.train.read(0, 0, 100)) == 40
    assert len(seen(read(SourceSettings(data=("me/set",), subset="code", validation_share=0)).train)) == 40
    assert asked == [
        ("me/set", {"split": "train", "streaming": True, "data_dir": "data/finetune"}),
        ("me/set", {"split": "train", "streaming": False, "name": "code"}),
    ]


def test_streamed_rows_are_shuffled_within_a_buffer_and_resume() -> None:
    def stream() -> Stream:
        return Stream(ROWS, ROWS[0], record, lambda one: one.prompt == "q3", buffer=10, seed=1)

    first, second = seen(stream()), seen(stream(), epoch=1)
    kept = [str(row["question"]) for row in ROWS if row["id"] != 3]
    assert sorted(first) == sorted(second) == sorted(kept)
    assert first != second != kept
    assert sorted(first[:10]) == sorted(kept[:10])
    assert seen(stream(), 9, start=13) == first[13:22]


def test_a_subset_of_a_local_folder_is_a_folder_in_it(tmp_path: Path) -> None:
    (tmp_path / "data" / "finetune").mkdir(parents=True)
    write(tmp_path / "data" / "finetune" / "train.jsonl", ROWS)
    found = read(SourceSettings(data=(str(tmp_path),), subset="data/finetune", validation_share=0))
    assert sorted(seen(found.train)) == sorted(str(row["question"]) for row in ROWS)
    with pytest.raises(ConfigError, match="has no folder 'data/train'"):
        read(SourceSettings(data=(str(tmp_path),), subset="data/train"))
