import math
import subprocess
import sys
from typing import Any

import pytest

import rslm.infer
from rslm.infer import EngineOptions, SamplingParameters


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": -1}, "max_new_tokens must be at least 0, got -1"),
        ({"temperature": -0.1}, r"temperature must be at least 0 and finite, got -0\.1"),
        ({"temperature": math.nan}, "temperature must be at least 0 and finite, got nan"),
        ({"temperature": math.inf}, "temperature must be at least 0 and finite, got inf"),
        ({"top_k": 0}, "top_k must be at least 1, got 0"),
        ({"top_p": 0.0}, r"top_p must be above 0 and at most 1, got 0\.0"),
        ({"top_p": 1.01}, r"top_p must be above 0 and at most 1, got 1\.01"),
        ({"top_p": math.nan}, "top_p must be above 0 and at most 1, got nan"),
        ({"min_p": -0.1}, r"min_p must lie in \[0, 1\], got -0\.1"),
        ({"min_p": 1.5}, r"min_p must lie in \[0, 1\], got 1\.5"),
        ({"repetition_penalty": 0.0}, r"repetition_penalty must be positive and finite, got 0\.0"),
        ({"repetition_penalty": math.inf}, "must be positive and finite, got inf"),
        ({"stop": "end"}, "stop must be a tuple of strings, got the string 'end'"),
        ({"stop": ("a", "")}, "stop must not hold an empty string"),
        ({"seed": 2**64}, r"seed must lie in \[-2\^63, 2\^64\), got 18446744073709551616"),
        ({"n": 0}, "n must be at least 1, got 0"),
        ({"log_probs": -1}, "log_probs must be at least 0, got -1"),
    ],
)
def test_parameters_that_nothing_can_be_drawn_with_are_refused(
    options: dict[str, Any], message: str
):
    with pytest.raises(ValueError, match=message):
        SamplingParameters(**options)


@pytest.mark.parametrize(
    "name", ["block_size", "max_sequences", "max_step_tokens", "cache_bytes", "max_queued"]
)
def test_sizes_that_nothing_fits_in_are_refused(name: str):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        EngineOptions(**{name: 0})


def test_what_the_folder_offers_is_there():
    assert all(hasattr(rslm.infer, name) for name in rslm.infer.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'Motor'"):
        _ = rslm.infer.Motor


def test_parameters_and_options_take_no_torch():
    program = (
        "import sys\nfrom rslm.infer import EngineOptions, PromptLookup, SamplingParameters\n"
        "SamplingParameters(), EngineOptions(speculation=PromptLookup())\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
