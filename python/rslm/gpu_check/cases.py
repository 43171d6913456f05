"""The attention problems that are checked and timed, and the tensors of each."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rslm.profiling.tables import Record

Dtype = Literal["float32", "float16", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One attention problem.

    Attributes:
        batch_size: sequences.
        n_heads: heads of queries.
        n_kv_heads: heads of keys and values.
        n_queries: queries of a sequence.
        n_keys: keys of a sequence.
        d_head: width of a head.
        dtype: of all tensors.
        causal: query i sees keys up to i + n_keys - n_queries.
        window: keys that a query sees at most; needs `causal`.
        softcap: scores are held within it.
        document_length: sequences are documents of this length in a row; needs `causal`.
    """

    batch_size: int = 1
    n_heads: int = 1
    n_kv_heads: int = 1
    n_queries: int = 128
    n_keys: int = 128
    d_head: int = 64
    dtype: Dtype = "bfloat16"
    causal: bool = True
    window: int | None = None
    softcap: float | None = None
    document_length: int | None = None

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype as PyTorch names it."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype

    @property
    def n_tokens(self) -> int:
        """Queries of all sequences."""
        return self.batch_size * self.n_queries

    @property
    def forward_flops(self) -> float:
        """4 · batch · heads · queries · keys · d_head, half of it with `causal`.

        The count of the FlashAttention papers, so that rates compare with published ones; the
        backward pass counts 2.5 times as much (five products for two).
        """
        pairs = self.batch_size * self.n_heads * self.n_queries * self.n_keys
        return 4 * pairs * self.d_head / (2 if self.causal else 1)

    @property
    def label(self) -> str:
        """What identifies it, in a few words."""
        heads = f"{self.n_heads}/{self.n_kv_heads} heads x {self.d_head}"
        parts = [f"{self.batch_size} x {self.n_queries}/{self.n_keys}", heads, self.dtype]
        parts += ["causal"] if self.causal else []
        parts += [f"window {self.window}"] if self.window else []
        parts += [f"softcap {self.softcap:g}"] if self.softcap else []
        parts += [f"documents of {self.document_length}"] if self.document_length else []
        return ", ".join(parts)

    def record(self) -> Record:
        """What identifies it."""
        return {"case": self.label} | {
            name: value for name, value in vars(self).items() if value is not None
        }

    def draw(self, device: torch.device, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Queries, keys, values and a gradient of the output from N(0, 1), in the case's dtype."""
        generator = torch.Generator(device).manual_seed(seed)
        n_queries, n_keys = self.n_queries, self.n_keys
        sizes = ((self.n_heads, n_queries), *((self.n_kv_heads, n_keys),) * 2)
        q, k, v, gradient = (
            torch.randn(
                (self.batch_size, n_heads, length, self.d_head),
                generator=generator,
                device=device,
                dtype=self.torch_dtype,
            )
            for n_heads, length in (*sizes, (self.n_heads, n_queries))
        )
        return q, k, v, gradient

    def start(self, device: torch.device) -> Tensor | None:
        """The first visible key of each query, where there are documents."""
        if self.document_length is None:
            return None
        positions = torch.arange(self.n_queries, device=device, dtype=torch.int32)
        starts = positions - positions % self.document_length
        return starts.expand(self.batch_size, -1)


CORRECTNESS_CASES = (
    Case(n_heads=2, n_kv_heads=2, n_queries=256, n_keys=256),
    Case(n_heads=4, n_kv_heads=2, n_queries=257, n_keys=257, d_head=128),
    Case(n_heads=2, n_kv_heads=1, n_queries=100, n_keys=333, d_head=80),
    Case(n_heads=2, n_kv_heads=2, n_queries=301, n_keys=150, d_head=64),
    Case(n_heads=2, n_kv_heads=2, n_queries=190, n_keys=190, d_head=96, causal=False),
    Case(n_heads=2, n_kv_heads=2, n_queries=512, n_keys=512, window=100),
    Case(n_heads=2, n_kv_heads=2, n_queries=384, n_keys=384, document_length=90, d_head=128),
    Case(n_heads=2, n_kv_heads=2, n_queries=384, n_keys=384, document_length=90, window=64),
    Case(n_heads=2, n_kv_heads=2, n_queries=200, n_keys=200, softcap=20.0),
    Case(n_heads=2, n_kv_heads=2, n_queries=130, n_keys=130, d_head=256),
    Case(n_heads=2, n_kv_heads=2, n_queries=130, n_keys=130, d_head=16),
    Case(n_heads=16, n_kv_heads=16, n_queries=2048, n_keys=2048, d_head=128),
)
"""Round and odd lengths, every mask, shared heads, all paths of padding; bfloat16 first."""

DRY_CASES = (
    Case(n_heads=2, n_kv_heads=1, n_queries=70, n_keys=70, d_head=16),
    Case(n_heads=1, n_kv_heads=1, n_queries=40, n_keys=70, d_head=24, window=30),
)
"""For an interpreter on a CPU."""


def speed_cases(lengths: tuple[int, ...], n_tokens: int, width: int) -> tuple[Case, ...]:
    """Timed cases: `n_tokens` in sequences of each length, heads of 64 and 128 side by side.

    Args:
        lengths: tokens of a sequence.
        n_tokens: of a case.
        width: n_heads · d_head.
    """
    return tuple(
        Case(
            batch_size=n_tokens // length,
            n_heads=width // d_head,
            n_kv_heads=width // d_head,
            n_queries=length,
            n_keys=length,
            d_head=d_head,
            causal=causal,
        )
        for length in lengths
        for d_head in (128, 64)
        for causal in (True, False)
    )
