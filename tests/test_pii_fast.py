"""The masks in Rust: the reference's texts and counts on any text, in any batch, in linear time."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_pii import HOSTILE, PRESETS, mail_like, pieces

from rslm.data import pii
from rslm.data.pii import Preset, mask_emails, mask_ips, mask_phone_numbers, mask_pii

PARTS = [
    *("a", "b.", "@", "@x.org", "a.bc ", " ", "\n", "(", ")", "é", "-", "1", "123", "4567", "."),
    *("255", "256", "1.1.1.", "8.8.8.8", "10.0.0.1", "08.8.8.8", "[", "]", ":", ",", "+1", "+"),
    *("283-182-3829", "(283)", "283", "182", "3829", "\u3000", "\xa0", "٣", "_", "|||", "..", "!"),
    *("\x1f", "x-", "x@[1.1.1.1]", "x@[1.1.1.a:]", "x" * 70, " " * 70),
]
TEXTS = st.one_of(
    st.lists(st.sampled_from(PARTS), max_size=30).map("".join),
    pieces,
    mail_like,
    st.text(max_size=40),
)


@pytest.mark.parametrize("preset", PRESETS)
@given(text=TEXTS)
def test_masks_are_the_references(preset: Preset, text: str):
    assert mask_pii(text, preset) == mask_pii(text, preset, implementation="reference")


@pytest.mark.parametrize(
    ("kind", "mask"), [("emails", mask_emails), ("ips", mask_ips), ("phones", mask_phone_numbers)]
)
@given(text=TEXTS)
def test_masks_of_one_kind_are_the_references(kind: str, mask, text: str):
    assert mask(text) == pii._MASKERS["course"][kind](text)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("offset", range(0, 130, 7))
def test_places_in_a_block_do_not_matter(preset: Preset, offset: int):
    text = "x" * offset + " (283) 182-3829 and 8.8.8.8 and a.b@c.de " + "y" * 200
    assert mask_pii(text, preset) == mask_pii(text, preset, implementation="reference")


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("text", ["a..b..c@d.ef ", "..a..b.c..@d.ef ", "x a..b@c.de f..g@h.ij "])
def test_doubled_dots_are_the_references(preset: Preset, text: str):
    assert mask_pii(text, preset) == mask_pii(text, preset, implementation="reference")


@pytest.mark.parametrize("preset", PRESETS)
def test_lone_surrogates_are_masked_around(preset: Preset):
    text = "write to a@b.co \ud800 or 8.8.8.8 "
    assert mask_pii(text, preset) == mask_pii(text, preset, implementation="reference")
    assert mask_emails(text)[1] == mask_ips(text)[1] == 1
    assert mask_phone_numbers(text) == (text, 0)


@pytest.mark.parametrize("preset", PRESETS)
def test_batches_are_maps_whatever_the_threads(preset: Preset):
    texts = [f"{i} 8.8.8.{i} a{i}@b.co 283-182-{1000 + i}" for i in range(100)] + ["", "\ud800"]
    expected = [mask_pii(text, preset) for text in texts]
    for n_threads in (1, 2, 64):
        assert pii.mask_pii_batch(texts, preset, n_threads=n_threads) == expected


def test_arguments_are_named():
    with pytest.raises(ValueError, match="n_threads must be at least 1, got 0"):
        pii.mask_pii_batch([""], "course", n_threads=0)
    with pytest.raises(ValueError, match="implementation must be rust or reference, got 'c'"):
        mask_pii("", "course", implementation="c")  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("unit", HOSTILE.values(), ids=HOSTILE.keys())
def test_fifty_megabytes_on_one_line_take_seconds(preset: Preset, unit: str):
    text = unit * (50_000_000 // len(unit))
    start = time.process_time()
    mask_pii(text, preset)
    assert time.process_time() - start < 20
