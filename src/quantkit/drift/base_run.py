"""Candidates against a file of a reference's log-probabilities, without the reference at hand."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

from quantkit.drift.base_walk import KlBaseFacts, base_sample, walk_base
from quantkit.drift.differences import differences
from quantkit.drift.figures import figures
from quantkit.drift.kl_base import KlBase
from quantkit.drift.models import Identity, Model, names_of, open_model
from quantkit.drift.output import TokenScores
from quantkit.drift.progress import Progress
from quantkit.drift.provenance import Options
from quantkit.drift.result import SCHEMA, Candidate, Drift, TextFacts
from quantkit.drift.sample import Sample
from quantkit.errors import UsageError


def base_drift(
    base: KlBase,
    candidates: Sequence[str | os.PathLike[str]],
    *,
    tokens: int | None = None,
    max_ram_bytes: int | None = None,
    folder: Path | None = None,
    threads: int = 0,
    progress: Callable[[Progress], None] | None = None,
) -> Drift:
    """See `drift`; candidates go one after another.

    Raises:
        UsageError: no candidates; one of another vocabulary, or too short a context, or of another model than the rest.
    """
    if not candidates:
        raise UsageError("there is no file to compare with the reference")
    identities = [_checked(base, path, candidates[0]) for path in candidates]
    sample: Sample | None = None
    scores: list[TokenScores] = []
    facts: KlBaseFacts | None = None
    for number, path in enumerate(candidates, 1):
        model = open_model(path)
        with closing(model.weights):
            if sample is None:
                sample = base_sample(base, model.vocabulary.bos_id, tokens)
            found, facts = walk_base(
                base,
                model.weights,
                sample,
                number=number,
                n_candidates=len(candidates),
                max_ram_bytes=max_ram_bytes,
                folder=folder,
                threads=threads,
                progress=progress,
            )
        scores.append(found)
    assert sample is not None
    groups = sample.clusters
    return Drift(
        schema=SCHEMA,
        reference=Identity(str(base.path), base.n_bytes, {}, base.fingerprint),
        text=TextFacts.of(sample, [base.path], "second-half"),
        candidates=tuple(
            Candidate.of(identity, figures(one, groups), scores=one)
            for identity, one in zip(identities, scores, strict=True)
        ),
        differences=differences(scores, names_of([one.file for one in identities]), groups),
        options=Options(tokens, None, "second-half", weights=False, local=False),
        kl_base=facts,
    )


def _checked(base: KlBase, path: str | os.PathLike[str], first: str | os.PathLike[str]) -> Identity:
    model = open_model(path)
    with closing(model.weights):
        _refuse_other(base, model)
        if path != first:
            other = open_model(first)
            with closing(other.weights):
                other.refuse_other(model)
    return model.identity


def _refuse_other(base: KlBase, model: Model) -> None:
    hp, file = model.weights.hp, model.identity.file
    if hp.vocab_size != base.n_vocab:
        raise UsageError(
            f"{base.path} has log-probabilities of {base.n_vocab:,} ids, and {file} has {hp.vocab_size:,}",
            hint="Both must be of one model.",
        )
    if hp.context_length < base.context:
        raise UsageError(
            f"{base.path} has chunks of {base.context:,} tokens, and {file} takes {hp.context_length:,} at most"
        )
