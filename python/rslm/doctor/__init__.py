"""Whether a run would work here: every part of the machine that it needs, used once.

Importing a kernel is not running it, and a folder that exists is not one that takes a file: each
check does in small what the run would do.
"""

from rslm.doctor.attention import check_attention
from rslm.doctor.check import Check, guarded
from rslm.doctor.checkpoints import check_checkpoints
from rslm.doctor.machine import (
    check_device,
    check_disk,
    check_matmul,
    check_memory,
    check_versions,
)
from rslm.doctor.processes import check_agreement, check_two_processes
from rslm.doctor.token_files import check_token_files

__all__ = [
    "Check",
    "check_agreement",
    "check_attention",
    "check_checkpoints",
    "check_device",
    "check_disk",
    "check_matmul",
    "check_memory",
    "check_token_files",
    "check_two_processes",
    "check_versions",
    "guarded",
]
