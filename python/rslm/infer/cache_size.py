"""How many blocks of keys and values an engine keeps."""

import os
from pathlib import Path

import torch

from rslm.infer.options import DraftModel, EngineOptions
from rslm.infer.runner import Runner
from rslm.model import Transformer

_SHARE = 0.5


def cache_blocks(model: Transformer, options: EngineOptions) -> int:
    """Blocks that `options.cache_bytes` holds, at most those of all contexts at once.

    A drafting model keeps its own keys and values in as many blocks, which count.

    Raises:
        ValueError: not one block fits.
    """
    models = [model]
    if isinstance(options.speculation, DraftModel):
        models.append(options.speculation.model)
    n_bytes = sum(
        Runner.bytes_per_block(each.config, options.block_size, each.token_embeddings.weight.dtype)
        for each in models
    )
    given = options.cache_bytes
    if given is None:
        given = int(free_bytes(model.token_embeddings.weight.device) * _SHARE)
    most = options.max_sequences * -(-model.config.context_length // options.block_size)
    if given < n_bytes:
        raise ValueError(f"cache_bytes must hold a block of {n_bytes} bytes, got {given}")
    return min(given // n_bytes, most)


def free_bytes(device: torch.device) -> int:
    """Memory that is free for this process on a device, of the machine's on a CPU."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if (table := Path("/proc/meminfo")).exists():
        for line in table.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
