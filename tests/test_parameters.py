import math
import subprocess
import sys
from typing import Any

import numpy as np
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
        ({"repetition_penalty": 0.0}, r"repetition_penalty must be from 1e-06 to 1e\+06, got 0\.0"),
        ({"repetition_penalty": 1e-45}, r"must be from 1e-06 to 1e\+06, got 1e-45"),
        ({"repetition_penalty": math.inf}, r"must be from 1e-06 to 1e\+06, got inf"),
        ({"stop": "end"}, "stop must be a tuple of strings, got the string 'end'"),
        ({"stop": ("a", "")}, "stop must not hold an empty string"),
        ({"seed": 2**64}, r"seed must lie in \[-2\^63, 2\^64\), got 18446744073709551616"),
        ({"n": 0}, "n must be at least 1, got 0"),
        ({"log_probs": -1}, "log_probs must be at least 0, got -1"),
        ({"n": math.nan}, "n must be a whole number, got nan"),
        ({"n": None}, "n must be a whole number, got None"),
        ({"max_new_tokens": 1.5}, r"max_new_tokens must be a whole number, got 1\.5"),
        ({"top_k": True}, "top_k must be a whole number, got True"),
        ({"seed": "1"}, "seed must be a whole number, got '1'"),
        ({"log_probs": True}, "log_probs must be a whole number, got True"),
        ({"temperature": None}, "temperature must be a number, got None"),
        ({"top_p": "1"}, "top_p must be a number, got '1'"),
        ({"min_p": True}, "min_p must be a number, got True"),
        ({"ignore_end": "no"}, "ignore_end must be True or False, got 'no'"),
        ({"stop": (b"a",)}, r"stop must be a tuple of strings, got \(b'a',\)"),
        ({"stop": None}, "stop must be a tuple of strings, got None"),
        ({"stop_token_ids": 5}, "stop_token_ids must be a tuple of whole numbers, got 5"),
        ({"stop_token_ids": ("a",)}, r"must be a tuple of whole numbers, got \('a',\)"),
        ({"seeds": (1, 2)}, "seeds must be as many as n and come without seed, got 2, n 1"),
        ({"seeds": (1,), "seed": 1}, "seeds must be as many as n and come without seed, got 1"),
        ({"seeds": (2**64,)}, r"seed must lie in \[-2\^63, 2\^64\), got 18446744073709551616"),
        ({"seeds": ("a",)}, r"seeds must be a tuple of whole numbers, got \('a',\)"),
        ({"seeds": 5}, "seeds must be a tuple of whole numbers, got 5"),
    ],
)
def test_parameters_that_nothing_can_be_drawn_with_are_refused(
    options: dict[str, Any], message: str
):
    with pytest.raises(ValueError, match=message):
        SamplingParameters(**options)


def test_numbers_of_numpy_are_numbers():
    asked = SamplingParameters(top_k=np.int64(3), temperature=np.float32(0.5), seed=np.int32(1))  # type: ignore[arg-type]
    assert asked.top_k == 3


@pytest.mark.parametrize(
    "name", ["block_size", "max_sequences", "max_step_tokens", "cache_bytes", "max_queued"]
)
def test_sizes_that_nothing_fits_in_are_refused(name: str):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        EngineOptions(**{name: 0})


def test_ways_to_compute_that_there_are_not_are_refused():
    with pytest.raises(ValueError, match="quantize must be int8 or None, got 'int4'"):
        EngineOptions(quantize="int4")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="exact must be off with quantize, got 'int8'"):
        EngineOptions(quantize="int8", exact=True)


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
