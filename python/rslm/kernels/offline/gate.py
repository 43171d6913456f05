"""What must hold of every kernel of the launch table on every architecture, and whether it does."""

import contextlib
import io
import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch

from rslm.kernels.flash_launch import Compilation, compilations
from rslm.kernels.launch_configs import FlashConfig, LaunchConfig, flash_config, padded_width
from rslm.kernels.offline.binaries import Binary, compile_kernel
from rslm.kernels.offline.roofline import Roofline, programs_at_home, roofline
from rslm.kernels.offline.targets import KERNELS, Target, find_target
from rslm.kernels.paged_attention import paged_compilation

Dtype = Literal["bfloat16", "float16", "float32"]
MAX_SPILL_BYTES = 64
EXCEPTIONS: dict[tuple[str, int, str], int] = {}
"""(architecture, padded head width, kernel) that may spill more, all of it outside the hot loop."""

_MAX_EXP2 = {"paged": 2.0}
"""Exponentials per score, at most: one, and those that decay a row's sums. With 1.5 for the other
kernels two are a mistake; a tile of 16 keys has as many rows as keys, and each warp decays all."""
_WINDOW = 100
"""Of the kernel that reads blocks, which knows no other first keys."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What to compile: a kernel, by its name in `KERNELS`, and what it is specialised for.

    Attributes:
        config: in place of the launch table's.
    """

    arch: str
    d_head: int
    kernel: str
    dtype: Dtype = "bfloat16"
    causal: bool = True
    has_start: bool = False
    softcap: float | None = None
    group: int = 1
    config: LaunchConfig | None = None

    def compilation(self) -> Compilation:
        """What Triton is given."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        if self.kernel == "paged":
            window = _WINDOW if self.has_start else None
            return paged_compilation(
                self.d_head, dtype, group=self.group, window=window, config=self.config
            )
        config: FlashConfig = flash_config(
            self.arch,
            self.d_head,
            dtype,
            has_start=self.has_start,
            has_softcap=self.softcap is not None,
        )
        if self.config is not None:
            config = replace(config, **{self.kernel: self.config})
        found = compilations(
            self.arch,
            self.d_head,
            dtype,
            causal=self.causal,
            has_start=self.has_start,
            softcap=self.softcap,
            group=self.group,
            config=config,
        )
        return found[KERNELS[self.kernel]]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a subject compiled to, and what of it must not be.

    Attributes:
        failures: a sentence each; none where the gate is passed.
        binary: None where it does not compile.
        tiles: queries and keys of a pair of tiles; keys are 0 for the kernel without a loop.
        programs: at home on a multiprocessor.
        occupancy: share of the warps that a multiprocessor can hold.
        exp2_per_score: exponentials in a turn of the hot loop, by the scores of a pair of tiles.
    """

    subject: Subject
    failures: tuple[str, ...]
    binary: Binary | None = None
    tiles: tuple[int, int] = (0, 0)
    programs: int = 0
    occupancy: float = 0.0
    exp2_per_score: float = 0.0
    roofline: Roofline | None = None

    def record(self) -> dict[str, Any]:
        """Nested plain values, for JSON."""
        return asdict(self)


def examine(subject: Subject) -> Verdict:
    """Compiles one kernel and judges it.

    Raises:
        ValueError: the architecture is none of those known.
    """
    target = find_target(subject.arch)
    compilation = subject.compilation()
    try:
        # Where ptxas fails, Triton prints the whole of what it was given.
        with contextlib.redirect_stdout(io.StringIO()):
            binary = compile_kernel(compilation, target)
    except Exception as error:  # whatever a compiler pass raises is about this kernel
        lines = str(error).splitlines() or [type(error).__name__]
        # Triton's first line is where it is, its last what is wrong.
        what = " ".join(dict.fromkeys((lines[0], lines[-1])))
        return Verdict(subject=subject, failures=(f"does not compile: {what}",))
    queries, keys = (_constant(compilation, name) for name in ("Br", "Bc"))
    programs = programs_at_home(binary, target)
    lanes = 64 if target.is_amd else 32
    verdict = Verdict(
        subject=subject,
        failures=(),
        binary=binary,
        tiles=(queries, keys),
        programs=programs,
        occupancy=programs * binary.n_warps / target.n_warps,
        exp2_per_score=binary.loop_exp2 * lanes * binary.n_warps / max(1, queries * keys),
        roofline=roofline(
            binary, target, KERNELS[subject.kernel], queries, keys, padded_width(subject.d_head)
        ),
    )
    return replace(verdict, failures=tuple(failures(verdict, binary, target)))


def _constant(compilation: Compilation, name: str) -> int:
    names = compilation.kernel.arg_names
    return compilation.constants[(names.index(name),)] if name in names else 0


def failures(verdict: Verdict, binary: Binary, target: Target) -> list[str]:
    """What of it must not be, a sentence each."""
    subject = verdict.subject
    has_loop = subject.kernel != "row_terms"
    is_half = subject.dtype != "float32"
    # Blocks lie where they lie, and sixteen rows are too few for more than a warp's product.
    is_paged = subject.kernel == "paged"
    product = "mma.sync" if is_paged and not target.is_amd else target.product
    needs_tma = target.needs_tma and not is_paged
    key = (subject.arch, padded_width(subject.d_head), subject.kernel)
    may_spill = max(MAX_SPILL_BYTES, EXCEPTIONS.get(key, 0))
    found = []
    if binary.loop_spills:
        found.append(f"{binary.loop_spills} spill instructions in the hot loop")
    if binary.spill_bytes > may_spill:
        found.append(f"{binary.spill_bytes} bytes spilled, at most {may_spill} may be")
    if binary.shared_bytes > target.program_shared_bytes:
        limit = target.program_shared_bytes
        found.append(f"{binary.shared_bytes} bytes of shared memory, a program may have {limit}")
    elif not verdict.programs:
        found.append("not one program fits a multiprocessor")
    if has_loop and not binary.loop_products:
        found.append("no loop with products")
    if has_loop and is_half and binary.product != product:
        found.append(f"multiplies by {binary.product}, not by {product}")
    if has_loop and is_half and needs_tma and not binary.uses_tma:
        found.append("copies no tile by TMA")
    may_have = _MAX_EXP2.get(subject.kernel, 1.5)
    if has_loop and subject.softcap is None and verdict.exp2_per_score > may_have:
        found.append(f"{verdict.exp2_per_score:.2f} exponentials per score")
    return found


def examine_all(
    subjects: Sequence[Subject],
    n_jobs: int | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> list[Verdict]:
    """`examine` of each, in their order, in processes of their own.

    Args:
        n_jobs: processes; one for each core of this machine by default. With 1 it is this one.
        progress: is called with how many are done, of how many, and a label.

    Raises:
        ValueError: an architecture is none of those known.
    """
    n_jobs = min(n_jobs or len(os.sched_getaffinity(0)), len(subjects))
    for subject in subjects:
        find_target(subject.arch)
    if n_jobs <= 1:
        return [examine(subject) for subject in subjects]
    # Forking a process that has loaded torch and triton is far quicker than loading them in each;
    # forking this one would copy what a GPU's driver holds.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(n_jobs, mp_context=context) as pool:
        futures = {pool.submit(examine, subject): subject for subject in subjects}
        for n_done, future in enumerate(as_completed(futures), 1):
            if progress is not None:
                subject = futures[future]
                progress(n_done, len(subjects), f"{subject.kernel} {subject.arch}")
        return [future.result() for future in futures]
