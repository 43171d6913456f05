"""Near-duplicates: which are found, and that nothing but the documents decides what is kept."""

import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations, permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from rslm.data.dedup import lsh
from rslm.data.dedup.clusters import Cluster, Duplicates
from rslm.data.dedup.lsh import candidate_probability
from rslm.data.dedup.minhash import draw_hash_functions, estimate_jaccard, sign
from rslm.data.dedup.near_duplicates import (
    PRESETS,
    MinHashOptions,
    find_near_duplicates,
    join_signed,
    sign_document,
)
from rslm.data.dedup.normalize import normalize
from rslm.data.dedup.shingles import hash_shingles, make_shingles

# So many bands of one row that everything alike at all is compared.
EVERY_PAIR = MinHashOptions(n_hashes=200, n_bands=200, ngram_words=1, jaccard_threshold=0.5)
LETTERS = st.lists(st.sampled_from("abcdefg"), max_size=6).map(" ".join)
CORPORA = st.lists(LETTERS, max_size=8).map(
    lambda texts: [(f"{number:02}", text) for number, text in enumerate(texts)]
)
OPTIONS = st.builds(
    MinHashOptions,
    n_hashes=st.just(12),
    n_bands=st.sampled_from([3, 4, 12]),
    ngram_words=st.integers(1, 3),
    jaccard_threshold=st.sampled_from([None, 0.3, 0.5, 0.8, 1.0]),
    normalization=st.sampled_from(["course", "fineweb"]),
    short_documents=st.sampled_from(["whole", "none"]),
    keep=st.sampled_from(["first", "random"]),
    seed=st.integers(0, 3),
)


def made_up_words(n: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    return ["".join(draw.choices("bcdfgklmnprst", k=6)) for _ in range(n)]


def near_copy(words: list[str], n_changed: int) -> list[str]:
    """The words with the last `n_changed` others: of 5-grams as many fewer in common."""
    return words[: len(words) - n_changed] + [
        f"{word}x" for word in words[len(words) - n_changed :]
    ]


def test_presets_are_the_published_ones() -> None:
    course, fineweb = PRESETS["course"], PRESETS["fineweb"]
    assert (course.n_hashes, course.n_bands, course.n_rows, course.ngram_words) == (100, 10, 10, 5)
    assert (course.jaccard_threshold, course.normalization) == (0.8, "course")
    assert course.short_documents == "whole"
    assert (fineweb.n_hashes, fineweb.n_bands, fineweb.n_rows) == (112, 14, 8)
    assert (fineweb.ngram_words, fineweb.jaccard_threshold, fineweb.seed) == (5, None, 1)
    assert (fineweb.normalization, fineweb.short_documents) == ("fineweb", "none")


def test_near_copies_are_found_and_others_are_kept() -> None:
    first, second = made_up_words(200, 0), made_up_words(200, 1)
    documents = [
        ("c", " ".join(first)),
        ("a", " ".join(near_copy(first, 2)).upper() + "!"),
        ("b", " ".join(second)),
        ("d", " ".join(near_copy(first, 100))),
    ]
    for options in PRESETS.values():
        found = find_near_duplicates(documents, options)
        assert found.kept == ("a", "b", "d")
        assert found.clusters == (Cluster(kept="a", dropped=("c",)),)
        assert (found.n_candidate_pairs, found.n_duplicate_pairs) == (1, 1)


def test_threshold_is_reached_by_being_equal_to_it() -> None:
    # 4 of 5 words in common; the chance that no band of one is shared is below 1e-139.
    documents = [("x", "a b c d"), ("y", "a b c d e")]
    exactly = replace(EVERY_PAIR, jaccard_threshold=0.8)
    above = replace(EVERY_PAIR, jaccard_threshold=float(np.nextafter(0.8, 1)))
    assert find_near_duplicates(documents, exactly).kept == ("x",)
    found = find_near_duplicates(documents, above)
    assert found.kept == ("x", "y")
    assert (found.n_candidate_pairs, found.n_duplicate_pairs) == (1, 0)


def test_duplicates_of_duplicates_are_one_cluster_though_the_ends_differ() -> None:
    # Windows of four over an alphabet: neighbours share 3 of 5, the ends nothing.
    letters = "abcdefghijklmnopqrst"
    windows = [" ".join(letters[start : start + 4]) for start in range(len(letters) - 3)]
    documents = [(f"{number:02}", window) for number, window in enumerate(windows)]
    for keep, shuffle_seed in (("first", 0), ("first", 1), ("random", 2)):
        random.Random(shuffle_seed).shuffle(documents)
        found = find_near_duplicates(documents, replace(EVERY_PAIR, keep=keep))  # type: ignore[arg-type]
        assert len(found.kept) == 1
        assert len(found.clusters[0].dropped) == len(windows) - 1
        assert keep == "random" or found.kept == ("00",)


def test_empty_and_tiny_documents_of_the_course_are_compared_whole() -> None:
    documents = [("1", ""), ("2", " \n"), ("3", "?!"), ("4", "Hi."), ("5", "hi"), ("6", "hi you")]
    found = find_near_duplicates(documents, PRESETS["course"])
    assert found.kept == ("1", "4", "6")
    assert found.clusters == (
        Cluster(kept="1", dropped=("2", "3")),
        Cluster(kept="4", dropped=("5",)),
    )


def test_fineweb_keeps_what_has_fewer_words_than_a_shingle_even_copies() -> None:
    documents = [("1", ""), ("2", ""), ("3", "a b c d"), ("4", "a b c d"), ("5", "a b c d e")]
    found = find_near_duplicates([*documents, ("6", "A, b; c d E")], PRESETS["fineweb"])
    assert found.kept == ("1", "2", "3", "4", "5")
    assert found.clusters == (Cluster(kept="5", dropped=("6",)),)


def test_no_documents_and_one_document() -> None:
    for options in PRESETS.values():
        assert find_near_duplicates([], options) == Duplicates(kept=(), clusters=())
        assert find_near_duplicates([("x", "")], options) == Duplicates(kept=("x",), clusters=())


def test_texts_that_normalise_alike_are_one() -> None:
    texts = ["Éa b c d f", "e\u0301a B c d\u3000f.", "«EA, b» — c\nd f", "ea b c d f"]
    documents = [(str(number), text) for number, text in enumerate(texts)]
    for options in PRESETS.values():
        assert find_near_duplicates(documents, options).kept == ("0",)


def test_every_order_keeps_the_same() -> None:
    words = made_up_words(60, 3)
    texts = [words, near_copy(words, 1), near_copy(words, 2), words[:30], words[:29] + ["other"]]
    documents = [(f"page-{number}", " ".join(text)) for number, text in enumerate(texts)]
    for preset in PRESETS.values():
        for keep in ("first", "random"):
            options = replace(preset, keep=keep)  # type: ignore[arg-type]
            results = {find_near_duplicates(o, options) for o in permutations(documents)}
            assert len(results) == 1


@given(CORPORA, OPTIONS, st.integers(0, 2**32))
def test_order_and_shards_change_nothing(
    documents: list[tuple[str, str]], options: MinHashOptions, seed: int
) -> None:
    whole = find_near_duplicates(documents, options)
    draw = random.Random(seed)
    draw.shuffle(documents)
    n_shards = draw.randint(1, 4)
    functions = draw_hash_functions(options.n_hashes, options.seed)
    shards = [
        [sign_document(*each, options, functions) for each in documents[number::n_shards]]
        for number in range(n_shards)
    ]
    draw.shuffle(shards)
    assert join_signed((signed for shard in shards for signed in shard), options) == whole


def brute_force(documents: list[tuple[str, str]], options: MinHashOptions) -> set[tuple[str, ...]]:
    """Clusters from all pairs: sharing a band by counting, similar by sets, joined by scipy."""
    functions = draw_hash_functions(options.n_hashes, options.seed)
    sets = []
    for _, text in documents:
        words = normalize(text, options.normalization).split()
        n = options.ngram_words
        shingles = {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}
        if not shingles and options.short_documents == "whole":
            shingles = {tuple(words)}
        sets.append(shingles)
    signatures = [
        sign(hash_shingles(" ".join(shingle) for shingle in shingles), functions)
        if shingles
        else None
        for shingles in sets
    ]
    links = np.zeros((len(documents), len(documents)))
    for i, j in combinations(range(len(documents)), 2):
        if signatures[i] is None or signatures[j] is None:
            continue
        agree = (signatures[i] == signatures[j]).reshape(options.n_bands, -1)
        similarity = len(sets[i] & sets[j]) / len(sets[i] | sets[j])
        threshold = options.jaccard_threshold
        links[i, j] = agree.all(axis=1).any() and (threshold is None or similarity >= threshold)
    _, labels = connected_components(coo_array(links), directed=False)
    return {
        tuple(name for (name, _), other in zip(documents, labels, strict=True) if other == label)
        for label in labels
    }


@given(CORPORA.filter(bool), OPTIONS)
def test_clusters_are_those_of_all_pairs(
    documents: list[tuple[str, str]], options: MinHashOptions
) -> None:
    found = find_near_duplicates(documents, options)
    groups = brute_force(documents, options)
    assert len(found.kept) == len(groups)
    assert all(len(set(found.kept) & set(group)) == 1 for group in groups)
    clusters = {tuple(sorted([c.kept, *c.dropped])) for c in found.clusters}
    assert clusters == {group for group in groups if len(group) > 1}


@given(CORPORA)
def test_what_is_kept_has_no_duplicates_left(documents: list[tuple[str, str]]) -> None:
    texts = dict(documents)
    kept = find_near_duplicates(documents, EVERY_PAIR).kept
    again = find_near_duplicates([(name, texts[name]) for name in kept], EVERY_PAIR)
    assert again.kept == kept
    assert again.clusters == ()


def test_as_many_near_copies_are_found_as_the_formula_says() -> None:
    # 400 pairs of texts of 84 words, 80 shingles: the last 9 words changed leaves 71 of 89 shared.
    options = replace(PRESETS["course"], jaccard_threshold=0.79)
    documents = []
    for number in range(400):
        words = made_up_words(84, number)
        documents += [
            (f"{number}-a", " ".join(words)),
            (f"{number}-b", " ".join(near_copy(words, 9))),
        ]
    found = find_near_duplicates(documents, options)
    chance = candidate_probability(71 / 89, options.n_rows, options.n_bands)
    spread = (400 * chance * (1 - chance)) ** 0.5
    assert abs(len(found.clusters) - 400 * chance) < 3.5 * spread
    assert len(found.kept) == 800 - len(found.clusters)
    assert all(c.kept.split("-")[0] == c.dropped[0].split("-")[0] for c in found.clusters)


def test_capped_buckets_are_counted_and_joined_by_their_representatives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lsh, "MAX_BUCKET", 5)
    monkeypatch.setattr(lsh, "N_REPRESENTATIVES", 2)
    options = MinHashOptions(n_hashes=1, n_bands=1, ngram_words=1, jaccard_threshold=0.6)
    # The signature of one hash is that of the word with the least: all share it, few a cluster.
    functions = draw_hash_functions(1, 0)
    least = min("abcdefghijklmnop", key=lambda c: int(sign(hash_shingles([c]), functions)[0]))
    others = [c for c in "abcdefghijklmnop" if c != least]
    documents = [(f"{n}", f"{least} {c}") for n, c in enumerate(others[:6])]
    documents += [("6", f"{least} {others[0]} {others[8]}"), ("7", f"{least} {others[5]}")]
    found = find_near_duplicates(documents, options)
    assert found.n_capped_buckets == 1
    # 7 is the text of 5 and so no member; 6 is like the representative 0, of 2/3.
    assert found.clusters == (
        Cluster(kept="0", dropped=("6",)),
        Cluster(kept="5", dropped=("7",)),
    )
    assert found.n_candidate_pairs == 6 + 5
    # What is like a member that represents nothing is not found: that is what is counted.
    lost = [*documents[:6], ("6", f"{least} {others[4]} {others[8]}")]
    assert find_near_duplicates(lost, options).clusters == ()
    monkeypatch.undo()
    assert find_near_duplicates(lost, options).clusters == (Cluster(kept="4", dropped=("6",)),)


def test_copies_of_a_text_fill_no_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lsh, "MAX_BUCKET", 2)
    text = " ".join(made_up_words(50, 0))
    documents = [(f"{number:03}", text) for number in range(100)]
    found = find_near_duplicates(documents, PRESETS["course"])
    assert found.kept == ("000",)
    assert (found.n_candidate_pairs, found.n_capped_buckets) == (0, 0)


def test_bands_do_not_depend_on_the_seed_of_python_s_hashes() -> None:
    program = (
        "from rslm.data.dedup.minhash import draw_hash_functions\n"
        "from rslm.data.dedup.near_duplicates import PRESETS, sign_document\n"
        "options = PRESETS['course']\n"
        "functions = draw_hash_functions(options.n_hashes, options.seed)\n"
        "print(sign_document('x', ' '.join(map(str, range(50))), options, functions))"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            check=True,
            timeout=60,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1


def test_an_id_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="ids must differ, got 'a' twice"):
        find_near_duplicates([("a", "x"), ("a", "y")], PRESETS["course"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_bands": 7}, "n_bands must divide n_hashes, got 7 bands of 100 hashes"),
        ({"n_hashes": 0}, "n_hashes must be from 1 to 10000, got 0"),
        ({"n_bands": 0}, "n_bands must be from 1 to 10000, got 0"),
        ({"ngram_words": 0}, "ngram_words must be from 1 to 10000, got 0"),
        ({"jaccard_threshold": 0.0}, "jaccard_threshold must be above 0 and at most 1"),
        ({"jaccard_threshold": 1.1}, "jaccard_threshold must be above 0 .* got 1.1"),
        ({"jaccard_threshold": float("nan")}, "jaccard_threshold must be above 0 .* got nan"),
        ({"normalization": "none"}, "normalization must be .* got 'none'"),
        ({"short_documents": "drop"}, "short_documents must be .* got 'drop'"),
        ({"keep": "last"}, "keep must be .* got 'last'"),
        ({"seed": -1}, "seed must be between 0 and .* got -1"),
    ],
)
def test_options_out_of_range_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(PRESETS["course"], **changes)  # type: ignore[arg-type]


def test_planted_copies_in_real_text_of_many_scripts(
    read_test_text: Callable[[str, int], str],
) -> None:
    pages = [
        page.split() for page in read_test_text("multilingual", 400_000).split("<|endoftext|>")
    ]
    pages = [page[:300] for page in pages if len(page) >= 300]
    assert len(pages) > 20
    documents = [(f"{number:04}", " ".join(page)) for number, page in enumerate(pages)]
    copies = [(f"{name}-copy", text + " !") for name, text in documents[:10]]
    edited = [
        (f"{name}-edited", " ".join(["other", *text.split()[1:]])) for name, text in documents[:10]
    ]
    before = find_near_duplicates(documents, PRESETS["course"])
    after = find_near_duplicates([*edited, *documents, *copies], PRESETS["course"])
    assert after.kept == before.kept
    found = {cluster.kept: cluster.dropped for cluster in after.clusters}
    for name, _ in documents[:10]:
        assert {f"{name}-copy", f"{name}-edited"} <= set(found[name])


def test_estimate_is_near_the_similarity_of_real_text(stdlib_text: str) -> None:
    words = stdlib_text[:20_000].split()
    functions = draw_hash_functions(1000, 0)
    left = make_shingles(words, 5, "whole")
    right = make_shingles(words[: len(words) * 3 // 4], 5, "whole")
    estimate = estimate_jaccard(
        *(sign(hash_shingles(shingles), functions) for shingles in (left, right))
    )
    similarity = len(right) / len(left)
    assert abs(estimate - similarity) < 4 * (similarity * (1 - similarity) / 1000) ** 0.5
