"""Losses of pairs: one answer to a prompt that is preferred, and one that is not."""

from typing import NamedTuple, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from rslm.post.dpo_config import REFERENCE_FREE, PreferenceKind

_LENGTH_AVERAGED = ("length_normalized", *REFERENCE_FREE)


class PreferenceLoss(NamedTuple):
    """Losses of pairs, and the rewards that they compare, which have no gradient."""

    per_pair: Float[Tensor, " batch"]
    chosen_rewards: Float[Tensor, " batch"]
    rejected_rewards: Float[Tensor, " batch"]


def preference_loss(
    chosen: Float[Tensor, " batch"],
    rejected: Float[Tensor, " batch"],
    reference_chosen: Float[Tensor, " batch"] | None = None,
    reference_rejected: Float[Tensor, " batch"] | None = None,
    chosen_lengths: Int[Tensor, " batch"] | None = None,
    rejected_lengths: Int[Tensor, " batch"] | None = None,
    *,
    kind: PreferenceKind = "sigmoid",
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    margin: float = 0.5,
    ipo_average: bool = True,
) -> PreferenceLoss:
    """Loss of every pair from the log-probs of its answers, in one of ten forms.

    Log-probs are sums over an answer's tokens, the one that ends it included. With Δ what the
    model has above the reference, w the chosen, l the rejected answer, h = β(Δ_w - Δ_l), q = βΔ,
    ε `label_smoothing`, and a bar for a mean over tokens:

    | kind | loss |
    |---|---|
    | sigmoid | (1-ε)·softplus(-h) + ε·softplus(h): DPO, with ε conservative DPO |
    | robust | [(1-ε)·softplus(-h) - ε·softplus(h)] / (1-2ε) |
    | ipo | (Δ̄_w - Δ̄_l - 1/(2β))², or of sums without `ipo_average` |
    | hinge | relu(1-h) |
    | length_normalized | softplus(-β(Δ̄_w - Δ̄_l)) |
    | nca | softplus(-q_w) + ½·softplus(q_w) + ½·softplus(q_l) |
    | apo_zero; apo_down | 1 - σ(q_w) + σ(q_l); σ(q_w) + 1 - σ(h) |
    | simpo | softplus(`margin` - β(l̄_w - l̄_l)), without a reference |
    | orpo | -l̄_w + β·softplus(o_l - o_w), o = l̄ - log(1 - exp l̄), without a reference |

    At the reference "sigmoid" is ln 2. Results lie on the device of `chosen`; the reference may
    lie on another. Rewards are βΔ, or β times the means that are compared.

    Raises:
        ValueError: `kind` needs a reference or lengths that are missing, or an option is not one
            of `kind`'s or out of range.

    Source: Rafailov et al. 2023, equation 7 (arXiv:2305.18290); Mitchell 2023 for conservative;
    Chowdhury et al. 2024 (arXiv:2403.00409) for robust; Azar et al. 2023 (arXiv:2310.12036), here
    with means, as its authors confirmed; Zhao et al. 2023 (arXiv:2305.10425) for the hinge; Chen et
    al. 2024 (arXiv:2402.05369) for nca; D'Oosterlinck et al. 2024 (arXiv:2408.06266) for apo; Meng
    et al. 2024 (arXiv:2405.14734), there margin is γ; Hong et al. 2024 (arXiv:2403.07691), there β
    is λ.
    """
    if kind not in get_args(PreferenceKind):
        kinds = ", ".join(get_args(PreferenceKind))
        raise ValueError(f"kind must be one of {kinds}, got {kind!r}")
    if beta <= 0:
        raise ValueError(f"beta must be above 0, got {beta}")
    _check_smoothing(kind, label_smoothing)
    if kind not in REFERENCE_FREE:
        if reference_chosen is None or reference_rejected is None:
            raise ValueError(f"the preference loss {kind} needs the reference's log-probs")
        chosen = chosen - reference_chosen.detach().to(chosen)
        rejected = rejected - reference_rejected.detach().to(chosen)
    if kind in _LENGTH_AVERAGED or (kind == "ipo" and ipo_average):
        if chosen_lengths is None or rejected_lengths is None:
            raise ValueError(f"the preference loss {kind} needs the lengths of the answers")
        chosen = chosen / chosen_lengths.to(chosen.device)
        rejected = rejected / rejected_lengths.to(chosen.device)
    h = beta * (chosen - rejected)
    losses = _losses(kind, chosen, rejected, h, beta, label_smoothing, margin)
    return PreferenceLoss(losses, beta * chosen.detach(), beta * rejected.detach())


def _losses(
    kind: PreferenceKind,
    chosen: Tensor,
    rejected: Tensor,
    h: Tensor,
    beta: float,
    epsilon: float,
    margin: float,
) -> Tensor:
    """The table; `chosen` and `rejected` are Δ or, without a reference, l̄."""
    if kind == "robust":
        difference = (1 - epsilon) * softplus(-h) - epsilon * softplus(h)
        return difference / (1 - 2 * epsilon)
    if kind == "ipo":
        return (chosen - rejected - 1 / (2 * beta)).square()
    if kind == "hinge":
        return torch.relu(1 - h)
    if kind == "nca":
        q_chosen, q_rejected = beta * chosen, beta * rejected
        pulls = (logsigmoid(-q_chosen) + logsigmoid(-q_rejected)) / 2
        return -logsigmoid(q_chosen) - pulls
    if kind == "apo_zero":
        return 1 - torch.sigmoid(beta * chosen) + torch.sigmoid(beta * rejected)
    if kind == "apo_down":
        return torch.sigmoid(beta * chosen) + 1 - torch.sigmoid(h)
    if kind == "simpo":
        return softplus(margin - h)
    if kind == "orpo":
        return -chosen + beta * softplus(_log_odds(rejected) - _log_odds(chosen))
    return (1 - epsilon) * softplus(-h) + epsilon * softplus(h)


def _log_odds(mean_log_probs: Tensor) -> Tensor:
    """log(p / (1-p)); a p that was rounded to 1 counts as the number below."""
    largest = -torch.finfo(mean_log_probs.dtype).eps
    mean_log_probs = mean_log_probs.clamp_max(largest)
    return mean_log_probs - torch.log(-torch.expm1(mean_log_probs))


def _check_smoothing(kind: PreferenceKind, label_smoothing: float) -> None:
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing must be at least 0 and below 0.5, got {label_smoothing}")
    if label_smoothing and kind not in ("sigmoid", "robust"):
        raise ValueError(
            f"label_smoothing is for the preference losses sigmoid and robust, got it with {kind}"
        )
