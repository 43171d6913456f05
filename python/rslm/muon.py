"""Muon: momentum, orthogonalised, for the matrices between embedding and head."""

import math
from collections.abc import Callable, Iterable, MutableMapping
from typing import Any, Literal, overload

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import Parameter

Polynomials = Literal["classic", "convergent", "polar_express"]
LearningRateConvention = Literal["original", "match_rms_adamw"]
OrthogonalizationDtype = Literal["bfloat16", "float32"]

COEFFICIENTS: dict[str, tuple[tuple[float, float, float], ...]] = {
    "classic": ((3.4445, -4.7750, 2.0315),) * 5,
    "convergent": ((2.0, -1.5, 0.5),) * 12,
    "polar_express": (
        (8.156554524902461, -22.48329292557795, 15.878769915207462),
        (4.042929935166739, -2.808917465908714, 0.5000178451051316),
        (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
        (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
        (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
    ),
}
"""(a, b, c) of each iteration X ← aX + (bA + cA²)X with A = XXᵀ, that is σ ← aσ + bσ³ + cσ⁵.

"classic" (Jordan et al. 2024) is steepest at 0 and leaves singular values between about 0.7
and 1.2; "convergent" has its fixed point at 1 with slope 0 there, so it converges to 1;
"polar_express" (Amsel et al. 2025, Algorithm 1, arXiv:2505.16932) takes at each iteration the
polynomial of least worst error over where the values may be by then. These are its values for
five iterations from 0.001 on, safety factor 1.02 but for the last, cushion 0.02; nanochat and
modded-nanogpt run the same.
"""

# Divisors of the norm: a spectral norm a little above 1, as roundings leave it, would be thrown
# out by polynomials this steep.
_MARGIN = {"classic": 1.0, "convergent": 1.0, "polar_express": 1.01}
_EPSILON = 1e-7


@torch.no_grad()
def orthogonalize(
    matrix: Float[Tensor, "rows columns"],
    *,
    polynomials: Polynomials = "polar_express",
    dtype: torch.dtype = torch.bfloat16,
) -> Float[Tensor, "rows columns"]:
    """The matrix with its singular values near 1 and its singular vectors kept; in `dtype`.

    The near-identity UVᵀ of USVᵀ, by products of matrices alone. A matrix with a Frobenius
    norm below 1e-7 comes out smaller, and zero stays zero. Matrices are not stacked, although
    a batched product is faster for small ones: it may round otherwise, and then the update
    would depend on which matrices share a process.

    Args:
        matrix: any shape; the products have the size of its shorter side.
        polynomials: what is applied, see `COEFFICIENTS`.
        dtype: of the products; bfloat16 has the exponents of float32, which float16 lacks.

    Source: Jordan et al. 2024, Muon (kellerjordan.github.io/posts/muon); Bernstein & Newhouse
    2024, section 3 (arXiv:2409.20325). Scaled by the Frobenius norm, at least the spectral one.
    """
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if is_tall else matrix).to(dtype)
    x = x / (_MARGIN[polynomials] * x.norm()).clamp(min=_EPSILON)
    for a, b, c in COEFFICIENTS[polynomials]:
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if is_tall else x


def learning_rate_factor(shape: torch.Size, convention: LearningRateConvention) -> float:
    """Factor on the learning rate of an update whose singular values are 1.

    For a weight of (rows, columns) = (outputs, inputs): "original" is √max(1, rows/columns),
    for rates of about 0.02; "match_rms_adamw" is 0.2·√max(rows, columns), which gives the
    entries AdamW's usual root mean square 0.2, so that its rate and decay can be kept.

    Source: Jordan et al. 2024; Liu et al. 2025, Muon is Scalable, equation 4
    (arXiv:2502.16982).
    """
    rows, columns = shape
    if convention == "original":
        return math.sqrt(max(1.0, rows / columns))
    return 0.2 * math.sqrt(max(rows, columns))


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised; for parameters with two dimensions.

    For a gradient G of a weight θ, momentum μ, rate lr and decay λ, at each step:

        B ← μ·B + (1 - μ)·G
        U = μ·B + (1 - μ)·G with `nesterov`, else B
        O = orthogonalize(U)
        θ ← θ - lr·λ·θ - lr·factor·O

    The state of a parameter is `momentum_buffer` (B), and with NorMuon `second_moment`: one
    number per row or column. Embeddings, head and vectors belong to AdamW.

    Args:
        params: matrices, or groups of them as dictionaries; every option may differ by group.
        lr: learning rate.
        momentum: μ.
        weight_decay: λ; its step is lr·λ, whatever the convention.
        nesterov: look one step ahead.
        polynomials: see `orthogonalize`.
        orthogonalization_dtype: dtype of its products.
        convention: see `learning_rate_factor`.
        normuon_beta2: decay rate of NorMuon's second moment (0.9 to 0.95); None: without.
            Each row of O (column, where the matrix is wide) is divided by the root of its
            mean square over the steps, and O keeps its norm.
        cautious_decay: decay only the entries that the update moves towards 0.
        equilibrate_rows: give the rows of U equal norms before it is orthogonalised.
        renormalize: give O the Frobenius norm √min(rows, columns) that it should have.

    Raises:
        ValueError: a hyperparameter lies outside its range, or a parameter is no matrix.

    Source: Jordan et al. 2024, Muon. Options: Li et al. 2025, NorMuon (arXiv:2510.05491; they
    take rows always and set the norm to 0.2·√(rows·columns), we do as nanochat does); Chen et
    al. 2025, Cautious Weight Decay, Algorithm 1 (arXiv:2510.12402); Chang et al. 2026, MuonEq,
    form R (arXiv:2603.28254); Zhang et al. 2026, Muon+ (arXiv:2602.21545; theirs normalises
    rows and columns, this is nanochat's form of it).
    """

    def __init__(
        self,
        params: Iterable[Parameter] | Iterable[dict[str, Any]],
        lr: float = 0.02,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        *,
        nesterov: bool = True,
        polynomials: Polynomials = "polar_express",
        orthogonalization_dtype: OrthogonalizationDtype = "bfloat16",
        convention: LearningRateConvention = "original",
        normuon_beta2: float | None = None,
        cautious_decay: bool = False,
        equilibrate_rows: bool = False,
        renormalize: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "polynomials": polynomials,
            "orthogonalization_dtype": orthogonalization_dtype,
            "convention": convention,
            "normuon_beta2": normuon_beta2,
            "cautious_decay": cautious_decay,
            "equilibrate_rows": equilibrate_rows,
            "renormalize": renormalize,
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group, once its options and shapes are known to be possible."""
        super().add_param_group(param_group)
        self.check_options(self.param_groups[-1])
        for parameter in self.param_groups[-1]["params"]:
            if parameter.ndim != 2:
                shape = tuple(parameter.shape)
                raise ValueError(f"Muon takes matrices only, got the shape {shape}")

    def check_options(self, group: dict[str, Any]) -> None:
        """Refuses the options of a group that lie outside their ranges, by a ValueError."""
        check_muon_options(group)

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
            update_muon_group(group, self.state)
        return loss

    def new_state(self, parameter: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        """The state of a parameter before its first step."""
        return new_muon_state(parameter, group)


def new_muon_state(parameter: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
    """The state that `Muon` gives a parameter of a group before its first step."""
    state = {"momentum_buffer": torch.zeros_like(parameter)}
    if group["normuon_beta2"] is not None:
        moment = parameter.sum(_neuron_dimension(parameter), keepdim=True)
        state["second_moment"] = torch.zeros_like(moment)
    return state


def _neuron_dimension(matrix: Tensor) -> int:
    """The dimension along which a neuron of NorMuon lies: a row, or a wide matrix's column."""
    # Orthogonalisation makes the columns of a tall matrix equally long, not its rows.
    return 1 if matrix.shape[0] >= matrix.shape[1] else 0


def check_muon_options(group: dict[str, Any]) -> None:
    """Refuses options of `Muon` outside their ranges, by a ValueError."""
    for name in ("lr", "weight_decay"):
        if not group[name] >= 0:
            raise ValueError(f"{name} must be at least 0, got {group[name]}")
    beta2 = group["normuon_beta2"]
    for name, rate in (("momentum", group["momentum"]), ("normuon_beta2", beta2)):
        if rate is not None and not 0 <= rate < 1:
            raise ValueError(f"{name} must lie in [0, 1), got {rate}")
    choices = {
        "polynomials": COEFFICIENTS,
        "convention": ("original", "match_rms_adamw"),
        "orthogonalization_dtype": ("bfloat16", "float32"),
    }
    for name, known in choices.items():
        if group[name] not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, got {group[name]!r}")


@torch.no_grad()
def update_muon_group(group: dict[str, Any], state: MutableMapping[Any, dict[str, Tensor]]) -> None:
    """One step of the parameters in a group of `Muon` that have gradients.

    `state` maps each parameter to its own state, which the first step makes.
    """
    for parameter in group["params"]:
        if parameter.grad is not None:
            update = _direction(parameter, state[parameter], group)
            _apply(parameter, update, group)


def _direction(parameter: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> Tensor:
    """What the parameter moves against, with singular values near 1."""
    assert parameter.grad is not None
    gradient, momentum = parameter.grad, group["momentum"]
    if not state:
        state.update(new_muon_state(parameter, group))
    buffer = state["momentum_buffer"].lerp_(gradient, 1 - momentum)
    update = gradient.lerp(buffer, momentum) if group["nesterov"] else buffer
    if group["equilibrate_rows"]:
        update = update / torch.linalg.vector_norm(update, dim=1, keepdim=True).clamp(min=1e-30)
    dtype = getattr(torch, group["orthogonalization_dtype"])
    update = orthogonalize(update, polynomials=group["polynomials"], dtype=dtype)
    update = update.to(parameter.dtype)
    if group["renormalize"]:
        update = update * (math.sqrt(min(update.shape)) / _frobenius(update))
    if group["normuon_beta2"] is not None:
        update = _normalize_neurons(update, state, group["normuon_beta2"])
    return update


def _normalize_neurons(update: Tensor, state: dict[str, Tensor], beta2: float) -> Tensor:
    """Each row, or column of a wide matrix, over its running root mean square; same norm."""
    mean_square = update.square().mean(_neuron_dimension(update), keepdim=True)
    # Without correction for the start at 0: a common factor cancels in the norm.
    second_moment = state["second_moment"].lerp_(mean_square, 1 - beta2)
    scaled = update * second_moment.clamp(min=1e-10).rsqrt()
    return scaled * (_frobenius(update) / _frobenius(scaled))


def _frobenius(x: Tensor) -> Tensor:
    """The norm, above 0 so that a matrix of zeros stays one."""
    norm: Tensor = torch.linalg.vector_norm(x)
    return norm.clamp(min=1e-30)


def _apply(parameter: Tensor, update: Tensor, group: dict[str, Any]) -> None:
    """Decays the parameter, then moves it against the update."""
    lr, decay = group["lr"], group["lr"] * group["weight_decay"]
    if group["cautious_decay"]:
        parameter.sub_(parameter * (update * parameter >= 0), alpha=decay)
    else:
        parameter.mul_(1 - decay)
    factor = learning_rate_factor(parameter.shape, group["convention"])
    parameter.add_(update, alpha=-lr * factor)
