"""Samples of a policy as it is trained: what they are, how they are kept, how true they are.

A rollout is made of token ids and stays so: its text is for graders and is never encoded again,
as text does not give back the ids that were drawn.
"""

import hashlib
import json
import math
import re
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from operator import eq
from pathlib import Path
from typing import Any, BinaryIO, Literal, NoReturn, Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rslm.errors import FormatError, one_line
from rslm.files import write_atomically

FinishReason = Literal["stop", "length"]

_MAX_LINE = 16 << 20
"""Bytes of a rollout in a file, which takes about 35 for each id."""


@dataclass(frozen=True, kw_only=True)
class SampleRequest:
    """A prompt of which a group of samples is wanted.

    Attributes:
        run_seed: of the run, or of the purpose within it.
        step: of training.
        prompt_id: tells it from the other prompts of the step.
        prompt_ids: what is continued.
        n: samples, numbered from 0 on.
    """

    run_seed: int
    step: int
    prompt_id: int
    prompt_ids: Sequence[int]
    n: int = 1

    def seed(self, sample_index: int) -> int:
        """That of one of the samples."""
        return sampling_seed(self.run_seed, self.step, self.prompt_id, sample_index)


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """One sample of one prompt.

    Attributes:
        prompt_id: see `SampleRequest`.
        sample_index: within the prompt's group.
        step: of training.
        prompt_ids: what was continued.
        token_ids: what was drawn, the id that ended it included.
        log_probs: of each of `token_ids` as the sampler drew it, at its temperature; float32
            numbers.
        train_mask: False at ids that the policy did not choose.
        finish_reason: "length" where it was cut off.
        text: of `token_ids`, for graders.
        weights_hash: of the weights that drew it, see `weights_hash`.
        seed: of its noise, see `sampling_seed`.
        reward: what it earned; None before it is graded.
        reward_parts: what the reward is made of.
    """

    prompt_id: int
    sample_index: int
    step: int
    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    train_mask: tuple[bool, ...]
    finish_reason: FinishReason
    text: str
    weights_hash: str
    seed: int
    reward: float | None = None
    reward_parts: Mapping[str, float] | None = None


class Sampler(Protocol):
    """What draws rollouts from the policy's weights."""

    weights_hash: str
    """Of the weights it draws from."""

    def sample(self, requests: Sequence[SampleRequest]) -> list[Rollout]:
        """The samples of all requests: by request, then by index."""
        ...

    def update_weights(self) -> None:
        """Takes over the policy's weights as they are now."""
        ...


def sampling_seed(run_seed: int, step: int, prompt_id: int, sample_index: int) -> int:
    """A seed of 53 bits for one sample: a hash of what names it, and of nothing else.

    So neither the batch, nor the order, nor the number of processes, nor what was drawn before
    changes a sample; and the samples of a group, and of a prompt in another step, have noise of
    their own. Equal on every platform; small enough for every reader of JSON.

    Raises:
        ValueError: a number does not fit into 64 bits.
    """
    try:
        counter = struct.pack("<4q", run_seed, step, prompt_id, sample_index)
    except struct.error:
        raise ValueError(
            "run_seed, step, prompt_id and sample_index must be whole numbers of 64 bits, got "
            f"{run_seed!r:.80}, {step!r:.80}, {prompt_id!r:.80} and {sample_index!r:.80}"
        ) from None
    return int.from_bytes(hashlib.blake2b(counter, digest_size=8).digest(), "little") >> 11


@dataclass(frozen=True)
class Mismatch:
    """How far the trainer's log-probabilities are from the sampler's, over trained tokens.

    Attributes:
        n_tokens: that were compared.
        n_different: whose two numbers are not the same bits.
        largest: absolute difference.
        mean_k3: of exp(d) - 1 - d with d = trainer - sampler, which estimates the KL divergence
            of the trainer's distribution from the sampler's and is never negative.

    Source: Schulman 2020, Approximating KL Divergence (joschu.net/blog/kl-approx.html), for k3.
    """

    n_tokens: int
    n_different: int
    largest: float
    mean_k3: float


def measure_mismatch(
    sampler_log_probs: Float[Tensor, "..."],
    log_probs: Float[Tensor, "..."],
    mask: Bool[Tensor, "..."],
) -> Mismatch:
    """How far two log-probabilities of the same ids are apart where the mask is True."""
    d = (log_probs.detach().double() - sampler_log_probs.double())[mask]
    if d.numel() == 0:
        return Mismatch(0, 0, 0.0, 0.0)
    # exp(d) - 1 would lose what is left of a difference of 1e-10 after squaring.
    mean_k3 = (d.expm1() - d).mean().item()
    return Mismatch(d.numel(), int((d != 0).sum()), d.abs().max().item(), mean_k3)


@dataclass(frozen=True)
class Flips:
    """How often sampling again, with other company, drew another id.

    Attributes:
        n_samples: that were compared.
        n_flipped: whose ids differ.
        n_tokens: ids compared, of each sample up to the first that differs.
    """

    n_samples: int
    n_flipped: int
    n_tokens: int

    @property
    def rate(self) -> float:
        """Chance that an id is another, given that all before it are the same."""
        return self.n_flipped / max(1, self.n_tokens)


def count_flips(rollouts: Sequence[Rollout], again: Sequence[Rollout]) -> Flips:
    """How two samplings of the same requests differ; none does in exact mode.

    Raises:
        ValueError: they are not of the same prompts and seeds, in the same order.
    """
    n_flipped = n_tokens = 0
    for a, b in zip(rollouts, again, strict=True):
        if (a.prompt_ids, a.seed) != (b.prompt_ids, b.seed):
            raise ValueError(f"samples must be of the same requests, got seeds {a.seed}, {b.seed}")
        same = list(map(eq, a.token_ids, b.token_ids))
        differs = a.token_ids != b.token_ids
        n_flipped += differs
        n_tokens += same.index(False) + 1 if False in same else len(same)
    return Flips(len(rollouts), n_flipped, n_tokens)


def truncated_fraction(rollouts: Sequence[Rollout]) -> float:
    """Share of the rollouts that were cut off before they ended."""
    return sum(rollout.finish_reason == "length" for rollout in rollouts) / max(1, len(rollouts))


def write_rollouts(path: Path | str, rollouts: Iterable[Rollout]) -> None:
    """Writes rollouts, one JSON object a line, beside the file and then in its place.

    Numbers are written so that reading gives the same bits.

    Raises:
        ValueError: a rollout holds what `read_rollouts` refuses, as a reward that is no number.
        OSError: the folder is missing or not writable.
    """
    write_atomically(path, encode_rollouts(rollouts))


def encode_rollouts(rollouts: Iterable[Rollout]) -> bytes:
    """What `write_rollouts` writes, for another process.

    Raises:
        ValueError: a rollout holds what `read_rollouts` refuses, as a reward that is no number.
    """
    lines = []
    for rollout in rollouts:
        line = json.dumps({field.name: getattr(rollout, field.name) for field in fields(rollout)})
        _parsed(line.encode())
        lines.append(line.encode() + b"\n")
    return b"".join(lines)


def read_rollouts(path: Path | str) -> list[Rollout]:
    """The rollouts of a file that `write_rollouts` made.

    Raises:
        FormatError: a line is no rollout; it is named.
        OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        return decode_rollouts(file, str(path))


def decode_rollouts(file: BinaryIO, source: str) -> list[Rollout]:
    """The rollouts that `encode_rollouts` made bytes of; `source` says in errors whose they are.

    Raises:
        FormatError: a line is no rollout; it is named.
    """
    rollouts: list[Rollout] = []
    while line := file.readline(_MAX_LINE + 1):
        try:
            if not line.endswith(b"\n"):
                raise ValueError(f"it must end within {_MAX_LINE} bytes by a line break")
            rollouts.append(_parsed(line))
        except (ValueError, RecursionError) as error:
            place = f"{source}, line {len(rollouts) + 1}"
            raise FormatError(f"{place}: {one_line(str(error))}") from None
    return rollouts


def _parsed(line: bytes) -> Rollout:
    """The rollout of a line of a file that anybody may have written."""
    record = json.loads(line, parse_constant=_refuse_constant)
    names = [field.name for field in fields(Rollout)]
    if not isinstance(record, dict) or record.keys() != set(names):
        given = list(record) if isinstance(record, dict) else record
        raise ValueError(f"it must be an object of {', '.join(names)}, got {given!r:.200}")
    for name, (holds, what) in _RULES.items():
        if not holds(record[name]):
            raise ValueError(f"{name} must be {what}, got {record[name]!r:.80}")
    n = [len(record[name]) for name in ("token_ids", "log_probs", "train_mask")]
    if len(set(n)) != 1:
        raise ValueError(f"token_ids, log_probs and train_mask must be equally long, got {n}")
    for name in ("prompt_ids", "token_ids", "log_probs", "train_mask"):
        record[name] = tuple(record[name])
    return Rollout(**record)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"numbers must be finite, got {name}")


def _is_whole(value: object) -> bool:
    return type(value) is int and -(2**63) <= value < 2**64


def _is_number(value: object) -> bool:
    return _is_whole(value) or (isinstance(value, float) and math.isfinite(value))


def _is_list(value: object, holds: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and all(map(holds, value))


def _are_ids(value: object) -> bool:
    return _is_list(value, lambda each: type(each) is int and 0 <= each < 2**31)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and not _SURROGATE.search(value)


_SURROGATE = re.compile("[\ud800-\udfff]")
_LOWEST = float(torch.finfo(torch.float32).min)
_WHOLE = _is_whole, "a whole number of 64 bits"
_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "prompt_id": _WHOLE,
    "sample_index": _WHOLE,
    "step": _WHOLE,
    "seed": _WHOLE,
    "prompt_ids": (lambda v: _are_ids(v) and v != [], "a list of token ids, at least one"),
    "token_ids": (_are_ids, "a list of token ids"),
    "log_probs": (
        lambda v: _is_list(v, lambda x: _is_number(x) and _LOWEST <= x <= 0),
        "a list of float32 numbers up to 0",
    ),
    "train_mask": (
        lambda v: _is_list(v, lambda x: isinstance(x, bool)),
        "a list of true and false",
    ),
    "finish_reason": (lambda v: v in ("stop", "length"), "stop or length"),
    "text": (_is_text, "a text"),
    "weights_hash": (_is_text, "a text"),
    "reward": (lambda v: v is None or _is_number(v), "a finite number or null"),
    "reward_parts": (
        lambda v: v is None or (isinstance(v, dict) and all(map(_is_number, v.values()))),
        "an object of finite numbers or null",
    ),
}
