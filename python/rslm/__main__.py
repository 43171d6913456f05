"""`python -m rslm` is the command `rslm`."""

from rslm.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
