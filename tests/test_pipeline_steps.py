"""Steps of a pipeline: what they count and write down, and which there are."""

from pathlib import Path

import pytest
from pipelines import config_of, drops, run, write_lines

from rslm.data.classify import Classifier, ClassifierOptions, train_classifier
from rslm.data.document import Document
from rslm.data.pipeline.config import ClassifierConfig
from rslm.data.pipeline.report import PipelineReport
from rslm.data.pipeline.steps import classify_step
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
