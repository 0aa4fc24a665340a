"""The block pool: who holds which block of the key/value cache, and which blocks can be used again.

Pure bookkeeping: the tensors that the block numbers point into live in `cache`. A block is free,
held by one or more sequences, or cached: nobody holds it, its content is still known and it is
evicted, least recently used first, when a block is needed. The caller guarantees that the copies
in `Pool.copies` are carried out, in order, before anything else is written.
"""

from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

ROOT = b""  # the key of the content before any token

_USED, _FREE, _RESERVED = 0, 1, 2


@dataclass(slots=True)
class Table:
    """The blocks that hold one sequence's keys and values, in order. Made and changed by a `Pool`."""

    blocks: list[int] = field(default_factory=list)
    expected: int = 0  # blocks it may have in the end: a hint for where to allocate
    key: bytes = ROOT  # of the full blocks made known so far
    num_published: int = 0  # blocks made known so far
    reserved: range = range(0)  # where the sequence hopes to grow, so that its blocks stay neighbours


@dataclass(frozen=True, slots=True)
class _Content:
    """What a cached block holds: these tokens, after the tokens that `parent` stands for."""

    parent: bytes
    tokens: tuple[int, ...]


class Pool:
    """Blocks with counted holders, found again by the tokens they hold."""

    def __init__(self, num_blocks: int, block_size: int):
        self.num_blocks, self.block_size = num_blocks, block_size
        self.copies: list[tuple[int, int]] = []  # (from, to) blocks to copy, in this order
        self._state = bytearray([_FREE]) * num_blocks
        self._num_free = num_blocks
        self._holders = [0] * num_blocks
        self._content: dict[int, _Content] = {}
        self._children: dict[bytes, dict[tuple[int, ...], int]] = {}
        self._cached: OrderedDict[int, None] = OrderedDict()  # least recently used first

    @property
    def num_available(self) -> int:
        """Blocks that nobody holds."""
        return self._num_free + len(self._cached)

    @property
    def num_held(self) -> int:
        return self.num_blocks - self.num_available

    def blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def match(self, tokens: Sequence[int], table: Table) -> int:
        """Fill an empty `table` with what is cached of the beginning of `tokens`; how many tokens that is.

        Never all of them: one is left to compute, since logits come from computing. A block that
        holds only part of what is wanted, or that others hold too, is copied before it is written.
        """
        assert not table.blocks, "only a new table is matched"
        limit, matched = len(tokens) - 1, 0
        while limit - matched >= self.block_size:
            piece = tuple(tokens[matched : matched + self.block_size])
            block = self._children.get(table.key, {}).get(piece)
            if block is None:
                break
            self._hold(block)
            table.blocks.append(block)
            table.key, table.num_published = _key(table.key, piece), table.num_published + 1
            matched += self.block_size
        return matched + self._match_part(tokens[matched : min(limit, matched + self.block_size)], table)

    def count_cached(self, tokens: Sequence[int]) -> int:
        """How many tokens `match` would find while blocks are free; holds nothing."""
        key, limit, matched = ROOT, len(tokens) - 1, 0
        while limit - matched >= self.block_size:
            piece = tuple(tokens[matched : matched + self.block_size])
            if piece not in self._children.get(key, {}):
                break
            key, matched = _key(key, piece), matched + self.block_size
        wanted = tokens[matched : max(matched, min(limit, matched + self.block_size))]
        return matched + max((_common(piece, wanted) for piece in self._children.get(key, {})), default=0)

    def _match_part(self, wanted: Sequence[int], table: Table) -> int:
        """Take the block that shares the longest beginning with `wanted`, fewer than a block's tokens."""
        best, length = -1, 0
        for piece, block in self._children.get(table.key, {}).items():
            common = _common(piece, wanted)
            if common > length:
                best, length = block, common
        if not length:
            return 0
        if length == len(self._content[best].tokens) < self.block_size and not self._holders[best]:
            self._hold(best)
            self._unpublish(best)
            table.blocks.append(best)
        elif self.num_available > (0 if self._holders[best] else 1):
            self._hold(best)  # or the search for a block might evict it
            self._copy_to_end(best, table)
            self._drop(best)
        else:
            return 0
        return length

    def grow(self, table: Table, start: int, end: int) -> bool:
        """Make tokens `start` to `end` of a sequence writable; False, and nothing changed, if blocks lack."""
        missing = max(0, self.blocks_for(end) - len(table.blocks))
        written = range(start // self.block_size, min(self.blocks_for(end), len(table.blocks)))
        shared = [at for at in written if self._holders[table.blocks[at]] > 1]
        if missing + len(shared) > self.num_available:
            return False
        for at in shared:
            old = table.blocks[at]
            self._copy_to_end(old, table)
            table.blocks[at] = table.blocks.pop()
            self._drop(old)
        for _ in range(missing):
            table.blocks.append(self._take(table))
        return True

    def share(self, table: Table) -> Table:
        """A second table over the same blocks; whoever writes first into a shared block gets a copy."""
        for block in table.blocks:
            self._hold(block)
        return Table(list(table.blocks), table.expected, table.key, table.num_published)

    def publish(self, table: Table, tokens: Sequence[int], num_computed: int) -> None:
        """Let others find the full blocks of `tokens[:num_computed]`."""
        while (table.num_published + 1) * self.block_size <= num_computed:
            at = table.num_published * self.block_size
            piece = tuple(tokens[at : at + self.block_size])
            self._publish(table.blocks[table.num_published], table.key, piece)
            table.key, table.num_published = _key(table.key, piece), table.num_published + 1

    def release(self, table: Table, tokens: Sequence[int], num_computed: int) -> None:
        """Give all blocks back; what they hold of `tokens[:num_computed]` stays known until evicted."""
        self.publish(table, tokens, num_computed)
        at = table.num_published * self.block_size
        if at < num_computed and self._holders[table.blocks[table.num_published]] == 1:
            self._publish(table.blocks[table.num_published], table.key, tuple(tokens[at:num_computed]))
        for block in reversed(table.blocks):  # ends are evicted before the beginnings they hang on
            self._drop(block)
        self._unreserve(table)
        table.blocks, table.key, table.num_published = [], ROOT, 0

    def keep_branch(self, table: Table, tokens: Sequence[int], start: int) -> None:
        """Let others find `tokens`, which the table's blocks hold until they are overwritten from `start`."""
        branch = self.share(table)
        has_copy = self.grow(branch, start, len(tokens))
        self.release(branch, tokens, len(tokens) if has_copy else 0)

    def clear(self) -> None:
        """Forget all cached content."""
        for block in list(self._cached):
            self._evict(block)

    def check(self) -> None:
        """Assert that every block is in exactly one state; for tests."""
        free = [block for block, state in enumerate(self._state) if state != _USED]
        held = [block for block, holders in enumerate(self._holders) if holders]
        assert len(free) == self._num_free, "free blocks are counted"
        assert sorted([*free, *held, *self._cached]) == list(range(self.num_blocks)), "one state each"
        assert all(self._children[c.parent][c.tokens] == b for b, c in self._content.items()), (
            "content is found"
        )
        assert set(self._cached) <= set(self._content), "a cached block has known content"

    def _copy_to_end(self, block: int, table: Table) -> None:
        copy = self._take(table)
        self.copies.append((block, copy))
        table.blocks.append(copy)

    def _take(self, table: Table) -> int:
        """One writable block, if possible the neighbour of the table's last."""
        if not self._num_free:
            self._evict(next(iter(self._cached)))
        after = table.blocks[-1] + 1 if table.blocks else self.num_blocks
        state = self._state[after] if after < self.num_blocks else _USED
        is_ours = state == _FREE or (state == _RESERVED and after in table.reserved)
        block = after if is_ours else self._start_run(table)
        self._state[block] = _USED
        self._num_free -= 1
        self._holders[block] = 1
        return block

    def _start_run(self, table: Table) -> int:
        """The first block of a free stretch, long enough if there is one, which is reserved for `table`."""
        self._unreserve(table)
        length = max(1, table.expected - len(table.blocks))
        while length:
            at = self._state.find(bytes([_FREE]) * length)
            if at >= 0:
                self._state[at : at + length] = bytes([_RESERVED]) * length
                table.reserved = range(at, at + length)
                return at
            length //= 2
        return self._state.find(_RESERVED)  # what others hope for is still free

    def _unreserve(self, table: Table) -> None:
        for block in table.reserved:
            if self._state[block] == _RESERVED:
                self._state[block] = _FREE
        table.reserved = range(0)

    def _hold(self, block: int) -> None:
        if not self._holders[block]:
            del self._cached[block]
        self._holders[block] += 1

    def _drop(self, block: int) -> None:
        self._holders[block] -= 1
        if self._holders[block]:
            return
        if block in self._content:
            self._cached[block] = None
        else:
            self._state[block] = _FREE
            self._num_free += 1

    def _evict(self, block: int) -> None:
        del self._cached[block]
        self._unpublish(block)
        self._state[block] = _FREE
        self._num_free += 1

    def _publish(self, block: int, parent: bytes, tokens: tuple[int, ...]) -> None:
        siblings = self._children.setdefault(parent, {})
        if tokens not in siblings and block not in self._content:
            siblings[tokens] = block
            self._content[block] = _Content(parent, tokens)

    def _unpublish(self, block: int) -> None:
        content = self._content.pop(block)
        siblings = self._children[content.parent]
        del siblings[content.tokens]
        if not siblings:
            del self._children[content.parent]


def _key(parent: bytes, tokens: tuple[int, ...]) -> bytes:
    """A digest, not Python's `hash`: a prompt made to collide must not reach another's keys and values."""
    return blake2b(array("q", tokens).tobytes(), key=parent, digest_size=16).digest()


def _common(left: Sequence[int], right: Sequence[int]) -> int:
    for length, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return length
    return min(len(left), len(right))
