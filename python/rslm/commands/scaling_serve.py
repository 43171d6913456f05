"""`rslm scaling serve`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from rslm.commands.scaling_plan import defaults as defaults
from rslm.commands.scaling_plan import require_places, with_vocabulary
from rslm.train_config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """Train what is asked for over HTTP, within a budget of FLOPs, on this machine alone.

    An exercise: spend a fixed budget on small runs to predict a large one
    (rslm.experiment.budget_service says how to ask, rslm.experiment.budget_client does). Takes the
    options of `rslm train`, over which those of a request are laid; --out is the folder of the
    books and runs, with which a service that was stopped goes on.
    """

    budget: float | None = None
    """FLOPs of all runs together; must be given at the first start."""
    port: int = 8000
    """Port on 127.0.0.1; 0 takes any that is free."""
    processes: int = 1
    """Runs at once."""
    preset: str | None = None
    """Options that ship, as for rslm train."""
    config: Path | None = None
    """TOML file of options; it wins over the preset, flags win over both."""
    run: Annotated[TrainConfig, tyro.conf.arg(name="")] = field()

    def __post_init__(self) -> None:
        """Refuse numbers that cannot be."""
        if not 0 <= self.port < 65536:
            raise ValueError(f"port must be 0 to 65535, got {self.port}")
        if self.processes < 1:
            raise ValueError(f"processes must be at least 1, got {self.processes}")


def serve(options: ServeOptions) -> None:
    """Prints the address and answers until it is stopped."""
    from rslm.experiment.budget_service import serve as answer
    from rslm.experiment.ledger import LEDGER_FILE, Ledger
    from rslm.files import locked, removed_if_refused

    require_places(options.run)
    config, _ = with_vocabulary(options.run)
    # A lock of its own, before the books are read: the queue locks the folder itself.
    queue = config.out / "queue"
    with removed_if_refused(config.out, unless=LEDGER_FILE):
        queue.mkdir(parents=True, exist_ok=True)
        with locked(queue, "books of a service, whose runs wait in"):
            ledger = Ledger(config.out, config, options.budget)
            answer(
                ledger,
                config.out,
                port=options.port,
                n_processes=options.processes,
                on_start=lambda url: print(url, flush=True),
            )
