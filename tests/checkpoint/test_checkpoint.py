"""Opening a checkpoint and reading its bytes."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path

import pytest
from safetensors import deserialize

from quantkit.checkpoint import Checkpoint, open_checkpoint
from quantkit.checkpoint import reader as reader_module
from quantkit.errors import CheckpointError

TINY = Path(__file__).parents[1] / "data" / "tiny-llama4"


def read(checkpoint: Checkpoint, name: str) -> bytes:
    entry = checkpoint.tensors[name]
    buffer = bytearray(entry.n_bytes)
    checkpoint.read_into(entry, memoryview(buffer), 0, entry.n_bytes)
    return bytes(buffer)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(TINY, tmp_path / "model"))


def test_every_tensor_reads_as_the_safetensors_package_reads_it() -> None:
    checkpoint = open_checkpoint(TINY)
    expected = {name: info for file in checkpoint.files for name, info in deserialize(file.read_bytes())}
    assert checkpoint.tensors.keys() == expected.keys()
    for name, info in expected.items():
        entry = checkpoint.tensors[name]
        assert (entry.dtype, list(entry.shape)) == (info["dtype"], info["shape"])
        assert read(checkpoint, name) == info["data"]


def test_a_range_of_a_tensor_is_relative_to_the_tensor() -> None:
    with open_checkpoint(TINY) as checkpoint:
        name = "language_model.model.layers.1.feed_forward.experts.gate_up_proj"
        whole = read(checkpoint, name)
        buffer = bytearray(b"x" * 100)
        checkpoint.read_into(checkpoint.tensors[name], memoryview(buffer), 4321, 60)
        assert buffer == whole[4321:4381] + b"x" * 40


def test_reads_from_several_threads_do_not_disturb_one_another(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = {file: dict(deserialize(file.read_bytes())) for file in open_checkpoint(TINY).files}
    for has_preadv in (True, False):
        monkeypatch.setattr(reader_module, "_HAS_PREADV", has_preadv)
        checkpoint = open_checkpoint(TINY)
        wrong: list[str] = []

        def work(shift: int, checkpoint: Checkpoint = checkpoint, wrong: list[str] = wrong) -> None:
            names = list(checkpoint.tensors)
            for name in names[shift:] + names[:shift]:
                if read(checkpoint, name) != expected[checkpoint.tensors[name].file][name]["data"]:
                    wrong.append(name)

        threads = [threading.Thread(target=work, args=(17 * k,)) for k in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong


def test_short_reads_are_continued(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = read(open_checkpoint(TINY), "language_model.lm_head.weight")
    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, offset: preadv(fd, [buffers[0][:1000]], offset))
    assert read(open_checkpoint(TINY), "language_model.lm_head.weight") == whole


def test_a_file_that_shrinks_while_it_is_read_is_named(copy: Path) -> None:
    checkpoint = open_checkpoint(copy)
    entry = list(checkpoint.tensors.values())[-1]
    os.truncate(entry.file, entry.offset_bytes + entry.n_bytes // 2)
    with pytest.raises(CheckpointError, match=rf"{entry.file.name}: truncated while tensor '{entry.name}' was read"):
        read(checkpoint, entry.name)


def test_a_range_outside_of_the_tensor_is_the_callers_mistake() -> None:
    checkpoint = open_checkpoint(TINY)
    entry = checkpoint.tensors["language_model.model.norm.weight"]
    for offset_bytes, n_bytes in ((-1, 4), (0, entry.n_bytes + 1), (entry.n_bytes, 1)):
        with pytest.raises(ValueError, match="not within"):
            checkpoint.read_into(entry, memoryview(bytearray(4096)), offset_bytes, n_bytes)
    with pytest.raises(ValueError, match="buffer"):
        checkpoint.read_into(entry, memoryview(bytearray(3)), 0, 4)
    with pytest.raises(ValueError, match="buffer"):
        checkpoint.read_into(entry, memoryview(bytes(4)), 0, 4)


def test_settings_are_empty_where_their_file_is_absent(copy: Path) -> None:
    assert open_checkpoint(copy).generation_config["top_p"] == 0.9
    assert open_checkpoint(copy).preprocessor_config["max_patches"] == 16
    (copy / "generation_config.json").unlink()
    (copy / "preprocessor_config.json").unlink()
    assert open_checkpoint(copy).generation_config == {}
    assert open_checkpoint(copy).preprocessor_config == {}


def open_descriptors() -> int:
    return len(list(Path("/dev/fd").iterdir()))


def test_descriptors_are_closed() -> None:
    before = open_descriptors()
    checkpoint = open_checkpoint(TINY)
    for name in checkpoint.tensors:
        read(checkpoint, name)
    assert open_descriptors() == before + len(checkpoint.files)
    checkpoint.close()
    assert open_descriptors() == before
    read(checkpoint, "language_model.lm_head.weight")
    del checkpoint
    assert open_descriptors() == before


@pytest.mark.parametrize(
    "file", ["config.json", "tokenizer.json", "generation_config.json", "README.md", "chat_template.jinja"]
)
def test_the_fingerprint_follows_every_side_file(copy: Path, file: str) -> None:
    before = open_checkpoint(copy).fingerprint
    assert before == open_checkpoint(TINY).fingerprint
    path = copy / file
    path.write_bytes(path.read_bytes() + b"\n")
    assert open_checkpoint(copy).fingerprint != before


def test_the_fingerprint_follows_both_ends_of_each_tensor(copy: Path) -> None:
    checkpoint = open_checkpoint(copy)
    entry = checkpoint.tensors["language_model.model.layers.2.feed_forward.experts.down_proj"]
    before = checkpoint.fingerprint
    seen = {before}
    for at in (entry.offset_bytes, entry.offset_bytes + 4095, entry.offset_bytes + entry.n_bytes - 1):
        data = bytearray(entry.file.read_bytes())
        data[at] ^= 1
        entry.file.write_bytes(data)
        seen.add(open_checkpoint(copy).fingerprint)
    assert len(seen) == 4


def test_the_model_card_keeps_words_as_they_are_written(copy: Path) -> None:
    assert open_checkpoint(TINY).model_card()["tags"] == ["llama4", "test-model"]
    card = copy / "README.md"
    card.write_text("---\nlanguage: [no, en]\nversion: 3.0\nlicense:\ndate: 2025-04-05\n---\n# text\n---\n")
    assert open_checkpoint(copy).model_card() == {
        "language": ["no", "en"],
        "version": "3.0",
        "license": None,
        "date": "2025-04-05",
    }
    for text in ("# no front matter\n", "", "---\nnever closed\n", "---\n---\n"):
        card.write_text(text)
        assert open_checkpoint(copy).model_card() == {}
    card.unlink()
    assert open_checkpoint(copy).model_card() == {}
