"""The HTML report: one file that needs nothing else, says everything, and breaks on no name or text."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from tests.drift.files import PROSE, ROOT, TINY, changed, converted

import quantkit
from quantkit.drift import Drift, Statistics
from quantkit.drift.gate import judge
from quantkit.drift.report import render, svg, write_report
from quantkit.drift.report.heat_maps import _readable_on
from quantkit.errors import MissingDependencyError
from quantkit.kernels import QuantizedTensor

HOSTILE = "<script>alert('x')</script>&\"$\\frac{1}{2}$-->]]>\x07_\u202e.gguf"
VOID = {"meta", "br", "link", "img", "hr", "input", "use", "path"}
SECTIONS = ["files", "size", "tensors", "routing", "states", "maps", "domains", "repeat"]


class Page(HTMLParser):
    """Elements, texts and ids of a page; fails where elements are not closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def ids(self) -> list[str]:
        return [found["id"] or "" for _, found in self.elements if "id" in found]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return converted(tmp_path_factory.mktemp("report"), ["q8_0", "q4_k_m", "q2_k"])


@pytest.fixture(scope="module")
def drift(files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Drift:
    text = tmp_path_factory.mktemp("text") / "labelled.jsonl"
    words = [line for path in PROSE for line in path.read_text().splitlines() if len(line) > 60][:60]
    domains = ["prose", "<b>bold & brave</b>"]
    lines = "".join(json.dumps({"text": line, "domain": domains[at % 2]}) + "\n" for at, line in enumerate(words))
    text.write_text(lines)
    return quantkit.drift(TINY, files.values(), text=[text], context=64, tokens=1024, threads=2)


def test_every_section_is_there(drift: Drift) -> None:
    drift = replace(drift, command="quantkit drift a b --text 'c d'", imatrix=Statistics("x.gguf", "a" * 64))
    page = Page(render(drift, judge(drift, ["kld.mean>0.02"])))
    assert [one for one in page.ids() if one in SECTIONS] == SECTIONS
    assert "No faults found: all 3 files are as their types explain." in page.text
    assert "Gate: 2 of 3 conditions passed." in page.text
    assert "q8_0.gguf is closest to the reference." in page.text
    assert "Up to a severe loss" in page.text  # and nothing is called fine because of what is
    assert "✓ Small" not in page.text
    assert "quantkit drift a b --text 'c d'" in page.text
    assert drift.text is not None
    for words in (
        drift.text.sha256,
        f"x.gguf, SHA-256 {'a' * 64}",
        f"tokens 1024, context 64, score all, weights yes, local yes, draws 4000, seed {drift.options.seed}",
        *(f"{name} {version}" for name, version in drift.versions.items()),
        f"{drift.machine.platform}, tier {drift.machine.tier}",
        *(" ".join(vars(one).values()) for one in drift.machine.blas),
    ):
        assert words in page.text
    for one in (drift.reference, *drift.candidates):
        assert one.fingerprint in page.text
    for candidate in drift.candidates:
        assert candidate.kld is not None
        assert f"{candidate.kld.mean:.3g}" in page.text
        worst = max(candidate.tensors, key=lambda tensor: tensor.error.relative_error)
        assert worst.name in page.text
    assert "<b>bold & brave</b>" in page.text
    assert "the type that would help" in page.text
    worst = max((one for each in drift.candidates for one in each.tensors), key=lambda one: one.error.relative_error)
    error = f"{100 * worst.error.relative_error:.2f} %"
    verdict = " ".join(page.text.partition("Files\n")[0].split())
    assert f"{worst.name} of q2_k.gguf, whose error is {error} in q2_k. What would help: q3_k would" in verdict
    assert f"more: --tensor-type {worst.name}=q3_k" in verdict
    effective = [round(one.kld.effective_tokens) for one in drift.candidates if one.kld]
    assert f"Intervals are 95 %, over {drift.text.basis}." in page.text
    assert f"are worth {min(effective):,} to {max(effective):,} independent ones" in page.text


def test_every_figure_of_predictions_is_there(drift: Drift) -> None:
    """Rows by name, with the cells of the second file as report.json has them."""
    source = render(drift)
    own = drift.candidates[1]
    assert own.kld is not None
    assert own.kld.ci95 is not None
    assert own.perplexity is not None
    assert own.perplexity.ci95 is not None
    assert own.delta_p is not None
    assert own.delta_p.ci95 is not None
    assert own.flips is not None
    assert own.routing is not None
    assert own.top1_ci95 is not None
    assert own.top5_overlap is not None
    part = source.partition('id="predictions"')[2].partition("</thead>")[2].partition("</details>")[0]
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", part)]
    cells = [(row[0], re.sub(r"</?small>", " ", row[2]).strip()) for row in rows]
    assert all(len(row) == 4 for row in rows)
    low, high = (100 * end for end in own.delta_p.ci95)
    ratio = own.perplexity
    assert ratio.ci95 is not None
    for label, text in (
        ("mean", f"{own.kld.mean:#.3g} {own.kld.ci95[0]:#.3g} to {own.kld.ci95[1]:#.3g}"),
        ("effective tokens, for the mean", f"{own.kld.effective_tokens:,.0f}"),
        ("99.9 % below", f"{own.kld.p999:#.3g}"),
        ("ln(the file&#39;s / reference&#39;s)", f"{ratio.ln_ratio:+.4f} {ratio.ci95[0]:+.4f} to {ratio.ci95[1]:+.4f}"),
        ("shared of the five likeliest", f"{100 * own.top5_overlap:.2f} %"),
        ("flips from right to wrong", f"{100 * own.flips.correct_to_wrong:.2f} %"),
        ("flips from wrong to right", f"{100 * own.flips.wrong_to_correct:.2f} %"),
        ("mean", f"{100 * own.delta_p.mean:+.2f} % {low:+.2f} to {high:+.2f} %"),
        ("root of the mean square", f"{100 * own.delta_p.rms:.2f} %"),
        ("0.1 % below", f"{100 * own.delta_p.p001:+.2f} %"),
        ("25 % below", f"{100 * own.delta_p.p25:+.2f} %"),
        ("KL divergence of routers", f"{sum(own.routing.kl) / 4:#.3g}"),
        ("KL divergence of routers", f"{sum(own.routing.kl_local) / 4:#.3g}"),
        ("flips, weighted by the reference&#39;s margin", f"{100 * sum(own.routing.weighted_flips) / 4:.2f} %"),
    ):
        assert (label, text) in cells
    (domain, *_) = own.domains
    assert domain.kld.ci95 is not None
    assert domain.top1_ci95 is not None
    shown = source[source.index('id="domains"') :]
    assert f"<small>{domain.kld.ci95[0]:#.3g} to {domain.kld.ci95[1]:#.3g}</small>" in shown
    assert f"<small>{100 * domain.top1_ci95[0]:.2f} to {100 * domain.top1_ci95[1]:.2f} %</small>" in shown


def test_nothing_is_fetched_or_run(drift: Drift) -> None:
    source = render(drift)
    page = Page(source)
    assert not {"script", "link", "img", "iframe", "image", "object"} & {tag for tag, _ in page.elements}
    assert not re.search(r"https?:|//\w|@import|javascript:|data:", source)
    for _, attributes in page.elements:
        assert not any(name.startswith("on") for name in attributes)
        assert (attributes.get("href") or "#").startswith("#")
    assert set(re.findall(r"url\((.)", source)) <= {"#"}
    policy = next(found["content"] for _, found in page.elements if found.get("http-equiv"))
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"


def test_figures_have_words_and_ids_of_their_own(drift: Drift) -> None:
    page = Page(render(drift))
    figures = [found for tag, found in page.elements if tag == "figure"]
    assert len(figures) == 1 + 2 + 2 + 4 * len(drift.candidates)
    assert all(found["role"] == "img" and len(found["aria-label"] or "") > 40 for found in figures)
    ids = page.ids()
    assert len(ids) == len(set(ids))
    for name in re.findall(r'(?:href="|url\()#([^")]+)', render(drift)):
        assert name in ids
    assert not re.search(r"#0[0-9a-f]0[0-9a-f]0[0-9a-f]", render(drift))  # colours that the page's style replaces


def test_the_same_bytes(drift: Drift, tmp_path: Path) -> None:
    paths = [tmp_path / "first.html", tmp_path / "second.html"]
    for path in paths:
        write_report(path, replace(drift, command="quantkit drift"))
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert sorted(tmp_path.iterdir()) == paths


def test_hostile_names(drift: Drift) -> None:
    assert drift.text is not None
    hostile = replace(
        drift,
        text=replace(drift.text, files=(HOSTILE,)),
        candidates=tuple(replace(one, file=f"{at}{HOSTILE}") for at, one in enumerate(drift.candidates)),
        reference=replace(drift.reference, file=HOSTILE),
        command=HOSTILE,
        imatrix=Statistics(HOSTILE, HOSTILE),
    )
    source = render(hostile, judge(hostile, ["kld.mean>0"]))
    page = Page(source)
    assert not {"script", "b"} & {tag for tag, _ in page.elements}
    assert page.text.count("alert('x')") > 5
    assert [one for one in page.ids() if one in SECTIONS] == SECTIONS


def test_weights_alone_and_predictions_alone(files: dict[str, Path], drift: Drift) -> None:
    page = Page(render(quantkit.drift(TINY, [files["q2_k"]], weights_only=True, threads=2)))
    assert [one for one in page.ids() if one in SECTIONS] == ["files", "tensors", "maps", "repeat"]
    assert "Drift of q2_k.gguf from" in page.text
    assert "No faults found: the file is as its types explain." in page.text
    without = replace(
        drift, candidates=tuple(replace(one, tensors=(), routing=None, domains=()) for one in drift.candidates)
    )
    page = Page(render(without))
    assert [one for one in page.ids() if one in SECTIONS] == ["files", "size", "states", "maps", "repeat"]


def test_no_drift_at_all(files: dict[str, Path], tmp_path: Path) -> None:
    """Nothing to take a logarithm of."""
    path = converted(tmp_path, ["bf16"])["bf16"]
    page = Page(render(quantkit.drift(path, [path], text=PROSE, context=64, tokens=256, threads=2)))
    assert "has no loss at all (too little text to be sure): it predicts the same next token as" in page.text


def test_a_fault_is_the_headline(files: dict[str, Path], tmp_path: Path) -> None:
    def turned(tensor: QuantizedTensor) -> QuantizedTensor:
        packed = tensor.packed.copy()
        packed[1] = packed[1, ::-1]
        return QuantizedTensor(packed, tensor.format)

    path = changed(files["q4_k_m"], tmp_path / "faulty.gguf", tensors={"blk.2.ffn_up_exps.weight": turned})
    result = quantkit.drift(TINY, [files["q8_0"], path], weights_only=True, threads=2)
    page = Page(render(result))
    assert "faulty.gguf has faults: do not use it." in page.text
    assert "blk.2.ffn_up_exps.weight, expert 1: rows are in another order" in page.text
    assert result.to_json()["candidates"][1]["findings"][0]["experts"] == [1]


def test_ties_are_named(files: dict[str, Path]) -> None:
    """The same file twice: neither is called the closest."""
    result = quantkit.drift(TINY, [files["q4_k_m"]] * 2, text=PROSE, context=64, tokens=2048, weights=False, threads=2)
    page = Page(render(result))
    name = str(files["q4_k_m"])
    assert f"{name} and {name} cannot be told apart on this text: which is closest stays open." in page.text
    assert "is closest to" not in page.text
    assert "All files can be told apart" not in page.text


def test_a_missing_package_is_named(drift: Drift, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MissingDependencyError, match=r"pip install '.\[report\]'"):
        render(drift)


def test_nothing_heavy_is_imported_with_the_room() -> None:
    code = "import quantkit.drift.report, sys; assert not {'matplotlib', 'jinja2'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_was_not_compared_is_not_praised(files: dict[str, Path], tmp_path: Path) -> None:
    base = tmp_path / "base.kld"
    options = {"text": PROSE, "context": 64, "tokens": 512, "threads": 2}
    quantkit.drift(TINY, [files["q8_0"]], weights=False, write_kl_base=base, **options)
    result = quantkit.drift(base, [files["q2_k"], files["q4_k_m"]], threads=2)
    assert result.kl_base is not None
    page = Page(render(result))
    assert [one for one in page.ids() if one in SECTIONS] == ["files", "size", "repeat"]
    assert "Weights were not compared" in page.text
    assert "No faults found" not in page.text
    assert result.kl_base.statement in page.text


def test_findings_and_types_that_would_help_do_not_mix(files: dict[str, Path], tmp_path: Path) -> None:
    def doubled(tensor: QuantizedTensor) -> QuantizedTensor:
        return QuantizedTensor.quantize(2 * tensor.dequantize(), tensor.format)

    path = changed(files["q4_k_m"], tmp_path / "faulty.gguf", tensors={"blk.1.attn_v.weight": doubled})
    source = render(quantkit.drift(TINY, [path], weights_only=True, threads=2))
    rows = re.findall(r"<tr>(<td class=\"text\">blk\.\d\.attn.*?)</tr>", source, re.DOTALL)
    assert "blk.1.attn_v.weight" in rows[0]
    assert "see above" in rows[0]
    assert "would make it" not in source
    assert not any("see above" in row for row in rows[1:])


def contrast(one: str, other: str) -> float:
    """WCAG 2's, of two colours #rrggbb."""
    bright, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_have_contrast(scheme: str) -> None:
    """WCAG 2.2 AA: 4.5 for text (1.4.3), 3 for what figures are read by (1.4.11)."""
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    style = (ROOT / "src" / "quantkit" / "drift" / "report" / "style.css").read_text()
    light, dark = re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", light if scheme == "light" else dark))
    texts = {("ink", on) for on in ("ground", "panel", "fault-ground", "warning-ground", "good-ground")}
    texts |= {("soft", "ground"), ("soft", "panel"), ("series-0", "ground"), ("series-0", "panel")}
    texts |= {(name, on) for name in ("fault", "warning", "good") for on in ("ground", "panel", f"{name}-ground")}
    for text, on in texts:
        assert contrast(colours[text], colours[on]) >= 4.5, (text, on)
    used = {name.removeprefix("var(--").rstrip(")") for name in svg._STYLE.values()} - {"currentColor"}
    series = [name for name in used if name.startswith("series-")]
    assert used <= set(colours)
    assert len(series) == len(svg.SERIES) == 6
    for name in series:
        assert contrast(colours[name], colours["ground"]) >= 3, name
    every_16th = range(0, 256, 17)
    for shade in (
        (red / 255, green / 255, blue / 255) for red in every_16th for green in every_16th for blue in every_16th
    ):
        text = "#000000" if _readable_on(shade) == "black" else "#ffffff"
        assert contrast(text, "#" + "".join(f"{round(255 * part):02x}" for part in shade)) >= 4.5
