"""Quality rules of the published recipes, as plain functions; the specification of the fast ones.

One file per family of rules, each with its limits as constants and its sources; `presets` puts them
into recipes. Unicode classes of words, sentences and terminals come from the `regex` package, those
of single characters (letter, capital, digit, blank) from Python: two versions of either may differ
on characters assigned in between.
"""

from rslm.data.quality.page import Page, Verdict
from rslm.data.quality.presets import PRESETS, Preset, check_quality

__all__ = ["PRESETS", "Page", "Preset", "Verdict", "check_quality"]
