"""AdamW, parameter groups, gradient clipping and the step that uses them."""

import math
import re
from collections.abc import Callable, Iterable, MutableMapping, Sequence
from typing import Any, Literal, overload

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import Module, Parameter

from rslm.group_rules import GroupRule, assign_groups

AdamWImplementation = Literal["fused", "reference"]

EMBEDDING = re.compile(r"(^|\.)(token_embeddings|value_embeddings\.\d+)\.weight$")
"""Names of matrices whose rows are looked up: not decayed, and AdamW's where there is Muon."""


class AdamW(torch.optim.Optimizer):
    """Adam with decoupled weight decay.

    For step t = 1, 2, ... of a parameter θ with gradient g:

        θ ← θ - lr·λ·θ                                  (decay first)
        m ← β1·m + (1 - β1)·g
        v ← β2·v + (1 - β2)·g²
        θ ← θ - lr·sqrt(1 - β2^t)/(1 - β1^t) · m/(sqrt(v) + ε)

    Here ε stands outside the correction of v, as in Kingma & Ba's section 2. In
    `torch.optim.AdamW` it stands inside: theirs with ε/sqrt(1 - β2^t) at step t is ours.
    Argument and group names are those of torch.optim, whose schedulers therefore work.
    The state of a parameter is `step` (float32 scalar on the CPU), `exp_avg` and
    `exp_avg_sq` (m and v, dtype and device of the parameter), the same for both
    implementations, which may be exchanged between a checkpoint and its resumption.

    Args:
        params: parameters, or groups of them as dictionaries.
        lr: learning rate, of every group that does not name its own.
        betas: decay rates β1 and β2 of the moments.
        eps: ε.
        weight_decay: λ.
        implementation: "reference" is the formula line by line; "fused" is the same
            arithmetic in PyTorch's one-pass kernel, several times faster.

    Raises:
        ValueError: a hyperparameter lies outside its range.

    Source: Loshchilov & Hutter 2019, Decoupled Weight Decay Regularization, Algorithm 2
    (arXiv:1711.05101); Kingma & Ba 2015, section 2 (arXiv:1412.6980).
    """

    def __init__(
        self,
        params: Iterable[Parameter] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        *,
        implementation: AdamWImplementation = "fused",
    ) -> None:
        if implementation not in ("fused", "reference"):
            raise ValueError(
                f'implementation must be "fused" or "reference", got {implementation!r}'
            )
        self._implementation: AdamWImplementation = implementation
        super().__init__(
            params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        )

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group, once its options are known to be possible."""
        super().add_param_group(param_group)
        self.check_options(self.param_groups[-1])

    def check_options(self, group: dict[str, Any]) -> None:
        """Refuses the options of a group that lie outside their ranges, by a ValueError."""
        check_adamw_options(group)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update every parameter that has a gradient; returns what `closure` returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            update_adamw_group(group, self.state, implementation=self._implementation)
        return loss

    def new_state(self, parameter: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        """The state of a parameter before its first step."""
        return new_adamw_state(parameter)


def check_adamw_options(group: dict[str, Any]) -> None:
    """Refuses options of `AdamW` outside their ranges, by a ValueError."""
    for name in ("lr", "eps", "weight_decay"):
        if not group[name] >= 0:
            raise ValueError(f"{name} must be at least 0, got {group[name]}")
    if not all(0 <= beta < 1 for beta in group["betas"]):
        raise ValueError(f"betas must lie in [0, 1), got {group['betas']}")


def new_adamw_state(parameter: Tensor) -> dict[str, Tensor]:
    """The state that `AdamW` gives a parameter before its first step."""
    return {
        # A scalar on the CPU, whatever the parameter's device, is read without a wait.
        "step": torch.tensor(0.0),
        "exp_avg": torch.zeros_like(parameter),
        "exp_avg_sq": torch.zeros_like(parameter),
    }


@torch.no_grad()
def update_adamw_group(
    group: dict[str, Any],
    state: MutableMapping[Any, dict[str, Tensor]],
    *,
    implementation: AdamWImplementation = "fused",
) -> None:
    """One step of the parameters in a group of `AdamW` that have gradients.

    `state` maps each parameter to its own state, which the first step makes.
    """
    parameters = [p for p in group["params"] if p.grad is not None]
    states = [state[p] for p in parameters]
    for parameter, own in zip(parameters, states, strict=True):
        if not own:
            own.update(new_adamw_state(parameter))
        own["step"] += 1
    update = _fused_update if implementation == "fused" else _reference_update
    update(parameters, states, group)


def _reference_update(
    parameters: list[Tensor], states: list[dict[str, Tensor]], group: dict[str, Any]
) -> None:
    """AdamW's formula, one parameter and one line of it at a time."""
    lr, (beta1, beta2) = group["lr"], group["betas"]
    for parameter, state in zip(parameters, states, strict=True):
        assert parameter.grad is not None
        gradient, m, v = parameter.grad, state["exp_avg"], state["exp_avg_sq"]
        t = state["step"].item()
        corrected_lr = lr * math.sqrt(1 - beta2**t) / (1 - beta1**t)
        parameter.mul_(1 - lr * group["weight_decay"])
        m.mul_(beta1).add_(gradient, alpha=1 - beta1)
        v.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        parameter.addcdiv_(m, v.sqrt().add_(group["eps"]), value=-corrected_lr)


def _fused_update(
    parameters: list[Tensor], states: list[dict[str, Tensor]], group: dict[str, Any]
) -> None:
    """The same in PyTorch's kernel, whose ε is ours over sqrt(1 - β2^t)."""
    beta1, beta2 = group["betas"]
    # One call takes one ε, device and dtype, so parameters that joined later or live
    # elsewhere make a batch of their own; mostly there is one batch.
    batches: dict[tuple[float, torch.device, torch.dtype], list[int]] = {}
    for i, (parameter, state) in enumerate(zip(parameters, states, strict=True)):
        key = (state["step"].item(), parameter.device, parameter.dtype)
        batches.setdefault(key, []).append(i)
    for (t, device, _), members in batches.items():
        torch._fused_adamw_(
            [parameters[i] for i in members],
            [gradient for i in members if (gradient := parameters[i].grad) is not None],
            [states[i]["exp_avg"] for i in members],
            [states[i]["exp_avg_sq"] for i in members],
            [],
            [torch.tensor(t, device=device)] * len(members),
            lr=group["lr"],
            beta1=beta1,
            beta2=beta2,
            weight_decay=group["weight_decay"],
            eps=group["eps"] / math.sqrt(1 - beta2**t),
            amsgrad=False,
            maximize=False,
        )


def parameter_groups(model: Module, weight_decay: float) -> list[dict[str, Any]]:
    """Groups for an optimizer: decayed matrices, and everything else at decay 0.

    Embeddings, norm gains and other tensors of fewer than two dimensions are not decayed.
    Every trainable parameter is in exactly one group, in the model's order; an empty
    group is left out.
    """
    decayed: list[Parameter] = []
    kept: list[Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_kept = parameter.ndim < 2 or EMBEDDING.search(name)
            (kept if is_kept else decayed).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": kept, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def parameter_groups_by_rule(
    model: Module, rules: Sequence[GroupRule], *, options: dict[str, dict[str, Any]]
) -> list[dict[str, Any]]:
    """Groups for an optimizer, one for each rule, of the trainable parameters it matches.

    Every trainable parameter is in exactly one. A group has the keys `algorithm` and
    `learning_rate_scale`, and the algorithm's options.

    Args:
        model: whose parameters; a tied one counts once, under its first name.
        rules: as in `rslm.group_rules`.
        options: by algorithm, what a rule that says nothing of it gets.

    Raises:
        ValueError: a parameter matches no rule or several, or a rule no parameter.
    """
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    groups: list[dict[str, Any]] = []
    for rule, names in zip(rules, assign_groups(parameters, rules), strict=True):
        group: dict[str, Any] = {
            "params": [parameters[name] for name in names],
            "algorithm": rule.algorithm,
        }
        group |= options[rule.algorithm]
        if rule.weight_decay is not None:
            group["weight_decay"] = rule.weight_decay
        if rule.epsilon is not None:
            group["eps"] = rule.epsilon
        if rule.algorithm == "adamw":
            beta1, beta2 = group["betas"]
            group["betas"] = (
                beta1 if rule.beta1 is None else rule.beta1,
                beta2 if rule.beta2 is None else rule.beta2,
            )
        scale = group.pop("learning_rate_scale", 1.0) * rule.learning_rate_scale
        groups.append(group | {"learning_rate_scale": scale})
    return groups


@torch.no_grad()
def clip_grad_norm(parameters: Iterable[Tensor], max_norm: float) -> Float[Tensor, ""]:
    """Scales all gradients in place so that their joint L2 norm is at most `max_norm`.

    Returns the norm before. Gradients whose norm is at most `max_norm` keep their bits;
    others are multiplied by max_norm / (norm + 1e-6). Nothing waits for the device. The
    norm of no gradients is 0; `max_norm` infinity only measures.

    Raises:
        ValueError: `max_norm` is negative or not a number.

    Source: Pascanu et al. 2013, section 3.2, Algorithm 1 (arXiv:1211.5063).
    """
    if not max_norm >= 0:
        raise ValueError(f"max_norm must be at least 0, got {max_norm}")
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return torch.zeros(())
    norms = [_norm(gradient) for gradient in gradients]
    norm = _norm(torch.stack(norms))
    # On a CPU the norm is at hand, and to multiply by 1 would cost 1 % of a step.
    is_known_small = norm.device.type == "cpu" and bool(norm <= max_norm)
    if max_norm < math.inf and not is_known_small:
        scale = torch.where(norm > max_norm, max_norm / (norm + 1e-6), 1.0)
        torch._foreach_mul_(gradients, scale)
    return norm


def _norm(x: Tensor) -> Tensor:
    """The L2 norm, summed in float32 at least."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    norm: Tensor = torch.linalg.vector_norm(x, dtype=dtype)
    return norm


def optimizer_step(
    optimizer: torch.optim.Optimizer,
    *,
    learning_rate: float,
    max_grad_norm: float,
    clip: Callable[[Iterable[Tensor], float], Tensor] = clip_grad_norm,
) -> Float[Tensor, ""]:
    """One update from the gradients at hand: clip, step, clear; returns the norm before.

    Every group gets `learning_rate`, times its `learning_rate_scale` where it has one;
    `max_grad_norm` infinity turns clipping off. A norm that is infinite or not a number
    updates nothing, neither parameters nor state: the returned norm tells. Asking for it
    waits for the device. Where gradients are divided over processes, `clip` is what knows
    their joint norm; it is the same on all, so all skip together.
    """
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group.get("learning_rate_scale", 1.0)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norm = clip(parameters, max_grad_norm)
    # Zeros in place of such gradients would not do: momentum and decay would still move weights.
    if math.isfinite(norm.item()):
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm
