"""Who holds which block of the cache, and which blocks hold a prefix that may come again.

A block is room for the keys and values of `block_size` tokens. A sequence holds blocks in the
order of its tokens; several sequences may hold one block, all of them full ones whose tokens
agree from the first on. Nothing is copied: only full blocks are shared, and a full block is
never written again.

Source: Kwon et al. 2023, PagedAttention, section 4 (arXiv:2309.06180); the chain of hashes as in
vLLM's automatic prefix caching, here of a cryptographic hash, so that no prompt can be made that
meets another's blocks.
"""

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence


def chain_hash(parent: bytes, token_ids: Sequence[int]) -> bytes:
    """The name of a full block: of its tokens, and through `parent` of all before them."""
    return hashlib.blake2b(parent + array("I", token_ids).tobytes(), digest_size=16).digest()


class BlockManager:
    """Blocks by number: free, held by so many sequences, or free and still holding a prefix.

    Free blocks that hold a prefix are taken last, the one that was not used for longest first.
    """

    def __init__(self, n_blocks: int, block_size: int) -> None:
        self.n_blocks, self.block_size = n_blocks, block_size
        self._free = list(range(n_blocks - 1, -1, -1))
        self._n_holders = [0] * n_blocks
        self._name: list[bytes | None] = [None] * n_blocks
        self._by_name: dict[bytes, int] = {}
        # Free blocks that hold a prefix, in the order in which they may be taken.
        self._resting: OrderedDict[int, None] = OrderedDict()

    @property
    def n_free(self) -> int:
        """Blocks that no sequence holds."""
        return len(self._free) + len(self._resting)

    def blocks_of(self, n_tokens: int) -> int:
        """Blocks that so many tokens need."""
        return -(-n_tokens // self.block_size)

    def allocate(self) -> int:
        """A block for one holder, without a name. There must be a free one."""
        if self._free:
            block = self._free.pop()
        else:
            block, _ = self._resting.popitem(last=False)
            self._forget(block)
        self._n_holders[block] = 1
        return block

    def release(self, blocks: Iterable[int]) -> None:
        """Takes one holder from each of these blocks.

        Of a sequence's blocks the last are taken first again: a prefix is of use only with all
        that comes before it.
        """
        for block in reversed(list(blocks)):
            self._n_holders[block] -= 1
            assert self._n_holders[block] >= 0, "a block was released more often than held"
            if self._n_holders[block] == 0:
                if self._name[block] is None:
                    self._free.append(block)
                else:
                    self._resting[block] = None

    def register(self, block: int, name: bytes) -> None:
        """Makes a full block, whose keys and values are computed, known by its name.

        Of two blocks with the same content the first keeps the name.
        """
        if name not in self._by_name and self._name[block] is None:
            self._by_name[name] = block
            self._name[block] = name

    def find_prefix(self, names: Iterable[bytes]) -> list[int]:
        """The known blocks of these names up to the first unknown, not yet held for the caller."""
        blocks: list[int] = []
        for name in names:
            block = self._by_name.get(name)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def hold(self, blocks: Iterable[int]) -> None:
        """Adds a holder to each of these blocks, which hold a prefix."""
        for block in blocks:
            if self._n_holders[block] == 0:
                del self._resting[block]
            self._n_holders[block] += 1

    def n_resting(self, blocks: Iterable[int]) -> int:
        """How many of these blocks nobody holds: holding them makes fewer free."""
        return sum(self._n_holders[block] == 0 for block in blocks)

    def forget_all(self) -> None:
        """Drops every name: what is held stays held, but no prefix is found any more."""
        for block in self._by_name.values():
            self._name[block] = None
        self._by_name.clear()
        self._free.extend(self._resting)
        self._resting.clear()

    def _forget(self, block: int) -> None:
        name = self._name[block]
        assert name is not None, "only blocks with a name rest"
        del self._by_name[name]
        self._name[block] = None

    def check(self, tables: Iterable[Sequence[int]]) -> None:
        """Asserts that the counts are those of `tables`, the blocks that sequences hold."""
        held = [0] * self.n_blocks
        for table in tables:
            for block in table:
                held[block] += 1
        assert held == self._n_holders, "blocks must have as many holders as tables name them"
        free = sorted([*self._free, *self._resting])
        assert free == [block for block, n in enumerate(held) if n == 0], "free blocks are unheld"
        named = {name: block for block, name in enumerate(self._name) if name is not None}
        assert named == self._by_name, "names lead to their blocks"
        assert all(self._name[block] is not None for block in self._resting)
