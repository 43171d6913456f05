"""What a forward pass keeps, against what the allocator says that it keeps."""

from pathlib import Path
from typing import Any

import pytest
from step_memory import measure_step

from rslm.activation_memory import saved_activations
from rslm.architecture import TransformerConfig
from rslm.train_config import DataConfig, Precision, TrainConfig

BASE = {"vocab_size": 512, "context_length": 64, "d_model": 64, "n_layers": 3, "n_heads": 4}

# Each switch of the model alone, and shapes that make other parts the largest.
SWITCHES: list[dict[str, Any]] = [
    {},
    {"qk_norm": "rms"},
    {"qk_norm": "rms-gain"},
    {"n_kv_heads": 2},
    {"ffn": "silu"},
    {"ffn": "gelu"},
    {"ffn": "relu2"},
    {"norm": "none"},
    {"norm_position": "post"},
    {"norm_position": "peri"},
    {"embedding_norm": True},
    {"position_encoding": "none"},
    {"position_encoding": "half-rope"},
    {"softcap": 15.0},
    {"softcap": 15.0, "softcap_form": "sqrt"},
    {"tied_head": True},
    {"biases": True},
    {"value_embeddings": True},
    {"residual_scalars": True},
    {"x0_scalars": True},
    {"residual_scalars": True, "x0_scalars": True, "embedding_norm": True},
    {"z_loss": 1e-4},
    {"parametrisation": "completep", "base_n_layers": 1},
    {"window_pattern": "SSL", "window_size": 16},
    {"d_head": 32},
    {"d_ff": 64},
    {"vocab_size": 4099},
    {"context_length": 512, "n_layers": 1},
    {"context_length": 33},
    # Logits in chunks.
    {"vocab_size": 70_001},
    {"vocab_size": 70_001, "softcap": 15.0, "z_loss": 1e-4},
]


def run(model: dict[str, Any], *, precision: Precision = "float32", **options: Any) -> TrainConfig:
    return TrainConfig(
        out=Path("run"),
        data=DataConfig(train=Path("tokens")),
        model=TransformerConfig(**{**BASE, **model}),
        precision=precision,
        **{"batch_size": 4, **options},
    )


def kept(config: TrainConfig, **options: Any) -> int:
    is_half = config.precision == "bfloat16"
    activations = saved_activations(
        config.model,
        config.batch_size,
        itemsize=2 if is_half else 4,
        casts_weights=is_half,
        **options,
    )
    return activations.kept(config.recompute_blocks)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("switches", SWITCHES, ids=str)
def test_kept_equals_what_is_measured(switches: dict[str, Any], precision: Precision) -> None:
    config = run(switches, precision=precision)
    # Within 0.1 %: what is left are scalars of a few bytes.
    assert kept(config) == pytest.approx(measure_step(config).kept, rel=1e-3)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("switches", [{}, {"n_kv_heads": 2}, {"context_length": 129}], ids=str)
def test_kept_by_the_formula_of_attention(switches: dict[str, Any], precision: Precision) -> None:
    config = run(switches, precision=precision, attention_implementation="reference")
    measured = measure_step(config).kept
    assert kept(config, attention="reference") == pytest.approx(measured, rel=1e-3)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("n_blocks", [1, 2, 3])
def test_kept_where_blocks_are_computed_again(n_blocks: int, precision: Precision) -> None:
    config = run({}, precision=precision, recompute_blocks=n_blocks)
    assert kept(config) == pytest.approx(measure_step(config).kept, rel=1e-3)


def test_kept_grows_with_the_sequences_and_with_the_scores() -> None:
    model = TransformerConfig(**BASE)
    one, two = (saved_activations(model, n).kept() for n in (1, 2))
    # All but two tables of angles for each block doubles.
    assert 2 * one - two == 3 * 2 * 64 * 16 * 4
    assert saved_activations(model, 1, attention="reference").kept() > one + 3 * 3 * 4 * 64**2 * 4
