"""From what the user typed to the folder of one checkpoint."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
from pathlib import Path

import pytest

from quantkit.checkpoint import open_checkpoint
from quantkit.errors import CheckpointError

TINY = Path(__file__).parents[1] / "data" / "tiny-llama4"


def add_snapshot(repo: Path, commit: str, *, reference: str = "") -> Path:
    """A snapshot as huggingface_hub lays it out: symlinks to blobs."""
    snapshot = repo / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (repo / "blobs").mkdir(exist_ok=True)
    for file in TINY.iterdir():
        blob = repo / "blobs" / hashlib.sha1(file.name.encode()).hexdigest()
        if not blob.exists():
            blob.symlink_to(file)
        (snapshot / file.name).symlink_to(Path("..", "..", "blobs", blob.name))
    if reference:
        (repo / "refs").mkdir(exist_ok=True)
        (repo / "refs" / reference).write_text(commit)
    return snapshot


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    return tmp_path / "hub" / "models--meta-llama--tiny"


def test_a_cache_folder_with_one_snapshot_is_that_snapshot(repo: Path) -> None:
    snapshot = add_snapshot(repo, "c0ffee", reference="main")
    assert open_checkpoint(repo).root == snapshot
    assert open_checkpoint(str(snapshot)).fingerprint == open_checkpoint(TINY).fingerprint


def test_a_cache_folder_with_several_snapshots_asks_which(repo: Path) -> None:
    add_snapshot(repo, "c0ffee", reference="main")
    other = add_snapshot(repo, "decade")
    with pytest.raises(CheckpointError, match="holds 2 snapshots") as caught:
        open_checkpoint(repo)
    assert "c0ffee (main)" in caught.value.hint
    assert str(other) in caught.value.hint


def test_a_cache_of_several_models_asks_which(repo: Path) -> None:
    add_snapshot(repo, "c0ffee")
    with pytest.raises(CheckpointError, match="cache with 1 models") as caught:
        open_checkpoint(repo.parent)
    assert repo.name in caught.value.hint


def test_a_cache_folder_without_snapshot(repo: Path) -> None:
    (repo / "snapshots").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="without a snapshot"):
        open_checkpoint(repo)


def test_an_unfinished_blob_explains_a_missing_shard(repo: Path) -> None:
    snapshot = add_snapshot(repo, "c0ffee")
    (repo / "blobs" / "1234.incomplete").touch()
    open_checkpoint(repo)  # nothing is missing here: the blob is another revision's
    (snapshot / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"00002-of-00003.safetensors: unfinished download.*1234\.incomplete"):
        open_checkpoint(repo)


def test_a_snapshot_whose_blob_is_gone(repo: Path) -> None:
    snapshot = add_snapshot(repo, "c0ffee")
    link = snapshot / "model-00003-of-00003.safetensors"
    (snapshot / link.readlink()).unlink()
    with pytest.raises(CheckpointError, match=r"00003-of-00003\.safetensors: broken symlink"):
        open_checkpoint(snapshot)


@pytest.mark.parametrize("prefix", ["hash", "name"])
def test_a_local_folder_whose_download_goes_on(tmp_path: Path, prefix: str) -> None:
    root = Path(shutil.copytree(TINY, tmp_path / "model"))
    name = "model-00002-of-00003.safetensors"
    digest = base64.urlsafe_b64encode(hashlib.sha1(f"{name}.metadata".encode()).digest()).decode()
    downloads = root / ".cache" / "huggingface" / "download"
    downloads.mkdir(parents=True)
    (downloads / f"unrelated.{'0' * 40}.incomplete").touch()
    open_checkpoint(root)
    (downloads / f"{digest if prefix == 'hash' else name}.{'0' * 40}.incomplete").touch()
    with pytest.raises(CheckpointError, match=f"{name}: unfinished download"):
        open_checkpoint(root)
    (root / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name}: unfinished download: only"):
        open_checkpoint(root)


@pytest.mark.parametrize(
    ("path", "match"),
    [
        ("nowhere", "no such folder"),
        ("model/config.json", "a file, where a checkpoint folder is wanted"),
        ("hf://meta-llama/Llama-4", "remote checkpoints are not read"),
        ("empty", "config.json: missing"),
    ],
)
def test_what_is_no_checkpoint_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, match: str) -> None:
    shutil.copytree(TINY, tmp_path / "model")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=match):
        open_checkpoint(path)


def test_a_missing_config_names_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=f"{tmp_path}/config.json: missing"):
        open_checkpoint(".")


def test_shards_without_index_are_found_by_their_numbers(tmp_path: Path) -> None:
    root = Path(shutil.copytree(TINY, tmp_path / "model"))
    (root / "model.safetensors.index.json").unlink()
    assert open_checkpoint(root).tensors.keys() == open_checkpoint(TINY).tensors.keys()


def test_an_index_by_another_name_is_found(tmp_path: Path) -> None:
    root = Path(shutil.copytree(TINY, tmp_path / "model"))
    (root / "model.safetensors.index.json").rename(root / "weights.safetensors.index.json")
    assert len(open_checkpoint(root).tensors) == 109
    index = json.loads((root / "weights.safetensors.index.json").read_text())
    (root / "other.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="2 indexes"):
        open_checkpoint(root)
