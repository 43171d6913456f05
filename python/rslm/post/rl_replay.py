"""A step of a run made again from its file of rollouts, without a sampler and without graders."""

import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from rslm import checkpoint
from rslm.files import removed_if_refused, sync_folder, write_atomically
from rslm.post.rl import train
from rslm.post.rl_config import RlConfig
from rslm.post.rl_rollouts import rollouts_file
from rslm.post.setup import PostResult, remembered
from rslm.run_folder import open_run_folder


@dataclass(frozen=True, kw_only=True)
class Replay:
    """How a step came out the second time.

    Attributes:
        result: the run's end.
        is_same: whether the weights are those, bit for bit, that the run went on with; None
            where it left none to compare with.
    """

    result: PostResult
    is_same: bool | None


def replay(config: RlConfig, file: Path, *, console: Console | None = None) -> Replay:
    """Makes the updates of `RUN/rollouts/step_N.jsonl` in the new run folder `config.out`.

    It begins with the run's checkpoint of the step before, optimizer included, or with the base
    where N is 1. With the run's own options the weights are the same bit for bit; with others it
    shows what these make of the same rollouts.

    Args:
        config: options of the run, with another `out`.
        file: rollouts of one of its steps.
        console: where the display goes; standard error unless given.

    Raises:
        FileExistsError: `config.out` holds something.
        FileNotFoundError: there is no such file, or the run has no checkpoint of the step before.
        ValueError: it is not a file of rollouts in a run folder; or other weights drew them.
    """
    match = re.fullmatch(r"step_([1-9][0-9]{0,17})\.jsonl", file.name)
    run = file.resolve().parent.parent
    if match is None or file.resolve() != rollouts_file(run, int(match[1])).resolve():
        raise ValueError(f"replay must be given RUN/rollouts/step_N.jsonl of a run, got {file}")
    step = int(match[1])
    if step > config.n_steps:
        raise ValueError(f"the run must have the step {step} of {file}, and has {config.n_steps}")
    rollouts = file.read_bytes()
    start = find_start(run, step - 1) if step > 1 else None
    # The sizes of the model among others, which options leave out.
    found = remembered(replace(config, out=run))
    config = replace(found, out=config.out, n_evaluation_prompts=0)
    made = f"checkpoints/{checkpoint.step_folder(Path(), step)}"
    with removed_if_refused(config.out, unless=made):
        with open_run_folder(config.out, config, resume=False, resumable=()):
            if start is not None:
                copy_start(start, config.out)
            target = rollouts_file(config.out, step)
            target.parent.mkdir()
            write_atomically(target, rollouts)
        result = train(config, resume=True, replays=True, stop_at=step, console=console)
    return Replay(result=result, is_same=compare(run, config.out, step))


def find_start(run: Path, step: int) -> Path:
    """The checkpoint of a run after a step.

    Raises:
        FileNotFoundError: it was not made, or not kept.
        FormatError: it is damaged.
    """
    source = checkpoint.step_folder(run / "checkpoints", step)
    if not source.is_dir():
        kept = [checkpoint.step_of(path) for path in checkpoint.list_checkpoints(source.parent)]
        raise FileNotFoundError(
            f"{run} must have a checkpoint of step {step} to replay step {step + 1}, and has those "
            f"of {', '.join(map(str, kept)) or 'no step'}\n"
            "checkpoint_every and keep_checkpoints decide which are kept"
        )
    checkpoint.verify_checkpoint(source)
    return source


def copy_start(source: Path, out: Path) -> None:
    """Gives a new run folder the state of another as a checkpoint of this one says."""
    run, state = source.parent.parent, checkpoint.read_state(source)
    write_atomically(out / "tokenizer.json", (run / "tokenizer.json").read_bytes())
    for name, size in (("metrics.jsonl", "metrics_bytes"), ("samples.md", "samples_bytes")):
        write_atomically(out / name, (run / name).read_bytes()[: state[size]])
    (out / "checkpoints").mkdir()
    shutil.copytree(source, out / "checkpoints" / source.name)
    sync_folder(out / "checkpoints")


def compare(run: Path, out: Path, step: int) -> bool | None:
    """Whether two run folders have the same weights after a step, if the first still has them."""
    first, second = (
        checkpoint.step_folder(folder / "checkpoints", step) / checkpoint.MODEL
        for folder in (run, out)
    )
    if not first.is_file():
        return None
    return first.read_bytes() == second.read_bytes()
