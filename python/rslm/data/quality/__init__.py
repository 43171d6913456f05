"""Quality rules of the published recipes, as plain functions; the specification of the fast ones.

One file per family of rules, each with its limits as constants and its sources; `presets` puts them
into recipes. `check` runs the same recipes in Rust, which any text shows to be equal. Classes of
characters are those of Unicode 16.0.0, in a table of the package's own (`characters`), so that a
verdict depends on no version of Python.
"""

from rslm.data.quality.check import check_quality, check_quality_batch
from rslm.data.quality.page import Page, Verdict
from rslm.data.quality.presets import PRESETS, Preset

__all__ = ["PRESETS", "Page", "Preset", "Verdict", "check_quality", "check_quality_batch"]
