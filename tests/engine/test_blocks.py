"""The pool keeps every block in one state, finds cached content token by token, and copies before writing."""

import random

from starcoder.engine.blocks import Pool, Table


def fill(pool, tokens):
    """A table that holds `tokens`, computed and known."""
    table = Table(expected=pool.blocks_for(len(tokens)))
    assert pool.grow(table, 0, len(tokens))
    pool.publish(table, tokens, len(tokens))
    return table


def cache(pool, tokens):
    table = fill(pool, tokens)
    blocks = table.blocks
    pool.release(table, tokens, len(tokens))
    return blocks


def test_a_match_is_as_long_as_the_common_beginning():
    for common in range(1, 14):
        pool = Pool(8, 4)
        cache(pool, list(range(14)))
        assert pool.match([*range(common), 99, 98], Table()) == common


def test_one_token_is_always_left_to_compute():
    for length in range(1, 13):
        pool = Pool(8, 4)
        cache(pool, list(range(length)))
        assert pool.match(list(range(length)), Table()) == length - 1


def test_an_extension_goes_on_in_the_same_blocks():
    pool, tokens = Pool(8, 4), list(range(10))
    blocks = cache(pool, tokens)
    table = Table()
    assert pool.match([*tokens, 10, 11, 12], table) == 10
    assert table.blocks == blocks and pool.copies == []


def test_a_partly_matching_block_is_copied():
    pool, tokens = Pool(8, 4), list(range(8))
    first, second = cache(pool, tokens)
    table = Table()
    assert pool.match([0, 1, 2, 3, 4, 99, 98], table) == 5
    assert table.blocks[0] == first and table.blocks[1] != second
    assert pool.copies == [(second, table.blocks[1])]


def test_a_shared_block_is_copied_before_it_is_written():
    pool = Pool(8, 4)
    table = fill(pool, list(range(6)))
    twin = pool.share(table)
    assert pool.grow(twin, 6, 7)
    assert twin.blocks[0] == table.blocks[0] and twin.blocks[1] != table.blocks[1]
    assert pool.copies == [(table.blocks[1], twin.blocks[1])]
    assert pool.grow(table, 6, 7) and len(pool.copies) == 1, "the last holder writes in place"


def test_the_least_recently_used_content_is_evicted_from_its_end():
    pool = Pool(4, 4)
    old, new = [0] * 8, [1] * 8
    cache(pool, old)
    cache(pool, new)
    cache(pool, [2] * 4)
    assert pool.match([*new, 9], Table()) == 8
    assert pool.match([*old, 9], Table()) == 4


def test_blocks_of_a_sequence_are_neighbours_while_others_grow_too():
    pool = Pool(64, 4)
    tables = [Table(expected=6) for _ in range(8)]
    for length in range(1, 25):
        for table in tables:
            assert pool.grow(table, length - 1, length)
    for table in tables:
        assert table.blocks == list(range(table.blocks[0], table.blocks[0] + 6))


def test_growing_without_blocks_changes_nothing():
    pool = Pool(3, 4)
    table = fill(pool, list(range(8)))
    assert not pool.grow(table, 8, 17)
    assert len(table.blocks) == 2 and pool.num_held == 2
    pool.check()


def test_no_block_is_lost_or_held_twice_in_a_random_life():
    for seed in range(30):
        rng = random.Random(seed)
        pool, held = Pool(12, 4), []
        for _ in range(200):
            if rng.random() < 0.5:
                tokens, table = [rng.randrange(2) for _ in range(rng.randrange(1, 30))], Table()
                matched = pool.match(tokens, table)
                if pool.grow(table, matched, len(tokens)):
                    pool.publish(table, tokens, len(tokens))
                    held.append((table, tokens, len(tokens)))
                else:
                    pool.release(table, tokens, matched)
            elif held and rng.random() < 0.3:
                table, tokens, computed = rng.choice(held)
                held.append((pool.share(table), list(tokens), computed))
            elif held:
                table, tokens, computed = held.pop(rng.randrange(len(held)))
                pool.release(table, tokens, computed)
            pool.check()
        for table, tokens, computed in held:
            pool.release(table, tokens, computed)
        pool.check()
        assert pool.num_held == 0


def test_clearing_forgets_all_content():
    pool = Pool(4, 4)
    cache(pool, [1, 2, 3, 4, 5])
    pool.clear()
    assert pool.match([1, 2, 3, 4, 5, 6], Table()) == 0


def test_counting_finds_what_matching_takes():
    pool, tokens = Pool(num_blocks=8, block_size=4), list(range(11))
    cache(pool, tokens)
    for asked in ([], [0], tokens[:3], tokens[:4], tokens[:9], tokens, [*tokens, 99], [0, 1, 2, 3, 4, 77, 6]):
        probe = Table()
        counted = pool.count_cached(asked)
        if asked:
            assert pool.match(asked, probe) == counted
            pool.release(probe, asked, counted)
        pool.check()
