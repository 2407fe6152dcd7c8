"""Sizes, times and counts as text, and back."""

from __future__ import annotations

import click
import pytest

from quantkit.cli.units import ByteSize, TokenCount, bytes_text, count_text, seconds_text


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (99_949, "99.9 kB"),
        (99_950, "100 kB"),
        (999_600, "1.0 MB"),
        (65_388_478_464, "65.4 GB"),
        (215_500_000_000, "216 GB"),
        (4_000_000_000_000, "4.0 TB"),
    ],
)
def test_bytes(n_bytes: int, text: str) -> None:
    assert bytes_text(n_bytes) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.04, "0.0 s"), (4.21, "4.2 s"), (75, "1:15"), (7322, "2:02:02")])
def test_seconds(seconds: float, text: str) -> None:
    assert seconds_text(seconds) == text


@pytest.mark.parametrize(("text", "n_bytes"), [("50G", 50 * 10**9), ("4.5gb", 4_500_000_000), ("800M", 8 * 10**8)])
def test_sizes_are_decimal(text: str, n_bytes: int) -> None:
    assert ByteSize().convert(text, None, None) == n_bytes


@pytest.mark.parametrize("text", ["", "G", "-1G", "0", "5X", "1 2"])
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(click.BadParameter):
        ByteSize().convert(text, None, None)


@pytest.mark.parametrize(("text", "tokens"), [("8192", 8192), ("8k", 8192), ("128K", 131072), ("10M", 10485760)])
def test_contexts(text: str, tokens: int) -> None:
    assert TokenCount().convert(text, None, None) == tokens
    assert TokenCount().convert(count_text(tokens), None, None) == tokens


@pytest.mark.parametrize("text", ["0", "0k", "-8k", "8.5k", "8G", ""])
def test_other_contexts_are_refused(text: str) -> None:
    with pytest.raises(click.BadParameter):
        TokenCount().convert(text, None, None)
