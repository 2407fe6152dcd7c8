"""`convert(calibrate=...)` is `calibrate` and then `convert(imatrix=...)`, refused before anything is computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import quantkit
from quantkit.calibration import Cost, Progress
from quantkit.errors import PlanRefusedError, QuantkitError, ResumeError, UsageError
from quantkit.gguf import read_imatrix

ROOT = Path(__file__).parents[2]
TINY = ROOT / "tests" / "data" / "tiny-llama4"
TEXT = ROOT / "LICENSE"


def test_the_same_bytes_as_in_two_calls(tmp_path: Path) -> None:
    costs: list[Cost] = []
    reports: list[Progress] = []
    result = quantkit.convert(
        TINY,
        tmp_path / "a-{type}.gguf",
        ["q3_k_m", "q4_0"],
        calibrate={
            "text": [TEXT],
            "tokens": 2048,
            "context": 256,
            "announce": costs.append,
            "progress": reports.append,
        },
        threads=2,
    )
    quantkit.calibrate(TINY, tmp_path / "b.imatrix.gguf", text=[TEXT], tokens=2048, context=256, threads=1)
    quantkit.convert(TINY, tmp_path / "b-{type}.gguf", ["q3_k_m", "q4_0"], imatrix=tmp_path / "b.imatrix.gguf")
    assert result.statistics == tmp_path / "a-imatrix.gguf"
    assert result.to_json()["statistics"] == str(result.statistics)
    assert result.statistics.read_bytes() == (tmp_path / "b.imatrix.gguf").read_bytes()
    for name in ("q3_k_m", "q4_0"):
        mine, other = (quantkit_fields(tmp_path / f"{letter}-{name}.gguf") for letter in "ab")
        assert mine == other
    assert [cost.tokens for cost in costs] == [2048]
    assert reports[-1].done_tokens == reports[-1].total_tokens


def quantkit_fields(path: Path) -> tuple[dict[str, Any], bytes]:
    """Metadata without the statistics' own name, and all tensors' bytes."""
    from quantkit.gguf import open_gguf

    file = open_gguf(path)
    fields = {key: field.value for key, field in file.fields.items() if key != "quantize.imatrix.file"}
    return fields, path.read_bytes()[min(tensor.offset_bytes for tensor in file.tensors) :]


def test_true_takes_the_text_that_comes_with_quantkit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "quantkit.convert.calibration.calibrate",
        lambda checkpoint, path, **options: quantkit.calibrate(checkpoint, path, tokens=1024, **options),
    )
    result = quantkit.convert(TINY, tmp_path / "a.gguf", "q4_0", calibrate=True)
    assert result.statistics == tmp_path / "a.imatrix.gguf"
    assert read_imatrix(result.statistics).datasets == ("quantkit-default-2",)


def test_without_it_there_are_none(tmp_path: Path) -> None:
    result = quantkit.convert(TINY, tmp_path / "a.gguf", "q4_0")
    assert result.statistics is None
    assert result.to_json()["statistics"] is None
    assert [path.name for path in tmp_path.iterdir()] == ["a.gguf"]


@pytest.mark.parametrize(
    ("options", "error", "word"),
    [
        ({"imatrix": "x.gguf"}, UsageError, "both given"),
        ({"mmproj_only": True}, UsageError, "mmproj"),
        ({"tensor_types": [("nothing", "q8_0")]}, QuantkitError, "nothing"),
        ({"calibrate": {"token": 5}}, UsageError, "calibrate has no token"),
        ({"calibrate": {"text": ["absent.txt"]}}, UsageError, "absent.txt"),
        ({"types": "q9"}, UsageError, "q9"),
    ],
)
def test_what_cannot_be_is_refused_and_leaves_nothing(
    options: dict[str, Any], error: type[QuantkitError], word: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=word):
        quantkit.convert(TINY, tmp_path / "a.gguf", **{"calibrate": True, **options})
    assert not list(tmp_path.iterdir())


def test_statistics_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "a.imatrix.gguf").write_text("mine")
    with pytest.raises(PlanRefusedError, match="--imatrix"):
        quantkit.convert(TINY, tmp_path / "a.gguf", "q4_0", calibrate={"text": [TEXT]})
    assert (tmp_path / "a.imatrix.gguf").read_text() == "mine"
    quantkit.convert(TINY, tmp_path / "a.gguf", "q4_0", calibrate={"text": [TEXT], "tokens": 512}, force=True)
    assert read_imatrix(tmp_path / "a.imatrix.gguf").datasets == (str(TEXT),)


class Stopped(Exception):
    pass


@pytest.mark.parametrize("force", [False, True])
def test_the_same_call_goes_on_from_either_half(force: bool, tmp_path: Path) -> None:
    """Stopped in the calibration, and again in the conversion, before and after it has something to go on from."""
    out = tmp_path / "out.gguf"
    costs: list[Cost] = []

    def convert(*, calibration_stops: bool = False, conversion_stops: bool = False, **changed: Any) -> None:
        def in_calibration(progress: Progress) -> None:
            if calibration_stops and progress.done_tokens > 600:
                raise Stopped

        def in_conversion(_: Any) -> None:
            if conversion_stops:
                raise Stopped

        calibrate = {"text": [TEXT], "tokens": 512, "announce": costs.append, "progress": in_calibration, **changed}
        quantkit.convert(TINY, out, "q4_0", calibrate=calibrate, progress=in_conversion, force=force)

    with pytest.raises(Stopped):
        convert(calibration_stops=True)
    with pytest.raises(Stopped):
        convert(conversion_stops=True)
    assert [cost.finished_layers > 0 for cost in costs] == [False, True]
    if not force:  # which may replace statistics that are complete
        with pytest.raises(ResumeError, match="tokens was 512, is 1024"):
            convert(tokens=1024)
    with pytest.raises(Stopped):
        convert(conversion_stops=True)
    convert()
    assert len(costs) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.gguf", "out.imatrix.gguf"]
    quantkit.calibrate(TINY, tmp_path / "whole.imatrix.gguf", text=[TEXT], tokens=512)
    assert (tmp_path / "out.imatrix.gguf").read_bytes() == (tmp_path / "whole.imatrix.gguf").read_bytes()
