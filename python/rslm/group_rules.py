"""Rules that put every parameter of a model into exactly one optimizer group, by its name."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Literal, get_args

Algorithm = Literal["adamw", "muon"]

_RULE = re.compile(r"(?P<pattern>.+?)\s*:\s*(?P<options>(?:\w+=[^\s=:]+(?:\s+|$))*)")


@dataclass(frozen=True, kw_only=True)
class GroupRule:
    """How the parameters are trained in whose name a pattern is found.

    None means what the optimizer has for that algorithm.

    Attributes:
        pattern: a regular expression, searched for anywhere in the name.
        algorithm: what updates them.
        learning_rate_scale: factor on the scheduled rate.
        weight_decay: their decoupled decay.
        beta1: AdamW's decay rate of their first moment.
        beta2: likewise of the second.
        epsilon: AdamW's ε.
    """

    pattern: str
    algorithm: Algorithm = "adamw"
    learning_rate_scale: float = 1.0
    weight_decay: float | None = None
    beta1: float | None = None
    beta2: float | None = None
    epsilon: float | None = None

    def __post_init__(self) -> None:
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ValueError(
                f"pattern must be a regular expression, got {self.pattern!r}: {error}"
            ) from None
        if self.algorithm not in get_args(Algorithm):
            raise ValueError(f"algorithm must be adamw or muon, got {self.algorithm!r}")
        for name in ("learning_rate_scale", "weight_decay", "epsilon"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):
                raise ValueError(f"{name} must be at least 0 and finite, got {value}")
        for name in ("beta1", "beta2"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise ValueError(f"{name} must be in [0, 1), got {value}")
        adamw_only = [n for n in ("beta1", "beta2", "epsilon") if getattr(self, n) is not None]
        if self.algorithm == "muon" and adamw_only:
            raise ValueError(f"{adamw_only[0]} is AdamW's; the rule {self.pattern!r} says muon")


def parse_group_rule(text: str) -> GroupRule:
    """The rule that a line such as `lm_head: learning_rate_scale=0.5 weight_decay=0` says.

    Before the last colon that only options follow stands the pattern; the options are those
    of `GroupRule`, each as `name=value`, with spaces between.

    >>> parse_group_rule("^token_embeddings: weight_decay=0").weight_decay
    0.0

    Raises:
        ValueError: the line has another form, or an option is unknown or out of range.
    """
    match = _RULE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"a group must be written as PATTERN: OPTION=VALUE ..., got {text!r}")
    known = {field.name for field in fields(GroupRule)} - {"pattern"}
    options: dict[str, str | float] = {}
    for item in match["options"].split():
        name, _, value = item.partition("=")
        if name not in known:
            raise ValueError(
                f"the group {text!r} has the unknown option {name}; there are "
                f"{', '.join(sorted(known))}"
            )
        if name in options:
            raise ValueError(f"the group {text!r} gives {name} twice")
        options[name] = value if name == "algorithm" else _number(value, name, text)
    return GroupRule(pattern=match["pattern"], **options)  # type: ignore[arg-type]


def _number(value: str, name: str, text: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise ValueError(f"{name} must be a number in the group {text!r}, got {value!r}") from None


def assign_groups(names: Iterable[str], rules: Sequence[GroupRule]) -> list[list[str]]:
    """The names that each rule takes, in their own order.

    Raises:
        ValueError: a name is taken by no rule or by several, or a rule takes none; says which.
    """
    groups: list[list[str]] = [[] for _ in rules]
    patterns = [re.compile(rule.pattern) for rule in rules]
    for name in names:
        takers = [i for i, pattern in enumerate(patterns) if pattern.search(name)]
        if len(takers) != 1:
            found = " and ".join(repr(rules[i].pattern) for i in takers) or "none"
            raise ValueError(
                f"every parameter must be in exactly one group: {name} is matched by {found}"
            )
        groups[takers[0]].append(name)
    for rule, group in zip(rules, groups, strict=True):
        if not group:
            raise ValueError(f"the group {rule.pattern!r} matches no parameter")
    return groups
