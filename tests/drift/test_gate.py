"""Conditions, verdicts and JUnit XML, and that every measure that can be named is documented and has its value."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from tests.drift.files import PROSE, TINY, converted

import quantkit
from quantkit.drift import Drift, Kld
from quantkit.drift.gate import MEASURES, Need, judge, parse_condition
from quantkit.drift.junit import junit, write_junit
from quantkit.drift.result import plain
from quantkit.errors import OutputError, UsageError


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Drift:
    files = converted(tmp_path_factory.mktemp("gate"), ["q8_0", "q2_k"])
    return quantkit.drift(TINY, files.values(), text=PROSE, context=64, tokens=4096, threads=2)


def test_every_measure_has_its_value(result: Drift) -> None:
    good, bad = result.candidates
    assert good.kld is not None
    assert good.perplexity is not None
    assert good.routing is not None
    wanted = {
        "kld.mean": good.kld.mean,
        "kld.ci95.high": (good.kld.ci95 or (0, 0))[1],
        "kld.p999": good.kld.p999,
        "perplexity.ln_ratio": good.perplexity.ln_ratio,
        "top1_agreement": good.top1_agreement,
        "top1_ci95.low": (good.top1_ci95 or (0, 0))[0],
        "routing.agreement": sum(good.routing.agreement) / 4,
        "routing.agreement.min": min(good.routing.agreement),
        "layers.relative_error": good.layers[3].error.relative_error,
        "layers.local.max": max(layer.local.relative_error for layer in good.layers if layer.local),
        "weights.relative_error.max": max(tensor.error.relative_error for tensor in good.tensors),
        "bytes": good.bytes,
    }
    for name, value in wanted.items():
        assert MEASURES[name].value(good) == pytest.approx(value), name
    for name, measure in MEASURES.items():
        values = [measure.value(one) for one in (good, bad)]
        assert all(isinstance(value, float) and math.isfinite(value) for value in values), name
        if name not in ("bytes", "flips.wrong_to_correct") and "local" not in name.removeprefix("layers."):
            better_is_less = "agreement" not in name and "top" not in name and "cosine" not in name
            if name != "delta_p.mean":
                assert (values[0] < values[1]) == better_is_less, name  # type: ignore[operator]


def test_verdicts(result: Drift) -> None:
    verdicts = judge(result, ["kld.mean>0.01", " top1_agreement < .5 ", "bytes>=1e3"])
    assert [one.failed for one in verdicts] == [False, False, True, True, False, True]
    first, bad = verdicts[0], verdicts[3]
    assert (first.condition, first.limit) == ("kld.mean>0.01", 0.01)
    assert bad.file == result.candidates[1].file
    assert bad.message == f"{bad.file} fails kld.mean > 0.01: it is {bad.value:.6g}"
    assert judge(result, []) == ()


@pytest.mark.parametrize("comparison", [">", ">=", "<", "<="])
def test_comparisons_at_the_limit(comparison: str, result: Drift) -> None:
    n_bytes = result.candidates[0].bytes
    failed = [judge(result, [f"bytes{comparison}{n_bytes + more}"])[0].failed for more in (-1, 0, 1)]
    assert (
        failed
        == {
            ">": [True, False, False],
            ">=": [True, True, False],
            "<": [False, False, True],
            "<=": [False, True, True],
        }[comparison]
    )


def test_what_is_no_number_fails(result: Drift) -> None:
    kld = result.candidates[0].kld
    assert isinstance(kld, Kld)
    broken = replace(result.candidates[0], kld=replace(kld, mean=math.nan))
    (verdict,) = judge(replace(result, candidates=(broken,)), ["kld.mean>0.05"])
    assert verdict.failed
    assert plain(verdict)["value"] is None  # as JSON has it


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("kld.mean", ["no condition", "NAME>NUMBER"]),
        ("kld.mean=0.1", ["is not a condition"]),
        ("kld.mean>many", ["is not a condition"]),
        ("0.1<kld.mean", ["is not a condition"]),
        ("kld.avg>1", ["kld.avg is not measured", "Did you mean kld.", *MEASURES]),
    ],
)
def test_malformed_conditions(text: str, words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        parse_condition(text)
    for word in words[1:] if words[0] == "no condition" else words:
        assert word in str(caught.value)


def test_what_will_not_be_measured_is_refused(result: Drift) -> None:
    without: dict[Need, str] = dict.fromkeys(("text", "states", "local"), "--weights-only")
    assert parse_condition("weights.cosine.min<0.9", without=without).limit == 0.9
    with pytest.raises(UsageError, match=r"kld\.mean is not measured with --weights-only") as caught:
        parse_condition("kld.mean>1", without=without)
    assert caught.value.hint == "Known: weights.relative_error.max, weights.cosine.min, bytes."
    for name, need in (("layers.local.max", "local"), ("experts.relative_error.max", "local"), ("bytes", "file")):
        with pytest.raises(UsageError, match=f"{name} is not measured with it"):
            parse_condition(f"{name}>1", without={need: "it"})


def test_what_cannot_be_judged_fails(result: Drift) -> None:
    """Nothing is raised once the work is done: not measured is not passed."""
    own = result.candidates[0]
    assert own.kld is not None
    bare = replace(own, routing=None, tensors=(), kld=replace(own.kld, ci95=None), perplexity=None, top1_ci95=None)
    conditions = ["routing.agreement<0.1", "weights.cosine.min<0.1", "kld.ci95.high>9", "perplexity.ci95.high>9"]
    verdicts = judge(replace(result, candidates=(bare,)), [*conditions, "top1_ci95.low<0.1"])
    assert [(one.failed, one.value) for one in verdicts] == [(True, None)] * 5
    wanted = f"{own.file} fails kld.ci95.high > 9, which cannot be judged: there is too little text for an interval"
    assert verdicts[2].message == wanted


def test_junit(result: Drift, tmp_path: Path) -> None:
    verdicts = judge(result, ["kld.mean>0.01", "routing.agreement<0.5"])
    write_junit(tmp_path / "drift.xml", verdicts)
    root = ElementTree.parse(tmp_path / "drift.xml").getroot()
    assert (root.tag, root.get("tests"), root.get("failures")) == ("testsuites", "4", "1")
    cases = root.findall("./testsuite/testcase")
    assert [case.get("name") for case in cases] == ["kld.mean>0.01", "routing.agreement<0.5"] * 2
    assert [case.get("classname") for case in cases] == [one.file for one in result.candidates for _ in range(2)]
    failures = [case.find("failure") for case in cases]
    assert [failure is not None for failure in failures] == [False, False, True, False]
    assert failures[2] is not None
    assert failures[2].get("message") == failures[2].text == verdicts[2].message
    odd = replace(verdicts[2], file='a "<&>" é.gguf', message="<&>")
    case = ElementTree.fromstring(junit([odd])).find("./testsuite/testcase")
    assert case is not None
    assert case.get("classname") == odd.file
    with pytest.raises(OutputError, match="missing"):
        write_junit(tmp_path / "missing" / "drift.xml", verdicts)
