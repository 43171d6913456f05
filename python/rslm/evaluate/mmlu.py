"""MMLU: 57 subjects, answered by the letter of an option or by its text.

Source: Hendrycks et al. 2021 (arXiv:2009.03300); hendrycks/test. Where we differ: white space
around a field is dropped, the letters compared are " A" to " D" by their mean loss, which for
letters of one token is their logits, and the text of options is compared without their list.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from math import fsum, hypot

from rslm.evaluate.answers import LETTERS
from rslm.evaluate.choice import Progress, Scorer, answer
from rslm.evaluate.few_shot import Asked, Option, begin_ids, choose_examples, fitted
from rslm.evaluate.questions import Question
from rslm.evaluate.results import TaskResult, mean_and_error, with_errors
from rslm.evaluate.task_files import MmluQuestion, mmlu_text
from rslm.tokenizer import Tokenizer

N_SHOTS = 5
Subjects = Mapping[str, Sequence[MmluQuestion]]


def evaluate_mmlu(
    questions: Subjects,
    examples: Subjects,
    scorer: Scorer,
    tokenizer: Tokenizer,
    *,
    context_length: int,
    by_text: bool = False,
    n_shots: int = N_SHOTS,
    max_examples: int | None = None,
    progress: Progress = lambda done, n: None,
) -> TaskResult:
    """The accuracy over all questions ("micro"); in `details` that of each subject, and their mean.

    Args:
        questions: of each subject, as `load_mmlu` reads them.
        examples: of each subject, those that are answered in the prompt.
        scorer: of the model.
        tokenizer: the model's.
        context_length: of the model.
        by_text: compare the texts of the options, and not their letters.
        n_shots: the subject's examples before each question, at most all.
        max_examples: questions to ask, the same ones each time; None asks all.
        progress: told what is done.

    Raises:
        FloatingPointError: the model's logits are no numbers.
    """
    started = time.perf_counter()
    everything = [one for subject in questions.values() for one in subject]
    chosen = [everything[number] for number in choose_examples(len(everything), max_examples)]
    shots = {name: list(examples.get(name, ()))[:n_shots] for name in questions}

    def asked() -> Iterator[tuple[Question, Asked]]:
        for one in chosen:
            after = tuple(map(str.strip, one.options)) if by_text else tuple(LETTERS)
            question = Question("choice", (one.question,), after, one.gold)
            texts = _texts(one, shots[one.subject], by_text)
            yield question, _ask(tokenizer, *texts, after, context_length)

    answers = answer(scorer, asked(), len(chosen), progress=progress)
    result = answers.result(
        "mmlu_text" if by_text else "mmlu",
        n_shots=max(map(len, shots.values())),
        seconds=time.perf_counter() - started,
    )
    marked = zip((one.subject for one in chosen), answers.is_right, strict=True)
    scores = {
        name: mean_and_error([is_right for _, is_right in group])
        for name, group in groupby(marked, key=lambda pair: pair[0])
    }
    macro = fsum(mean for mean, _ in scores.values()) / len(scores)
    error = hypot(*(error for _, error in scores.values())) / len(scores)
    details = with_errors({"mean of subjects": (macro, error)})
    subjects = {name: mean for name, (mean, _) in scores.items()}
    return replace(result, details=details | {"subjects": subjects})


def _texts(
    question: MmluQuestion, shots: Sequence[MmluQuestion], by_text: bool
) -> tuple[str, list[str], str]:
    """What stands above, the answered examples, and the question."""

    def shown(one: MmluQuestion) -> str:
        return f"{one.question.strip() if by_text else mmlu_text(one)}\nAnswer:"

    def right(one: MmluQuestion) -> str:
        return one.options[one.gold].strip() if by_text else LETTERS[one.gold]

    kind = "questions" if by_text else "multiple choice questions"
    subject = question.subject.replace("_", " ")
    head = f"The following are {kind} (with answers) about {subject}.\n\n"
    return head, [f"{shown(shot)} {right(shot)}\n\n" for shot in shots], shown(question)


def _ask(
    tokenizer: Tokenizer,
    head: str,
    shots: Sequence[str],
    asked: str,
    continuations: Sequence[str],
    context_length: int,
) -> Asked:
    """The options behind as many examples as there is room for."""
    after = [tokenizer.encode_ordinary(f" {text}") for text in continuations]

    def options(n_dropped: int) -> list[Option]:
        text = "".join([head, *shots[n_dropped:], asked])
        prompt = begin_ids(tokenizer) + tokenizer.encode_ordinary(text)
        return [(prompt + ids, len(prompt)) for ids in after]

    return fitted(options, len(shots), context_length)
