"""Normalisation, shingles, signatures and bands: each against its published rule or its law."""

import hashlib
import math
import string
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from strategies import TEXTS

from rslm.data.dedup import lsh
from rslm.data.dedup.lsh import (
    candidate_probability,
    cut_bands,
    find_buckets,
    is_capped,
    pairs_to_compare,
    steepest_similarity,
)
from rslm.data.dedup.minhash import HashFunctions, draw_hash_functions, estimate_jaccard, sign
from rslm.data.dedup.normalize import normalize, normalize_course, normalize_fineweb
from rslm.data.dedup.shingles import hash_shingles, jaccard, make_shingles

PANGRAM = "the quick brown fox jumps over the lazy dog"
# Without the private planes, which take most of the time and are of one kind.
CHARACTERS = [chr(code) for code in range(0x32000)]


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("", ""),
        (" \n\t\u3000\x1c", ""),
        ("!?…—$€", ""),
        ("It's a DOG.", "it s a dog"),
        ("e-mail: a_b@c.d", "e mail a b c d"),
        # Composed and decomposed, one accent and several, from Latin to Hangul.
        ("Ångström", "angstrom"),
        ("A\u030angstro\u0308m", "angstrom"),
        ("Việt Nam", "viet nam"),
        ("한", "\u1112\u1161\u11ab"),
        ("İstanbul ΟΔΟΣ ẞ", "istanbul οδος ß"),
        # Spacing marks (Mc) stay, others (Mn) go.
        ("\u0915\u093f\u0902", "\u0915\u093f"),
        # A mark between letters parts no word, a dash of any script does.
        ("a\u200bb c\u2013d 。世", "a\u200bb c d 世"),
        ("1,000", "1 000"),
        # NFD is not NFKD: a ligature and a full-width letter stay what they are.
        ("ﬁ Ａ", "ﬁ ａ"),
        ("\u037e\u2260", ""),
    ],
)
def test_course_normalisation(text: str, normal: str) -> None:
    assert normalize_course(text) == normal == normalize(text, "course")


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("", ""),
        ("It's a DOG.", "it s a dog"),
        ("3.14 1,000,000 7", "0 0 0 0"),
        ("1.2.3 v2a ٣٫٥ 1٫2 １２", "0 0 v0a 0 0 0"),
        ("1|2|3", "0 0 0"),
        ("1.,5 1. 5 .5 1,", "0 0 0 0 0 0"),
        ("Café\x00Ångström\x7f\x85x", "cafe angstrom x"),
        ("。、「a」《b》", "a b"),
        # What the rule does not list stays: a lone quotation mark, Arabic and Devanagari stops.
        ("‘a’ نعم، नमस्ते।", "‘a نعم، नमसत।"),
        ("a²½ €5", "a²½ €0"),
        ("a\u037eb \u2260", "a;b ="),
        # A mark alone leaves two blanks where it was, which words do not notice.
        ("a \u0301 b", "a  b"),
    ],
)
def test_fineweb_normalisation(text: str, normal: str) -> None:
    assert normalize_fineweb(text) == normal == normalize(text, "fineweb")


def test_fineweb_s_punctuation_is_129_characters() -> None:
    blanks = [c for c in CHARACTERS if normalize_fineweb(f"a{c}b") == "a b"]
    controls = {c for c in CHARACTERS if unicodedata.category(c) == "Cc"}
    assert controls | set(string.punctuation) <= set(blanks)
    # The full-width digit one of the published list becomes 0 as a number, before it is reached;
    # tab and newline are blanks, not of the list.
    assert (
        len([c for c in blanks if not c.isspace()])
        + len([c for c in controls if c.isspace() and c not in "\t\n"])
        == 129 - 1
    )


def test_course_normalisation_leaves_no_ascii_punctuation_and_keeps_all_else_of_ascii() -> None:
    assert normalize_course(string.punctuation) == ""
    kept = normalize_course("".join(map(chr, range(128)))).split()
    assert "".join(kept) == "".join(
        c for c in map(chr, range(128)) if not (c.isspace() or c in string.punctuation)
    ).replace(string.ascii_uppercase, string.ascii_lowercase)


def test_course_normalisation_of_every_character_is_normal() -> None:
    once = normalize_course("x ".join(CHARACTERS))
    kinds = {unicodedata.category(character) for character in set(once) - {" "}}
    assert not any(kind[0] in "PSZ" or kind == "Mn" for kind in kinds)
    assert unicodedata.is_normalized("NFD", once)


@given(TEXTS)
def test_normalisation_of_canonical_equals_is_equal(text: str) -> None:
    for form in ("NFC", "NFD"):
        assert normalize_course(unicodedata.normalize(form, text)) == normalize_course(text)


@given(TEXTS, st.sampled_from(["course", "fineweb"]))
def test_normalised_words_are_not_empty_and_hold_no_blank(text: str, rule: str) -> None:
    normal = normalize(text, rule)  # type: ignore[arg-type]
    assert normal == normal.strip()
    assert not any(c.isspace() and c != " " for c in normal)


def test_shingles_are_the_runs_of_words() -> None:
    words = ["to", "be", "or", "not", "to", "be", "or", "not"]
    assert make_shingles(words, 3, "none") == {
        *["to be or", "be or not", "or not to", "not to be"],
    }
    assert make_shingles(words, 8, "none") == {" ".join(words)}
    assert make_shingles(words, 1, "whole") == set(words)


def test_texts_shorter_than_a_shingle_are_one_or_none() -> None:
    assert make_shingles(["a", "b"], 3, "whole") == {"a b"}
    assert make_shingles(["a", "b"], 3, "none") == frozenset()
    assert make_shingles([], 3, "whole") == {""}
    assert make_shingles([], 3, "none") == frozenset()


def test_jaccard_is_a_share_of_the_union() -> None:
    assert jaccard(frozenset("abcd"), frozenset("bcde")) == 3 / 5
    assert jaccard(frozenset("abcd"), frozenset("abcde")) == 0.8
    assert jaccard(frozenset("ab"), frozenset("cd")) == 0
    assert jaccard(frozenset(), frozenset()) == 1
    assert jaccard(frozenset(), frozenset("a")) == 0


def test_hash_functions_are_fineweb_s() -> None:
    functions = draw_hash_functions(112, 1)
    assert functions.factors[:2].tolist() == [775169054918279404, 1758426461858698313]
    assert functions.summands[:2].tolist() == [1062448801025099917, 1324811268927594100]
    assert functions.factors.shape == functions.summands.shape == (112,)


def test_signature_is_fineweb_s() -> None:
    shingles = make_shingles(normalize_fineweb(f" {PANGRAM.title()}!").split(), 5, "none")
    signature = sign(hash_shingles(shingles), draw_hash_functions(112, 1))
    assert len(shingles) == 5
    assert signature.dtype == np.uint64
    assert signature[:3].tolist() == [585594454516184072, 284080765670708113, 594234408324153881]
    assert signature[-1] == 800584869340422436


def plain_signature(shingles: frozenset[str], functions: HashFunctions) -> list[int]:
    """In whole numbers of any size, from the formula."""
    hashes = [
        int.from_bytes(hashlib.sha1(shingle.encode()).digest()[:8], "little")
        for shingle in shingles
    ]
    pairs = zip(functions.factors.tolist(), functions.summands.tolist(), strict=True)
    return [min((x * a + b) % 2**64 % (2**61 - 1) for x in hashes) for a, b in pairs]


@given(st.frozensets(st.text(st.characters(exclude_categories=["Cs"])), min_size=1))
def test_signature_is_the_formula_s(shingles: frozenset[str]) -> None:
    functions = draw_hash_functions(7, 3)
    assert sign(hash_shingles(shingles), functions).tolist() == plain_signature(shingles, functions)


@pytest.mark.parametrize("n", [1023, 1024, 1025, 3000])
def test_signature_of_many_shingles_is_the_least_over_all(n: int) -> None:
    functions = draw_hash_functions(5, 0)
    shingles = frozenset(map(str, range(n)))
    assert sign(hash_shingles(shingles), functions).tolist() == plain_signature(shingles, functions)


def test_shingle_hashes_do_not_depend_on_the_order_of_a_set() -> None:
    names = [f"shingle {number}" for number in range(100)]
    hashes = hash_shingles(names)
    assert np.array_equal(hash_shingles(reversed(names)), hashes)
    assert hash_shingles(["\ud800"]).size == 1
    assert hash_shingles([]).size == 0


def test_an_empty_set_has_no_signature_and_numbers_out_of_range_no_functions() -> None:
    with pytest.raises(ValueError, match="at least one shingle"):
        sign(np.array([], dtype=np.uint64), draw_hash_functions(3, 0))
    with pytest.raises(ValueError, match="n_hashes must be at least 1, got 0"):
        draw_hash_functions(0, 0)
    for seed in (-1, 2**32):
        with pytest.raises(ValueError, match=f"seed must be between .* got {seed}"):
            draw_hash_functions(1, seed)


def signature_pairs(
    n_pairs: int, n_shared: int, n_own: int, functions: HashFunctions
) -> list[tuple[NDArray[np.uint64], NDArray[np.uint64]]]:
    """Signatures of made-up sets with `n_shared` of `n_shared + 2 n_own` shingles in common."""
    draw = np.random.default_rng([n_shared, n_own])
    pairs = []
    for _ in range(n_pairs):
        hashes = draw.integers(0, 2**64, size=n_shared + 2 * n_own, dtype=np.uint64)
        # The first n_own are the left set's own, the last n_own the right one's.
        left, right = hashes[: n_own + n_shared], hashes[n_own:]
        pairs.append((sign(left, functions), sign(right, functions)))
    return pairs


# Similarities .2, .5, .8, .9.
SETS = [(10, 20), (20, 10), (32, 4), (36, 2)]


@pytest.mark.parametrize(("n_shared", "n_own"), SETS)
def test_estimate_of_jaccard_is_within_its_standard_error(n_shared: int, n_own: int) -> None:
    n_pairs, n_hashes = 800, 112
    similarity = n_shared / (n_shared + 2 * n_own)
    pairs = signature_pairs(n_pairs, n_shared, n_own, draw_hash_functions(n_hashes, 1))
    errors = np.array([estimate_jaccard(*pair) for pair in pairs]) - similarity
    standard_error = math.sqrt(similarity * (1 - similarity) / n_hashes)
    # No bias, and a spread as large as independent hash functions would have: its own relative
    # error is 1 / sqrt(2 n_pairs) = .025.
    assert abs(errors.mean()) < 4 * standard_error / math.sqrt(n_pairs)
    assert math.sqrt((errors**2).mean()) == pytest.approx(standard_error, rel=0.1)


@pytest.mark.parametrize(("n_hashes", "n_bands", "seed"), [(112, 14, 1), (100, 10, 0)])
@pytest.mark.parametrize(("n_shared", "n_own"), [(20, 10), (26, 7), (28, 6), (32, 4), (36, 2)])
def test_chance_of_a_candidate_is_the_formula_s(
    n_hashes: int, n_bands: int, seed: int, n_shared: int, n_own: int
) -> None:
    n_pairs = 800
    similarity = n_shared / (n_shared + 2 * n_own)
    pairs = signature_pairs(n_pairs, n_shared, n_own, draw_hash_functions(n_hashes, seed))
    n_found = sum(
        bool(find_buckets([cut_bands(left, n_bands), cut_bands(right, n_bands)]))
        for left, right in pairs
    )
    chance = candidate_probability(similarity, n_hashes // n_bands, n_bands)
    spread = math.sqrt(n_pairs * chance * (1 - chance))
    assert abs(n_found - n_pairs * chance) < 3.5 * spread + 0.5


@pytest.mark.parametrize(
    ("n_rows", "n_bands", "chances"),
    [
        (8, 14, (0.57, 0.92, 1.0)),  # FineWeb.
        (10, 10, (0.25, 0.68, 0.99)),  # The course's 100 hashes, and its 500.
        (10, 50, (0.76, 0.997, 1.0)),
        (20, 450, (0.30, 0.995, 1.0)),  # RefinedWeb.
        (13, 20, (0.18, 0.68, 0.997)),  # NeMo-Curator.
    ],
)
def test_published_parameters_find_what_is_published(
    n_rows: int, n_bands: int, chances: tuple[float, float, float]
) -> None:
    for similarity, chance in zip((0.7, 0.8, 0.9), chances, strict=True):
        assert candidate_probability(similarity, n_rows, n_bands) == pytest.approx(chance, abs=6e-3)


def test_chances_at_the_ends_and_the_steepest_place() -> None:
    assert candidate_probability(0, 8, 14) == 0
    assert candidate_probability(1, 8, 14) == 1
    assert steepest_similarity(8, 14) == pytest.approx(0.72, abs=5e-3)
    assert steepest_similarity(1, 1) == 1


def test_bands_are_the_rows_in_order_little_endian() -> None:
    signature = np.array([1, 2, 3, 2**61], dtype=np.uint64)
    first, second = cut_bands(signature, 2)
    assert first == bytes([1, *[0] * 7, 2, *[0] * 7])
    assert second == (3).to_bytes(8, "little") + (2**61).to_bytes(8, "little")


def test_buckets_hold_who_shares_a_band_at_the_same_place() -> None:
    documents = [(b"x", b"y"), (b"y", b"x"), (b"x", b"x"), (), (b"x", b"y")]
    # 0, 2 and 4 in the first band; 0 and 4, 1 and 2 in the second.
    assert find_buckets(documents) == [(0, 2, 4), (0, 4), (1, 2)]
    assert find_buckets([]) == []


def test_pairs_of_a_capped_bucket_are_those_with_its_first_members(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert list(pairs_to_compare((3, 5, 9))) == [(3, 5), (3, 9), (5, 9)]
    monkeypatch.setattr(lsh, "MAX_BUCKET", 4)
    monkeypatch.setattr(lsh, "N_REPRESENTATIVES", 2)
    assert not is_capped((0, 1, 2, 3))
    assert len(list(pairs_to_compare((0, 1, 2, 3)))) == 6
    assert is_capped((0, 1, 2, 3, 4))
    assert list(pairs_to_compare((0, 1, 2, 3, 4))) == [
        *[(0, 1), (0, 2), (0, 3), (0, 4)],
        *[(1, 2), (1, 3), (1, 4)],
    ]


def test_a_bucket_of_the_largest_size_is_compared_in_full_and_one_more_is_not() -> None:
    full, capped = range(lsh.MAX_BUCKET), range(lsh.MAX_BUCKET + 1)
    assert sum(1 for _ in pairs_to_compare(full)) == math.comb(1000, 2)
    assert sum(1 for _ in pairs_to_compare(capped)) == math.comb(64, 2) + 64 * (1001 - 64)
