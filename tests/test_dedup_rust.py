"""Deduplication in Rust gives what the plain functions give, on any text."""

import os
import random
import tempfile
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import TEXTS

from rslm import _rslm
from rslm.data.dedup import lsh
from rslm.data.dedup.exact import find_exact_duplicates
from rslm.data.dedup.files import deduplicate_lines, deduplicate_minhash
from rslm.data.dedup.lsh import candidate_probability
from rslm.data.dedup.minhash import draw_hash_functions, sign
from rslm.data.dedup.near_duplicates import (
    PRESETS,
    MinHashOptions,
    find_near_duplicates,
    minhash_arguments,
)
from rslm.data.dedup.normalize import Normalization, normalize
from rslm.data.dedup.shingles import hash_shingles, make_shingles

RULES: list[Normalization] = ["course", "fineweb"]

# A mark of Ahom was a non-spacing one until Unicode 15.
CHANGED = {"\U0001171e"} if unicodedata.unidata_version < "15" else set()
# Without the planes of private use, which take most of the time and are of one kind.
ASSIGNED = [
    character
    for character in map(chr, [*range(0x32000), *range(0xE0000, 0xE0200), 0xF0000, 0x10FFFF])
    if unicodedata.category(character) != "Cn" and character not in CHANGED
]

# What depends on its neighbours: sigmas, ignorable characters, spacing marks of several classes,
# numbers and their separators, blanks that a rule makes or finds, surrogates.
# fmt: off
PIECES = st.sampled_from([
    "Σ", "ς", "a", "B", "İ", "ΑΣ", "'", ".", "\xad", "\u0301", "\u0345", "ʰ", "1", "23", "٣", "１",
    ",", "\u066b", "\u2396", "\u302e", "\u302f", "\U0001d165", "\U0001d16d", "\U0001d15e",
    "\U0001d15f", "\u0f73", "\u0344", "\u1b44", "\u0903", "\u0cca", "\u0ccb", "한", "각", "\u11a8",
    " ", "\n", "\u2000", "\x1c", "\x85", "\x00", "\u037e", "\u2260", "»", "、", "世", "\ud800",
    "\udfff", "\U0010ffff", "\ufffe", "\u0378", "ﬁ", "ǆ", "Ǆ", "ẞ", "\u1fc1", "\u2ade",
])
# fmt: on
HARD_TEXTS = st.lists(PIECES | TEXTS, max_size=12).map("".join)

LETTERS = st.lists(st.sampled_from("abcdefg"), max_size=6).map(" ".join)
DOCUMENTS = st.lists(LETTERS | HARD_TEXTS, max_size=12).flatmap(
    lambda texts: st.permutations([(f"{n}", text) for n, text in enumerate(texts)])
)
OPTIONS = st.builds(
    MinHashOptions,
    n_hashes=st.just(12),
    n_bands=st.sampled_from([1, 3, 4, 12]),
    ngram_words=st.integers(1, 3),
    jaccard_threshold=st.sampled_from([None, 0.3, 0.5, 0.8, 1.0]),
    normalization=st.sampled_from(RULES),
    short_documents=st.sampled_from(["whole", "none"]),
    keep=st.sampled_from(["first", "random"]),
    seed=st.integers(0, 3),
)


@pytest.fixture(autouse=True, scope="module")
def _folders_in_memory() -> Iterator[None]:
    """Every stage syncs what it wrote, which here would wait for a disk a thousand times."""
    with pytest.MonkeyPatch.context() as patch:
        if os.path.isdir("/dev/shm"):
            patch.setattr(tempfile, "tempdir", "/dev/shm")
        yield


def normalize_fast(text: str, rule: Normalization) -> str:
    return _rslm.normalize_texts([text], rule)[0]


@pytest.mark.skipif(
    unicodedata.unidata_version >= "17", reason="newer characters, which the tables do not hold"
)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("form", ["x{0}y", "{0}{0}\u0301{0}", "\U0001d165{0}\U0001d16d"])
def test_every_assigned_character_normalises_as_in_python(rule: Normalization, form: str) -> None:
    texts = [form.format(character) for character in ASSIGNED]
    fast = _rslm.normalize_texts(texts, rule)
    assert [t for t, f in zip(texts, fast, strict=True) if normalize(t, rule) != f] == []


@pytest.mark.parametrize("rule", RULES)
def test_unassigned_characters_stay(rule: Normalization) -> None:
    assert normalize_fast("a\u0378\U0001ffffb", rule) == "a\u0378\U0001ffffb"


@given(HARD_TEXTS, st.sampled_from(RULES))
def test_normalisation_equals_the_reference(text: str, rule: Normalization) -> None:
    assert normalize_fast(text, rule) == normalize(text, rule)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("n", [1, 16383, 16384, 16385, 40000])
def test_normalisation_of_long_texts_equals_the_reference(rule: Normalization, n: int) -> None:
    for piece in ("a", "Ab ", " ", "9", "한", "a\u0301", "\u0301", "\u302e", "Σ", "1.", "\x00!"):
        text = (piece * n)[:n]
        assert normalize_fast(text, rule) == normalize(text, rule)


@given(HARD_TEXTS, OPTIONS)
def test_signature_equals_the_reference(text: str, options: MinHashOptions) -> None:
    functions = draw_hash_functions(options.n_hashes, options.seed)
    words = normalize(text, options.normalization).split()
    shingles = make_shingles(words, options.ngram_words, options.short_documents)
    fast = _rslm.minhash_signature(text, minhash_arguments(options, functions))
    if shingles:
        assert fast is not None
        assert np.array_equal(fast, sign(hash_shingles(shingles), functions))
    else:
        assert fast is None


@pytest.mark.parametrize("n_hashes", [1, 15, 16, 17, 112, 500])
@pytest.mark.parametrize("n_words", [4, 5, 6, 1027, 1028, 1029, 3000])
def test_signature_of_any_length_equals_the_reference(n_hashes: int, n_words: int) -> None:
    options = MinHashOptions(n_hashes=n_hashes, n_bands=1, normalization="fineweb")
    functions = draw_hash_functions(n_hashes, 1)
    # Shingles of 9 to 10,000 bytes: one block of SHA-1, its padding in another, and many.
    words = ["w" * (1 + 7 * n % 23 + (2000 if n % 97 == 0 else 0)) for n in range(n_words)]
    shingles = make_shingles(words, 5, "whole")
    fast = _rslm.minhash_signature(" ".join(words), minhash_arguments(options, functions))
    assert fast is not None
    assert np.array_equal(fast, sign(hash_shingles(shingles), functions))


def test_signature_is_fineweb_s() -> None:
    options = PRESETS["fineweb"]
    arguments = minhash_arguments(options, draw_hash_functions(options.n_hashes, options.seed))
    signature = _rslm.minhash_signature("The Quick brown fox jumps over the lazy dog!", arguments)
    assert signature is not None
    assert signature[:3].tolist() == [585594454516184072, 284080765670708113, 594234408324153881]
    assert signature[-1] == 800584869340422436


@given(DOCUMENTS, OPTIONS)
def test_near_duplicates_equal_the_reference(
    documents: list[tuple[str, str]], options: MinHashOptions
) -> None:
    fast = find_near_duplicates(documents, options)
    assert fast == find_near_duplicates(documents, options, implementation="reference")


@given(DOCUMENTS, OPTIONS, st.integers(1, 4), st.integers(1, 4))
def test_capped_buckets_equal_the_reference(
    documents: list[tuple[str, str]], options: MinHashOptions, most: int, n_first: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lsh, "MAX_BUCKET", most)
        patch.setattr(lsh, "N_REPRESENTATIVES", min(most, n_first))
        fast = find_near_duplicates(documents, options)
        assert fast == find_near_duplicates(documents, options, implementation="reference")


@given(DOCUMENTS, st.sampled_from(["first", "random"]))
def test_exact_duplicates_equal_the_reference(documents: list[tuple[str, str]], keep: str) -> None:
    fast = find_exact_duplicates(documents, keep=keep)  # type: ignore[arg-type]
    slow = find_exact_duplicates(documents, keep=keep, implementation="reference")  # type: ignore[arg-type]
    assert fast == slow


LINES = st.lists(
    st.sampled_from([b"", b"a", b"b", b"a\r", b"\x0b", b"\x85", b"\xff\xfe", b"x" * 99]), max_size=8
).map(b"\n".join)


@given(st.lists(LINES, max_size=5), st.sampled_from(["none", "first"]), st.integers(0, 99))
def test_lines_of_files_equal_the_reference(texts: list[bytes], keep: str, seed: int) -> None:
    with TemporaryDirectory() as name:
        folder = Path(name)
        files = [folder / f"{number}.txt" for number in range(len(texts))]
        for file, text in zip(files, texts, strict=True):
            file.write_bytes(text)
        random.Random(seed).shuffle(files)
        reports = [
            deduplicate_lines(files, folder / form, keep=keep, implementation=form)  # type: ignore[arg-type]
            for form in ("rust", "reference")
        ]
        assert reports[0] == reports[1]
        for file in files:
            outputs = [(folder / form / file.name).read_bytes() for form in ("rust", "reference")]
            assert outputs[0] == outputs[1]


def test_implementations_are_checked_by_name(tmp_path: Path) -> None:
    wrong = {"implementation": "python"}
    message = 'implementation must be "rust" or "reference", got \'python\''
    with pytest.raises(ValueError, match=message):
        find_near_duplicates([], PRESETS["course"], **wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        find_exact_duplicates([], **wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        deduplicate_lines([], tmp_path, **wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        deduplicate_minhash([], tmp_path, n_hashes=1, n_bands=1, ngram_words=1, **wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="normalization must be"):
        normalize_fast("a", "none")  # type: ignore[arg-type]


def made_up_words(n: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    return ["".join(draw.choices("bcdfgklmnprst", k=6)) for _ in range(n)]


@pytest.mark.parametrize("preset", ["course", "fineweb"])
@pytest.mark.parametrize("n_changed", [4, 7, 12])
def test_recall_is_the_formula_s_on_pairs_of_known_similarity(preset: str, n_changed: int) -> None:
    # The last words of 84 changed: of the 80 shingles of either, as many fewer are shared.
    similarity = (80 - n_changed) / (80 + n_changed)
    options = replace(PRESETS[preset], jaccard_threshold=None)
    n_pairs = 1500
    documents = []
    for number in range(n_pairs):
        words = made_up_words(84, number)
        changed = [*words[: 84 - n_changed], *(f"{word}x" for word in words[84 - n_changed :])]
        documents += [(f"{number}-a", " ".join(words)), (f"{number}-b", " ".join(changed))]
    n_found = len(find_near_duplicates(documents, options).clusters)
    chance = candidate_probability(similarity, options.n_rows, options.n_bands)
    standard_error = (n_pairs * chance * (1 - chance)) ** 0.5
    assert abs(n_found - n_pairs * chance) <= 3 * standard_error


@pytest.mark.parametrize("preset", ["course", "fineweb"])
def test_real_text_of_many_scripts_equals_the_reference(
    preset: str, read_test_text: Callable[[str, int], str]
) -> None:
    pages = read_test_text("multilingual", 500_000).split("<|endoftext|>")
    draw = random.Random(0)
    documents = [(f"{number:05}", page) for number, page in enumerate(pages)]
    documents += [
        (f"{name}-copy", " ".join(word for word in text.split() if draw.random() > 0.01))
        for name, text in documents[::3]
    ]
    draw.shuffle(documents)
    options = PRESETS[preset]
    fast = find_near_duplicates(documents, options)
    assert fast == find_near_duplicates(documents, options, implementation="reference")
    assert len(fast.clusters) > 10
    for rule in RULES:
        normal = _rslm.normalize_texts(pages, rule)
        assert normal == [normalize(page, rule) for page in pages]
