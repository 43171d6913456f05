"""Questions as token ids, behind examples that are answered, in one of two dialects.

`gauntlet` is how llm-foundry does it, whose figures DCLM publishes; `nanochat` how nanochat does,
whose figures are lower on SQuAD. In both, what stands before the first token is end of text, as
at the begin of a document; and where examples, question and option do not fit the context, whole
examples are left out, the earliest first, before the question is cropped on its left.

Source: Li et al. 2024, DataComp-LM, section 3.5 (arXiv:2406.11794); mosaicml/llm-foundry,
in_context_learning_evaluation; karpathy/nanochat, core_eval.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Literal

from rslm.evaluate.continuations import Continuation
from rslm.evaluate.questions import Question
from rslm.tokenizer import Tokenizer

Dialect = Literal["gauntlet", "nanochat"]
Ids = list[int]
Option = tuple[Ids, int]
"""The ids of an option, and where its continuation begins."""

_GAUNTLET_SEED, _NANOCHAT_SEED = 1234, 1234
_CHOICE_SEED = 1337


@dataclass(frozen=True)
class Asked:
    """The options of a question as the model reads them.

    Attributes:
        options: to score, in the order of the question's.
        n_dropped: examples that were left out.
        is_cropped: tokens of the question itself were, too.
        is_cut: an option is longer than the context, and its begin is not scored.
    """

    options: tuple[Continuation, ...]
    n_dropped: int = 0
    is_cropped: bool = False
    is_cut: bool = False


def choose_examples(n: int, n_wanted: int | None) -> list[int]:
    """Numbers of the questions to ask, the same ones each time; all of them for None.

    Those that nanochat takes, a shuffle's first.
    """
    numbers = list(range(n))
    if n_wanted is None or n_wanted >= n:
        return numbers
    random.Random(_CHOICE_SEED).shuffle(numbers)
    return sorted(numbers[:n_wanted])


def draw_shots(n: int, n_shots: int, dialect: Dialect) -> Iterator[list[int]]:
    """For each of n questions the numbers of the others that are its examples.

    At most n - 1 of them. `gauntlet` draws all from one generator, so these of a question depend
    on how many there are before it, not on which are asked. `nanochat` shuffles the questions
    and has a generator for each place.
    """
    n_shots = min(n_shots, n - 1)
    if dialect == "gauntlet":
        draw = random.Random(_GAUNTLET_SEED)
        for number in range(n):
            yield _draw_others(draw, n, n_shots, number)
        return
    order = list(range(n))
    random.Random(_CHOICE_SEED).shuffle(order)
    place = {number: i for i, number in enumerate(order)}
    for number in range(n):
        own = place[number]
        others = range(n - 1)
        drawn = random.Random(_NANOCHAT_SEED + own).sample(others, n_shots)
        yield [order[i + (i >= own)] for i in drawn]


def _draw_others(draw: random.Random, n: int, n_shots: int, number: int) -> list[int]:
    # In the order of a set, as llm-foundry takes them: so the prompts are the same.
    drawn = set(draw.sample(range(n), n_shots)) if n_shots else set()
    if number in drawn:
        drawn.remove(number)
        while len(drawn) < n_shots:
            drawn |= {draw.choice(range(n))} - {number}
    return list(drawn)


def ask(
    tokenizer: Tokenizer,
    question: Question,
    shots: Sequence[Question],
    *,
    delimiter: str,
    dialect: Dialect,
    context_length: int,
) -> Asked:
    """A question behind its examples, `delimiter` between context and continuation."""
    encode = _gauntlet if dialect == "gauntlet" else _nanochat

    def options(n_dropped: int) -> list[Option]:
        return encode(tokenizer, question, shots[n_dropped:], delimiter)

    return fitted(options, len(shots), context_length)


def fitted(options: Callable[[int], Sequence[Option]], n_shots: int, context_length: int) -> Asked:
    """Options with as many shots as there is room for; `options` makes them without the first n."""
    for n_dropped in range(n_shots + 1):
        found = options(n_dropped)
        if max(len(ids) for ids, _ in found) <= context_length:
            break
    return cropped(found, n_dropped, context_length)


def cropped(options: Sequence[Option], n_dropped: int, context_length: int) -> Asked:
    """Options cut on the left to fit the context.

    All by as much as the longest must be, while something is left before the continuation.
    """
    n_over = max(0, max(len(ids) for ids, _ in options) - context_length)
    found, is_cut = [], False
    for ids, first in options:
        # What stands before an option, but its last token; more where the option is too long.
        n_lost = max(min(n_over, first - 1), len(ids) - context_length)
        is_cut |= n_lost >= first
        found.append(Continuation(tuple(ids[n_lost:]), max(1, first - n_lost)))
    return Asked(tuple(found), n_dropped, n_over > 0, is_cut)


def _gauntlet(
    tokenizer: Tokenizer, question: Question, shots: Sequence[Question], delimiter: str
) -> list[Option]:
    """Examples, context and continuation are encoded each by itself.

    llm-foundry puts the space before a continuation only where the tokenizer has a token " a".
    """
    encode, strip = tokenizer.encode_ordinary, _strip(question)
    texts = [
        f"{strip(context)}{delimiter}{after if shot.kind == 'choice' else after.strip()}"
        for shot in shots
        for context, after in [shot.answered]
    ]
    before = begin_ids(tokenizer) + encode("\n".join(texts))
    joint = "\n" if shots else ""
    options = []
    for context, after in question.pairs:
        asked = before + encode(f"{joint}{strip(context)}{delimiter}".rstrip())
        after = after if question.kind == "choice" else after.strip()
        options.append(_joined(asked, encode(after if after.startswith(" ") else f" {after}")))
    return options


def _strip(question: Question) -> Callable[[str], str]:
    # Of lists, llm-foundry strips no member.
    return (lambda text: text) if question.kind == "schema" else str.strip


def _nanochat(
    tokenizer: Tokenizer, question: Question, shots: Sequence[Question], delimiter: str
) -> list[Option]:
    """Whole texts are encoded, and scored from where they begin, or cease, to differ.

    An option that is the begin of another would have nothing to be scored (NaN in nanochat): it
    is from its last token on.
    """
    trim = str.strip if question.kind == "language" else str
    answered = [shot.answered for shot in shots]
    before = "".join(f"{trim(context)}{delimiter}{after}\n\n" for context, after in answered)
    begin = begin_ids(tokenizer)
    texts = [f"{before}{trim(context)}{delimiter}{after}" for context, after in question.pairs]
    encoded = [begin + tokenizer.encode_ordinary(text) for text in texts]
    if question.kind == "schema":
        n_common = _n_common([ids[::-1] for ids in encoded])
        # Something must stand before it.
        starts = [max(1, len(ids) - n_common) for ids in encoded]
    else:
        asked = f"{before}{trim(question.contexts[0])}{delimiter}".strip()
        without = [begin + tokenizer.encode_ordinary(asked)] if question.kind == "language" else []
        n_common = _n_common([*encoded, *without])
        starts = [n_common] * len(encoded)
    return [
        (ids, max(1, min(start, len(ids) - 1))) if len(ids) > 1 else _joined([], ids)
        for ids, start in zip(encoded, starts, strict=True)
    ]


def begin_ids(tokenizer: Tokenizer) -> Ids:
    """What stands before a text: end of text, where the tokenizer has it."""
    end = tokenizer.end_of_text
    return [] if end is None else [end]


def _n_common(sequences: Sequence[Ids]) -> int:
    """Ids that all begin with."""
    columns = zip(*sequences, strict=False)
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))


def _joined(context: Ids, continuation: Ids) -> Option:
    """Both, and where the second begins; what follows nothing is given the first id to follow."""
    context = context or [0]
    return context + continuation, len(context)
