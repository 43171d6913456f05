from dataclasses import replace

import pytest

from rslm.architecture import (
    TransformerConfig,
    default_d_ff,
    forward_flops,
    forward_flops_by_part,
    n_body_parameters,
    n_non_embedding_parameters,
    n_parameters,
    n_parameters_by_group,
    train_flops_per_token,
)


def config(vocab_size: int, d_model: int, n_layers: int, n_heads: int, d_ff: int | None = None):
    return TransformerConfig(
        vocab_size=vocab_size, d_model=d_model, n_layers=n_layers, n_heads=n_heads, d_ff=d_ff
    )


SMALL = config(50257, 768, 12, 12)
MEDIUM = config(50257, 1024, 24, 16)
LARGE = config(50257, 1280, 36, 20)
XL = config(50257, 1600, 48, 25)
XL_WIDE = config(50257, 1600, 48, 25, d_ff=6400)
TINYSTORIES = config(10_000, 512, 4, 16)
OPENWEBTEXT = config(32_000, 512, 4, 16)


@pytest.mark.parametrize(
    ("sizes", "parameters"),
    [
        (SMALL, 162_148_608),
        (MEDIUM, 406_539_264),
        (LARGE, 833_591_040),
        (XL, 1_640_452_800),
        (XL_WIDE, 2_127_057_600),
        (TINYSTORIES, 22_696_448),
        (OPENWEBTEXT, 45_224_448),
    ],
)
def test_n_parameters_equals_golden_table(sizes: TransformerConfig, parameters: int):
    assert n_parameters(sizes) == parameters


def test_n_parameters_is_reported_three_ways():
    assert n_parameters(TINYSTORIES) == 22_696_448
    assert n_non_embedding_parameters(TINYSTORIES) == 17_576_448
    assert n_body_parameters(TINYSTORIES) == 12_456_448


@pytest.mark.parametrize(
    ("sizes", "sequence_length", "flops", "percentages"),
    [
        (SMALL, 1024, 2.9165e11, (19.9, 13.3, 39.8, 27.1)),
        (MEDIUM, 1024, 8.3017e11, (24.8, 12.4, 50.1, 12.7)),
        (LARGE, 1024, 1.7685e12, (27.3, 10.9, 54.3, 7.4)),
        (XL, 1024, 3.5168e12, (28.6, 9.2, 57.5, 4.7)),
        (XL, 16384, 1.3358e14, (12.1, 61.7, 24.2, 2.0)),
        (XL_WIDE, 1024, 4.5133e12, (22.3, 7.1, 66.9, 3.6)),
        (TINYSTORIES, 256, 9.5337e9, (22.5, 5.6, 44.3, 27.5)),
        (OPENWEBTEXT, 256, 1.5301e10, (14.0, 3.5, 27.6, 54.8)),
    ],
)
def test_forward_flops_equal_golden_table(
    sizes: TransformerConfig,
    sequence_length: int,
    flops: float,
    percentages: tuple[float, ...],
):
    total = forward_flops(sizes, sequence_length)
    parts = forward_flops_by_part(sizes, sequence_length)
    assert f"{total:.4e}" == f"{flops:.4e}"
    assert tuple(round(100 * part / total, 1) for part in parts.values()) == percentages


def test_forward_flops_of_xl_by_part():
    parts = forward_flops_by_part(XL, 1024)
    assert [f"{part:.4e}" for part in parts.values()] == [
        "1.0066e+12",
        "3.2212e+11",
        "2.0233e+12",
        "1.6468e+11",
    ]


def test_train_flops_per_token_is_three_forward_passes():
    assert train_flops_per_token(TINYSTORIES) == 3 * forward_flops(TINYSTORIES, 256) / 256
    assert train_flops_per_token(TINYSTORIES, 64) == 3 * forward_flops(TINYSTORIES, 64) / 64


@pytest.mark.parametrize(
    ("d_model", "d_ff"),
    [(8, 64), (36, 128), (512, 1344), (768, 2048), (1024, 2752), (1280, 3392), (1600, 4288)],
)
def test_default_d_ff_is_nearest_multiple_of_64(d_model: int, d_ff: int):
    assert default_d_ff(d_model) == d_ff


def test_config_resolves_what_is_left_open():
    sizes = TransformerConfig(d_model=64, n_heads=4)
    assert (sizes.resolved_d_head, sizes.resolved_d_ff) == (16, 192)
    assert TransformerConfig(d_ff=100).resolved_d_ff == 100
    with pytest.raises(ValueError, match="vocab_size must be set"):
        n_parameters(sizes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocab_size": 0}, "vocab_size must be at least 1, got 0"),
        ({"context_length": 0}, "context_length must be at least 1, got 0"),
        ({"n_layers": -1}, "n_layers must be at least 1, got -1"),
        ({"d_ff": 0}, "d_ff must be at least 1, got 0"),
        ({"rope_theta": 0.0}, r"rope_theta must be positive, got 0\.0"),
        ({"d_model": 100, "n_heads": 3}, "got d_model 100 and n_heads 3"),
        ({"d_model": 12, "n_heads": 4}, "d_model must be a multiple of 2"),
    ],
)
def test_config_refuses_impossible_sizes(options: dict[str, int], message: str):
    with pytest.raises(ValueError, match=message):
        TransformerConfig(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_kv_heads": 3}, "n_kv_heads must divide n_heads 16, got 3"),
        ({"d_head": 0}, "d_head must be at least 1, got 0"),
        ({"d_head": 7}, "d_head must be a multiple of 2"),
        ({"d_head": 6, "position_encoding": "half-rope"}, "d_head must be a multiple of 4"),
        ({"d_model": 30, "position_encoding": "none"}, "d_model must be a multiple of n_heads"),
        ({"window_pattern": "SXL"}, "window_pattern must be letters S and L, got 'SXL'"),
        ({"window_pattern": ""}, "window_pattern must be letters S and L, got ''"),
        ({"window_size": 8}, "window_size needs a window_pattern"),
        (
            {"window_pattern": "SL", "context_length": 64, "window_size": 64},
            "window_size must be below context_length 64, got 64",
        ),
        ({"window_pattern": "LL"}, "must give an S to a layer of 4 that is not the last"),
        ({"window_pattern": "S", "n_layers": 1}, "must give an S to a layer of 1"),
        ({"window_size": 0, "window_pattern": "S"}, "window_size must be at least 1, got 0"),
        ({"softcap": 0.0}, r"softcap must be positive, got 0\.0"),
        ({"softcap_form": "sqrt"}, "softcap_form needs a softcap"),
        ({"norm": "none", "norm_position": "post"}, "norm_position needs norms"),
        ({"norm": "none", "embedding_norm": True}, "embedding_norm needs norms"),
        ({"tied_head": True, "zero_init_head": True}, "zero_init_head needs a head of its own"),
        ({"z_loss": -1.0}, r"z_loss must be at least 0 and finite, got -1\.0"),
        ({"attention_scale": float("nan")}, "attention_scale must be positive, got nan"),
        ({"base_d_model": 64}, "base_d_model needs a parametrisation"),
        ({"base_n_layers": 2, "parametrisation": "mup"}, "base_n_layers needs the param"),
    ],
)
def test_config_refuses_switches_that_nothing_would_read(options: dict[str, object], message: str):
    with pytest.raises(ValueError, match=message):
        TransformerConfig(**options)


def test_ungated_feed_forward_has_as_many_parameters_as_the_gated_one():
    gated, ungated = (
        replace(config(100, 768, 2, 12, d_ff=d_ff), ffn=ffn)
        for d_ff, ffn in ((2048, "swiglu"), (None, "silu"))
    )
    assert ungated.resolved_d_ff == 4 * 768
    assert n_parameters(gated) == n_parameters(ungated)


def test_counts_with_switches_equal_their_formulas():
    length, base = 1024, replace(XL, context_length=1024)
    parts = forward_flops_by_part(base, length)
    # 5 of 25 heads of keys and values: their projections shrink to a fifth.
    grouped = forward_flops_by_part(replace(base, n_kv_heads=5), length)
    assert grouped["projections"] == parts["projections"] * 3 // 5
    assert n_parameters(base) - n_parameters(replace(base, n_kv_heads=5)) == (
        48 * 2 * 1600 * (1600 - 320)
    )
    # SSSL over 48 layers: 36 see 256 of 1024 tokens.
    windowed = forward_flops_by_part(replace(base, window_pattern="SSSL"), length)
    assert windowed["attention"] == parts["attention"] * (12 + 36 / 4) / 48
    assert {k: v for k, v in windowed.items() if k != "attention"} == {
        k: v for k, v in parts.items() if k != "attention"
    }
    # Shorter than the window, every layer sees everything.
    assert forward_flops(replace(base, window_pattern="SSSL"), 200) == forward_flops(base, 200)
    tied = replace(base, tied_head=True)
    assert n_parameters(base) - n_parameters(tied) == 50257 * 1600
    assert forward_flops(tied, length) == forward_flops(base, length)
    assert n_non_embedding_parameters(tied) == n_non_embedding_parameters(base)


def test_parameters_by_group_of_the_golden_model():
    assert n_parameters_by_group(XL) == {
        "embedding": 50257 * 1600,
        "value_embeddings": 0,
        "attention": 48 * 4 * 1600**2,
        "feed_forward": 48 * 3 * 1600 * 4288,
        "norms": 48 * 2 * 1600 + 1600,
        "scalars": 0,
        "head": 50257 * 1600,
    }


def test_value_embeddings_are_in_every_other_layer_and_the_last():
    sizes = config(10, 64, 4, 4)
    assert replace(sizes, value_embeddings=True).value_embedding_layers == (1, 3)
    assert replace(sizes, value_embeddings=True, n_layers=5).value_embedding_layers == (0, 2, 4)
    assert sizes.value_embedding_layers == ()
