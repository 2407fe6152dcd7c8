"""What a plan says, and what it refuses."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path

import pytest
from tests.llama4.checkpoints import MAVERICK, SCOUT, SCOUT_ROPE_SCALING, TINY, build

from quantkit.convert import convert, plan
from quantkit.convert.plan import DiskNeed, Plan
from quantkit.errors import CheckpointError, PlanRefusedError, UnsupportedModelError, UsageError


def test_sizes_are_those_of_the_files(tiny: Path, tmp_path: Path) -> None:
    options = {"types": ["q8_0", "iq4_nl"], "mmproj": tmp_path / "mmproj.gguf"}
    planned = plan(tiny, tmp_path / "{type}.gguf", **options)
    result = convert(tiny, tmp_path / "{type}.gguf", **options)
    for before, after in zip(planned.outputs, result.outputs, strict=True):
        assert sum(path.stat().st_size for path in after.files) == before.n_bytes
        assert sum(file.n_bytes for file in before.files) == before.n_bytes
        assert before.bits_per_weight == before.tensor_bytes * 8 / before.n_weights
        assert sum(n_bytes for _, _, n_bytes in before.by_type().values()) == before.tensor_bytes
    assert planned.source_bytes == result.source_bytes
    assert planned.disk[0].needed_bytes == sum(output.n_bytes for output in planned.outputs)


def test_json_is_plain_and_versioned(tiny: Path, tmp_path: Path) -> None:
    planned = plan(tiny, tmp_path / "out.gguf", "q8_0")
    plain = json.loads(json.dumps(planned.to_json()))
    assert plain == planned.to_json()
    assert plain["schema"] == 1
    assert plain["outputs"][0]["types"]["q8_0"]["tensors"] > 0
    assert plain["outputs"][0]["tensors"][0].keys() >= {"name", "shape", "type", "n_bytes"}
    assert "work" not in plain


@pytest.mark.parametrize(("shape", "n_tensors", "n_bytes"), [(SCOUT, 628, 65.4e9), (MAVERICK, 531, 242.8e9)])
def test_true_sizes_take_seconds(shape: dict[str, int], n_tensors: int, n_bytes: float, tmp_path: Path) -> None:
    scaling = SCOUT_ROPE_SCALING if shape is SCOUT else None
    checkpoint = build(tmp_path / "model", **shape, rope_scaling=scaling, zeros=True, shard_bytes=20 * 10**9)
    begun = time.monotonic()
    planned = plan(checkpoint, types="q4_k_m")
    seconds = time.monotonic() - begun
    output = planned.outputs[0]
    assert len(output.tensors) == n_tensors
    assert output.tensor_bytes == pytest.approx(n_bytes, rel=0.002)
    assert output.bits_per_weight == pytest.approx(4.85, abs=0.01)
    assert planned.peak_ram_bytes < 1.0e9
    assert seconds < 10


def test_existing_output_is_kept_without_force(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    out.write_text("precious")
    for call in (plan, convert):
        with pytest.raises(PlanRefusedError, match=r"out\.gguf exists") as caught:
            call(tiny, out, "q8_0")
        assert "--force" in caught.value.hint
    assert out.read_text() == "precious"
    convert(tiny, out, "q8_0", force=True)
    assert out.read_bytes()[:4] == b"GGUF"
    assert list(tmp_path.iterdir()) == [out]


def test_one_existing_split_is_enough_to_refuse(tiny: Path, tmp_path: Path) -> None:
    convert(tiny, tmp_path / "out.gguf", "q8_0", split_max_size="2M")
    splits = sorted(tmp_path.iterdir())
    assert len(splits) > 1
    for split in splits[:-1]:
        split.unlink()
    with pytest.raises(PlanRefusedError, match=f"{splits[-1].name} exists"):
        convert(tiny, tmp_path / "out.gguf", "q8_0", split_max_size="2M")
    assert list(tmp_path.iterdir()) == [splits[-1]]


def test_missing_folder_is_refused(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(PlanRefusedError, match="does not exist") as caught:
        plan(tiny, tmp_path / "none" / "out.gguf", "q8_0")
    assert "mkdir -p" in caught.value.hint
    (tmp_path / "folder.gguf").mkdir()
    with pytest.raises(UsageError, match="is a folder"):
        plan(tiny, tmp_path / "folder.gguf", "q8_0")


def test_too_little_disk_is_refused(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1_000_000, "total": 2_000_000})())
    with pytest.raises(PlanRefusedError, match=r"1,000,000 bytes free, and [\d,]+ are needed"):
        convert(tiny, tmp_path / "out.gguf", "q8_0")
    assert not list(tmp_path.iterdir())


def test_what_an_unfinished_file_holds_is_not_needed_again(tiny: Path, tmp_path: Path) -> None:
    from quantkit.convert.room import disk_needs

    out = tmp_path / "out.gguf"
    (tmp_path / "out.gguf.part").write_bytes(bytes(range(256)) * 4096)
    need = disk_needs([(out, 5 << 20)])[0]
    assert isinstance(need, DiskNeed)
    assert need.already_bytes == 1 << 20
    assert need.needed_bytes == 4 << 20


def test_too_little_memory_is_refused(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quantkit.convert.room.available_ram_bytes", lambda: 1_000_000)
    with pytest.raises(PlanRefusedError, match=r"memory, and 1,000,000 are available"):
        convert(tiny, tmp_path / "out.gguf", "q8_0")


def test_fallbacks_are_listed_and_strict_refuses_them(tmp_path: Path) -> None:
    checkpoint = build(tmp_path / "model", layers=2, hidden=160, head_dim=32, expert_width=96)
    output = plan(checkpoint, types="q4_k_m").outputs[0]
    by_name = {fallback.tensor: fallback for fallback in output.fallbacks}
    gate = by_name["blk.0.ffn_gate_exps.weight"]
    assert (gate.wanted, gate.type) == ("q4_k", "q5_0")
    assert gate.extra_bytes == 4 * 96 * 160 * (5.5 - 4.5) / 8
    assert output.bits_per_weight > output.nominal_bits_per_weight
    assert (output.bits_per_weight - output.nominal_bits_per_weight) * output.n_weights / 8 == pytest.approx(
        sum(fallback.extra_bytes for fallback in output.fallbacks)
    )
    with pytest.raises(PlanRefusedError, match=r"blk\.0\..*q4_k -> q5_0"):
        plan(checkpoint, types="q4_k_m", strict=True)
    assert plan(checkpoint, types="q8_0", strict=True).outputs[0].fallbacks == ()


def test_mismatch_is_refused_or_noted(tmp_path: Path) -> None:
    import gguf

    checkpoint = build(tmp_path / "model", layers=4, text_config={"attn_scale": 0.2})
    out = tmp_path / "out.gguf"
    with pytest.raises(UnsupportedModelError, match=r"attn_scale is 0\.2"):
        plan(checkpoint, out, "q8_0")
    convert(checkpoint, out, "q8_0", allow_mismatch=True)
    (reason,) = gguf.GGUFReader(out).fields["quantkit.mismatch"].contents()
    assert "attn_scale is 0.2" in reason


def test_usage(tiny: Path, tmp_path: Path) -> None:
    cases = [
        (lambda: plan(tiny, tmp_path / "a.gguf", ["q8_0", "q4_0"]), r"cannot share the name"),
        (lambda: plan(tiny, None, ["q8_0", "q8_0"]), "given twice"),
        (lambda: plan(tiny, None, []), "no type was given"),
        (lambda: plan(tiny, None, ["q4_k_x"]), "q4_k_x"),
        (lambda: plan(tiny, tmp_path / "a.bin", "q8_0"), "must end in .gguf"),
        (lambda: plan(tiny, tmp_path / "a.gguf", "q8_0", mmproj=tmp_path / "a.gguf"), "cannot be both"),
        (lambda: plan(tiny, None, "q8_0", threads=-1), "threads is -1"),
        (lambda: plan(tiny, None, "q8_0", weighting="heavy"), "no weighting 'heavy'"),
        (lambda: plan(tiny, None, "q8_0", split_max_size="many"), "many"),
        (lambda: convert(tiny, None, "q8_0"), "no output was named"),
        (lambda: plan(tiny, "", "q8_0"), "the output's name is empty"),
        (lambda: plan(tiny, None, "q8_0", bandwidth_gb_s=math.nan), "the bandwidth is nan"),
        (lambda: plan(tiny, None, "q8_0", bandwidth_gb_s=math.inf), "the bandwidth is inf"),
        (lambda: plan(tiny, None, "q8_0", bandwidth_gb_s=0), "the bandwidth is 0"),
        (lambda: plan(tiny, None, "q8_0", bandwidth_gb_s=-1.5), r"the bandwidth is -1\.5"),
    ]
    for call, message in cases:
        with pytest.raises(UsageError, match=message):
            call()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("recipe", "overrides", "message"),
    [
        ("q4_k_m", {"tensor_types": [("nosuch", "q6_k")]}, "nosuch=q6_k has no effect: no tensor has a name like that"),
        ("q4_k_m", {"tensor_types": [("ffn_gate_inp", "q6_k")]}, r"never quantized \(blk\.0\.ffn_gate_inp\.weight, .*"),
        ("q4_k_m", {"tensor_types": [("attn_norm", "q6_k")]}, "never quantized"),
        (
            "q4_k_m",
            {"tensor_types": [("attn_.", "q8_0"), ("attn_v", "q6_k")]},
            r"earlier --tensor-type attn_\. decides",
        ),
        ("q4_k_m", {"tensor_types": [("^output", "q8_0")], "output_tensor_type": "q6_k"}, "an option of its own"),
        ("bf16", {"tensor_types": [("attn_v", "q6_k")]}, "attn_v=q6_k: bf16 takes no types of single tensors"),
        ("f16", {"tensor_types": [("attn_v", "q6_k")]}, "f16 takes no types"),
        ("f32", {"tensor_types": [("attn_v", "q6_k")]}, "f32 takes no types"),
    ],
)
def test_overrides_without_effect_are_refused(recipe: str, overrides: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        plan(TINY, None, recipe, **overrides)


def test_overrides_with_effect_are_taken(tiny: Path) -> None:
    types = [("ATTN_V", "q6_k"), (r"blk\.0\.", "q8_0"), ("norm|attn_k", "q5_k"), ("attn", "q4_0")]
    by_name = {tensor.name: tensor.type for tensor in plan(tiny, None, "q4_k_m", tensor_types=types).outputs[0].tensors}
    wanted = {"attn_v": "q6_k", "attn_q": "q8_0", "attn_k": "q8_0", "attn_norm": "f32"}
    assert {name: by_name[f"blk.0.{name}.weight"] for name in wanted} == wanted
    assert by_name["blk.1.attn_k.weight"] == "q5_k"
    assert by_name["blk.1.attn_q.weight"] == "q4_0"


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"types": ["q4_k_m"]}, "--type q4_k_m"),
        ({"types": "q8_0"}, "--type q8_0"),
        ({"imatrix": "some.imatrix"}, "--imatrix"),
        ({"pure": True}, "--pure"),
        ({"tensor_types": [("v.blk", "q8_0")]}, "--tensor-type"),
        ({"token_embedding_type": "q8_0"}, "--token-embedding-type"),
        ({"output_tensor_type": "q8_0"}, "--output-tensor-type"),
        ({"split_max_size": "1G"}, "--split-max-size"),
    ],
)
def test_what_only_the_model_has_is_refused_with_mmproj_only(
    options: dict[str, object], named: str, tiny: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=f"{named} has no effect on an mmproj"):
        convert(tiny, tmp_path / "mmproj.gguf", mmproj_only=True, **options)
    assert not list(tmp_path.iterdir())


def test_without_out_the_current_folder_is_looked_at(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    planned = plan(tiny, types="q8_0")
    (need,) = planned.disk
    assert need.folder == tmp_path
    assert need.needed_bytes == planned.outputs[0].n_bytes == planned.outputs[0].files[0].n_bytes
    assert planned.outputs[0].path.name == f"{tiny.name}-q8_0.gguf"
    assert not planned.warnings
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1_000_000, "total": 2_000_000})())
    (warning,) = plan(tiny, types="q8_0").warnings  # it is only a plan: told, not refused
    assert "1,000,000 bytes are free" in warning


def test_a_wrong_tier_is_refused_before_anything_is_written(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUANTKIT_TIER", "foo")
    with pytest.raises(UsageError, match="QUANTKIT_TIER=foo"):
        convert(tiny, tmp_path / "out.gguf", "q8_0")
    assert not list(tmp_path.iterdir())


def test_absurd_numbers_of_threads_are_cut_and_told(tiny: Path) -> None:
    planned = plan(tiny, types="q8_0", threads=100_000)
    assert 4 <= planned.threads < 100_000
    assert planned.warnings[0].startswith(f"100,000 threads were asked for; {planned.threads} are used")
    assert planned.peak_ram_bytes < 10**9 * planned.threads
    assert plan(tiny, types="q8_0", threads=2).warnings == ()


def test_tensors_larger_than_a_split_are_told(tiny: Path, tmp_path: Path) -> None:
    def planned(size: str) -> Plan:
        return plan(tiny, tmp_path / "out.gguf", "q8_0", split_max_size=size)

    largest = max(tensor.n_bytes for tensor in planned("1G").outputs[0].tensors)
    assert planned(str(largest)).warnings == ()
    (warning,) = planned(str(largest - 1)).warnings
    assert f"larger than the split size of {largest - 1:,} bytes" in warning
    assert f"takes {largest:,}" in warning


def test_a_dangling_symlink_is_an_output(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    out.symlink_to(tmp_path / "unmounted" / "model.gguf")
    with pytest.raises(PlanRefusedError, match=r"out\.gguf is a symlink to .*model\.gguf, which is not there"):
        convert(tiny, out, "q8_0")
    assert out.is_symlink()
    convert(tiny, out, "q8_0", force=True)
    assert out.read_bytes()[:4] == b"GGUF"


def test_names_that_are_not_utf8(own_tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    out = folder / os.fsdecode(b"caf\xe9.gguf")
    convert(own_tiny, out, "q8_0")
    assert [os.fsencode(path.name) for path in folder.iterdir()] == [b"caf\xe9.gguf"]
    named = own_tiny.rename(tmp_path / os.fsdecode(b"mod\xe8le"))
    with pytest.raises(CheckpointError, match=r"mod\\xe8le': the name of the folder is not UTF-8") as caught:
        plan(named, types="q8_0")
    assert "Rename" in caught.value.hint
    str(caught.value).encode()


def test_proc_is_refused_as_what_it_is(tiny: Path) -> None:
    with pytest.raises(PlanRefusedError, match=r"the output folder /proc is .*(stores nothing|not writable)"):
        plan(tiny, "/proc/a.gguf", "q8_0")


def test_the_next_name_is_suggested(tiny: Path) -> None:
    for asked, suggested in (("q4_k", "q4_k_m"), ("Q5_K", "q5_k_m"), ("q3_k", "q3_k_m"), ("q8", "q8_0")):
        with pytest.raises(UsageError) as caught:
            plan(tiny, None, asked)
        assert caught.value.hint.startswith(f"Did you mean {suggested}?")


def test_a_chosen_weighting_is_noted(tiny: Path, tmp_path: Path) -> None:
    import gguf

    for weighting in (None, "plain", "magnitude"):
        out = tmp_path / f"{weighting}.gguf"
        convert(tiny, out, "q4_0", weighting=weighting)
        field = gguf.GGUFReader(out).fields.get("quantkit.weighting")
        assert (None if field is None else field.contents()) == weighting
