"""Which dtype each tensor of a step has, and what half precision does to a sum."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rslm.profiling.tables import Record, Table, column
from rslm.profiling.workload import Case, Workload, matmul_precision

TENSORS = (
    "weights",
    "residual",
    "norm",
    "query",
    "feed_forward",
    "logits",
    "loss",
    "gradients",
    "optimizer",
)


def list_dtypes(cases: Sequence[Case], device: torch.device) -> list[Record]:
    """The dtype of each of `TENSORS` in a training step, for each precision of the cases.

    "residual" enters the first block, "norm" comes out of its first norm, "query" out of a
    projection, "feed_forward" out of the layer; the others are what their names say.
    """
    records = []
    for precision, case in {case.precision: case for case in cases}.items():
        with matmul_precision(precision, device):
            records.append({"precision": precision} | _dtypes(Workload(case, device)))
    return records


def _dtypes(work: Workload) -> Record:
    found: dict[str, torch.dtype] = {}
    block: Any = work.model.layers[0]

    def note(name: str) -> Any:
        def hook(_module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            found[name] = inputs[0].dtype if name == "residual" else output.dtype

        return hook

    modules = {
        "residual": block,
        "norm": block.ln1,
        "query": block.attn.q_proj,
        "feed_forward": block.ffn,
        "logits": work.model.lm_head,
    }
    for name, module in modules.items():
        module.register_forward_hook(note(name))
    loss = work.loss()
    work.backward(loss)
    weight = work.model.token_embeddings.weight
    assert weight.grad is not None
    found |= {"weights": weight.dtype, "loss": loss.dtype, "gradients": weight.grad.dtype}
    work.update()
    found["optimizer"] = work.optimizer.state[weight]["exp_avg"].dtype
    return {name: str(found[name]).removeprefix("torch.") for name in TENSORS}


def accumulate(n: int = 1000, term: float = 0.01) -> list[Record]:
    """`n` times `term`, added one after the other in several dtypes; each a sum and its error.

    Deterministic. Half-precision sums stop growing where a term is less than half their last
    digit; a float32 sum of half-precision terms only has the terms' rounding.
    """
    records = []
    pairs = (
        (torch.float32, torch.float32),
        (torch.float32, torch.float16),
        (torch.float32, torch.bfloat16),
        (torch.float16, torch.float16),
        (torch.bfloat16, torch.bfloat16),
    )
    for sum_dtype, term_dtype in pairs:
        total = torch.tensor(0.0, dtype=sum_dtype)
        addend = torch.tensor(term, dtype=term_dtype)
        for _ in range(n):
            total += addend
        value = total.item()
        records.append(
            {
                "sum": str(sum_dtype).removeprefix("torch."),
                "terms": str(term_dtype).removeprefix("torch."),
                "value": value,
                "relative_error": value / (n * term) - 1,
            }
        )
    return records


def precision_tables(dtypes: list[Record], sums: list[Record]) -> list[Table]:
    """The tables of `list_dtypes` and `accumulate`."""
    return [
        Table(
            name="step-dtypes",
            title="Dtypes in a training step",
            columns=(
                column("precision", "precision"),
                *(column(name.replace("_", " "), name) for name in TENSORS),
            ),
            records=dtypes,
        ),
        Table(
            name="step-sums",
            title="0.01 added 1,000 times",
            columns=(
                column("sum in", "sum"),
                column("terms in", "terms"),
                column("sum", "value", lambda value: f"{value:.4f}"),
                column("error", "relative_error", lambda error: f"{100 * error:+.3f} %"),
            ),
            records=sums,
        ),
    ]
