"""Rope factors against transformers' own scaling of the frequencies."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Llama4TextConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from quantkit.llama4 import RopeScaling
from quantkit.llama4.rope import rope_factors


def reference(scaling: RopeScaling, theta: float, head_dim: int) -> np.ndarray:
    """Frequencies without scaling over frequencies with it."""
    parameters = {
        "rope_type": "llama3",
        "rope_theta": theta,
        "factor": scaling.factor,
        "low_freq_factor": scaling.low_freq_factor,
        "high_freq_factor": scaling.high_freq_factor,
        "original_max_position_embeddings": scaling.original_context,
    }
    config = Llama4TextConfig(head_dim=head_dim, rope_parameters=parameters, num_hidden_layers=1)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = 1.0 / (theta ** (torch.arange(0, head_dim, 2).float() / head_dim))
    return (plain / scaled).numpy()


@settings(max_examples=30, deadline=None)
@given(
    low=st.floats(0.5, 2),
    spread=st.floats(1.25, 8),
    factor=st.floats(1, 32),
    context=st.sampled_from([64, 1000, 8192, 131072]),
    theta=st.sampled_from([1e4, 5e5, 1e6]),
    head_dim=st.sampled_from([2, 64, 128]),
)
def test_factors_scale_as_transformers_does(
    low: float, spread: float, factor: float, context: int, theta: float, head_dim: int
) -> None:
    scaling = RopeScaling(factor, low, low * spread, context)
    factors = rope_factors(scaling, theta, head_dim)
    assert factors.dtype == np.float32
    assert factors.shape == (head_dim // 2,)
    np.testing.assert_allclose(factors, reference(scaling, theta, head_dim), rtol=2e-4)


def test_scouts_factors_are_a_step() -> None:
    factors = rope_factors(RopeScaling(16.0, 1.0, 1.0, 8192), 500000.0, 128)
    wavelengths = 2 * np.pi * 500000.0 ** (np.arange(0, 128, 2) / 128)
    np.testing.assert_array_equal(factors, np.where(wavelengths > 8192, 16, 1))


@pytest.mark.parametrize("ends", [(1.0, 1.0), (1.0, 4.0)])
def test_factors_are_within_their_ends(ends: tuple[float, float]) -> None:
    factors = rope_factors(RopeScaling(8.0, *ends, 8192), 500000.0, 128)
    assert factors[0] == 1
    assert factors[-1] == 8
    assert (np.diff(factors) >= 0).all()
