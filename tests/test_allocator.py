"""Memory that is kept costs no page faults the second time, and is given back at the end."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource
from pathlib import Path

from rslm.allocator import keep_freed_memory

SIZE = 64 << 20


def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    bytearray(SIZE)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


plain = [faults(), faults()]
with keep_freed_memory():
    kept = [faults(), faults()]
    held = resident()
print(*plain, *kept, held - resident())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the C library is another")
def test_freed_memory_is_kept_within_the_block_and_given_back_after_it() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    _, again, _, kept_again, given_back = map(int, done.stdout.split())
    if again < 1000:
        pytest.skip("another C library, or pages so large that they cost nothing")
    assert kept_again < again / 100
    assert given_back > 32 << 20
