"""Exact documents, clusters and sets joined pair by pair."""

import hashlib
import random
from collections import Counter
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from rslm.data.dedup.clusters import Cluster, choose_kept, keep_one_each
from rslm.data.dedup.exact import find_exact_duplicates
from rslm.data.dedup.union_find import UnionFind


def test_one_of_each_text_is_kept_and_the_others_are_told() -> None:
    found = find_exact_duplicates([("d", "x"), ("b", "y"), ("a", "x"), ("c", "x"), ("e", "z")])
    assert found.kept == ("a", "b", "e")
    assert found.clusters == (Cluster(kept="a", dropped=("c", "d")),)


@pytest.mark.parametrize(
    ("left", "right"),
    [("a", "a "), ("a\n", "a"), ("A", "a"), ("é", "e\u0301"), ("", " "), ("\ud800", "\ud801")],
)
def test_texts_that_differ_in_a_byte_are_different(left: str, right: str) -> None:
    assert find_exact_duplicates([("1", left), ("2", right)]).kept == ("1", "2")


def test_empty_texts_are_equal_and_no_documents_are_none() -> None:
    assert find_exact_duplicates([("2", ""), ("1", "")]).kept == ("1",)
    assert find_exact_duplicates([]).kept == ()


def test_an_id_twice_or_an_unknown_choice_is_refused() -> None:
    with pytest.raises(ValueError, match="ids must differ, got 'a' twice"):
        find_exact_duplicates([("a", "x"), ("b", "y"), ("a", "z")])
    with pytest.raises(ValueError, match='keep must be "first" or "random", got \'none\''):
        find_exact_duplicates([], keep="none")  # type: ignore[arg-type]


def test_every_order_keeps_the_same() -> None:
    documents = [("b", "x"), ("a", "y"), ("d", "y"), ("c", "x"), ("e", "x")]
    for keep in ("first", "random"):
        results = {find_exact_duplicates(order, keep=keep) for order in permutations(documents)}
        assert len(results) == 1


def test_random_is_the_least_hash_of_seed_and_id() -> None:
    names = [f"page-{number}" for number in range(50)]
    hashes = {hashlib.sha256(f"7:{name}".encode()).hexdigest(): name for name in names}
    assert choose_kept(names, "random", 7) == hashes[min(hashes)]
    assert choose_kept(names, "first", 7) == "page-0"
    # Bytes of a file's name that are no UTF-8.
    assert choose_kept(["\udcff", "a"], "random", 0) in {"\udcff", "a"}


def test_random_keeps_each_member_about_as_often() -> None:
    names = ["a", "b", "c", "d"]
    often = Counter(choose_kept(names, "random", seed) for seed in range(4000))
    # 1000 each, within five standard deviations.
    assert all(abs(often[name] - 1000) < 137 for name in names)


def test_ids_are_ordered_by_code_points_as_their_utf8_is() -> None:
    names = ["Z", "a", "é", "\uffff", "\U00010000", "10", "9"]
    ordered = sorted(names, key=lambda name: name.encode())
    assert keep_one_each([[name] for name in names], "first", 0).kept == tuple(ordered)
    assert choose_kept(names, "first", 0) == "10"


@given(st.data())
def test_sets_are_the_connected_components(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 30))
    numbers = st.integers(0, n - 1)
    links = data.draw(st.lists(st.tuples(numbers, numbers), max_size=40))
    joined = UnionFind(n)
    for left, right in links:
        joined.union(left, right)
    ends = np.array(links, dtype=np.int64).reshape(-1, 2)
    graph = coo_array((np.ones(len(links)), (ends[:, 0], ends[:, 1])), shape=(n, n))
    _, labels = connected_components(graph, directed=False)
    components = {tuple(np.flatnonzero(labels == label).tolist()) for label in set(labels)}
    assert {tuple(group) for group in joined.sets()} == components
    assert [joined.find(number) for number in range(n)] == [
        min(group) for number in range(n) for group in components if number in group
    ]


# Where no way is shortened, 2 * 10^10 steps.
@pytest.mark.timeout(60)
@pytest.mark.parametrize("order", ["ascending", "descending", "shuffled", "inwards"])
def test_a_chain_is_one_set_however_its_links_come(order: str) -> None:
    n = 200_000  # Deeper than Python's recursion would go.
    links = [(number, number + 1) for number in range(n - 1)]
    if order == "descending":
        links.reverse()
    elif order == "shuffled":
        random.Random(0).shuffle(links)
    elif order == "inwards":
        links.sort(key=lambda link: min(link[0], n - link[0]))
    joined = UnionFind(n)
    for left, right in links:
        joined.union(right, left)
    assert joined.sets() == [list(range(n))]
    assert joined.find(n - 1) == 0


def test_linking_again_or_to_itself_changes_nothing() -> None:
    joined = UnionFind(4)
    for left, right in [(1, 1), (3, 2), (2, 3), (3, 3)]:
        joined.union(left, right)
    assert joined.sets() == [[0], [1], [2, 3]]
    assert UnionFind(0).sets() == []
