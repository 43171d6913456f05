"""Instructions of a compiled kernel as text, and the loop in which it spends its time."""

import re
from collections.abc import Iterable
from typing import NamedTuple

_LABEL = re.compile(r"^(\.L\w+):")
# `/*0790*/  @!P0 BRA `(.L_x_0) ;` of nvdisasm, and `s_cbranch_scc1 .LBB0_5` of LLVM.
_INSTRUCTION = re.compile(r"^\s+(?:/\*[0-9a-f]+\*/\s+)?(?:@!?\w+\s+)?([A-Za-z][\w.]*)(.*)")
_BRANCH = re.compile(r"BRA|s_c?branch")
_TARGET = re.compile(r"(\.L\w+)")
_END = re.compile(r"EXIT|s_endpgm")

PRODUCT = re.compile(r"[HQ]MMA|[HQ]GMMA|UTC\w*MMA|v_mfma")
"""Matrix products of tensor cores: warp, warpgroup, tensor memory; AMD's."""
FUSED = re.compile(r"FFMA|v_(?:pk_)?fmac?_f32")
"""What multiplies matrices of float32."""
EXP2 = re.compile(r"MUFU\.EX2|v_exp_f32")
LOCAL_MEMORY = re.compile(r"LDL|STL|scratch_(?:load|store)")
"""What a spilled register is written and read with."""


class Instruction(NamedTuple):
    """An opcode, and the place that it branches to."""

    opcode: str
    target: int | None


def parse(text: str) -> list[Instruction]:
    """The instructions of `nvdisasm -c` or of AMD's assembly, in the order of their addresses."""
    places: dict[str, int] = {}
    found: list[tuple[str, str | None]] = []
    for line in text.splitlines():
        if label := _LABEL.match(line):
            places[label[1]] = len(found)
        elif (match := _INSTRUCTION.match(line)) and not match[1].startswith("."):
            target = _TARGET.search(match[2]) if _BRANCH.match(match[1]) else None
            found.append((match[1], target and target[1]))
    return [Instruction(opcode, places.get(label or "")) for opcode, label in found]


def count(code: Iterable[Instruction], kind: re.Pattern[str]) -> int:
    """How many of the instructions are of a kind."""
    return sum(kind.match(instruction.opcode) is not None for instruction in code)


def hot_loop(code: list[Instruction], product: re.Pattern[str] = PRODUCT) -> list[Instruction]:
    """The innermost loop with most products, of those with equally many the shortest.

    Kernels have a loop over tiles that need no mask and others, longer by the comparisons, over
    those that do. Empty where no loop multiplies.
    """
    ends = [i for i, instruction in enumerate(code) if _END.match(instruction.opcode)]
    # Behind the last exit lie only the waits that were not over at once. They jump back to where
    # they came from: no loops.
    body = code[: ends[-1] + 1] if ends else code
    ranges = [
        (instruction.target, i + 1)
        for i, instruction in enumerate(body)
        if instruction.target is not None and instruction.target <= i
    ]
    multiplying = {
        (start, stop): n for start, stop in ranges if (n := count(body[start:stop], product)) > 0
    }
    innermost = [
        (n, start - stop, start, stop)
        for (start, stop), n in multiplying.items()
        if not any((start, stop) != (a, b) and start <= a and b <= stop for a, b in multiplying)
    ]
    if not innermost:
        return []
    _, _, start, stop = max(innermost)
    return body[start:stop]
