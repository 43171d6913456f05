"""DDP, ShardedOptimizer and FSDP on two gloo processes against one process."""

import copy
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from processes import join_all, run_processes, start_each
from torch import nn

from rslm.architecture import TransformerConfig
from rslm.distributed import DDP, FSDP, Processes, ShardedOptimizer, start_processes
from rslm.distributed.gradients import MODES, _fill_buckets
from rslm.distributed.processes import read_environment
from rslm.kv_cache import KeyValueCache
from rslm.losses import cross_entropy
from rslm.model import Transformer
from rslm.optim import AdamW, clip_grad_norm, parameter_groups

# Processes that wait for each other must not wait for ever.
pytestmark = pytest.mark.timeout(60)

# 33 rows over two processes: the second has one less, and messages are padded.
CONFIG = TransformerConfig(
    vocab_size=33, context_length=8, d_model=16, n_layers=2, n_heads=2, d_ff=24
)
N_STEPS = 20


def build(dtype: torch.dtype, seed: int = 0) -> Transformer:
    return Transformer(CONFIG, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def batch(step: int, n: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(step)
    return torch.randint(33, (n, 9), generator=generator)


def optimizer_of(model: nn.Module) -> AdamW:
    return AdamW(parameter_groups(model, 0.1), lr=1e-2, betas=(0.9, 0.95))


def train_alone(dtype: torch.dtype, n_parts: int = 1) -> tuple[list[float], dict[str, Any]]:
    """Losses and weights of one process that cuts its batch into parts."""
    model = build(dtype)
    optimizer = optimizer_of(model)
    losses = []
    for step in range(N_STEPS):
        total = 0.0
        for part in batch(step).chunk(n_parts):
            loss = cross_entropy(model(part[:, :-1]), part[:, 1:]) / n_parts
            torch.autograd.backward(loss)
            total += loss.item()
        losses.append(total)
        clip_grad_norm(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return losses, model.state_dict()


def wrap(model: nn.Module, kind: str) -> Any:
    return FSDP(model) if kind == "fsdp" else DDP(model, kind, bucket_mb=0.002)


def train_together(
    processes: Processes, kinds: list[str], dtype: torch.dtype
) -> dict[str, tuple[list[float], dict[str, Any]]]:
    """The same for each wrapper; another seed on each process, as that of the first counts."""
    results = {}
    for kind in kinds:
        wrapped = wrap(build(dtype, seed=processes.rank), kind)
        optimizer = optimizer_of(wrapped.module)
        clip = wrapped.clip_grad_norm if kind == "fsdp" else clip_grad_norm
        losses = []
        for step in range(N_STEPS):
            part = batch(step)[processes.share_of(4)]
            loss = cross_entropy(wrapped(part[:, :-1]), part[:, 1:])
            torch.autograd.backward(loss)
            wrapped.finish_gradient_synchronization()
            losses.append(processes.mean(loss.detach()).item())
            clip(wrapped.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        whole = wrapped.gather_full_params() if kind == "fsdp" else wrapped.module.state_dict()
        results[kind] = losses, whole
    return results


def largest_difference(ours: dict[str, Any], theirs: dict[str, Any]) -> float:
    assert list(ours) == list(theirs)
    return max((ours[name] - theirs[name]).abs().max().item() for name in theirs)


def test_two_processes_train_what_one_does_in_float64():
    losses, weights = train_alone(torch.float64)
    first, second = run_processes(train_together, [*MODES, "fsdp"], torch.float64)
    for kind, (own_losses, own_weights) in first.items():
        assert own_losses == pytest.approx(losses, abs=1e-9), kind
        assert largest_difference(own_weights, weights) < 1e-9, kind
        assert largest_difference(own_weights, second[kind][1]) == 0, kind


def test_two_processes_train_what_one_does_in_float32():
    losses, _ = train_alone(torch.float32)
    in_parts = train_alone(torch.float32, n_parts=2)
    results, _ = run_processes(train_together, [*MODES, "fsdp"], torch.float32)
    for kind, (own_losses, own_weights) in results.items():
        assert own_losses == pytest.approx(losses, abs=1e-5), kind
        if kind != "fsdp":
            # Two terms have one sum: the same bits as one process that accumulates two parts.
            assert largest_difference(own_weights, in_parts[1]) == 0, kind


class Odd(nn.Module):
    """Tied, frozen, unused parameters, and one that only the first process uses."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        matrix = lambda: nn.Parameter(torch.randn(5, 5, generator=generator))  # noqa: E731
        self.tied, self.frozen, self.unused, self.sometimes = (matrix() for _ in range(4))
        self.also_tied = self.tied
        self.frozen.requires_grad = False
        self.wide = nn.Parameter(torch.randn(3, generator=generator, dtype=torch.float64))
        self.register_buffer("buffer", torch.randn(2, generator=generator))

    def forward(self, x: torch.Tensor, rank: int) -> torch.Tensor:
        y = x @ self.tied @ self.frozen @ self.also_tied.T
        y = y @ self.sometimes if rank == 0 else y
        return y.square().mean() + self.wide.square().sum()


def odd_input(rank: int, part: int = 0) -> torch.Tensor:
    return torch.randn(4, 5, generator=torch.Generator().manual_seed(10 * rank + part))


def odd_gradients(processes: Processes, parts: int) -> dict[str, Any]:
    results = {}
    for mode in MODES:
        module = Odd()
        with torch.no_grad():
            for tensor in (*module.parameters(), *module.buffers()):
                tensor += processes.rank  # Only the first process has the right ones.
        ours = DDP(module, mode, bucket_mb=0.00015)
        for _ in range(2):  # State left over from one step must not reach the next.
            ours.zero_grad()
            with ours.no_sync():
                for part in range(parts - 1):
                    ours(odd_input(processes.rank, part), processes.rank).backward()
            ours(odd_input(processes.rank, parts - 1), processes.rank).backward()
            ours.finish_gradient_synchronization()
        gradients = {n: p.grad for n, p in module.named_parameters()}
        results[mode] = gradients, module.buffer
    return results


@pytest.mark.parametrize("parts", [1, 3])
def test_ddp_averages_tied_once_and_tolerates_frozen_and_unused(parts: int):
    modules = [Odd(), Odd()]
    for rank, module in enumerate(modules):
        for part in range(parts):
            module(odd_input(rank, part), rank).backward()
    expected = {}
    for (name, one), two in zip(
        modules[0].named_parameters(), modules[1].parameters(), strict=True
    ):
        present = [p.grad for p in (one, two) if p.grad is not None]
        expected[name] = sum(present) / 2 if present else None
    assert expected["unused"] is expected["frozen"] is None
    for result in run_processes(odd_gradients, parts):
        for mode, (gradients, buffer) in result.items():
            assert torch.equal(buffer, modules[0].buffer)
            assert gradients.keys() == expected.keys()
            for name, gradient in gradients.items():
                same = gradient is expected[name] is None or torch.equal(gradient, expected[name])
                assert same, (mode, name)


def accumulate_wrongly(processes: Processes) -> dict[str, str]:
    messages = {}
    for mode in MODES:
        ours = DDP(Odd(), mode)
        ours(odd_input(0), 0).backward()
        try:
            ours(odd_input(0), 0).backward()
            messages[mode] = ""
        except RuntimeError as error:
            messages[mode] = str(error)
        ours.finish_gradient_synchronization()
    return messages


def test_ddp_refuses_a_second_backward_outside_no_sync():
    for messages in run_processes(accumulate_wrongly):
        assert messages["naive"] == messages["flat"] == ""
        for mode in ("overlap", "bucketed"):
            assert "all but the last pass inside no_sync()" in messages[mode]


def wrap_different_models(processes: Processes) -> list[str]:
    messages = []
    for wrapper in (DDP, FSDP):
        try:
            wrapper(nn.Linear(3, 4 + processes.rank))
        except ValueError as error:
            messages.append(str(error))
    return messages


def test_different_models_are_refused_on_every_process():
    for messages in run_processes(wrap_different_models):
        assert messages == ["every process must hold the same model, got different parameters"] * 2


def test_ddp_arguments_are_checked():
    with pytest.raises(ValueError, match="a process group must be started first"):
        DDP(nn.Linear(2, 2))
    for messages in run_processes(wrong_arguments):
        assert messages == [
            "mode must be one of naive, flat, overlap, bucketed, got 'eager'",
            "bucket_mb must be positive, got 0",
        ]


def wrong_arguments(processes: Processes) -> list[str]:
    messages = []
    for options in ({"mode": "eager"}, {"bucket_mb": 0}):
        try:
            DDP(nn.Linear(2, 2), **options)
        except ValueError as error:
            messages.append(str(error))
    return messages


def test_buckets_are_full_in_order_and_of_one_dtype():
    sizes = [(4, torch.float32), (4, torch.float32), (9, torch.float32), (2, torch.float32)]
    sizes += [(2, torch.float64), (1, torch.float64)]
    parameters = [nn.Parameter(torch.zeros(n, dtype=dtype)) for n, dtype in sizes]
    cut = [[p.numel() for p in bucket.parameters] for bucket in _fill_buckets(parameters, 32)]
    assert cut == [[4, 4], [9], [2], [2, 1]]


def parameters_to_shard() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(3)
    shapes = [(7, 5), (3,), (4, 4), (9, 9), (1,), (2, 2)]
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def give_gradients(parameters: list[nn.Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(100 + step)
    for index, parameter in enumerate(parameters):
        gradient = torch.randn(parameter.shape, generator=generator)
        parameter.grad = None if index == 4 and step < 2 else gradient


def step_optimizer(parameters: list[nn.Parameter], make: Callable[..., Any]) -> Any:
    """Five updates; the last two parameters join after two, the learning rate changes."""
    optimizer = make([{"params": parameters[:2], "weight_decay": 0.1}, {"params": parameters[2:4]}])
    for step in range(5):
        if step == 2:
            optimizer.add_param_group({"params": parameters[4:], "lr": 0.5})
        optimizer.param_groups[0]["lr"] = 0.1 / (step + 1)
        give_gradients(parameters, step)
        optimizer.step()
    return optimizer


OPTIMIZERS: list[tuple[Any, dict[str, Any]]] = [
    (AdamW, {"lr": 0.1}),
    (AdamW, {"lr": 0.1, "implementation": "reference"}),
    (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
    (torch.optim.AdamW, {"lr": 0.1, "amsgrad": True}),
]


def shard_optimizers(processes: Processes) -> list[Any]:
    results = []
    for cls, options in OPTIMIZERS:
        parameters = parameters_to_shard()
        make = lambda groups, c=cls, o=options: ShardedOptimizer(groups, c, **o)  # noqa: E731
        optimizer = step_optimizer(parameters, make)
        n_own = sum(p.numel() for p in optimizer.state)
        owned = [optimizer.owner(p) for p in parameters]
        # As in torch, a state dict refers to the state itself.
        state = copy.deepcopy(optimizer.consolidated_state_dict())
        assert sum(p.numel() for p in optimizer.state) == n_own  # What came has gone again.
        # A fresh one goes on where that one stood.
        again = parameters_to_shard()
        for new, old in zip(again, parameters, strict=True):
            new.data.copy_(old.data)
        groups = [{"params": again[:2]}, {"params": again[2:4]}, {"params": again[4:]}]
        restored = ShardedOptimizer(groups, cls, **options)
        states = [copy.deepcopy(state)]
        dist.broadcast_object_list(states, src=0)
        restored.load_state_dict(states[0])
        assert sum(p.numel() for p in restored.state) <= n_own
        for own, chosen in ((parameters, optimizer), (again, restored)):
            give_gradients(own, 5)
            chosen.step()
        same = all(torch.equal(a, b) for a, b in zip(parameters, again, strict=True))
        results.append(([p.detach() for p in parameters], owned, n_own, state, same))
    return results


def test_sharded_optimizer_is_the_plain_one_to_the_last_bit():
    results = run_processes(shard_optimizers)
    for number, (cls, options) in enumerate(OPTIMIZERS):
        parameters = parameters_to_shard()
        plain = step_optimizer(parameters, lambda groups, c=cls, o=options: c(groups, **o))
        state = copy.deepcopy(plain.state_dict())
        give_gradients(parameters, 5)
        plain.step()
        for rank, result in enumerate(results):
            weights, owned, n_own, own_state, restored_alike = result[number]
            assert all(torch.equal(a, b) for a, b in zip(weights, parameters, strict=True))
            # 81, then 35 + 16 + 3, then the late 4 and 1.
            assert owned == [1, 1, 1, 0, 1, 1]
            assert n_own == (81 if rank == 0 else 59)
            assert restored_alike
            if rank == 0:
                assert own_state["param_groups"] == state["param_groups"]
                torch.testing.assert_close(own_state["state"], state["state"], rtol=0, atol=0)
            else:
                assert own_state is None


def look_into_fsdp(processes: Processes) -> dict[str, Any]:
    model = build(torch.float32)
    wrapped = FSDP(model)
    rows = {name: tuple(p.shape) for name, p in model.named_parameters()}
    gathered = []  # Elements gathered at once, whenever a part of the model has run.

    def count(*_: Any) -> None:
        shards = wrapped._shards.values()
        gathered.append(sum(s._storage.nbytes() > 0 for s in shards))

    for part in model.modules():
        if isinstance(part, nn.Module) and any(True for _ in part.parameters(recurse=False)):
            part.register_forward_hook(count)
            part.register_full_backward_hook(count)
    for _ in range(2):  # The order of the first pass serves the second.
        part = batch(0)[processes.share_of(4)]
        cross_entropy(wrapped(part[:, :-1]), part[:, 1:]).backward()
        wrapped.finish_gradient_synchronization()
    left = sum(s._storage.nbytes() for s in wrapped._shards.values())
    attributes = [n for m in model.modules() for n in m.__dict__ if n == "weight"]
    half = FSDP(build(torch.float32), compute_dtype=torch.bfloat16)
    logits = half(part[:, :-1])
    cross_entropy(logits, part[:, 1:]).backward()
    half.finish_gradient_synchronization()
    dtypes = {p.dtype for p in half.parameters()} | {p.grad.dtype for p in half.parameters()}
    return {
        "rows": rows,
        "most": max(gathered),
        "left": left,
        "attributes": attributes,
        "logits": str(logits.dtype),
        "dtypes": sorted(map(str, dtypes)),
        "mean_logits": logits.float().mean().item(),
    }


def test_fsdp_holds_rows_and_two_matrices_at_a_time():
    first, second = run_processes(look_into_fsdp)
    assert first["rows"]["lm_head.weight"] == (17, 16)
    assert second["rows"]["lm_head.weight"] == (16, 16)
    assert first["rows"]["ln_final.weight"] == second["rows"]["ln_final.weight"] == (16,)
    for result in (first, second):
        assert result["most"] <= 2
        assert result["left"] == 0
        assert result["attributes"] == []
        assert result["logits"] == "torch.bfloat16"
        assert result["dtypes"] == ["torch.float32"]


SWITCHES: dict[str, Any] = {
    "tied_head": True,
    "value_embeddings": True,
    "x0_scalars": True,
    "residual_scalars": True,
    "qk_norm": "rms-gain",
    "biases": True,
    "n_kv_heads": 1,
    "norm_position": "peri",
    "parametrisation": "completep",
    "base_d_model": 8,
    "base_n_layers": 1,
}


def build_tied(switches: dict[str, Any]) -> Transformer:
    """A model whose head is its embedding, by the switch or by sharing it between modules."""
    config = replace(CONFIG, n_layers=3, **switches)
    generator = torch.Generator().manual_seed(0)
    model = Transformer(config, recompute_blocks=2, generator=generator, dtype=torch.float64)
    if not config.tied_head:
        model.lm_head.weight = model.token_embeddings.weight
    return model


def accumulate_with_fsdp(processes: Processes, switches: dict[str, Any]) -> Any:
    """Gradients of a tied model over two passes, with activations recomputed, and logits."""
    model = build_tied(switches)
    wrapped = FSDP(model)
    for part in batch(0)[processes.share_of(4)].chunk(2):
        with wrapped.no_sync():
            (cross_entropy(wrapped(part[:, :-1]), part[:, 1:]) / 2).backward()
    wrapped.finish_gradient_synchronization()
    shards = wrapped._shards
    gradients = {
        name: shards[p].gather(p.grad) if p in shards else p.grad
        for name, p in model.named_parameters()
    }
    return gradients, read_in_parts(model)


@torch.no_grad()
def read_in_parts(model: Transformer) -> torch.Tensor:
    """The logits after a text that is read in three parts, keys and values being kept."""
    cache = KeyValueCache(model.config)
    ids = batch(1)[:, :-1]
    return [model(part, cache=cache, last_only=True) for part in ids.split([4, 1, 3], dim=1)][-1]


@pytest.mark.parametrize("switches", [{}, SWITCHES], ids=["shared", "switches"])
def test_fsdp_accumulates_ties_recomputes_and_reads_with_a_cache(switches: dict[str, Any]):
    model = build_tied(switches)
    whole = batch(0)
    cross_entropy(model(whole[:, :-1]), whole[:, 1:]).backward()
    expected = {name: p.grad for name, p in model.named_parameters()}
    logits = model(batch(1)[:, :-1])[:, -1:]
    for gradients, read in run_processes(accumulate_with_fsdp, switches):
        assert largest_difference(gradients, expected) < 1e-12
        torch.testing.assert_close(read, logits, rtol=0, atol=1e-12)


def unshard(processes: Processes) -> Any:
    model = build(torch.float64)
    optimizer = optimizer_of(model)
    plain = build(torch.float64)
    plain_optimizer = optimizer_of(plain)
    whole = batch(0)
    cross_entropy(plain(whole[:, :-1]), whole[:, 1:]).backward()
    plain_optimizer.step()
    # State that was there before the cut, as after a resumption.
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        p.data.copy_(q.data)
        optimizer.state[p] = {k: v.clone() for k, v in plain_optimizer.state[q].items()}
    wrapped = FSDP(model)
    wrapped.shard_optimizer(optimizer)
    part = batch(1)[processes.share_of(4)]
    cross_entropy(wrapped(part[:, :-1]), part[:, 1:]).backward()
    wrapped.finish_gradient_synchronization()
    optimizer.step()
    before = [p.data.clone() for p in model.parameters()]
    with wrapped.unsharded(optimizer):
        seen = {n: p.detach().clone() for n, p in model.named_parameters()}
        moments = {n: optimizer.state[p]["exp_avg"] for n, p in model.named_parameters()}
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
    assert all(optimizer.state[p]["exp_avg"].shape == p.shape for p in model.parameters())
    return seen, moments


def test_fsdp_restores_and_unshards_on_the_first_process():
    model = build(torch.float64)
    optimizer = optimizer_of(model)
    for step in range(2):
        whole = batch(step)
        optimizer.zero_grad()
        cross_entropy(model(whole[:, :-1]), whole[:, 1:]).backward()
        optimizer.step()
    (seen, moments), (others, _) = run_processes(unshard)
    assert largest_difference(seen, {n: p.detach() for n, p in model.named_parameters()}) < 1e-12
    expected = {n: optimizer.state[p]["exp_avg"] for n, p in model.named_parameters()}
    assert largest_difference(moments, expected) < 1e-12
    assert others["lm_head.weight"].shape == (16, 16)


def agree(processes: Processes) -> Any:
    order = []
    processes.in_turn(lambda: order.append(processes.rank))
    mean = processes.mean(torch.tensor(float(processes.rank)))
    total = processes.total(torch.tensor(processes.rank + 1)).item()
    parts = [(part.start, part.stop) for part in map(processes.part_of, (0, 1, 3))]
    largest, start = processes.largest(processes.rank * 7), processes.share_of(6).start
    return largest, mean.item(), total, start, parts, order


def test_processes_agree():
    assert run_processes(agree) == [
        (7, 0.5, 3, 0, [(0, 0), (0, 0), (0, 1)], [0]),
        (7, 0.5, 3, 3, [(0, 0), (0, 1), (1, 3)], [1]),
    ]


def test_process_alone_needs_no_group(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("RANK", raising=False)
    with start_processes(torch.device("cpu")) as processes:
        assert processes.is_first
        assert processes.share_of(3) == slice(0, 3)
        assert processes.largest(5) == 5
    assert not dist.is_initialized()


def test_share_must_be_even():
    processes = Processes(rank=0, world_size=2, device=torch.device("cpu"))
    with pytest.raises(ValueError, match="batch_size must be a multiple of the 2 processes, got 3"):
        processes.share_of(3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"MASTER_PORT": None}, "MASTER_PORT is missing"),
        ({"RANK": "2"}, "RANK must be below WORLD_SIZE 2, got 2"),
        ({"LOCAL_RANK": "-1"}, "LOCAL_RANK must be a whole number from 0 up, got '-1'"),
    ],
)
def test_environment_that_cannot_be_is_refused(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, str | None], message: str
):
    whole = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}
    whole |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in (whole | changes).items():
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        read_environment()


def lose_the_first() -> str:
    try:
        with start_processes(torch.device("cpu")) as processes:
            processes.largest(0)  # Both are there.
            if processes.is_first:
                os._exit(0)
            processes.largest(1)
    except ConnectionError as error:
        return str(error)
    return ""


def test_lost_process_is_one_clear_line(tmp_path: Path):
    assert join_all(start_each(lose_the_first, n=2, folder=tmp_path)) == [0, 0]
    message = torch.load(tmp_path / "1")
    assert message.startswith("process 1 lost another one, whose own message says why (")
    assert "\n" not in message
    assert ".cc" not in message


@pytest.fixture
def fake_rank() -> Iterator[Callable[[int], None]]:
    """`fake_rank(r)`: this process is number r of eight, whose messages go nowhere."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    def begin(rank: int) -> None:
        if dist.is_initialized():
            dist.destroy_process_group()
        dist.init_process_group("fake", rank=rank, world_size=8, store=FakeStore())

    yield begin
    dist.destroy_process_group()


def test_layouts_of_eight_processes(fake_rank: Callable[[int], None]):
    owners, rows = [], []
    for rank in range(8):
        fake_rank(rank)
        sharded = ShardedOptimizer(build(torch.float32).parameters(), AdamW)
        every = [p for group in sharded.param_groups for p in group["params"]]
        owners.append([sharded.owner(p) for p in every])
        loads = [sum(p.numel() for p in every if sharded.owner(p) == r) for r in range(8)]
        # A greedy division is at most the largest tensor away from an even one.
        assert max(loads) - min(loads) <= 33 * 16
        rows.append([len(p) for p in FSDP(nn.Linear(3, 10, bias=False)).parameters()])
    assert all(owner == owners[0] for owner in owners)
    assert rows == [[2]] * 5 + [[0]] * 3
