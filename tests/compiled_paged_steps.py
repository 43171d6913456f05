"""Prints how many graphs torch.compile makes of a model for ragged steps of many shapes.

In place of the kernel, which needs a GPU, its queries pass through: what is compiled around an
operator does not look inside.
"""

from dataclasses import replace
from random import Random
from types import SimpleNamespace
from typing import Any

import torch
from test_model_switches import PLAIN, SWITCHES
from test_runner import made, ragged_steps, sequences
from torch import Tensor

from rslm.infer.paged_cache import PagedCache
from rslm.infer.runner import Runner
from rslm.kernels import paged_attention


def copy_queries(q: Tensor, _keys: Tensor, _values: Tensor, out: Tensor, *_: Any) -> Any:
    return SimpleNamespace(run=lambda device: out.copy_(q))


def main() -> None:
    paged_attention.paged_launch = copy_queries
    paged_attention.IS_INTERPRETED = True
    model = made(replace(PLAIN, **SWITCHES["everything"])).to(torch.bfloat16)
    runner = Runner(model, n_blocks=200, block_size=4)
    runner.cache = PagedCache(
        model.config, n_blocks=200, block_size=4, dtype=torch.bfloat16, reading="triton"
    )
    graphs = []

    def keep(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        # The pool, of which a compiler would make copies, has more dimensions than any weight.
        assert all(x.ndim < 4 for x in inputs if isinstance(x, Tensor))
        graphs.append(graph)
        return graph.forward

    runner._is_compiled = True
    runner._hidden_states = torch.compile(model.hidden_states, backend=keep)
    ids = sequences(model.config, 5)
    for seed in range(3):
        for batch, _ in ragged_steps(ids, Random(seed), block_size=4, n_blocks=200, most=9):
            runner.forward(batch)
    print(len(graphs))


if __name__ == "__main__":
    main()
