"""The implementations of attention that are timed side by side."""

import importlib.util
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from rslm.attention import attention
from rslm.gpu_check.cases import Case

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]

BACKENDS = {
    "SDPA flash": SDPBackend.FLASH_ATTENTION,
    "SDPA cuDNN": SDPBackend.CUDNN_ATTENTION,
}


def contenders(device: torch.device) -> dict[str, Callable[[Case], Attend]]:
    """What makes each implementation ready for a case; it may raise where it cannot run.

    flash-attn stands among them where it is installed.
    """
    makers: dict[str, Callable[[Case], Attend]] = {"rslm triton": _ours}
    makers |= {name: partial(_sdpa, backend) for name, backend in BACKENDS.items()}
    makers["FlexAttention"] = partial(_flex, device)
    if importlib.util.find_spec("flash_attn") is not None:
        makers["flash-attn"] = _flash_attn
    return makers


def _ours(case: Case) -> Attend:
    return partial(attention, causal=case.causal, implementation="triton")


def _sdpa(backend: SDPBackend, case: Case) -> Attend:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(backend), warnings.catch_warnings():
            # Beside its error it warns of each reason why a kernel cannot run.
            warnings.simplefilter("ignore", UserWarning)
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=case.causal)

    return attend


def _flex(device: torch.device, case: Case) -> Attend:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    mask = None
    if case.causal:

        def is_seen(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return query >= key

        lengths = (case.n_queries, case.n_keys)
        mask = create_block_mask(is_seen, None, None, *lengths, device=device.type)
    torch.compiler.reset()
    compiled: Any = torch.compile(flex_attention, dynamic=False)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        output: Tensor = compiled(q, k, v, block_mask=mask)
        return output

    return attend


def _flash_attn(case: Case) -> Attend:
    from flash_attn import flash_attn_func

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        # Its layout is (batch, sequence, heads, d_head); these are views.
        heads = (x.transpose(1, 2) for x in (q, k, v))
        output: Tensor = flash_attn_func(*heads, causal=case.causal)
        return output.transpose(1, 2)

    return attend
