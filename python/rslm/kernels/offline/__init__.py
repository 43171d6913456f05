"""What the attention kernels compile to, found out without a GPU: `python -m rslm.kernels.offline`.

`binaries` compiles and reads what came out (`machine_code` finds the loop that counts), `targets`
and `roofline` know the architectures, `gate` says what must hold, `sweep` which configurations
are worth timing, `report` prints.
"""

from rslm.kernels.offline.sweep import approved, candidates

__all__ = ["approved", "candidates"]
