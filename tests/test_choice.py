"""Decisions on questions with continuations, beside transformers' model and by hand."""

import math
import random
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
import torch
from exported import chat_tokenizer, model_with
from tiny_models import tiny_model, tiny_tokenizer

from rslm.chat import ChatFormat
from rslm.evaluate.choice import evaluate_questions
from rslm.evaluate.continuations import Continuation, ContinuationScorer, Scores, score_plainly
from rslm.evaluate.few_shot import Dialect
from rslm.evaluate.questions import Kind, Question
from rslm.infer.hf import export_hf

WORDS = ["the cat", "a dog", "sees", "hears", "moon", "Zürich", "12", "x\ny", "!", "and so"]
DELIMITER = "\n A: "
BYTES = tiny_tokenizer(has_chat=False)


def questions(kind: Kind, n: int, seed: int) -> list[Question]:
    draw = random.Random(seed)

    def text() -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(1, 3)))

    made = []
    for _ in range(n):
        texts = tuple(text() for _ in range(4))
        if kind == "choice":
            made.append(Question(kind, (text(),), texts, draw.randrange(4)))
        elif kind == "schema":
            made.append(Question(kind, texts[:2], (text(),), draw.randrange(2)))
        else:
            made.append(Question(kind, (text(),), (text(),)))
    return made


class Plain:
    """Scores one sequence at a time."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def score(self, wanted: list[Continuation]) -> list[Scores]:
        return score_plainly(self._model, wanted)


@pytest.mark.parametrize("dialect", ["gauntlet", "nanochat"])
@pytest.mark.parametrize("kind", ["choice", "schema", "language"])
def test_the_fast_way_decides_as_the_plain_one(kind: Kind, dialect: Dialect):
    model = tiny_model(BYTES)
    asked = questions(kind, 20, 1)
    results = [
        evaluate_questions("t", asked, scorer, BYTES, context_length=64, n_shots=2, dialect=dialect)
        for scorer in (Plain(model), ContinuationScorer(model, batch_size=7))
    ]
    plain, fast = ({**result.record(), "seconds": 0} for result in results)
    assert plain == fast
    assert plain["n"] == 20
    assert plain["n_shots_dropped"] > 0


@torch.inference_mode()
def their_answer(model: Any, options: list[tuple[list[int], int]], kind: Kind) -> int | bool:
    """The option of the lowest mean loss, or whether the one is written, by cross-entropy."""
    losses = []
    for ids, first in options:
        logits = model(torch.tensor([ids])).logits[0]
        predicted, targets = logits[first - 1 : -1], torch.tensor(ids[first:])
        if kind == "language":
            return bool((predicted.argmax(-1) == targets).all())
        losses.append(torch.nn.functional.cross_entropy(predicted, targets).item())
    return min(range(len(losses)), key=losses.__getitem__)


def gauntlet_options(tokenizer: Any, question: Question, shots: list[Question]) -> Any:
    """The ids once more, from the description of llm-foundry alone."""

    def plain(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False)

    before = ""
    for shot in shots:
        context, after = shot.answered
        before += ("\n" if before else "") + f"{context.strip()}{DELIMITER}{after}"
    options = []
    for context, after in question.pairs:
        text = ("\n" if before else "") + f"{context.strip()}{DELIMITER}"
        ids = plain("<|endoftext|>") + plain(before) + plain(text.rstrip())
        options.append((ids + plain(f" {after}"), len(ids)))
    return options


def nanochat_options(tokenizer: Any, question: Question, shots: list[Question]) -> Any:
    """The same for nanochat."""
    before = "".join(f"{DELIMITER}".join(shot.answered) + "\n\n" for shot in shots)
    texts = [f"{before}{context}{DELIMITER}{after}" for context, after in question.pairs]
    encode = tokenizer.encode
    ids = [encode(f"<|endoftext|>{text}", add_special_tokens=False) for text in texts]
    if question.kind == "language":
        asked = "<|endoftext|>" + f"{before}{question.contexts[0]}{DELIMITER}".strip()
        return [(ids[0], len(encode(asked, add_special_tokens=False)))]
    turned = [each[::-1] for each in ids] if question.kind == "schema" else ids
    columns = zip(*turned, strict=False)
    n = len(list(takewhile(lambda column: len(set(column)) == 1, columns)))
    return [(each, len(each) - n if question.kind == "schema" else n) for each in ids]


@pytest.fixture(scope="module")
def pair(rust_tokenizer, tmp_path_factory) -> tuple[Any, Any, Any, Any]:
    """A model and its tokenizer, ours and as transformers reads them."""
    transformers = pytest.importorskip("transformers")
    tokenizer = chat_tokenizer(rust_tokenizer())
    model = model_with(tokenizer, n_kv_heads=2)
    # A model of random weights rather writes what begins a word than what continues one.
    for token_id, data in tokenizer.vocab.items():
        if not data.startswith(b" "):
            torch.nn.init.zeros_(model.lm_head.weight[token_id].detach())
    folder: Path = tmp_path_factory.mktemp("hf") / "model"
    export_hf(model, ChatFormat.of(tokenizer), folder)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model, tokenizer, theirs.eval(), transformers.AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("dialect", ["gauntlet", "nanochat"])
@pytest.mark.parametrize("kind", ["choice", "schema", "language"])
def test_decisions_are_those_of_transformers(kind: Kind, dialect: Dialect, pair):
    model, tokenizer, theirs, their_tokenizer = pair
    asked = questions(kind, 30, 2)
    if kind == "language":
        asked = [*asked[:5], *written(pair, dialect)[:5]]
    options = gauntlet_options if dialect == "gauntlet" else nanochat_options
    expected = []
    for one in asked:
        answer = their_answer(theirs, options(their_tokenizer, one, []), kind)
        expected.append(answer if kind == "language" else answer == one.gold)
    result = evaluate_questions(
        "t",
        asked,
        ContinuationScorer(model),
        tokenizer,
        context_length=96,
        delimiter=DELIMITER,
        dialect=dialect,
    )
    assert result.value == pytest.approx(sum(expected) / len(expected))
    assert 0 < result.value < 1


@torch.inference_mode()
def written(pair: Any, dialect: Dialect) -> list[Question]:
    """Questions after which the model does write the continuation, a token of text."""
    _, tokenizer, theirs, their_tokenizer = pair
    options = gauntlet_options if dialect == "gauntlet" else nanochat_options
    found = []
    for question in questions("language", 400, 7):
        ((ids, first),) = options(their_tokenizer, question, [])
        likeliest = int(theirs(torch.tensor([ids[:first]])).logits[0, -1].argmax())
        text = tokenizer.vocab.get(likeliest, b"").decode(errors="replace").strip()
        asked = Question("language", question.contexts, (text,))
        ((ids, first),) = options(their_tokenizer, asked, [])
        if text and ids[first:] == [likeliest]:
            found.append(asked)
    assert len(found) >= 5
    return found


def test_the_lowest_mean_loss_is_chosen_the_first_of_equals():
    losses = [(1.0, 1.0, 1.0), (1.5,), (1.0,), (2.0,)]

    class Given:
        def score(self, wanted: list[Continuation]) -> list[Scores]:
            return [Scores(tuple(-x for x in losses[i % 4]), is_greedy=False) for i in range(8)]

    # The shortest has the lowest sum, 1; the first of those with a mean of 1 is chosen.
    asked = [Question("choice", ("a",), ("bcd", "b", "c", "d"), 0)] * 2
    assert evaluate_questions("t", asked, Given(), BYTES, context_length=64).value == 1
    losses[0] = (1.2, 1.2)
    assert evaluate_questions("t", asked, Given(), BYTES, context_length=64).value == 0


def test_a_result_has_its_standard_error():
    model = tiny_model(BYTES)
    asked = questions("choice", 40, 3)
    result = evaluate_questions(
        "t", asked, ContinuationScorer(model), BYTES, context_length=64, max_examples=10
    )
    assert result.n == 10
    p = result.value
    assert result.stderr == pytest.approx(math.sqrt(p * (1 - p) / 9))


def test_shots_do_not_depend_on_which_questions_are_asked(monkeypatch: pytest.MonkeyPatch):
    seen: list[tuple[str, ...]] = []

    class Watching(Plain):
        def score(self, wanted: list[Continuation]) -> list[Scores]:
            seen.extend(bytes(i for i in ids if i < 256) for ids, _ in wanted)
            return super().score(wanted)

    scorer = Watching(tiny_model(BYTES, context_length=512))
    asked = questions("language", 30, 4)
    for n in (30, 5):
        evaluate_questions("t", asked, scorer, BYTES, context_length=512, n_shots=3, max_examples=n)
    assert len(seen) == 35
    assert set(seen[30:]) < set(seen[:30])


def test_a_model_of_nan_is_no_wrong_answer():
    model = tiny_model(BYTES)
    torch.nn.init.constant_(model.lm_head.weight, math.nan)
    with pytest.raises(FloatingPointError, match="NaN"):
        evaluate_questions(
            "t", questions("choice", 2, 0), ContinuationScorer(model), BYTES, context_length=64
        )


def test_what_was_cut_off_is_not_written():
    class Sure:
        def score(self, wanted: list[Continuation]) -> list[Scores]:
            return [Scores((0.0,), is_greedy=True) for _ in wanted]

    asked = [Question("language", ("a",), ("b" * n,)) for n in (3, 30)]
    result = evaluate_questions("t", asked, Sure(), BYTES, context_length=16)
    assert (result.value, result.n_cropped) == (0.5, 1)
