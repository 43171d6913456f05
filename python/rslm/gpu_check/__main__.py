"""`python -m rslm.gpu_check`: the command `rslm gpu-check`."""

import sys

from rslm import process


def main() -> int:
    """Runs the check with the arguments of the process; its exit code."""
    process.begin()
    from rslm import cli

    code = cli.main(["gpu-check", *sys.argv[1:]])
    process.leave_at_interrupt()
    return code


if __name__ == "__main__":
    raise SystemExit(main())
