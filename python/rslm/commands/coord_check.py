"""`rslm coord-check`."""

from dataclasses import dataclass
from pathlib import Path

from rslm.architecture import Parametrisation, TransformerConfig
from rslm.terminal import note, print_table


@dataclass(frozen=True, kw_only=True)
class CoordCheckOptions:
    """Show how activations grow with a model's width or depth in each parametrisation.

    One model of each size makes a few updates at one learning rate, on random tokens. The table
    gives the mean size of each activation after them, and the power of the width (or depth) that
    it goes with: 0 where learning rates transfer.
    """

    widths: tuple[int, ...] = (64, 128, 256)
    """Widths to compare; the first is the base."""
    depths: tuple[int, ...] = ()
    """Depths to compare instead, at the first of the widths."""
    parametrisations: tuple[Parametrisation, ...] = ("standard", "mup", "completep")
    """Parametrisations to compare."""
    n_layers: int = 2
    """Blocks, where widths are compared."""
    d_head: int = 16
    """Width of a head, at every width."""
    vocab_size: int = 256
    """Token ids."""
    context_length: int = 32
    """Tokens of a sequence."""
    batch_size: int = 4
    """Sequences of the batch."""
    n_steps: int = 4
    """Updates before the last measurement."""
    n_seeds: int = 2
    """Seeds to average over."""
    learning_rate: float = 1e-2
    """Learning rate at the base."""
    out: Path | None = None
    """Picture to write, as PNG."""

    def __post_init__(self) -> None:
        """Refuse what cannot be compared."""
        sizes = self.depths or self.widths
        if len(set(sizes)) < 2:
            raise ValueError(f"at least 2 different sizes must be given, got {sizes}")
        if not self.parametrisations:
            raise ValueError("parametrisations must name at least one")
        for name in ("n_steps", "n_seeds", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


def coord_check(options: CoordCheckOptions) -> None:
    """Prints a table of sizes and powers, and draws the picture if asked to."""
    from rslm import coord_check as check

    axis: check.Axis = "depth" if options.depths else "width"
    sizes = options.depths or options.widths
    config = TransformerConfig(
        vocab_size=options.vocab_size,
        context_length=options.context_length,
        d_model=options.widths[0],
        n_layers=options.n_layers,
        n_heads=max(1, options.widths[0] // options.d_head),
        d_head=options.d_head,
    )
    results, rows = [], []
    for parametrisation in options.parametrisations:
        own = check.coordinate_sizes(
            config,
            axis=axis,
            sizes=sizes,
            parametrisation=parametrisation,
            n_steps=options.n_steps,
            learning_rate=options.learning_rate,
            batch_size=options.batch_size,
            n_seeds=options.n_seeds,
        )
        results += own
        for name in check.ACTIVATIONS:
            values = [f"{result.sizes[name][-1]:.3g}" for result in own]
            rows.append([f"{parametrisation} {name}", *values, f"{check.growth(own, name):+.2f}"])
    print_table(["activation", *(f"{axis} {size}" for size in sizes), "power"], rows)
    if options.out is not None:
        check.draw(results, axis, options.out)
        note(f"drawn: {options.out}")
