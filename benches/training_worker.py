"""One contender of the training comparison: a process that trains turn by turn, when told to.

Started by training_peers.py with a JSON of `Job` as its only argument. Each line it reads lets
it make one turn of steps, and it answers with one line of JSON: seconds, memory, the last loss.
So all contenders of a row are there together and take turns, each warm and its memory its own.
"""

import contextlib
import io
import itertools
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

from peer_sample import peak_megabytes

LEARNING_RATE, WEIGHT_DECAY = 1e-3, 0.1
PEAK_SECONDS = 0.3
N_BATCHES = 64


@dataclass(frozen=True)
class Job:
    """What a contender is asked for.

    The first turn is one step, the second fills up to `steps_per_turn`, all others have that
    many: so `rslm train` prints its lines. `tokens` is a token file, `out` a run folder.
    """

    who: str
    model: dict[str, Any]
    precision: str
    compiles: bool
    batch_size: int
    steps_per_turn: int
    checkpoint_every: int
    n_threads: int
    tokens: str
    out: str

    @property
    def autocasts(self) -> bool:
        return self.precision == "bfloat16" and self.who != "transformers-bf16-weights"


class Gate:
    """Ends a turn with its report, waits for the next one, and starts the clocks."""

    def __init__(self) -> None:
        self._started: tuple[float, float] | None = None
        self._held = 0.0

    def hold(self) -> None:
        """Notes the memory that imports took; what comes on top of it is the work's own."""
        import torch._dynamo  # noqa: F401  # The first optimizer would, and Llama's module does.

        self._held = resident_megabytes()

    def __call__(self, **report: float) -> None:
        if self._started is not None:
            wall = time.perf_counter() - self._started[0]
            cpu = time.process_time() - self._started[1]
            peak = peak_megabytes()
            measured = {"wall": wall, "cpu": cpu, "peak": peak, "added": peak - self._held}
            print(json.dumps(measured | report), flush=True)
        if not sys.stdin.readline():
            os._exit(0)  # Whoever asked has enough; nothing here is worth an orderly end.
        self._started = time.perf_counter(), time.process_time()


def resident_megabytes() -> float:
    """Of this process now, with what it has imported; 0 where the system does not tell."""
    path = Path("/proc/self/statm")
    if not path.exists():
        return 0.0
    return int(path.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


class GatedFile(io.StringIO):
    """Where `rslm train` prints: each line about a step ends a turn."""

    def __init__(self, gate: Gate) -> None:
        super().__init__()
        self._gate = gate

    def write(self, text: str) -> int:
        if found := re.search(r"^step=\d+/.* loss=([\d.]+)", text, re.MULTILINE):
            self._gate(loss=float(found[1]))
        return len(text)


def run_loop(job: Job, gate: Gate) -> None:
    """`rslm train` as it is: data, clipping, metrics, lines, and checkpoints when they are due."""
    from rich.console import Console

    from rslm.architecture import TransformerConfig
    from rslm.train import DataConfig, OptimizerConfig, TrainConfig, train

    gate.hold()
    config = TrainConfig(
        out=Path(job.out),
        data=DataConfig(train=Path(job.tokens)),
        model=TransformerConfig(**job.model),
        optimizer=OptimizerConfig(
            learning_rate=LEARNING_RATE,
            min_learning_rate=LEARNING_RATE,
            schedule="linear",
            warmup_steps=0,
            weight_decay=WEIGHT_DECAY,
        ),
        n_steps=1_000_000,  # Ended from outside.
        batch_size=job.batch_size,
        precision="bfloat16" if job.precision == "bfloat16" else "float32",
        compile=job.compiles,
        device="cpu",
        checkpoint_every=job.checkpoint_every,
        log_every=job.steps_per_turn,
        n_threads=job.n_threads,
    )
    gate()
    train(config, console=Console(file=GatedFile(gate), width=200))


def first_batches(job: Job) -> Iterator[tuple[Any, Any]]:
    """Inputs and targets of the run's first steps, all at hand, over and over.

    A single batch would be learnt by heart, and numbers near zero take another time.
    """
    from rslm.batches import sample_batch, split_windows
    from rslm.token_file import TokenFile

    source, length = TokenFile.open(Path(job.tokens)), job.model["context_length"]
    sizes = {"batch_size": job.batch_size, "context_length": length}
    windows = [sample_batch(source, seed=0, step=step, **sizes) for step in range(N_BATCHES)]
    return itertools.cycle([split_windows(batch, "cpu") for batch in windows])


def new_model(job: Job) -> Any:
    """Our model with the weights that the run begins with."""
    import torch

    from rslm.architecture import TransformerConfig
    from rslm.batches import counter_seed
    from rslm.model import Transformer

    generator = torch.Generator().manual_seed(counter_seed(0, "weights"))
    return Transformer(TransformerConfig(**job.model), generator=generator)


def run_steps(
    job: Job,
    gate: Gate,
    batches: Iterator[tuple[Any, Any]],
    forward: Callable[[Any, Any], Any],
    optimizer: Any,
) -> None:
    """Forward, backward and update on batches at hand, and nothing else."""
    import torch

    n_steps = 1
    for turn in range(sys.maxsize):
        for _ in range(n_steps):
            with torch.autocast("cpu", torch.bfloat16, enabled=job.autocasts):
                loss = forward(*next(batches))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        gate(loss=loss.item())
        n_steps = job.steps_per_turn - (turn == 0)


def run_our_step(job: Job, gate: Gate) -> None:
    """The model, loss and optimizer of the loop, alone."""
    import torch

    from rslm.allocator import keep_freed_memory
    from rslm.model import Transformer  # noqa: F401
    from rslm.optim import AdamW, parameter_groups

    gate.hold()
    batches = first_batches(job)
    model = new_model(job)
    optimizer = AdamW(parameter_groups(model, WEIGHT_DECAY), lr=LEARNING_RATE, betas=(0.9, 0.95))
    called = torch.compile(model) if job.compiles else model
    with keep_freed_memory():
        gate()
        run_steps(job, gate, batches, lambda x, y: called(x, targets=y)[0], optimizer)


def run_transformers(job: Job, gate: Gate) -> None:
    """Llama of the same shapes with the same first weights, and PyTorch's fused AdamW."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from rslm.architecture import TransformerConfig

    gate.hold()
    batches = first_batches(job)
    sizes = TransformerConfig(**job.model)
    config = LlamaConfig(
        vocab_size=sizes.resolved_vocab_size,
        hidden_size=sizes.d_model,
        intermediate_size=sizes.resolved_d_ff,
        num_hidden_layers=sizes.n_layers,
        num_attention_heads=sizes.n_heads,
        num_key_value_heads=sizes.n_heads,
        max_position_embeddings=sizes.context_length,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": sizes.rope_theta},
        tie_word_embeddings=False,
        use_cache=False,
        attn_implementation="sdpa",
    )
    model = LlamaForCausalLM(config)
    model.load_state_dict(as_llama(new_model(job).state_dict(), sizes.n_heads))
    model.train()
    if job.who == "transformers-bf16-weights":
        model.to(torch.bfloat16)
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=LEARNING_RATE,
        betas=(0.9, 0.95),
        weight_decay=WEIGHT_DECAY,
        fused=True,
    )
    called: Any = torch.compile(model) if job.compiles else model
    gate()
    # With the shifted labels given, theirs predicts as many tokens as ours.
    run_steps(
        job,
        gate,
        batches,
        lambda x, y: called(input_ids=x, labels=y, shift_labels=y).loss,
        optimizer,
    )


LLAMA_NAMES = {
    "token_embeddings": "model.embed_tokens",
    "ln_final": "model.norm",
    "attn.q_proj": "self_attn.q_proj",
    "attn.k_proj": "self_attn.k_proj",
    "attn.v_proj": "self_attn.v_proj",
    "attn.output_proj": "self_attn.o_proj",
    "ffn.w1": "mlp.gate_proj",
    "ffn.w3": "mlp.up_proj",
    "ffn.w2": "mlp.down_proj",
    "ln1": "input_layernorm",
    "ln2": "post_attention_layernorm",
    "layers": "model.layers",
}


def as_llama(weights: dict[str, Any], n_heads: int) -> dict[str, Any]:
    """Our weights under Llama's names; its pairs of a head are (j, j + d_head/2)."""
    renamed = {}
    for name, weight in weights.items():
        if "q_proj" in name or "k_proj" in name:
            pairs = weight.view(n_heads, -1, 2, weight.shape[1])
            weight = pairs.transpose(1, 2).reshape(weight.shape)
        for ours, theirs in LLAMA_NAMES.items():
            name = re.sub(rf"(^|\.){re.escape(ours)}\.", rf"\1{theirs}.", name)
        renamed[name] = weight
    return renamed


def measure_peak(job: Job, gate: Gate) -> NoReturn:
    """The best FLOP/s of square matrix products, measured anew in each turn.

    By CPU seconds, so that other work on the machine does not lower it.
    """
    import torch

    dtype = torch.bfloat16 if job.precision == "bfloat16" else torch.float32
    matrices = [torch.ones(size, size, dtype=dtype) for size in (512, 1024, 2048)]
    gate()
    while True:
        best, end = 0.0, time.perf_counter() + PEAK_SECONDS
        while best == 0 or time.perf_counter() < end:
            for matrix in matrices:
                start = time.process_time()
                matrix @ matrix
                seconds = (time.process_time() - start) / job.n_threads
                best = max(best, 2 * len(matrix) ** 3 / seconds)
        gate(flops=best)


WORK: dict[str, Callable[[Job, Gate], None]] = {
    "rslm train": run_loop,
    "rslm step": run_our_step,
    "transformers": run_transformers,
    "transformers-bf16-weights": run_transformers,
    "matmul": measure_peak,
}


def main() -> None:
    job = Job(**json.loads(sys.argv[1]))
    import torch

    torch.set_num_threads(job.n_threads)
    # What libraries print is for people; standard output is for the reports.
    with contextlib.suppress(BrokenPipeError):
        WORK[job.who](job, Gate())


def command(job: Job) -> list[str]:
    return [sys.executable, __file__, json.dumps(asdict(job))]


if __name__ == "__main__":
    main()
