"""What quantkit writes runs in llama.cpp, and says what transformers says.

The tolerances were measured on files that quantkit had no hand in, those of llama.cpp's own converter, with the prompts
below and 96 greedy tokens each, as the largest |logit - transformers' float32 logit|:

    f32  0.000014   order of summation only
    f16  0.0041     llama.cpp rounds the inputs of every matrix product to the weights' type
    bf16 0.0492     the same, with 8 bits of mantissa

The stated tolerance is a quarter more than that; for f32, where a machine's BLAS decides, three times.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.oracle.llama import Model
from tests.oracle.reference import Reference

import quantkit
from quantkit.recipes import RECIPES

TINY = Path(__file__).parents[1] / "data" / "tiny-llama4"
N_TOKENS = 96
PROMPTS = (
    "The most important thing about a computer program is",
    "ACT I. SCENE I.\n\nEnter KING HENRY,",
    "def main():\n    ",
    "In mathematics, a group is",
    "$ git commit",
)
# llama.cpp rounds activations to the type of the weights, of which f16 has three bits more than bf16; where it does so,
# and what it adds up in which order, differs with the instructions it was built for.
TOLERANCE = {"f32": 4e-5, "f16": 0.062 / 8, "bf16": 0.062}


@pytest.fixture(scope="module")
def convert(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("gguf")

    def convert(recipe: str) -> Path:
        path = folder / f"{recipe}.gguf"
        if not path.exists():
            quantkit.convert(TINY, path, [recipe], threads=2)
        return path

    return convert


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference(TINY)


@pytest.fixture(scope="module")
def continued(convert: Callable[[str], Path], reference: Reference) -> list[tuple[list[int], list[int]]]:
    """Each prompt's tokens, and the greedy continuation by transformers."""
    with Model(convert("f32"), vocab_only=True) as tokenizer:
        prompts = [tokenizer.tokenize(prompt, add_special=True) for prompt in PROMPTS]
    return [(prompt, reference.generate(prompt, N_TOKENS)) for prompt in prompts]


@pytest.fixture
def f32(convert: Callable[[str], Path]) -> Iterator[Model]:
    with Model(convert("f32")) as model:
        yield model


def test_greedy_tokens_are_those_of_transformers(f32: Model, continued: list[tuple[list[int], list[int]]]) -> None:
    for prompt, expected in continued:
        assert f32.generate(prompt, N_TOKENS) == expected


@pytest.mark.parametrize("recipe", ["f32", "f16", "bf16"])
def test_argmax_agrees_beyond_the_tolerance(
    recipe: str,
    convert: Callable[[str], Path],
    reference: Reference,
    continued: list[tuple[list[int], list[int]]],
) -> None:
    n_decided = 0
    with Model(convert(recipe)) as model:
        for prompt, continuation in continued:
            tokens = prompt + continuation
            theirs = reference.logits(tokens)
            ours = model.logits(tokens)
            assert np.abs(ours - theirs).max() <= TOLERANCE[recipe]
            second, first = np.sort(theirs, axis=-1)[:, -2:].T
            decided = first - second > TOLERANCE[recipe]
            np.testing.assert_array_equal(ours.argmax(-1)[decided], theirs.argmax(-1)[decided])
            n_decided += int(decided.sum())
    assert n_decided >= 0.9 * len(PROMPTS) * N_TOKENS  # the gap is seldom so small: the comparison means something


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_type_runs(recipe: str, convert: Callable[[str], Path], reference: Reference) -> None:
    tokens = [992, *range(32, 160)]
    with Model(convert(recipe)) as model:
        logits = model.logits(tokens)
        assert len(model.generate(tokens, 8)) == 8
    assert np.isfinite(logits).all()
    correlation = np.corrcoef(logits.ravel(), reference.logits(tokens).ravel())[0, 1]
    assert correlation > 0.96  # llama.cpp's own q2_k has 0.975; a transposed or misplaced matrix leaves next to none
