"""What config.json says about the vision tower and its projector."""

from __future__ import annotations

from dataclasses import dataclass

from quantkit.errors import CheckpointError, UnsupportedModelError
from quantkit.llama4.section import Section


@dataclass(frozen=True)
class VisionHyperparameters:
    """The vision tower's shape, named after `vision_config`.

    Args:
        n_merge: patches merged along each axis before the adapter, 1 / pixel_shuffle_ratio.
        adapter_width: output width of both adapter matrices (projector_input_dim = projector_output_dim).
    """

    hidden_size: int
    intermediate_size: int
    n_layers: int
    n_heads: int
    image_size: int
    patch_size: int
    n_channels: int
    n_merge: int
    adapter_width: int
    norm_eps: float
    rope_theta: float
    hidden_act: str

    @property
    def n_patches(self) -> int:
        """Patches of one tile, without the class token."""
        return (self.image_size // self.patch_size) ** 2

    @classmethod
    def from_section(cls, section: Section) -> VisionHyperparameters:
        """Read `vision_config`; raises CheckpointError for values that do not fit together."""
        hidden_size = section.integer("hidden_size")
        intermediate_size = section.integer("intermediate_size")
        image_size = _square(section, "image_size")
        patch_size = _square(section, "patch_size")
        ratio = section.number("pixel_shuffle_ratio")
        n_merge = round(1 / ratio)
        if n_merge < 1 or n_merge * ratio != 1:
            raise section.wrong("pixel_shuffle_ratio", "one over a whole number")
        if image_size % (patch_size * n_merge):
            raise section.wrong(
                "image_size", f"a multiple of patch_size / pixel_shuffle_ratio ({patch_size * n_merge})"
            )
        adapter_width = section.integer("projector_input_dim")
        for key in ("projector_output_dim", "vision_output_dim"):
            if section.integer(key) != adapter_width:
                raise section.wrong(key, f"projector_input_dim ({adapter_width})")
        if intermediate_size != hidden_size * n_merge**2:
            raise section.wrong("intermediate_size", f"hidden_size / pixel_shuffle_ratio² ({hidden_size * n_merge**2})")
        n_heads = section.integer("num_attention_heads")
        # a head is cut into x and y halves, and each half into rotated pairs
        if hidden_size % (n_heads * 4):
            raise section.wrong("num_attention_heads", f"a divisor of hidden_size / 4 ({hidden_size} / 4)")
        if section.boolean("multi_modal_projector_bias", default=False):
            raise UnsupportedModelError(
                f"{section.file}: {section.path}.multi_modal_projector_bias is true; "
                "the runtime's projector has no bias"
            )
        rope = section.section("rope_parameters") or section
        return cls(
            hidden_size=hidden_size,
            intermediate_size=intermediate_size,
            n_layers=section.integer("num_hidden_layers"),
            n_heads=n_heads,
            image_size=image_size,
            patch_size=patch_size,
            n_channels=section.integer("num_channels", default=3),
            n_merge=n_merge,
            adapter_width=adapter_width,
            norm_eps=section.number("norm_eps", default=1e-5),
            rope_theta=rope.number("rope_theta", default=10000.0),
            hidden_act=section.string("hidden_act", default="gelu"),
        )


def _square(section: Section, key: str) -> int:
    """One side of a square given as n or [n, n]."""
    value = section.values.get(key)
    if isinstance(value, list):
        sides = section.integers(key)
        if sides is None or len(sides) != 2 or sides[0] != sides[1] or sides[0] < 1:
            raise section.wrong(key, "a square, n or [n, n]")
        return sides[0]
    return section.integer(key)


def vision_mismatches(vision: VisionHyperparameters) -> list[str]:
    """What llama.cpp's vision tower hard-codes and this one differs in, a sentence each."""
    found = []
    if vision.rope_theta != 10000.0:
        found.append(f"vision rope_theta is {vision.rope_theta:g}; the runtime always uses 10000")
    if vision.hidden_act != "gelu":
        found.append(f'vision hidden_act is "{vision.hidden_act}"; the runtime always uses gelu')
    if vision.n_channels != 3:
        found.append(f"num_channels is {vision.n_channels}; the runtime always reads 3")
    if vision.norm_eps != 1e-5:
        # transformers ignores norm_eps inside the blocks; the runtime uses it for every norm
        found.append(f"vision norm_eps is {vision.norm_eps:g}; transformers and the runtime agree for 1e-05 only")
    return found


def missing_vision(file: str) -> CheckpointError:
    """The error for a checkpoint without a vision tower."""
    return CheckpointError(
        f"{file}: there is no vision_config, so there is no vision tower to convert",
        hint="Leave out --mmproj, or use a Llama4ForConditionalGeneration checkpoint.",
    )
