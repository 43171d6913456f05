"""How many tokens the head reads at a time in training. No torch."""

import math

_CPU_LOGITS, _GPU_LOGITS = 2**22, 2**28
"""Logits of a chunk: 16 MiB, which a CPU's last cache may hold, and 1 GiB in float32.

Head and loss, forward and backward, CPU seconds of a Zen 3 core, whole logits and so many tokens
at a time: 0.80, and 0.62 for 512, of 2,048 (width 256, 8,192 ids); 5.0 and 4.0 for 512 of 8,192
(width 512, 10,000 ids); 9.3 and 8.4 for 256 of 4,096 (width 512, 32,768 ids).
"""
_LEAST_TOKENS = 512
"""Below that each chunk's turn at the head's gradient, which it reads and writes, costs too much.

CPU seconds of a Zen 4 core for 4,096 tokens of width 512 and 32,000 ids, whole and by 256, 512 and
1,024 tokens: 4.75, 4.68, 4.59, 4.69 in float32, 2.42, 2.46, 2.37, 2.38 in bfloat16.
"""


def chunk_tokens(n_tokens: int, vocab_size: int, device_type: str) -> int:
    """Tokens of a chunk, about equal parts of `n_tokens`, whose logits fit what a device holds.

    All of them where their logits are small: then there is nothing to save, and a compiler can
    fuse the loss with what stands around it. A GPU gets larger chunks, which fill it.
    """
    limit = _CPU_LOGITS if device_type == "cpu" else _GPU_LOGITS
    if n_tokens * vocab_size <= limit:
        return max(1, n_tokens)
    most = max(_LEAST_TOKENS, limit // vocab_size)
    return math.ceil(n_tokens / math.ceil(n_tokens / most))
