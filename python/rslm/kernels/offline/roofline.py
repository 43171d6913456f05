"""How many programs fit a multiprocessor, and how fast they can be at most."""

from dataclasses import dataclass

from rslm.kernels.offline.binaries import Binary
from rslm.kernels.offline.targets import Target

_REGISTERS = 65536
_QUARTERS = 4
_REGISTER_UNIT = 256
"""Registers are given to a warp in this many at a time."""
_RESERVED_BYTES = 1024
"""Shared memory of a program that the driver keeps for itself."""
_TENSOR_COLUMNS = 512
_EXP2_PER_CLOCK = 16
_L2_BYTES_PER_CLOCK = 64

PRODUCTS = {"forward_kernel": 2, "key_gradients_kernel": 4, "query_gradients_kernel": 3}
"""Matrix products of a pair of tiles, by the kernel's name."""


def programs_at_home(binary: Binary, target: Target) -> int:
    """Programs of this kernel that a multiprocessor holds at a time; 0 where not even one fits."""
    if target.is_amd:
        assert binary.amd_waves is not None
        by_registers = _QUARTERS * binary.amd_waves // binary.n_warps
        by_shared = target.shared_bytes // max(1, binary.shared_bytes)
        return min(by_registers, by_shared, target.n_warps // binary.n_warps)
    per_warp = -(-32 * binary.n_registers // _REGISTER_UNIT) * _REGISTER_UNIT
    # A warp's registers are all in its quarter of the multiprocessor.
    by_registers = _REGISTERS // _QUARTERS // per_warp * _QUARTERS // binary.n_warps
    by_shared = target.shared_bytes // (binary.shared_bytes + _RESERVED_BYTES)
    by_tensor_memory = _TENSOR_COLUMNS // max(1, binary.tensor_columns)
    return min(by_registers, by_shared, by_tensor_memory, target.n_warps // binary.n_warps)


@dataclass(frozen=True, kw_only=True)
class Roofline:
    """Bounds of speed, in clocks of a multiprocessor for a pair of tiles, and what sets the upper.

    Attributes:
        products: what all matrix products of the kernel take at the peak rate.
        clocks: at least; `products / clocks` of the peak is the upper bound.
        serial_clocks: where nothing overlaps: products, then everything else.
        bound: "products", "exponentials", "issue", "L2", or "latency" where too few warps are at
            home to overlap products with the rest.
    """

    products: float
    clocks: float
    serial_clocks: float
    bound: str

    @property
    def share(self) -> float:
        """Of the peak of matrix products, at most."""
        return self.products / self.clocks

    @property
    def serial_share(self) -> float:
        """Of the peak, where nothing overlaps."""
        return self.products / self.serial_clocks


def roofline(
    binary: Binary, target: Target, kernel: str, tile_queries: int, tile_keys: int, width: int
) -> Roofline | None:
    """The bound for a kernel with a loop, of two-byte numbers; None for others, and with AMD.

    In clocks of a turn: products at the peak rate, 16 exponentials per clock, an instruction per
    clock and quarter, 64 bytes per clock from L2 for the two tiles that are read. Warpgroups take
    turns, so that one multiplies while another does the rest; with a single one there is no other.
    Measured kernels reach 0.7 to 0.8 of it, and those it ranks equal differ: it sorts out, the
    clock decides.
    """
    n_programs = programs_at_home(binary, target)
    if target.is_amd or kernel not in PRODUCTS or binary.product == "none" or not n_programs:
        return None
    flops = 2 * tile_queries * tile_keys * width * PRODUCTS[kernel]
    read = tile_queries if kernel == "key_gradients_kernel" else tile_keys
    products = flops / target.flops_per_clock
    exponentials = binary.loop_exp2 * 32 * binary.n_warps / _EXP2_PER_CLOCK
    issue = binary.loop_instructions * binary.n_warps / _QUARTERS
    serial = products + max(exponentials, issue)
    n_warpgroups = max(1.0, n_programs * binary.n_warps / 4)
    bounds = {
        "products": products,
        "exponentials": exponentials,
        "issue": issue,
        "L2": 2 * 2 * read * width / _L2_BYTES_PER_CLOCK,
        "latency": serial / n_warpgroups,
    }
    bound = max(bounds, key=lambda name: bounds[name])
    return Roofline(products=products, clocks=bounds[bound], serial_clocks=serial, bound=bound)
