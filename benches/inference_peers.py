"""One table: tokens per second of the engine beside transformers' generate and a plain loop.

    python benches/inference_peers.py --write benches/results/inference.md
    python benches/inference_peers.py --shapes demo --quick
    python benches/inference_peers.py --run runs/demo

All contenders have the same weights, in one process, and take turns; who goes first changes with
the turn. Whose greedy ids differ from transformers' where its two largest logits are not within
1e-4 of each other is not timed. int8 is another computation: its ids are counted, not compared.
"""

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from inference_table import Measured, header, table
from torch import Tensor

from rslm import _rslm
from rslm.architecture import TransformerConfig
from rslm.infer.engine import Engine, EngineOptions, PromptLookup
from rslm.infer.load import load_run
from rslm.infer.parameters import SamplingParameters
from rslm.infer.runner import score
from rslm.infer.sampler import generate
from rslm.kv_cache import KeyValueCache
from rslm.model import Transformer
from rslm.tokenizer import Tokenizer

SHAPES = {
    "demo": TransformerConfig(
        vocab_size=4_096, context_length=128, d_model=128, n_layers=4, n_heads=2
    ),
    "135M": TransformerConfig(
        vocab_size=49_152,
        context_length=2_048,
        d_model=576,
        n_layers=30,
        n_heads=9,
        n_kv_heads=3,
        d_ff=1_536,
        tied_head=True,
    ),
    "test": TransformerConfig(
        vocab_size=300, context_length=32, d_model=16, n_layers=2, n_heads=2, n_kv_heads=1
    ),
}
NEAR = 1e-4
"""Two logits that are nearer may change places by rounding."""

CACHE_BYTES = 256 << 20

Generate = Callable[[list[list[int]], int], tuple[list[list[int]], float]]
"""Prompts and how many ids to add -> the ids, and the seconds to the first of the last prompt."""


@dataclass
class Contender:
    """Who takes turns, and what its turns measured."""

    who: str
    generate: Generate
    memory_bytes: int
    is_compared: bool = True
    turns: list[Measured] = field(default_factory=list)


def main() -> None:
    options = read_options()
    if _rslm.BUILD_PROFILE == "debug":
        sys.exit("error: only a release build is timed, this one is debug; run `make setup`")
    torch.set_num_threads(options.threads)
    started = time.perf_counter()
    lines = []
    for shape in options.shapes:
        model, tokenizer = model_of(shape, options.run if shape == "demo" else None)
        for batch_size in options.batch_sizes:
            lines += table(shape, batch_size, *measure(model, tokenizer, batch_size, options))
        lines += ["", scoring(model, options.turns)]
    text = "\n".join([*header(options, time.perf_counter() - started), *lines])
    if options.write:
        options.write.write_text(text + "\n")
    print(text)


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", nargs="+", default=["demo", "135M"], choices=SHAPES)
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 32])
    parser.add_argument(
        "--who", nargs="+", default=[], help="beside transformers; all unless given"
    )
    parser.add_argument("--run", type=Path, help="run folder with the demo's trained weights")
    parser.add_argument("--turns", type=int, help="of each contender; 5, with --quick 2")
    parser.add_argument("--new-tokens", type=int, help="of each prompt; 64, with --quick 8")
    parser.add_argument("--prompt-tokens", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1, help="of each contender")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--write", type=Path, help="file that the table goes to")
    options = parser.parse_args()
    options.turns = options.turns or (2 if options.quick else 5)
    options.new_tokens = options.new_tokens or (8 if options.quick else 64)
    return options


def model_of(shape: str, run: Path | None) -> tuple[Transformer, Tokenizer]:
    """The trained model of a run, or weights of a seed with a token for every id."""
    if run is not None:
        return load_run(run, device="cpu")
    config = SHAPES[shape]
    model = Transformer(config, generator=torch.Generator().manual_seed(0)).eval()
    single = {i: bytes([i]) for i in range(256)}
    longer = {i: f"<{i}>".encode() for i in range(256, config.resolved_vocab_size)}
    return model, Tokenizer(single | longer, [])


def measure(
    model: Transformer, tokenizer: Tokenizer, batch_size: int, options: argparse.Namespace
) -> tuple[list[Contender], str]:
    """All turns of a row, behind a comparison of the ids; and what the comparison said."""
    draw, vocab_size = random.Random(0), model.config.resolved_vocab_size
    n_prompt = min(options.prompt_tokens, model.config.context_length // 2)
    n_new = min(options.new_tokens, model.config.context_length - n_prompt)
    prompts = [[draw.randrange(vocab_size) for _ in range(n_prompt)] for _ in range(batch_size)]
    peer = llama_of(model)
    contenders = make_contenders(model, tokenizer, peer, options.who)
    expected, _ = contenders[0].generate(prompts, n_new)
    remarks = []
    for contender in contenders[1:]:
        ids, _ = contender.generate(prompts, n_new)
        remarks.append(compare(contender, ids, expected, prompts, peer))
    for turn in range(options.turns):
        for contender in random.Random(turn).sample(contenders, len(contenders)):
            tell(f"{batch_size} prompts: {contender.who}, turn {turn + 1}")
            wall, cpu = time.perf_counter(), time.process_time()
            _, first = contender.generate(prompts, n_new)
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            contender.turns.append(Measured(batch_size * n_new, n_new, first, wall, cpu))
    return contenders, "; ".join(remarks)


def scoring(model: Transformer, n_turns: int) -> str:
    """What log-probabilities of whole sequences cost in exact mode, and how far they are."""
    n_tokens = min(256, model.config.context_length)
    ids = torch.randint(0, model.config.resolved_vocab_size, (4, n_tokens))
    seconds: dict[bool, list[float]] = {True: [], False: []}
    scores = {}
    with torch.inference_mode():
        for _ in range(n_turns + 1):
            for exact, spent in seconds.items():
                began = time.process_time()
                scores[exact] = score(model, ids, exact=exact)
                spent.append(time.process_time() - began)
    ratios = [a / b for a, b in zip(seconds[True][1:], seconds[False][1:], strict=True)]
    furthest = float((scores[True] - scores[False]).abs().max())
    return (
        f"Scoring 4 sequences of {n_tokens} tokens in exact mode takes "
        f"{statistics.median(ratios):.2f}x the CPU time of the ordinary forward pass "
        f"({1e3 * statistics.median(seconds[True][1:]):.0f} ms); the log-probabilities differ by "
        f"at most {furthest:.1e}."
    )


def make_contenders(
    model: Transformer, tokenizer: Tokenizer, peer: Any, wanted: Sequence[str]
) -> list[Contender]:
    """transformers first: the others are compared with it."""

    def engine(**options: Any) -> Generate:
        # A bound of the cache, for several engines at once: half of the free memory is one's.
        settings = EngineOptions(prefix_cache=False, cache_bytes=CACHE_BYTES, **options)
        made = Engine(model, tokenizer, settings, end_ids=())

        def run(prompts: list[list[int]], n_new: int) -> tuple[list[list[int]], float]:
            parameters = SamplingParameters(
                max_new_tokens=n_new, temperature=0.0, ignore_end=True, seed=0
            )
            completions = made.generate(prompts, parameters)
            first = max(completion.first_token_seconds for completion in completions)
            return [list(completion.token_ids) for completion in completions], first

        return run

    makers: dict[str, Callable[[], Generate]] = {
        "transformers": lambda: transformers_generate(peer),
        "rslm": engine,
        "rslm exact": lambda: engine(exact=True),
        "rslm int8": lambda: engine(quantize="int8"),
        "rslm speculative": lambda: engine(speculation=PromptLookup()),
        "plain loop": lambda: plain_loop(model),
    }
    contenders = []
    for who, make in makers.items():
        if who != "transformers" and wanted and who not in wanted:
            continue
        before = resident_bytes()
        run = make()
        run([[1, 2, 3]], 2)
        memory = resident_bytes() - before
        contenders.append(Contender(who, run, memory, is_compared=who != "rslm int8"))
    return contenders


def plain_loop(model: Transformer) -> Generate:
    """One prompt by `infer.sampler.generate`; many of one length by a loop over the cache."""

    def run(prompts: list[list[int]], n_new: int) -> tuple[list[list[int]], float]:
        began, first = time.perf_counter(), 0.0
        if len(prompts) == 1:
            ids = []
            for token_id in generate(model, prompts[0], max_new_tokens=n_new, temperature=0):
                first = first or time.perf_counter() - began
                ids.append(token_id)
            return [ids], first
        columns, read, cache = [], torch.tensor(prompts), KeyValueCache(model.config)
        for _ in range(n_new):
            with torch.inference_mode():
                logits: Tensor = model(read, cache=cache, last_only=True)
            read = logits[:, -1].argmax(-1, keepdim=True)
            columns.append(read)
            first = first or time.perf_counter() - began
        return torch.cat(columns, 1).tolist(), first

    return run


def transformers_generate(peer: Any) -> Generate:
    """`generate` without its early end; the first token is timed in a call of its own."""

    def run(prompts: list[list[int]], n_new: int) -> tuple[list[list[int]], float]:
        ids = torch.tensor(prompts)
        sizes: dict[str, Any] = {"max_new_tokens": n_new, "min_new_tokens": n_new}
        clock = _FirstToken()
        with torch.inference_mode():
            out = peer.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                pad_token_id=0,
                stopping_criteria=[clock],
                **sizes,
            )
        return out[:, ids.shape[1] :].tolist(), clock.seconds

    return run


class _FirstToken:
    """Asked after every token whether to stop, it notes when the first one was there."""

    def __init__(self) -> None:
        self.began, self.seconds = time.perf_counter(), 0.0

    def __call__(self, token_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        self.seconds = self.seconds or time.perf_counter() - self.began
        return torch.zeros(len(token_ids), dtype=torch.bool)


def llama_of(model: Transformer) -> Any:
    """transformers' Llama with the model's weights; its rotary halves where ours are pairs."""
    import transformers

    transformers.logging.set_verbosity_error()
    config = model.config
    peer = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=config.resolved_vocab_size,
            hidden_size=config.d_model,
            intermediate_size=config.resolved_d_ff,
            num_hidden_layers=config.n_layers,
            num_attention_heads=config.n_heads,
            num_key_value_heads=config.resolved_n_kv_heads,
            max_position_embeddings=config.context_length,
            rope_theta=config.rope_theta,
            rms_norm_eps=1e-5,
            tie_word_embeddings=config.tied_head,
            eos_token_id=None,
            bos_token_id=None,
        )
    )
    names = {
        "token_embeddings": "model.embed_tokens",
        "ln_final": "model.norm",
        "ln1": "input_layernorm",
        "ln2": "post_attention_layernorm",
        "attn": "self_attn",
        "output_proj": "o_proj",
        "ffn": "mlp",
        "w1": "gate_proj",
        "w2": "down_proj",
        "w3": "up_proj",
        "layers": "model.layers",
    }
    state = {}
    for name, weight in model.state_dict().items():
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            pairs = weight.unflatten(0, (-1, config.resolved_d_head // 2, 2))
            weight = pairs.transpose(1, 2).reshape(weight.shape)
        state[".".join(names.get(part, part) for part in name.split("."))] = weight
    missing, unexpected = peer.load_state_dict(state, strict=False)
    assert not unexpected
    assert set(missing) <= {"lm_head.weight"}
    peer.tie_weights()
    return peer.eval()


def compare(
    contender: Contender,
    ids: Sequence[Sequence[int]],
    expected: Sequence[Sequence[int]],
    prompts: Sequence[Sequence[int]],
    peer: Any,
) -> str:
    """A remark on how many rows are equal; ends the program where one differs for no reason."""
    n_equal = sum(list(a) == list(b) for a, b in zip(ids, expected, strict=True))
    for row, other, prompt in zip(ids, expected, prompts, strict=True):
        at = next((i for i, (a, b) in enumerate(zip(row, other, strict=True)) if a != b), None)
        if at is None or not contender.is_compared:
            continue
        with torch.inference_mode():
            logits = peer(torch.tensor([[*prompt, *other[:at]]])).logits[0, -1]
        if abs(float(logits[row[at]] - logits[other[at]])) > NEAR:
            sys.exit(f"error: {contender.who} gives other ids than transformers, at {at}")
    return f"{contender.who} {n_equal} of {len(ids)}"


def resident_bytes() -> int:
    """Memory of the process that is in use now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4_096


def tell(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
