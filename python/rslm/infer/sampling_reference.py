"""What ids are drawn from, written plainly: the specification of `rslm.infer.sampling`.

One row at a time, whole vocabulary, float64, filters one after another as sentences of
`SamplingParameters` have them.
"""

import math
from collections.abc import Collection

import torch
from torch import Tensor

from rslm.infer.parameters import SamplingParameters
from rslm.infer.philox import vocabulary_noise
from rslm.infer.sampling import MIN_TEMPERATURE


def processed_logits(
    logits: Tensor, parameters: SamplingParameters, seen: Collection[int] = ()
) -> Tensor:
    """A row of logits after penalty, temperature and filters; what was dropped is -inf.

    At temperature 0 all but one.
    """
    row = logits.double().tolist()
    penalty = parameters.repetition_penalty
    for token_id in set(seen) if penalty != 1 else ():
        value = row[token_id]
        row[token_id] = value / penalty if value > 0 else value * penalty
    # In falling order, the lower id of equals first.
    order = sorted(range(len(row)), key=lambda token_id: (-row[token_id], token_id))
    if parameters.temperature < MIN_TEMPERATURE:
        return _only(row, order[:1])
    largest = row[order[0]]
    scaled = [(value - largest) / parameters.temperature for value in row]
    if parameters.top_k is not None:
        order = order[: parameters.top_k]
    if parameters.top_p is not None:
        goal = parameters.top_p * math.fsum(math.exp(scaled[token_id]) for token_id in order)
        kept, mass = 0, 0.0
        while kept < len(order) and mass < goal:
            mass += math.exp(scaled[order[kept]])
            kept += 1
        order = order[:kept]
    if parameters.min_p:
        order = [token_id for token_id in order if scaled[token_id] >= math.log(parameters.min_p)]
    return _only(scaled, order)


def processed_probabilities(
    logits: Tensor, parameters: SamplingParameters, seen: Collection[int] = ()
) -> Tensor:
    """The distribution that an id is drawn from."""
    return processed_logits(logits, parameters, seen).softmax(0)


def draw(
    logits: Tensor,
    parameters: SamplingParameters,
    key: int,
    position: int,
    seen: Collection[int] = (),
) -> int:
    """The id that `rslm.infer.sampling.sample_tokens` draws for one row."""
    noise = vocabulary_noise([key], [position], len(logits), torch.device("cpu"))[0]
    return int((processed_logits(logits, parameters, seen) + noise).argmax())


def _only(row: list[float], kept: list[int]) -> Tensor:
    result = torch.full((len(row),), -torch.inf, dtype=torch.float64)
    result[kept] = torch.tensor(row, dtype=torch.float64)[kept]
    return result
