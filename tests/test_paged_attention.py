"""Paged attention as far as no kernel has to run, and the tests that interpret the kernel."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_flash_attention import assert_specialised
from test_model_switches import PLAIN, SWITCHES
from test_runner import made, model_of
from torch import Tensor
from torch._subclasses import fake_tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

pytest.importorskip("triton")

from rslm import attention
from rslm.infer import runner as runner_module
from rslm.infer.runner import Runner, StepBatch
from rslm.kernels.flash_launch import Compilation
from rslm.kernels.launch_configs import paged_config
from rslm.kernels.paged_attention import (
    block_tables,
    paged_attention,
    paged_compilation,
    paged_launch,
)
from rslm.model import Transformer

HERE = Path(__file__).parent
CPU = torch.device("cpu")


def interpret(*arguments: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--timeout=1200"]
    finished = subprocess.run(
        [*command, str(HERE / "interpreted_paged_attention.py"), *arguments],
        cwd=HERE.parent,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert finished.returncode == 0, finished.stdout[-20_000:]


# Ten seconds of one core, half of them to load torch and Triton.
@pytest.mark.timeout(900)
def test_kernel_equals_formula_in_the_interpreter():
    interpret()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_kernel_equals_formula_on_drawn_steps_in_the_interpreter():
    interpret("-m", "slow")


def test_step_is_cut_into_tiles_of_one_sequence():
    step = block_tables(
        [*range(5), 40, *range(17, 19)],
        [5, 1, 0, 2],
        [[7], [1, 2, 3], [], [4, 5, 6, 8]],
        block_size=16,
        tile_queries=2,
        device=CPU,
    )
    assert step.tiles.tolist() == [
        *[[0, 0, 2, 0], [0, 2, 2, 2], [0, 4, 1, 4]],
        *[[1, 5, 1, 40], [3, 6, 2, 17]],
    ]
    # Sixteen keys and a few more: blocks that the step does not reach are left out.
    assert step.tables.tolist() == [[7, 0, 0], [1, 2, 3], [0, 0, 0], [4, 5, 0]]


def test_step_has_two_of_everything_at_least():
    step = block_tables([3], [1], [[9]], block_size=4, tile_queries=8, device=CPU)
    assert step.tiles.tolist() == [[0, 0, 1, 3], [0, 0, 0, 0]]
    assert step.tables.tolist() == [[9, 0], [0, 0]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, "Triton needs a GPU"),
        ({"values": torch.zeros(4, 8, 1, 32)}, "n_kv_heads a divisor of n_heads"),
        ({"q": torch.zeros(2, 3, 32)}, "n_kv_heads a divisor of n_heads"),
        ({"q": torch.zeros(2, 3, 16).double()}, r"q must be float32, .* got torch\.float64"),
        ({"values": torch.zeros(4, 8, 1, 16).int()}, "values must be float32"),
        ({"keys": torch.zeros(4, 8, 1, 16, device="meta")}, "one device, got cpu and meta"),
    ],
)
def test_wrong_arguments_are_refused(change: dict[str, Any], message: str):
    pool = torch.zeros(4, 8, 1, 16)
    step = block_tables([0, 1, 2], [3], [[0]], block_size=8, tile_queries=8, device=CPU)
    arguments = {"q": torch.zeros(2, 3, 16), "keys": pool, "values": pool, "step": step}
    with pytest.raises(ValueError, match=message):
        paged_attention(**{**arguments, **change})


def test_configuration_depends_on_the_model_alone():
    for group in (1, 3, 16, 17, 64):
        config = paged_config(128, torch.bfloat16, group)
        assert config.tile_queries >= max(16, group)
        assert config.tile_queries & (config.tile_queries - 1) == 0


def test_a_step_that_leads_outside_the_pool_is_refused_before_the_device_sees_it():
    runner = Runner(model_of("plain").double(), n_blocks=2, block_size=4)
    for batch, message in (
        (StepBatch([1], [4], [1], [[0]], [0]), "must have room for position 4, got 1 blocks of 4"),
        (StepBatch([1], [-1], [1], [[0]], [0]), "must have room for position -1"),
        (StepBatch([1], [0], [1], [[2]], [0]), "a block must be below 2, got 2"),
        (StepBatch([1], [0], [1], [[-1]], [0]), "a block must be below 2, got -1"),
        (StepBatch([1, 1], [0, 2], [2], [[0]], [0]), "must follow one another"),
        (StepBatch([1], [0], [2], [[0]], [0]), "lengths must add up to 1 positions"),
        (StepBatch([1], [0], [1], [[0], [1]], [0]), "lengths must add up to 1 positions of 2"),
    ):
        with pytest.raises(ValueError, match=message):
            runner.forward(batch)


@pytest.mark.parametrize(
    ("device", "dtype", "d_head", "reads"),
    [
        ("cuda", torch.bfloat16, 128, True),
        ("cuda:1", torch.float32, 256, True),
        ("cuda", torch.float64, 64, False),
        ("cuda", torch.float16, 257, False),
        ("cpu", torch.bfloat16, 64, False),
        ("mps", torch.float16, 64, False),
    ],
)
def test_blocks_are_read_in_place_where_triton_can(device, dtype, d_head, reads, monkeypatch):
    assert attention.reads_blocks(torch.device(device), dtype, d_head) == reads
    monkeypatch.setattr(attention, "_HAS_TRITON", False)
    assert not attention.reads_blocks(torch.device(device), dtype, d_head)


class Devices(TorchDispatchMode):
    """What operations run, and of which kinds of device their tensors are."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[tuple[str, frozenset[str]]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, Tensor)]
        kinds = frozenset(x.device.type for x in tensors if x.ndim)
        self.found.add((func.overloadpacket.__name__, kinds))
        return result


@pytest.fixture
def numberless(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tensors have shapes, dtypes and devices, and no numbers, so that a GPU need not be there."""
    # A tensor of one element would be kept with its number, and brought to the GPU.
    monkeypatch.setattr(fake_tensor, "CONSTANT_NUMEL_LIMIT", 0)
    with fake_tensor.FakeTensorMode():
        yield


def on_cuda(model: Transformer) -> Transformer:
    """The model with tensors that say they were on a GPU, and hold nothing."""
    for module in model.modules():
        for name, x in module._parameters.items():
            if x is not None:
                room = torch.empty(x.shape, dtype=x.dtype, device="cuda:0")
                module._parameters[name] = torch.nn.Parameter(room)
        for name, x in module._buffers.items():
            if x is not None:
                module._buffers[name] = torch.empty(x.shape, dtype=x.dtype, device="cuda:0")
    return model


@pytest.mark.parametrize(
    ("dtype", "reading"), [(torch.bfloat16, "triton"), (torch.float64, "gather")]
)
@pytest.mark.parametrize("name", ["everything", "grouped-heads"])
def test_every_tensor_of_a_step_is_on_the_gpu(
    name: str, dtype: torch.dtype, reading: str, numberless: None
):
    """Those of another device would be refused here as there, but for indices, which are not."""
    with fake_tensor.unset_fake_temporarily():
        model = made(replace(PLAIN, **SWITCHES[name])).to(dtype)
    runner = Runner(on_cuda(model), n_blocks=8, block_size=4)
    assert runner.cache.reading == reading
    with Devices() as devices:
        for rows in ([2, 4], [0, 1, 2, 3, 4], [3]):
            logits = runner.forward(
                StepBatch([3, 3, 3, 1, 2], [0, 1, 2, 6, 7], [3, 2], [[0], [2, 1]], rows)
            )
            assert (logits.shape[0], logits.device.type) == (len(rows), "cuda")
            assert logits.dtype == torch.float32
    names = {name for name, _ in devices.found}
    assert ("paged_attention" in names) == (reading == "triton")
    # Lists of the step become tensors on the host, and go over in one way.
    elsewhere = {name for name, kinds in devices.found if "cpu" in kinds}
    assert elsewhere <= {"lift_fresh", "to", "_to_copy", "device"}


# Three compilations take some seconds. In a process of its own, as the checks of shapes that run
# under pytest would break the graphs.
@pytest.mark.slow
def test_compiled_steps_share_three_graphs():
    command = [sys.executable, str(HERE / "compiled_paged_steps.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) <= 3


def test_compile_is_refused_where_keys_would_be_gathered(numberless: None):
    with fake_tensor.unset_fake_temporarily():
        model = made(PLAIN).double()
    with pytest.raises(ValueError, match=r"compile needs Triton, .* got torch\.float64 and"):
        Runner(on_cuda(model), n_blocks=4, block_size=4, compile=True)


def test_compiled_runner_marks_what_changes(monkeypatch: pytest.MonkeyPatch, numberless: None):
    marked = []
    monkeypatch.setattr(runner_module, "_mark_ragged", lambda *tensors: marked.append(tensors))
    with fake_tensor.unset_fake_temporarily():
        model = made(PLAIN).bfloat16()
    runner = Runner(on_cuda(model), n_blocks=4, block_size=4, compile=True)
    runner._hidden_states = runner.network.hidden_states
    runner.forward(StepBatch([1], [0], [1], [[0]], [0]))
    assert [len(tensors) for tensors in marked] == [2]


@pytest.mark.parametrize("window", [None, 9])
def test_compilation_is_the_specialisation_of_the_launch(window: int | None):
    made_for: Compilation = paged_compilation(
        64, torch.bfloat16, group=4, block_size=32, window=window
    )
    names = made_for.kernel.arg_names
    value = {names[place[0]]: x for place, x in made_for.constants.items()}
    assert (value["GROUP"], value["BLOCK"], value["HAS_WINDOW"]) == (4, 32, window is not None)
    assert made_for.signature["Q"] == "*bf16"
    assert made_for.signature["Tables"] == "*i32"
    # What changes from step to step is no reason to compile anew.
    for name in ("table_stride", "window", "n_kv_heads"):
        assert made_for.signature[name] == "i32"
        assert (names.index(name),) not in made_for.attributes


@pytest.mark.parametrize("group", [1, 3])
def test_launches_are_compiled_as_the_gate_compiles(group: int):
    q, out = (torch.empty(5, 2 * group, 48).half().transpose(0, 1) for _ in range(2))
    pool = torch.empty(2, 4, 8, 2, 48).half()
    tiles, tables = (torch.zeros(2, n, dtype=torch.int32) for n in (4, 3))
    config = paged_config(48, q.dtype, group)
    assert_specialised(paged_launch(q, *pool, out, tiles, tables, 7, 0.1, config))
