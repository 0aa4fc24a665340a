"""Ray Data finds what one machine finds."""

import random

import pytest

from starcoder.prepare.dedup import find_duplicates
from starcoder.prepare.dedup_ray import find_duplicates_on_ray


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own, about its future and its sockets
def test_ray_finds_the_same():
    ray = pytest.importorskip("ray", reason="ray is not installed (extra `ray`)")
    data = pytest.importorskip("ray.data", reason="ray is not installed (extra `ray`)")
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
