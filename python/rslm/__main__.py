"""The command `rslm`, also `python -m rslm`.

Nothing is imported above that takes time, so that Ctrl-C finds the process prepared.
"""

from rslm import process


def main() -> int:
    """Runs the command that the process was started for; its exit code."""
    process.begin()
    from rslm import cli

    code = cli.main()
    process.leave_at_interrupt()
    return code


if __name__ == "__main__":
    raise SystemExit(main())
