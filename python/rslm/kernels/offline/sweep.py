"""Configurations worth timing on a GPU, without those that a compiler already speaks against."""

from collections.abc import Sequence
from typing import Any

import torch

from rslm.kernels.launch_configs import LaunchConfig, padded_width

# (tile_queries, tile_keys, n_warps, n_stages), by kernel and for heads up to this width.
_FORWARD = {
    64: [
        *[(128, 64, 4, 2), (128, 64, 4, 3), (128, 64, 4, 4), (128, 64, 8, 3), (64, 64, 4, 3)],
        *[(128, 128, 4, 2), (128, 128, 8, 2), (128, 128, 8, 3), (64, 128, 4, 3), (128, 32, 4, 4)],
    ],
    128: [
        *[(128, 64, 8, 2), (128, 64, 8, 3), (128, 64, 4, 2), (128, 128, 8, 2), (64, 64, 4, 2)],
        *[(64, 64, 4, 3), (128, 32, 4, 3), (128, 32, 8, 3), (64, 128, 4, 2), (128, 64, 4, 3)],
    ],
    256: [
        *[(64, 32, 4, 1), (64, 32, 4, 2), (64, 32, 8, 2), (64, 64, 8, 2), (128, 32, 8, 1)],
        *[(128, 32, 8, 2), (128, 64, 8, 1), (32, 64, 4, 2)],
    ],
}
_KEY_GRADIENTS = {
    64: [
        *[(64, 128, 8, 2), (64, 128, 8, 3), (32, 128, 4, 2), (32, 128, 4, 3), (64, 64, 4, 2)],
        *[(64, 64, 4, 3), (64, 64, 8, 2), (32, 64, 4, 3), (128, 128, 8, 2), (32, 128, 8, 3)],
    ],
    128: [
        *[(64, 128, 8, 1), (64, 128, 8, 2), (32, 128, 8, 2), (32, 128, 8, 3), (64, 64, 8, 2)],
        *[(64, 64, 4, 1), (64, 64, 4, 2), (32, 64, 4, 2), (32, 64, 4, 3), (32, 128, 4, 2)],
    ],
    256: [
        *[(32, 64, 8, 1), (32, 64, 8, 2), (32, 32, 8, 2), (32, 32, 4, 2), (64, 64, 8, 1)],
        *[(16, 64, 8, 2), (64, 32, 8, 1), (32, 32, 8, 1)],
    ],
}


def candidates(arch: str, d_head: int) -> dict[str, list[LaunchConfig]]:
    """Configurations of each kernel with a loop that a sweep should try, by the kernel's name.

    Names are those of the fields of `FlashConfig`. For numbers of two bytes. Some spill or do not
    fit, others on each architecture; `approved` takes them out.
    """
    width = min(max(64, padded_width(d_head)), 256)
    use_descriptors = arch.isdigit() and int(arch) >= 90
    # A loop over keys has the tiles of dK and dV the other way round.
    mirrored = [(keys, queries, w, s) for queries, keys, w, s in _KEY_GRADIENTS[width]]
    rows = {
        "forward": _FORWARD[width],
        "key_gradients": _KEY_GRADIENTS[width],
        "query_gradients": mirrored,
    }
    return {
        kernel: [LaunchConfig(*row, use_descriptors) for row in found]
        for kernel, found in rows.items()
    }


def approved(
    kernel: str,
    configurations: Sequence[LaunchConfig],
    arch: str,
    d_head: int,
    dtype: torch.dtype,
    *,
    n_jobs: int | None = None,
    **switches: Any,
) -> list[LaunchConfig]:
    """Those of the configurations with which a kernel passes the gate, in their order.

    Args:
        kernel: "forward", "key_gradients" or "query_gradients".
        n_jobs: processes that compile, one per core by default.
        switches: what `Subject` says of masks and heads: causal, has_start, softcap, group.

    Raises:
        ValueError: the architecture is none of those known.
    """
    # Triton is loaded only here: the list of candidates does not need it.
    from rslm.kernels.offline.gate import Subject, examine_all

    name: Any = str(dtype).removeprefix("torch.")
    subjects = [
        Subject(arch=arch, d_head=d_head, kernel=kernel, dtype=name, config=config, **switches)
        for config in configurations
    ]
    verdicts = examine_all(subjects, n_jobs)
    return [
        config
        for config, verdict in zip(configurations, verdicts, strict=True)
        if not verdict.failures
    ]
