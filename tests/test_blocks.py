"""The block manager against a model of it that is sets and dictionaries."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from rslm.infer.blocks import BlockManager, chain_hash


class BlockMachine(RuleBasedStateMachine):
    """Sequences that start on a known prefix, grow, become known and end, in any order."""

    @initialize(n_blocks=st.integers(1, 12), block_size=st.integers(1, 4))
    def make(self, n_blocks: int, block_size: int) -> None:
        self.manager = BlockManager(n_blocks, block_size)
        self.tables: list[list[int]] = []
        # What a block's keys and values are of, as the sequences that wrote them know.
        self.content: dict[int, bytes] = {}

    @rule(first=st.integers(0, 1), n=st.integers(1, 5))
    def start(self, first: int, n: int) -> None:
        """A sequence whose beginning is one of two texts."""
        names = self.names(first, n)
        prefix = self.manager.find_prefix(names)
        assert [self.content[block] for block in prefix] == names[: len(prefix)]
        n_new = n - len(prefix)
        if self.manager.n_free - self.manager.n_resting(prefix) < n_new:
            return
        before = self.manager.n_free
        n_resting = self.manager.n_resting(prefix)
        self.manager.hold(prefix)
        table = [*prefix, *(self.manager.allocate() for _ in range(n_new))]
        assert self.manager.n_free == before - n_resting - n_new
        assert len(set(table)) == n
        held = {block for other in self.tables for block in other}
        assert not held & set(table[len(prefix) :])
        for block, name in zip(table[len(prefix) :], names[len(prefix) :], strict=True):
            self.content[block] = name
        self.tables.append(table)
        if first:
            for block, name in zip(table, names, strict=True):
                self.manager.register(block, name)

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def register(self, data: st.DataObject) -> None:
        """A sequence has computed its first blocks."""
        table = data.draw(st.sampled_from(self.tables))
        for block in table[: data.draw(st.integers(0, len(table)))]:
            self.manager.register(block, self.content[block])

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        table = self.tables.pop(data.draw(st.integers(0, len(self.tables) - 1)))
        self.manager.release(table)

    @rule()
    def change_weights(self) -> None:
        self.manager.forget_all()
        assert self.manager.find_prefix(self.names(0, 5)) == []
        assert self.manager.find_prefix(self.names(1, 5)) == []

    @invariant()
    def counts_are_right(self) -> None:
        self.manager.check(self.tables)

    def names(self, first: int, n: int) -> list[bytes]:
        names, parent = [], b"root"
        for i in range(n):
            parent = chain_hash(parent, [first, i][: self.manager.block_size])
            names.append(parent)
        return names


TestBlocks = BlockMachine.TestCase
TestBlocks.settings = settings(stateful_step_count=30)


def test_blocks_that_were_used_least_lately_are_taken_first():
    manager = BlockManager(4, 1)
    blocks = [manager.allocate() for _ in range(4)]
    for i, block in enumerate(blocks):
        manager.register(block, b"%d" % i)
    manager.release([blocks[0], blocks[1]])  # A sequence: its last block is taken first.
    manager.release([blocks[2]])
    manager.release([blocks[3]])
    assert [manager.allocate() for _ in range(4)] == [blocks[1], blocks[0], blocks[2], blocks[3]]
    assert manager.find_prefix([b"0"]) == []


def test_use_makes_a_prefix_last_longer():
    manager = BlockManager(2, 1)
    old, new = manager.allocate(), manager.allocate()
    manager.register(old, b"old")
    manager.register(new, b"new")
    manager.release([old])
    manager.release([new])
    manager.hold(manager.find_prefix([b"old"]))
    manager.release([old])
    assert manager.allocate() == new
    assert manager.find_prefix([b"old"]) == [old]


def test_blocks_without_a_prefix_are_taken_before_those_with_one():
    manager = BlockManager(3, 1)
    known, plain, _ = (manager.allocate() for _ in range(3))
    manager.register(known, b"known")
    manager.release([known, plain])
    assert manager.allocate() == plain
    assert manager.find_prefix([b"known"]) == [known]


def test_a_chain_names_all_that_comes_before():
    one = chain_hash(chain_hash(b"root", [1, 2]), [3, 4])
    assert one == chain_hash(chain_hash(b"root", [1, 2]), [3, 4])
    assert one != chain_hash(chain_hash(b"root", [2, 1]), [3, 4])
    assert one != chain_hash(chain_hash(b"other", [1, 2]), [3, 4])
    assert one != chain_hash(b"root", [3, 4])


def test_two_blocks_of_one_content_have_one_name():
    manager = BlockManager(2, 1)
    first, second = manager.allocate(), manager.allocate()
    manager.register(first, b"name")
    manager.register(second, b"name")
    manager.release([first, second])
    manager.check([])
    assert manager.find_prefix([b"name"]) == [first]


def test_releasing_more_often_than_holding_is_a_bug():
    manager = BlockManager(1, 1)
    block = manager.allocate()
    manager.release([block])
    with pytest.raises(AssertionError, match="released more often"):
        manager.release([block])
