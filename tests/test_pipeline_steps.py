"""Steps of a pipeline: what they count and write down, and which there are."""

import random
import re
from pathlib import Path

import pytest
from pipelines import ALL_STEPS, config_of, drops, run, write_inputs, write_lines

from rslm.config import to_toml
from rslm.data.classify import Classifier, ClassifierOptions, train_classifier
from rslm.data.document import Document
from rslm.data.pipeline import make_plan, read_pipeline_config
from rslm.data.pipeline.checks import ENGLISH_PRESETS, warnings_of
from rslm.data.pipeline.config import ClassifierConfig, preset_names
from rslm.data.pipeline.report import PipelineReport
from rslm.data.pipeline.stages import step_names
from rslm.data.pipeline.steps import classify_step, filter_steps
from rslm.data.quality import PRESETS, check_quality
from rslm.data_report.numbers import by_language, scores
from rslm.data_report.view import read_view

ENGLISH = "The weather in the mountains was so bad that nobody wanted to leave the house."
GERMAN = "Das Wetter in den Bergen war so schlecht, dass niemand das Haus verlassen wollte."
FRENCH = "Le temps dans les montagnes était si mauvais que personne ne voulait sortir."


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "taste.bin"
    texts = {
        label: [f"{label} page of number{i}" for i in range(60)]
        for label in ("good", "bad", "dull")
    }
    options = ClassifierOptions(dim=8, buckets=100, learning_rate=0.5, held_out_share=0.2)
    train_classifier(texts, path, options=options)
    return path


def test_scores_of_a_label_are_written_down_and_counted(model: Path) -> None:
    config = ClassifierConfig(model=model, label="good", min_score=0.5)
    texts = ["good page", "bad page", "dull page", "page"]
    decisions = classify_step(config)([Document(id=text, text=text) for text in texts])
    wanted = Classifier.load(model).scores_batch(texts, "good")
    assert wanted[0] > 0.9 > 0.1 > wanted[1]
    for decision, score in zip(decisions, wanted, strict=True):
        assert decision.document.metadata["scores"] == {"taste": round(score, 6)}
        assert decision.group == f"{score:.2f}"
        assert decision.reason == ("score_too_low" if score < 0.5 else "")


def test_label_that_a_model_has_not_is_refused_before_any_page(model: Path) -> None:
    with pytest.raises(ValueError, match=r"label must be one of .*, got 'fine'"):
        classify_step(ClassifierConfig(model=model, label="fine"))


def test_report_shows_scores_and_languages(model: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    texts = [f"{ENGLISH} good page {i}" for i in range(5)] + ["The page is bad, bad, bad indeed."]
    write_lines(tmp_path / "in" / "a.jsonl", [*texts, GERMAN, GERMAN, FRENCH])
    config = config_of(
        tmp_path / "in",
        tmp_path / "out",
        language={"languages": ["en", "fr"], "min_score": 0.1},
        classifiers=[{"model": str(model), "label": "bad", "max_score": 0.9}],
    )
    run(config)
    view = read_view(config.out)
    dropped = drops(config.out)
    n_bad = dropped["filter/classify.taste"]["score_too_high"]
    assert dropped["filter/language"] == {"other_language": 2}
    assert n_bad == 1
    assert by_language(view, 9) == [("en", 6, 5), ("de", 2, 0), ("fr", 1, 1)]
    assert by_language(view, 1) == [("en", 6, 5), ("2 more", 3, 1)]
    (step,) = [step for step in view.steps if step.name == "classify.taste"]
    assert step.tally.histogram.total() == 7
    assert sum(n for _, n in scores(step.tally.histogram)) == 7
    assert step.tally.languages == {"en": 5, "fr": 1}
    shown = PipelineReport.read(config.out).samples("filter")
    found = {s["language"] for s in shown if s["reason"] == "other_language"}
    assert found == {"de"}
    assert {s["language"] for s in shown if s["step"] == "classify.taste"} == {"en", "fr"}


def steps_of(folder: Path, **changes: object) -> list[str]:
    return step_names(make_plan(config_of(folder, folder.parent / "out", **changes)))


def test_plan_names_the_steps_in_their_order(tmp_path: Path) -> None:
    folder = write_inputs(tmp_path / "in")
    first = ["read", "extract", "quality.course", "exact"]
    assert steps_of(folder, **ALL_STEPS) == [*first, "minhash", "lines", "pii"]
    lines = {"keep": "first", "before_minhash": True}
    assert steps_of(folder, **ALL_STEPS | {"lines": lines}) == [*first, "lines", "minhash", "pii"]
    assert steps_of(folder, **ALL_STEPS | {"lines": {}}) == [*first, "minhash", "pii"]
    assert steps_of(folder) == ["read", "extract"]
    config = config_of(folder, tmp_path / "out", **ALL_STEPS)
    assert [*filter_steps(config)] == ["extract", "quality.course"]


def write_config(folder: Path, text: str) -> Path:
    path = folder / "c.toml"
    path.write_text(f'out = "o"\n{text}\n[[inputs]]\npaths = ["{write_inputs(folder / "in")}"]\n')
    return path


@pytest.mark.parametrize("name", preset_names())
@pytest.mark.parametrize(
    ("table", "step"),
    [("language", "language"), ("pii", "pii"), ("minhash", "minhash"), ("quality", "quality.")],
)
def test_step_of_a_preset_can_be_left_out(tmp_path: Path, name: str, table: str, step: str) -> None:
    whole = read_pipeline_config(write_config(tmp_path, f'preset = "{name}"'))
    path = write_config(tmp_path, f'preset = "{name}"\nwithout = ["{table}"]')
    config = read_pipeline_config(path)
    wanted = [each for each in step_names(make_plan(whole)) if not each.startswith(step)]
    assert step_names(make_plan(config)) == wanted
    assert len(wanted) == len(step_names(make_plan(whole))) - 1
    # The resolved config is one to be read again.
    path.write_text(to_toml(config))
    assert read_pipeline_config(path) == config


def test_step_cannot_be_had_and_left_out(tmp_path: Path) -> None:
    path = write_config(tmp_path, 'preset = "course"\nwithout = ["pii"]\npii.preset = "dolma"')
    with pytest.raises(ValueError, match="without must name no step that the config has, got pii"):
        read_pipeline_config(path)
    path = write_config(tmp_path, 'without = ["pie"]')
    with pytest.raises(ValueError, match="without must be"):
        read_pipeline_config(path)


def test_english_presets_are_those_that_look_for_english_words() -> None:
    draw = random.Random(0)
    foreign = "\n".join(
        " ".join("".join(draw.choices("aeioudgklmnrst", k=6)) for _ in range(12)) + "."
        for _ in range(20)
    )
    found = {p for p in PRESETS if check_quality(foreign, p).reason == "gopher_few_stop_words"}
    assert found == set(ENGLISH_PRESETS)


@pytest.mark.parametrize(
    ("languages", "presets", "message"),
    [
        (["en"], ["fineweb"], ""),
        (["de"], ["course", "c4"], ""),
        ([], ["fineweb"], ""),
        (["en", "de"], ["c4", "gopher"], "gopher asks for English words .* keeps de:"),
        (["any"], ["dolma"], "keeps all languages"),
    ],
)
def test_english_rules_on_other_languages_are_told(
    tmp_path: Path, languages: list[str], presets: list[str], message: str
) -> None:
    (tmp_path / "in").mkdir()
    write_lines(tmp_path / "in" / "a.jsonl", ["some text"])
    config = config_of(
        tmp_path / "in",
        tmp_path / "out",
        language={"languages": languages},
        quality={"presets": presets},
    )
    warnings = warnings_of(make_plan(config))
    assert len(warnings) == bool(message)
    if message:
        assert re.search(message, warnings[0])


def test_markup_that_nothing_extracts_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    write_lines(folder / "a.jsonl", ["In <html> there is <body>.", "text"])
    (folder / "page.html").write_text("<!doctype html><p>a page")
    assert warnings_of(make_plan(config_of(folder, tmp_path / "out"))) == []
    write_lines(folder / "a.jsonl", [" <!DOCTYPE html><html><body>text"])
    (warning,) = warnings_of(make_plan(config_of(folder, tmp_path / "out")))
    assert re.search(r"a\.jsonl seems to hold HTML in its text, which is not extracted", warning)
