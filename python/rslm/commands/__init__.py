"""The functions behind the command line, one file per group; `rslm.cli` lists them.

Importing a file here stays cheap: whatever is heavy (torch above all) is imported
inside the function that needs it, so that `rslm --help` answers at once.
"""
