"""The law of parameters and tokens: what loss it expects, and how it would spend a budget."""

import math
from dataclasses import dataclass
from typing import Any, Self

from rslm.scaling.points import FLOPS_FACTOR


@dataclass(frozen=True, kw_only=True)
class Optimum:
    """The best use of a budget by a law.

    Attributes:
        flop_budget: FLOPs to spend.
        n_parameters: of the best model.
        n_tokens: to train it on.
        loss: nats per token that it reaches.
    """

    flop_budget: float
    n_parameters: float
    n_tokens: float
    loss: float

    @property
    def tokens_per_parameter(self) -> float:
        """D*/N*."""
        return self.n_tokens / self.n_parameters


@dataclass(frozen=True, kw_only=True)
class LossLaw:
    """L = E + A N^-α + B D^-β.

    Attributes:
        irreducible_loss: E, nats per token.
        parameter_factor: A.
        parameter_exponent: α.
        token_factor: B.
        token_exponent: β.
        flops_factor: C/(ND).

    Raises:
        ValueError: a factor or E is negative, or an exponent or flops_factor is not positive.

    Source: Hoffmann et al. 2022, equation 2 (arXiv:2203.15556).
    """

    irreducible_loss: float
    parameter_factor: float
    parameter_exponent: float
    token_factor: float
    token_exponent: float
    flops_factor: float = FLOPS_FACTOR

    def __post_init__(self) -> None:
        """Refuses what is no law of this form."""
        for name in ("irreducible_loss", "parameter_factor", "token_factor"):
            _require(0 <= getattr(self, name) < math.inf, name, "at least 0", getattr(self, name))
        for name in ("parameter_exponent", "token_exponent", "flops_factor"):
            _require(0 < getattr(self, name) < math.inf, name, "positive", getattr(self, name))

    def loss(self, n_parameters: Any, n_tokens: Any) -> Any:
        """The expected loss, of a number or an array of sizes."""
        of_size = self.parameter_factor * n_parameters**-self.parameter_exponent
        of_data = self.token_factor * n_tokens**-self.token_exponent
        return self.irreducible_loss + of_size + of_data

    @property
    def parameter_share(self) -> float:
        """a = β/(α + β): N* grows as C^a."""
        return self.token_exponent / (self.parameter_exponent + self.token_exponent)

    @property
    def token_share(self) -> float:
        """b = α/(α + β): D* grows as C^b."""
        return 1 - self.parameter_share

    @property
    def allocation_factor(self) -> float:
        """G = (αA/βB)^(1/(α+β)).

        Raises:
            ValueError: A or B is 0, so that there is no best size.
        """
        terms = [
            self.parameter_exponent * self.parameter_factor,
            self.token_exponent * self.token_factor,
        ]
        if not all(0 < term < math.inf for term in terms):
            raise ValueError(
                "the law must fall with parameters and with tokens to have an optimum, "
                f"got factors {self.parameter_factor:g} and {self.token_factor:g}"
            )
        exponent = 1 / (self.parameter_exponent + self.token_exponent)
        return math.exp((math.log(terms[0]) - math.log(terms[1])) * exponent)

    def optimum(self, flop_budget: float) -> Optimum:
        """N* = G (C/k)^a and D* = (C/k)^b / G, with k = `flops_factor`.

        Raises:
            ValueError: the budget is not positive, or the law has no optimum that is a number.

        Source: Hoffmann et al. 2022, equation 4.
        """
        _require(0 < flop_budget < math.inf, "flop_budget", "positive", flop_budget)
        product = flop_budget / self.flops_factor
        try:
            n_parameters = self.allocation_factor * product**self.parameter_share
            n_tokens = product / n_parameters
            loss = float(self.loss(n_parameters, n_tokens))
        except (OverflowError, ZeroDivisionError):
            n_parameters = n_tokens = loss = math.inf
        if not all(map(math.isfinite, (n_parameters, n_tokens, loss))):
            raise ValueError(f"the law leaves all numbers at {flop_budget:g} FLOPs")
        return Optimum(
            flop_budget=flop_budget, n_parameters=n_parameters, n_tokens=n_tokens, loss=loss
        )

    def budget_for(self, loss: float) -> float:
        """The FLOPs with which the best model reaches this loss.

        Raises:
            ValueError: the loss is not above E, or the law has no optimum.
        """
        self._require_reachable(loss)
        # At the optimum what is above E falls as C^-g from its value at C = k.
        g = self.parameter_exponent * self.parameter_share
        at_one = self.optimum(self.flops_factor).loss - self.irreducible_loss
        return float(self.flops_factor * (at_one / (loss - self.irreducible_loss)) ** (1 / g))

    def tokens_for(self, n_parameters: float, loss: float) -> float:
        """The tokens with which a model of this size reaches this loss; inf where none do.

        Raises:
            ValueError: the loss is not above E.
        """
        self._require_reachable(loss)
        rest = loss - float(self.loss(n_parameters, math.inf))
        if rest <= 0:
            return math.inf
        return float((self.token_factor / rest) ** (1 / self.token_exponent))

    def _require_reachable(self, loss: float) -> None:
        above = f"above the law's irreducible {self.irreducible_loss:g}"
        _require(self.irreducible_loss < loss < math.inf, "loss", above, loss)

    def values(self) -> list[float]:
        """E, A, α, B, β and k, as `of_values` takes them."""
        return [
            *(self.irreducible_loss, self.parameter_factor, self.parameter_exponent),
            *(self.token_factor, self.token_exponent, self.flops_factor),
        ]

    @classmethod
    def of_values(cls, values: Any) -> Self:
        """The law of six numbers in the order of its attributes."""
        e, a, alpha, b, beta, factor = map(float, values)
        return cls(
            irreducible_loss=e,
            parameter_factor=a,
            parameter_exponent=alpha,
            token_factor=b,
            token_exponent=beta,
            flops_factor=factor,
        )


def _require(holds: bool, name: str, what: str, value: object) -> None:
    if not holds:
        raise ValueError(f"{name} must be {what}, got {value}")
