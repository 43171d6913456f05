import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime.jit import native_specialize_impl

from rslm.kernels.flash_attention import flash_attention
from rslm.kernels.flash_launch import Launch, Problem, compilation, compilations, forward_launch
from rslm.kernels.launch_configs import FlashConfig, LaunchConfig, flash_config, padded_width

HERE = Path(__file__).parent


# Some three minutes of one core, and the machines that tests run on are shared.
@pytest.mark.timeout(1800)
def test_kernels_equal_formula_in_the_interpreter():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--timeout=1200"]
    finished = subprocess.run(
        [*command, str(HERE / "interpreted_flash_attention.py")],
        cwd=HERE.parent,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert finished.returncode == 0, finished.stdout[-20_000:]


def qkv(heads: tuple[int, int] = (2, 1), d_head: int = 16) -> list[torch.Tensor]:
    return [torch.zeros(1, n, 4, d_head) for n in (heads[0], heads[1], heads[1])]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, "needs a GPU"),
        ({"k": torch.zeros(1, 1, 4, 16).half()}, "one dtype and one device"),
        ({"k": torch.zeros(1, 1, 4, 32)}, "n_kv_heads a divisor of n_heads"),
        ({"start": torch.zeros(1, 4, dtype=torch.int32), "causal": False}, "causal=True"),
        ({"scale": 0.0}, "must be positive, got 0.0"),
        ({"softcap": -1.0}, "must be positive"),
    ],
)
def test_wrong_arguments_are_refused(change: dict, message: str):
    q, k, v = qkv()
    arguments = {"q": q, "k": k, "v": v, "start": None, "causal": True, "scale": 1.0}
    with pytest.raises(ValueError, match=message):
        flash_attention(**{**arguments, "softcap": None, **change})


def test_unknown_dtypes_and_wide_heads_are_refused():
    options = {"causal": True, "scale": 1.0, "softcap": None}
    with pytest.raises(ValueError, match=r"bfloat16, got torch\.float64"):
        flash_attention(*(x.double() for x in qkv()), None, **options)
    with pytest.raises(ValueError, match=r"1\.\.256, got 264"):
        flash_attention(*qkv(d_head=264), None, **options)
    with pytest.raises(ValueError, match="divisor"):
        flash_attention(*qkv(heads=(3, 2)), None, **options)


def test_config_survives_as_numbers():
    part = LaunchConfig(128, 64, 4, 3, True)
    config = FlashConfig(part, LaunchConfig(64, 32, 8, 2), part)
    assert FlashConfig.from_numbers(config.numbers()) == config


def test_unknown_architecture_takes_the_row_of_the_one_before():
    for arch, known in (("86", "80"), ("103", "100"), ("gfx950", "gfx942"), ("75", "80")):
        assert flash_config(arch, 64, torch.float16) == flash_config(known, 64, torch.float16)


def test_first_keys_take_the_forward_kernel_that_does_not_spill_with_them():
    plain, own = (flash_config("80", 96, torch.bfloat16, has_start=has) for has in (False, True))
    assert own == replace(plain, forward=LaunchConfig(128, 32, 8, 3))
    plain, own = (flash_config("90", 96, torch.bfloat16, has_start=has) for has in (False, True))
    assert own == plain


def test_capped_scores_take_the_key_gradients_that_do_not_spill_with_them():
    plain, own = (flash_config("90", 96, torch.float16, has_softcap=has) for has in (False, True))
    assert own == replace(plain, key_gradients=LaunchConfig(32, 128, 8, 2, True))


@pytest.mark.parametrize(("width", "padded"), [(1, 16), (16, 16), (48, 64), (96, 128), (256, 256)])
def test_padded_width_is_a_power_of_two(width: int, padded: int):
    assert padded_width(width) == padded


@pytest.mark.parametrize("arch", ["80", "90", "100", "gfx942"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_compilations_name_every_kernel(arch: str, dtype: torch.dtype):
    found = compilations(arch, 64, dtype, has_start=True, group=2)
    assert list(found) == [
        "forward_kernel",
        "row_terms_kernel",
        "key_gradients_kernel",
        "query_gradients_kernel",
    ]
    uses_descriptors = arch in ("90", "100") and dtype == torch.bfloat16
    assert ("tensordesc" in found["forward_kernel"].signature["Q"]) == uses_descriptors


@pytest.mark.parametrize("use_descriptors", [False, True])
@pytest.mark.parametrize("group", [1, 2])
def test_compilation_is_what_triton_would_specialise_for(use_descriptors: bool, group: int):
    q = torch.empty(1, 4, 64, 48, dtype=torch.float16)
    k = torch.empty(1, 64, 4 // group, 48, dtype=torch.float16).transpose(1, 2)
    problem = Problem(q, k, k, torch.empty(1, 64, dtype=torch.int32), True, 0, 0.5, None)
    config = LaunchConfig(64, 64, 4, 1, use_descriptors)
    assert_specialised(forward_launch(problem, torch.empty_like(q), torch.empty(1, 4, 64), config))


def assert_specialised(launch: Launch) -> None:
    """Triton works its specialisation out in private code at a launch, which needs a GPU."""
    found = compilation(launch)
    backend = make_backend(GPUTarget("cuda", 90, 32))
    attributes = {}
    for place, parameter in enumerate(launch.kernel.params):
        value = launch.arguments[parameter.name]
        if parameter.is_constexpr:
            assert found.signature[parameter.name] == "constexpr"
            assert found.constants[(place,)] == value
            continue
        specialise = not parameter.do_not_specialize
        kind, key = native_specialize_impl(backend, value, False, specialise, specialise)
        assert found.signature[parameter.name] == kind, parameter.name
        keys = {(place, i): part for i, part in enumerate(key)} if isinstance(key, tuple) else {}
        attributes |= keys or {(place,): key}
    aligned = {place for place, key in attributes.items() if key == "D"}
    assert found.attributes.keys() == aligned
