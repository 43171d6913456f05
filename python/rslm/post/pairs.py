"""Pairs of answers to one prompt as token ids: from written ones, or from graded rollouts.

A pair's prompt is encoded once, so that its ids are the same before both answers. Answers of
rollouts are the ids that were drawn; their texts are not read.
"""

import hashlib
import itertools
import json
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rslm.chat import ChatFormat
from rslm.errors import one_line
from rslm.permutation import permute
from rslm.post.json_lines import MAX_LINE_BYTES, read_json_lines
from rslm.post.rollout import Rollout, read_rollouts

_KEYS = ("prompt", "chosen", "rejected")


class Answer(NamedTuple):
    """What follows a prompt, up to the last id that is trained."""

    token_ids: Sequence[int]
    train_mask: Sequence[bool]


class Pair(NamedTuple):
    """A prompt and two answers, of which one is preferred."""

    prompt_ids: Sequence[int]
    chosen: Answer
    rejected: Answer

    @property
    def n_tokens(self) -> int:
        """Inputs of both rows that a model reads."""
        n_answers = len(self.chosen.token_ids) + len(self.rejected.token_ids)
        return 2 * (len(self.prompt_ids) - 1) + n_answers

    @property
    def width(self) -> int:
        """Inputs of the longer row."""
        longer = max(len(self.chosen.token_ids), len(self.rejected.token_ids))
        return len(self.prompt_ids) - 1 + longer


@dataclass(frozen=True)
class Pairs:
    """The pairs of a file.

    Attributes:
        pairs: in the file's order.
        n_left_out: pairs whose answers are the same, and prompts whose rollouts earned the same.
        n_truncated: whose prompt lost its begin.
    """

    pairs: list[Pair]
    n_left_out: int
    n_truncated: int


def read_pairs(
    path: Path,
    chat_format: ChatFormat,
    *,
    context_length: int,
    vocab_size: int,
    truncate_prompts: bool = False,
    pairs_per_prompt: int = 4,
) -> Pairs:
    """The pairs of a file, or of all .jsonl files of a folder.

    A line is {"prompt": text or messages, "chosen": text, "rejected": text}, or a rollout as
    `rslm.post.rollout.write_rollouts` writes them, from which `pair_rollouts` makes pairs. A
    prompt that is a text is what a user says.

    Args:
        path: file or folder.
        chat_format: renders prompts and answers.
        context_length: inputs that a row may hold.
        vocab_size: above every id of a rollout.
        truncate_prompts: cut what is too long from the begin of a prompt, alike for both
            answers, but for the id that begins texts.
        pairs_per_prompt: see `pair_rollouts`.

    Raises:
        ValueError: a line is no pair or too long for the context; it is named.
        FormatError: a line is no rollout; it is named.
        FileNotFoundError: there is no such file, or none in the folder.
    """
    found, n_left_out = _found_pairs(path, chat_format, pairs_per_prompt)
    begin = [] if chat_format.begin_id is None else [chat_format.begin_id]
    fitted = []
    n_truncated = 0
    for where, pair in found:
        if pair.chosen == pair.rejected:
            n_left_out += 1
            continue
        _check_ids(where, pair, vocab_size)
        if (n_excess := pair.width - context_length) > 0:
            if not truncate_prompts:
                raise ValueError(
                    f"{where}: prompt and longer answer must fit into context_length "
                    f"{context_length}, got {pair.width}\n"
                    "truncate_prompts cuts the begin of such prompts"
                )
            pair = pair._replace(prompt_ids=_cut(where, pair.prompt_ids, n_excess, begin))
            n_truncated += 1
        fitted.append(pair)
    return Pairs(fitted, n_left_out, n_truncated)


def _found_pairs(
    path: Path, chat_format: ChatFormat, pairs_per_prompt: int
) -> tuple[list[tuple[str, Pair]], int]:
    """The pairs of all files with their places, and how many prompts had none."""
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    if not files:
        raise FileNotFoundError(f"{path} holds no .jsonl file")
    found: list[tuple[str, Pair]] = []
    n_without = 0
    for file in files:
        if not _holds_rollouts(file):
            found += _written_pairs(file, chat_format)
            continue
        rollouts = read_rollouts(file)
        try:
            pairs, n = pair_rollouts(rollouts, pairs_per_prompt=pairs_per_prompt)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from None
        found += [(f"{file}, {name}", pair) for name, pair in pairs]
        n_without += n
    return found, n_without


def pair_rollouts(
    rollouts: Sequence[Rollout], *, pairs_per_prompt: int = 4
) -> tuple[list[tuple[str, Pair]], int]:
    """Pairs of a better and a worse answer to each prompt, with names; how many prompts have none.

    Answers to a prompt in one step are ordered by reward, and by sample index among equals: the
    first is paired with the last, the second with the last but one, while their rewards differ.
    Those with nothing to train on are not taken.

    Raises:
        ValueError: a rollout is not graded.
    """
    groups: dict[tuple[int, int, tuple[int, ...]], list[Rollout]] = {}
    for rollout in rollouts:
        if rollout.reward is None:
            raise ValueError(
                f"rollouts must be graded to be compared, and that of prompt {rollout.prompt_id}, "
                f"sample {rollout.sample_index} has no reward"
            )
        group = groups.setdefault((rollout.step, rollout.prompt_id, rollout.prompt_ids), [])
        if any(rollout.train_mask):
            group.append(rollout)
    pairs: list[tuple[str, Pair]] = []
    n_without = 0
    for (step, prompt_id, prompt_ids), group in groups.items():
        ordered = sorted(group, key=lambda each: (-(each.reward or 0.0), each.sample_index))
        # Reversed, the lowest rewards come first, and among equals the last samples.
        matched = zip(ordered, reversed(ordered), strict=True)
        differing = [(a, b) for a, b in matched if (a.reward or 0.0) > (b.reward or 0.0)]
        n_without += not differing
        for better, worse in differing[:pairs_per_prompt]:
            pair = Pair(prompt_ids, _drawn(better), _drawn(worse))
            pairs.append((f"prompt {prompt_id} of step {step}", pair))
    return pairs, n_without


def split_pairs(pairs: Sequence[Pair], n_valid: int, *, seed: int) -> tuple[list[Pair], list[Pair]]:
    """Pairs to train on, and at least `n_valid` that are held out, where there are as many.

    All pairs of a prompt are on one side.
    """
    by_prompt: dict[tuple[int, ...], list[Pair]] = {}
    for pair in pairs:
        by_prompt.setdefault(tuple(pair.prompt_ids), []).append(pair)
    groups = list(by_prompt.values())
    order = permute(len(groups), seed, 0, range(len(groups))).tolist() if groups else []
    n_before = itertools.accumulate((len(groups[i]) for i in order), initial=0)
    held_out = {i for i, n in zip(order, n_before, strict=False) if n < n_valid}
    sides = ([i for i in range(len(groups)) if (i in held_out) == side] for side in (False, True))
    train, valid = ([pair for i in side for pair in groups[i]] for side in sides)
    return train, valid


def pairs_hash(pairs: Sequence[Pair]) -> str:
    """A hash of the ids of all pairs in their order, and of what of them is trained."""
    digest = hashlib.sha256()
    for pair in pairs:
        for ids in (pair.prompt_ids, pair.chosen.token_ids, pair.rejected.token_ids):
            digest.update(len(ids).to_bytes(8, "little") + array("i", ids).tobytes())
        for answer in (pair.chosen, pair.rejected):
            digest.update(bytes(answer.train_mask))
    return digest.hexdigest()


def _holds_rollouts(path: Path) -> bool:
    """Whether a file begins with a line that is more like a rollout than like a pair."""
    with open(path, "rb") as file:
        line = file.readline(MAX_LINE_BYTES)
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return False  # What is wrong with it is said by who reads it.
    return isinstance(record, dict) and "token_ids" in record and "chosen" not in record


def _written_pairs(path: Path, chat_format: ChatFormat) -> Iterator[tuple[str, Pair]]:
    with open(path, "rb") as file:
        for where, record in read_json_lines(file, path):
            try:
                yield where, _rendered(record, chat_format)
            except (ValueError, TypeError, RecursionError) as error:
                raise ValueError(f"{where}: {one_line(str(error))}") from None


def _rendered(record: Any, chat_format: ChatFormat) -> Pair:
    """The pair of a line that anybody may have written."""
    if not isinstance(record, Mapping) or not all(key in record for key in _KEYS):
        raise ValueError(f"it must be an object with {', '.join(_KEYS)}, got {record!r:.80}")
    for key in ("chosen", "rejected"):
        if not isinstance(record[key], str):
            raise ValueError(f"{key} must be a text, got {record[key]!r:.80}")
    messages = record["prompt"]
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    prompt_ids = chat_format.prompt(messages)
    answers = []
    for key in ("chosen", "rejected"):
        said = [*messages, {"role": "assistant", "content": record[key]}]
        token_ids, train_mask = chat_format.render(said)
        assert token_ids[: len(prompt_ids)] == prompt_ids
        # What comes after the last trained id changes nothing.
        end = max(i for i, is_trained in enumerate(train_mask) if is_trained) + 1
        mine = slice(len(prompt_ids), end)
        answers.append(Answer(array("i", token_ids[mine]), (True,) * (end - len(prompt_ids))))
    return Pair(array("i", prompt_ids), *answers)


def _check_ids(where: str, pair: Pair, vocab_size: int) -> None:
    largest = max(max(ids) for ids in (pair.prompt_ids, pair[1].token_ids, pair[2].token_ids))
    if largest >= vocab_size:
        raise ValueError(
            f"{where}: ids must be below the model's vocab_size {vocab_size}, got {largest}\n"
            "rollouts are for models with the tokenizer that they were drawn with"
        )


def _cut(
    where: str, prompt_ids: Sequence[int], n_excess: int, begin: Sequence[int]
) -> Sequence[int]:
    """A prompt without so many of its first ids, but with the one that begins texts."""
    n_kept = len(begin) if list(prompt_ids[: len(begin)]) == list(begin) else 0
    first = n_kept + n_excess
    if first >= len(prompt_ids):
        raise ValueError(
            f"{where}: the answers must leave room for the prompt within context_length, "
            f"and the longer one leaves {max(0, len(prompt_ids) - n_excess)} tokens"
        )
    return array("i", [*prompt_ids[:n_kept], *prompt_ids[first:]])


def _drawn(rollout: Rollout) -> Answer:
    return Answer(array("i", rollout.token_ids), rollout.train_mask)
