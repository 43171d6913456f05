"""Functions with the names and shapes of Stanford CS336, assignment 5, thin over those of rslm.

`rslm.post.losses` normalises by one plane of weights; the course divides inside micro-batches, so
its train steps are here. Models are rslm's, or any whose output for (batch, sequence) ids has
`logits`; tokenizers are rslm's, or any with `encode(text, add_special_tokens=False)`. Masks may be
of bool or of numbers. Losses return with metadata to be logged, all without gradients.

| course of | differs in |
|---|---|
| 2025 | `loss_type` of `grpo_microbatch_train_step`, `sft_microbatch_train_step` |
| 2026 | `baseline` and `advantage_normalizer`, `importance_reweighting_method`, `grpo_train_step` |
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rslm.evaluate.answers import flexible, letter
from rslm.losses import token_losses
from rslm.model import Transformer
from rslm.post import losses
from rslm.post.course_losses import (
    ImportanceReweighting,
    aggregate_loss,
    compute_entropy,
    compute_group_normalized_rewards,
    compute_grpo_clip_loss,
    compute_naive_policy_gradient_loss,
    compute_policy_gradient_loss,
    grpo_microbatch_train_step,
    masked_mean,
    masked_normalize,
    row_weights,
    sft_microbatch_train_step,
)
from rslm.post.log_probs import label_log_probs
from rslm.post.losses import Aggregation, Baseline, Normalizer
from rslm.post.packed_sft import PackedSFTDataset, alpaca_prompt, begin_ids, end_id, ordinary_ids
from rslm.post.preferences import preference_loss
from rslm.post.rows import Rows, make_rows

__all__ = [
    "PackedSFTDataset",
    "aggregate_loss",
    "compute_entropy",
    "compute_group_normalized_rewards",
    "compute_grpo_clip_loss",
    "compute_naive_policy_gradient_loss",
    "compute_policy_gradient_loss",
    "compute_rollout_rewards",
    "get_response_log_probs",
    "grpo_microbatch_train_step",
    "grpo_train_step",
    "masked_mean",
    "masked_normalize",
    "parse_gsm8k_response",
    "parse_mmlu_response",
    "per_instance_dpo_loss",
    "sft_microbatch_train_step",
    "tokenize_prompt_and_output",
]

RewardFunction = Callable[[str, str], Mapping[str, float]]
"""Response and ground truth to `reward`, `format_reward` and `answer_reward`."""


def tokenize_prompt_and_output(
    prompt_strs: Sequence[str], output_strs: Sequence[str], tokenizer: Any
) -> dict[str, Tensor]:
    """`input_ids`, `labels` and `response_mask`, each (batch, longest - 1).

    Prompt and output are encoded apart, without special tokens, joined, and padded on the right.
    Inputs lack the last column, labels the first; the mask marks labels of the output.
    """
    rows = _rows(prompt_strs, output_strs, tokenizer)
    return {"input_ids": rows.input_ids, "labels": rows.labels, "response_mask": rows.mask}


def get_response_log_probs(
    model: nn.Module, input_ids: Tensor, labels: Tensor, return_token_entropy: bool = False
) -> dict[str, Tensor]:
    """`log_probs` of the labels, and `token_entropy` where it is asked for, as (batch, sequence).

    Entropies have gradients only for models that are not rslm's.
    """
    if isinstance(model, Transformer):
        found = label_log_probs(model, input_ids, labels, with_entropy=return_token_entropy)
        result, entropy = {"log_probs": found.values}, found.entropy
    else:
        logits = model(input_ids).logits
        result = {"log_probs": -token_losses(logits, labels)}
        entropy = compute_entropy(logits) if return_token_entropy else None
    return result if entropy is None else {**result, "token_entropy": entropy}


def compute_rollout_rewards(
    reward_fn: RewardFunction,
    rollout_responses: Sequence[str],
    repeated_ground_truths: Sequence[str],
) -> tuple[Tensor, dict[str, float]]:
    """The reward of each response, and the means of all three kinds of reward."""
    pairs = zip(rollout_responses, repeated_ground_truths, strict=True)
    graded = [reward_fn(response, truth) for response, truth in pairs]
    rewards = torch.tensor([float(grade["reward"]) for grade in graded])
    parts = ("reward", "format_reward", "answer_reward")
    means = {f"mean_{p}": sum(float(g.get(p, 0)) for g in graded) / len(graded) for p in parts}
    return rewards, means


def grpo_train_step(
    model: nn.Module,
    tokenizer: Any,
    optimizer: torch.optim.Optimizer,
    reward_fn: RewardFunction,
    *,
    repeated_prompts: Sequence[str],
    rollout_responses: Sequence[str],
    repeated_ground_truths: Sequence[str],
    group_size: int,
    gradient_accumulation_steps: int = 1,
    baseline: Baseline = "mean",
    advantage_eps: float = 1e-6,
    advantage_normalizer: Normalizer = "std",
    importance_reweighting_method: ImportanceReweighting = "none",
    old_log_probs: Tensor | None = None,
    cliprange: float | tuple[float, float] | None = None,
    aggregation: Aggregation = "sequence",
    normalize_constant: float | None = None,
    max_grad_norm: float = 1.0,
) -> tuple[Tensor, dict[str, float]]:
    """One optimizer step on graded responses; the loss of the batch, and what to log.

    Advantages and weights are those of the whole batch; then rows of advantage 0 are left out,
    which changes no gradient. If that leaves none, there is no step, and momentum and decay move
    nothing. The result does not depend on `gradient_accumulation_steps`.

    Args:
        model: the policy.
        tokenizer: encodes prompts and responses.
        optimizer: of the model's parameters.
        reward_fn: grades a response.
        repeated_prompts: the prompt of each response; groups are contiguous.
        rollout_responses: the responses.
        repeated_ground_truths: what each is graded by.
        group_size: responses to one prompt.
        gradient_accumulation_steps: passes that the rows are spread over.
        baseline: see `compute_group_normalized_rewards`, as for the next two.
        advantage_eps: likewise.
        advantage_normalizer: likewise.
        importance_reweighting_method: see `compute_policy_gradient_loss`, as for the next two.
        old_log_probs: likewise; aligned with the labels of `tokenize_prompt_and_output`.
        cliprange: likewise.
        aggregation: see `aggregate_loss`, as for the next.
        normalize_constant: likewise.
        max_grad_norm: gradients are clipped to it after all are summed.
    """
    raw_rewards, metadata = compute_rollout_rewards(
        reward_fn, rollout_responses, repeated_ground_truths
    )
    advantages, statistics = compute_group_normalized_rewards(
        raw_rewards, group_size, baseline, advantage_eps, advantage_normalizer
    )
    metadata |= statistics
    device = next(model.parameters()).device
    rows = _rows(repeated_prompts, rollout_responses, tokenizer, device=device)
    weights = row_weights(rows.mask, aggregation, normalize_constant)
    kept = advantages.nonzero()[:, 0]
    total = torch.zeros((), device=device)
    if not len(kept):
        return total, metadata | {"grad_norm": 0.0, "is_skipped": 1.0}
    optimizer.zero_grad(set_to_none=True)
    entropy = n_clipped = 0.0
    for part in kept.tensor_split(min(gradient_accumulation_steps, len(kept))):
        mask = rows.mask[part]
        found = get_response_log_probs(
            model, rows.input_ids[part], rows.labels[part], return_token_entropy=True
        )
        per_token, clipped = compute_policy_gradient_loss(
            advantages.to(device)[part],
            found["log_probs"],
            importance_reweighting_method,
            None if old_log_probs is None else old_log_probs.to(device)[part],
            cliprange,
            mask,
        )
        loss = losses.batch_loss(per_token, [weights[i] for i in part.tolist()], mask)
        loss.backward()
        total += loss.detach()
        entropy += found["token_entropy"].detach()[mask].sum().item()
        n_clipped += clipped["clip_fraction"].item() * mask.sum().item()
    grad_norm = nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    n_tokens = rows.mask[kept].sum().item()
    metadata |= {"entropy": entropy / n_tokens, "clip_fraction": n_clipped / n_tokens}
    return total, metadata | {"grad_norm": grad_norm.item(), "is_skipped": 0.0}


def per_instance_dpo_loss(
    lm: nn.Module,
    lm_ref: nn.Module,
    tokenizer: Any,
    beta: float,
    prompt: str,
    response_chosen: str,
    response_rejected: str,
) -> Tensor:
    """The DPO loss of one pair, on the device of `lm`; the models may lie on two.

    The prompt stands in the Alpaca template, and both responses end with the end of text.
    """
    end = [end_id(tokenizer)]
    prompt_ids = begin_ids(tokenizer) + ordinary_ids(tokenizer, alpaca_prompt(prompt))
    answers = [ordinary_ids(tokenizer, r) + end for r in (response_chosen, response_rejected)]
    rows = make_rows([prompt_ids] * 2, answers, pad_id=_pad_id(tokenizer))

    def summed(model: nn.Module) -> Tensor:
        device = next(model.parameters()).device
        ids, labels = rows.input_ids.to(device), rows.labels.to(device)
        log_probs = get_response_log_probs(model, ids, labels)["log_probs"]
        return log_probs.masked_fill(~rows.mask.to(device), 0.0).sum(1)

    chosen, rejected = summed(lm).split(1)
    with torch.no_grad():
        reference = summed(lm_ref).split(1)
    return preference_loss(chosen, rejected, *reference, beta=beta).per_pair[0]


def parse_mmlu_response(mmlu_example: Mapping[str, Any], model_output: str) -> str | None:
    """The letter of the option that an answer claims, None where it claims none."""
    n_options = len(mmlu_example.get("options", "ABCD"))
    return letter(model_output, "ABCDEFGHIJ"[:n_options])


def parse_gsm8k_response(model_output: str) -> str | None:
    """The last number of an answer, without commas; None where there is none."""
    number = flexible(model_output)
    return None if number is None else number.replace(",", "").replace("\\", "").replace("$", "")


def _rows(prompts: Sequence[str], outputs: Sequence[str], tokenizer: Any, **placed: Any) -> Rows:
    encoded = [[ordinary_ids(tokenizer, text) for text in texts] for texts in (prompts, outputs)]
    return make_rows(*encoded, pad_id=_pad_id(tokenizer), **placed)


def _pad_id(tokenizer: Any) -> int:
    """Fills rows; what is trained goes by position, so it may be the id that ends texts."""
    names = ("pad_token_id", "eos_token_id", "end_of_text")
    found = (getattr(tokenizer, name, None) for name in names)
    return next((int(x) for x in found if x is not None), 0)
