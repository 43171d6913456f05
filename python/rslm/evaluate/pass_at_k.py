"""The chance that one of k responses is right, from n responses."""

import math
from collections.abc import Sequence

from rslm.evaluate.results import mean_and_error


def pass_at_k(n: int, n_right: int, k: int) -> float:
    """The chance that k responses, drawn from n of which some are right, hold a right one.

    An unbiased estimate of 1 - (1 - p)^k, which 1 - (1 - n_right / n)^k is not. As a product,
    whose factors lie in [0, 1], where the binomials would overflow.

    Raises:
        ValueError: k is not from 1 to n, or n_right not from 0 to n.

    Source: Chen et al. 2021, section 2.1 (arXiv:2107.03374): 1 - C(n - c, k) / C(n, k).

    >>> pass_at_k(10, 3, 5)
    0.9166666666666666
    """
    if not 1 <= k <= n or not 0 <= n_right <= n:
        raise ValueError(
            f"pass_at_k needs k from 1 to n and n_right from 0 to n, got n {n}, "
            f"n_right {n_right}, k {k}"
        )
    if n - n_right < k:
        return 1.0
    # C(n - c, k) / C(n, k) is the product of (1 - k / j) over the c largest j up to n: whichever
    # of c and k is the smaller gives fewer factors.
    few, many = sorted((k, n_right))
    return 1.0 - math.prod(1 - many / j for j in range(n - few + 1, n + 1))


def mean_pass_at_k(counts: Sequence[tuple[int, int]], k: int) -> tuple[float, float]:
    """Mean over problems, each (n, n_right), and its standard error."""
    return mean_and_error([pass_at_k(n, n_right, k) for n, n_right in counts])
