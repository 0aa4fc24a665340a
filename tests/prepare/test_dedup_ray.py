"""Ray Data finds what one machine finds, and a dataset prepared with it has the same bytes.

Needs ray, which is not among the tests' own dependencies: pip install -e '.[test,ray]'.
"""

import random
import sys

import pytest

from starcoder.errors import ConfigError
from starcoder.prepare.dedup import find_duplicates
from starcoder.prepare.dedup_ray import find_duplicates_of_batches, find_duplicates_on_ray
from starcoder.prepare.pipeline import prepare
from starcoder.prepare.settings import PrepareSettings

pytest.importorskip("pyarrow", reason="shards are Parquet; pip install 'starcoder-kit[prepare]'")


@pytest.fixture
def ray():
    found = pytest.importorskip("ray", reason="ray is not installed (extra `ray`)")
    pytest.importorskip("ray.data", reason="ray is not installed (extra `ray`)")
    yield found
    assert not found.is_initialized(), "who started it stops it"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own, about its future and its sockets
def test_ray_finds_the_same(ray):
    from ray import data

    generator = random.Random(2)
    texts = [" ".join(f"w{generator.randrange(10**6)}" for _ in range(80)) for _ in range(300)]
    texts += [text + " a few words more" for text in texts[::3]] + texts[::5] + ["", "short"]
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        dataset = data.from_items([{"content": text} for text in texts])
        found = find_duplicates_on_ray(dataset, batch_size=64)
    finally:
        ray.shutdown()
    expected = find_duplicates(texts)
    assert expected.num_near == 100
    assert found.original.tolist() == expected.original.tolist()
    assert found.is_exact.tolist() == expected.is_exact.tolist()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_dataset_prepared_with_ray_has_the_same_bytes(ray, tmp_path):
    generator = random.Random(3)
    for number in range(1300):  # three batches
        lines = [f"value_{k} = {generator.randrange(10**6)} + other_{k}  # the {k}th\n" for k in range(12)]
        lines = lines if number % 4 else [f"same_{k} = {k} + something_{k}\n" for k in range(40)]
        path = tmp_path / "code" / f"part{number % 7}" / f"file{number}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join([*lines, f"LAST = {number % 9}\n"]))
    figures = {}
    for name in ("alone", "ray"):
        settings = PrepareSettings(inputs=(str(tmp_path / "code"),), ray=name == "ray")
        figures[name] = prepare(settings, tmp_path / name)
    assert figures["alone"]["duplicates"]["near"] > 5
    assert figures["alone"]["duplicates"]["exact"] > 200
    contents = [
        {path.relative_to(tmp_path / name): path.read_bytes() for path in files(tmp_path / name)}
        for name in ("alone", "ray")
    ]
    assert contents[0] == contents[1]


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_without_ray_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError) as caught:
        find_duplicates_of_batches([tmp_path])
    assert "starcoder-kit[ray]" in caught.value.hint
