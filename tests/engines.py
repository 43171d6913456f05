"""What tests of the inference engine share: tiny models, one without arithmetic, an oracle."""

import random
import zlib
from typing import Any

import torch
from torch import Tensor

from rslm.architecture import TransformerConfig
from rslm.infer import sampling_reference
from rslm.infer.engine import Engine
from rslm.infer.options import EngineOptions
from rslm.infer.parameters import Completion, SamplingParameters
from rslm.infer.philox import sampling_key
from rslm.infer.reference_runner import ReferenceRunner
from rslm.model import Transformer
from rslm.tokenizer import Tokenizer

VOCAB_SIZE = 257
END = 256
TOKENIZER = Tokenizer({i: bytes([i]) for i in range(256)}, [], ["<|endoftext|>"])
GREEDY = SamplingParameters(max_new_tokens=12, temperature=0)
SEEDED = SamplingParameters(max_new_tokens=12, seed=5)


def tiny_model(*, seed: int = 0, d_model: int = 32, context_length: int = 64) -> Transformer:
    """A model of bytes and end of text, with weights large enough for it to have opinions."""
    config = TransformerConfig(
        vocab_size=VOCAB_SIZE,
        context_length=context_length,
        d_model=d_model,
        n_layers=2,
        n_heads=2,
        d_ff=32,
    )
    model = Transformer(config, generator=torch.Generator().manual_seed(seed)).eval()
    for parameter in model.parameters():
        parameter.data.mul_(3 if parameter.ndim > 1 else 1)
    return model


def block_bytes(model: Transformer, block_size: int) -> int:
    """Memory of one block: `cache_bytes` are a multiple of it."""
    config = model.config
    return 2 * config.n_layers * block_size * config.d_model * 4


class ReadBack(ReferenceRunner):
    """Logits that are a function of the ids read back from the blocks, without a network.

    It shows the same mistakes of bookkeeping as a model would, a hundred times as fast.
    """

    def _last_logits(self, table: list[int], length: int) -> Tensor:
        token_ids = [self._slots[self._slot(table, position)] for position in range(length)]
        assert min(token_ids) >= 0, "a block must be written before it is read"
        return lookup_logits(token_ids)


def lookup_logits(token_ids: list[int]) -> Tensor:
    """Logits of the id after these, by a hash of them; ends and halves of characters are rare."""
    seed = zlib.crc32(bytes(token_id % 256 for token_id in token_ids))
    logits = 3 * torch.randn(VOCAB_SIZE, generator=torch.Generator().manual_seed(seed))
    logits[128:] -= 3
    return logits


def reference_runner(model: Transformer, *, n_blocks: int, block_size: int, **_: Any) -> Any:
    """`ReferenceRunner`, which has no other options."""
    return ReferenceRunner(model, n_blocks=n_blocks, block_size=block_size)


def read_back_runner(model: Transformer, *, n_blocks: int, block_size: int, **_: Any) -> Any:
    """`ReadBack`, likewise."""
    return ReadBack(model, n_blocks=n_blocks, block_size=block_size)


def ids_of(completions: list[Completion]) -> list[tuple[int, ...]]:
    """The ids that were drawn, of each."""
    return [completion.token_ids for completion in completions]


def make_engine(
    model: Transformer, *, make_runner: Any = read_back_runner, **options: Any
) -> Engine:
    """An engine of the tiny model, without a network unless another runner is given."""
    return Engine(model, TOKENIZER, EngineOptions(**options), make_runner=make_runner)


def plain_ids(prompt: list[int], parameters: SamplingParameters, index: int = 0) -> list[int]:
    """What `ReadBack` goes on with: one id after another, nothing kept, the plain sampler."""
    token_ids = list(prompt)
    ends = () if parameters.ignore_end else (END,)
    key = sampling_key(parameters.seed or 0, index)
    for _ in range(parameters.max_new_tokens):
        logits = lookup_logits(token_ids)
        token_ids.append(
            sampling_reference.draw(logits, parameters, key, len(token_ids), token_ids)
        )
        if token_ids[-1] in (*ends, *parameters.stop_token_ids) or len(token_ids) == 64:
            break
    return token_ids[len(prompt) :]


def ragged(n: int) -> tuple[list[list[int]], list[SamplingParameters]]:
    """Prompts of 1 to 40 ids, some with a common beginning, and parameters of every kind."""
    draw = random.Random(3)
    beginning = [draw.randrange(256) for _ in range(20)]
    prompts = [
        beginning[: draw.randrange(21)] + [draw.randrange(256) for _ in range(draw.randint(1, 20))]
        for _ in range(n)
    ]
    kinds: list[dict[str, Any]] = [
        {"temperature": 0},
        {},
        {"top_k": 5},
        {"top_p": 0.7, "temperature": 0.8},
        {"min_p": 0.1, "repetition_penalty": 1.5},
        {"temperature": 0, "repetition_penalty": 3.0},
    ]
    parameters = [
        SamplingParameters(seed=i % 7, max_new_tokens=draw.randint(1, 30), **kinds[i % len(kinds)])
        for i in range(n)
    ]
    return prompts, parameters


def check_at_rest(engine: Engine) -> None:
    """Asserts that nothing runs, waits or holds a block."""
    statistics = engine.statistics()
    assert not engine.has_work
    assert (statistics.n_running, statistics.n_waiting) == (0, 0)
    assert statistics.n_free_blocks == statistics.n_blocks
    engine._manager.check([])
