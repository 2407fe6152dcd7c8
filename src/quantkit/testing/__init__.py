"""A testing kit for quantization: hard inputs, error bounds, properties of encoders, and a pytest plugin.

Works on numpy arrays and on bytes of the GGUF block formats, whoever made them. Needs numpy; the strategies need
hypothesis, and the plugin (quantkit.testing.plugin, found by pytest itself) needs pytest: the extra `testing`.
Nothing is imported before it is used. docs/testing.md tells it all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from quantkit.testing.asserts import WorstBlock as WorstBlock
    from quantkit.testing.asserts import assert_close_to as assert_close_to
    from quantkit.testing.asserts import assert_within_bound as assert_within_bound
    from quantkit.testing.asserts import worst_block as worst_block
    from quantkit.testing.bounds import BOUNDS as BOUNDS
    from quantkit.testing.bounds import error_bounds as error_bounds
    from quantkit.testing.families import ACTIVATIONS as ACTIVATIONS
    from quantkit.testing.families import CHANNELS as CHANNELS
    from quantkit.testing.families import IMPORTANCES as IMPORTANCES
    from quantkit.testing.families import WEIGHTS as WEIGHTS
    from quantkit.testing.families import make_activations as make_activations
    from quantkit.testing.families import make_importance as make_importance
    from quantkit.testing.families import make_weights as make_weights
    from quantkit.testing.group_properties import (
        assert_groups_power_of_two_scaling as assert_groups_power_of_two_scaling,
    )
    from quantkit.testing.group_properties import (
        assert_groups_requantizing_is_stable as assert_groups_requantizing_is_stable,
    )
    from quantkit.testing.group_properties import assert_groups_same_bytes as assert_groups_same_bytes
    from quantkit.testing.group_properties import assert_groups_stand_alone as assert_groups_stand_alone
    from quantkit.testing.groups import assert_groups_within_bound as assert_groups_within_bound
    from quantkit.testing.groups import group_error_bounds as group_error_bounds
    from quantkit.testing.metrics import measure as measure
    from quantkit.testing.properties import assert_blocks_stand_alone as assert_blocks_stand_alone
    from quantkit.testing.properties import assert_power_of_two_scaling as assert_power_of_two_scaling
    from quantkit.testing.properties import assert_requantizing_is_stable as assert_requantizing_is_stable
    from quantkit.testing.properties import assert_same_bytes as assert_same_bytes
    from quantkit.testing.properties import supported_tiers as supported_tiers
    from quantkit.testing.properties import use_tier as use_tier
    from quantkit.testing.strategies import activations as activations
    from quantkit.testing.strategies import formats as formats
    from quantkit.testing.strategies import importances as importances
    from quantkit.testing.strategies import weight_matrices as weight_matrices

_ROOMS = {
    "asserts": ("WorstBlock", "assert_close_to", "assert_within_bound", "worst_block"),
    "bounds": ("BOUNDS", "error_bounds"),
    "families": (
        "ACTIVATIONS",
        "CHANNELS",
        "IMPORTANCES",
        "WEIGHTS",
        "make_activations",
        "make_importance",
        "make_weights",
    ),
    "group_properties": (
        "assert_groups_power_of_two_scaling",
        "assert_groups_requantizing_is_stable",
        "assert_groups_same_bytes",
        "assert_groups_stand_alone",
    ),
    "groups": ("assert_groups_within_bound", "group_error_bounds"),
    "metrics": ("measure",),
    "properties": (
        "assert_blocks_stand_alone",
        "assert_power_of_two_scaling",
        "assert_requantizing_is_stable",
        "assert_same_bytes",
        "supported_tiers",
        "use_tier",
    ),
    "strategies": ("activations", "formats", "importances", "weight_matrices"),
}
_HOMES = {name: room for room, names in _ROOMS.items() for name in names}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> object:
    from importlib import import_module

    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"quantkit.testing.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
