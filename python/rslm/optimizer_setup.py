"""From the options of a run to its optimizer and its learning rate at each step."""

import re
from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor, nn

from rslm.architecture import TransformerConfig
from rslm.group_rules import GroupRule, parse_group_rule
from rslm.matmul_peak import has_bfloat16_units
from rslm.muon import Muon, check_muon_options, new_muon_state, update_muon_group
from rslm.optim import (
    EMBEDDING,
    AdamW,
    AdamWImplementation,
    check_adamw_options,
    new_adamw_state,
    parameter_groups,
    parameter_groups_by_rule,
    update_adamw_group,
)
from rslm.parametrisation import scaled_groups
from rslm.schedules import cosine_schedule, linear_schedule, wsd_s_schedule
from rslm.train_config import OptimizerConfig, TrainConfig


class MuonAdamW(torch.optim.Optimizer):
    """Muon for some groups of parameters and AdamW for the others, behind one step.

    A group's `algorithm`, "muon" or "adamw", says which; the rest of it, and the state of its
    parameters, is that of `rslm.muon.Muon` or `rslm.optim.AdamW`. Every parameter is updated
    by itself, so that it comes out the same whatever shares its process.

    Args:
        params: groups as dictionaries; what one leaves out is that algorithm's default.
        implementation: AdamW's.

    Raises:
        ValueError: a group has no such algorithm, or a hyperparameter out of range.
        TypeError: a group has an option that its algorithm has not.
    """

    def __init__(
        self, params: Iterable[dict[str, Any]], *, implementation: AdamWImplementation = "fused"
    ) -> None:
        self._implementation: AdamWImplementation = implementation
        super().__init__(params, {})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group, completed with the defaults of its algorithm."""
        kinds: dict[str, type[Muon] | type[AdamW]] = {"muon": Muon, "adamw": AdamW}
        algorithm = param_group.get("algorithm")
        if algorithm not in kinds:
            raise ValueError(f"a group's algorithm must be muon or adamw, got {algorithm!r}")
        own = ("params", "algorithm", "learning_rate_scale")
        options = {key: value for key, value in param_group.items() if key not in own}
        # An optimizer of that kind alone checks them and fills in the others.
        # As a group, since a process that owns none of its parameters has an empty one.
        members = [{"params": param_group["params"]}]
        completed = kinds[algorithm](members, **options).param_groups[0]
        scale = param_group.get("learning_rate_scale", 1.0)
        group = completed | {"algorithm": algorithm, "learning_rate_scale": scale}
        super().add_param_group(group)

    def check_options(self, group: dict[str, Any]) -> None:
        """Refuses the options of a group that lie outside their ranges, by a ValueError."""
        check = check_muon_options if group["algorithm"] == "muon" else check_adamw_options
        check(group)

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
            if group["algorithm"] == "muon":
                update_muon_group(group, self.state)
            else:
                update_adamw_group(group, self.state, implementation=self._implementation)
        return loss

    def new_state(self, parameter: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        """The state of a parameter before its first step."""
        if group["algorithm"] == "muon":
            return new_muon_state(parameter, group)
        return new_adamw_state(parameter)


def build_optimizer(
    model: nn.Module, config: OptimizerConfig, sizes: TransformerConfig
) -> AdamW | MuonAdamW:
    """The optimizer that a run's options describe, over all trainable parameters.

    With neither Muon nor groups given it is a plain `AdamW`, of two groups; muP and CompleteP
    cut AdamW's groups further, by the scales of their hyperparameters.

    Args:
        model: what is trained.
        config: the options.
        sizes: the model's, which say how it is parametrised.

    Raises:
        ValueError: the groups do not fit the model.
    """
    adamw: dict[str, Any] = {
        "lr": config.learning_rate,
        "betas": (config.beta1, config.beta2),
        "eps": config.epsilon,
    }
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    if config.algorithm == "adamw" and not config.groups:
        groups = parameter_groups(model, config.weight_decay)
        scaled = scaled_groups(groups, names, sizes, epsilon=config.epsilon)
        return AdamW(scaled, **adamw, implementation=config.implementation)
    adamw |= {"weight_decay": config.weight_decay}
    device = next(model.parameters()).device
    options = {"adamw": adamw, "muon": muon_options(config, device)}
    rules = [parse_group_rule(text) for text in config.groups] or default_muon_rules(model)
    groups = parameter_groups_by_rule(model, rules, options=options)
    scaled = scaled_groups(groups, names, sizes, epsilon=config.epsilon)
    return MuonAdamW(scaled, implementation=config.implementation)


def muon_options(config: OptimizerConfig, device: torch.device) -> dict[str, Any]:
    """The options of Muon's groups; the scale turns the scheduled rate into Muon's own."""
    muon = config.muon
    dtype = muon.orthogonalization_dtype
    if dtype == "auto":
        dtype = "bfloat16" if has_bfloat16_units(device) else "float32"
    own_rate = muon.learning_rate is not None and config.learning_rate > 0
    scale = (muon.learning_rate or 0.0) / config.learning_rate if own_rate else 1.0
    decay = config.weight_decay if muon.weight_decay is None else muon.weight_decay
    return {
        "lr": config.learning_rate * scale,
        "learning_rate_scale": scale,
        "momentum": muon.momentum,
        "weight_decay": decay,
        "nesterov": muon.nesterov,
        "polynomials": muon.polynomials,
        "orthogonalization_dtype": dtype,
        "convention": muon.convention,
        "normuon_beta2": muon.normuon_beta2,
        "cautious_decay": muon.cautious_decay,
        "equilibrate_rows": muon.equilibrate_rows,
        "renormalize": muon.renormalize,
    }


def default_muon_rules(model: nn.Module) -> list[GroupRule]:
    """Muon for the matrices inside, AdamW for embeddings, the head and everything else.

    AdamW decays the head alone, as it does without Muon.
    """
    n_dimensions = {name: p.ndim for name, p in model.named_parameters() if p.requires_grad}
    heads = [name for name in n_dimensions if name == "lm_head.weight"]
    matrices = [
        name
        for name, n in n_dimensions.items()
        if n == 2 and name not in heads and not EMBEDDING.search(name)
    ]
    others = [name for name in n_dimensions if name not in {*matrices, *heads}]
    rules: list[tuple[list[str], dict[str, Any]]] = [
        (matrices, {"algorithm": "muon"}),
        (heads, {}),
        (others, {"weight_decay": 0.0}),
    ]
    return [
        GroupRule(pattern=f"^({'|'.join(map(re.escape, names))})$", **changes)
        for names, changes in rules
        if names
    ]


def scheduled_learning_rate(config: TrainConfig, step: int) -> float:
    """The rate of a run's update that follows `step` others; see `learning_rate_at`."""
    return learning_rate_at(config.optimizer, step, config.n_steps)


def learning_rate_at(optimizer: OptimizerConfig, step: int, n_steps: int) -> float:
    """The rate of the update, of so many, that follows `step` others.

    Updates count from 1 in the schedule: the first has a rate above 0, the last the minimum.
    """
    common: dict[str, Any] = {
        "learning_rate": optimizer.learning_rate,
        "min_learning_rate": optimizer.resolved_min_learning_rate,
        "warmup_steps": optimizer.warmup_steps,
    }
    if optimizer.schedule == "cosine":
        return cosine_schedule(step + 1, **common, decay_steps=n_steps)
    if optimizer.schedule in ("linear", "constant"):  # A line from the peak to the peak.
        return linear_schedule(step + 1, **common, decay_steps=n_steps)
    return wsd_s_schedule(
        step + 1,
        **common,
        decay_ends=(*optimizer.decay_ends, n_steps),
        cooldown_fraction=optimizer.resolved_cooldown_fraction,
    )
