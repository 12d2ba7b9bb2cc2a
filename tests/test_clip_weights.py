"""Weights of CLIP: local files, tags, the cache, and what is said when none of them serves. No network is used."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from dpseg.config import ModelConfig
from dpseg.errors import MissingExtraError, WeightsError
from dpseg.model.build import build_encoder
from dpseg.model.clip_weights import CLIP_SOURCES, build_clip, find_weights

pytest.importorskip("open_clip", reason="needs the extra: pip install 'dpseg[clip]'")

from support.small_clip import small_clip, small_encoder

REPO = "laion/CLIP-convnext_base_w_320-laion_aesthetic-s13B-b82K"
TEXTS = ["a photo of a cat", "sky"]


@pytest.fixture
def small(tmp_path: Path) -> Iterator[None]:
    with small_clip(tmp_path):
        yield


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".bin"])
def test_local_weights_file(tmp_path: Path, suffix: str) -> None:
    original = small_encoder()
    path = tmp_path / f"clip{suffix}"
    state = original.clip.state_dict()
    if suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file(state, path)
    elif suffix == ".pt":  # as open_clip's training saves it
        wrapped = {f"module.{name}": tensor for name, tensor in state.items()}
        torch.save({"epoch": 1, "name": "run", "state_dict": wrapped}, path)
    else:
        torch.save(state, path)
    loaded = small_encoder(weights=str(path), tune_encoder=True)
    assert loaded.fingerprint == original.fingerprint != small_encoder().fingerprint
    images = torch.rand(1, 3, 64, 64)
    assert torch.equal(loaded.pyramid(images).dense, original.pyramid(images).dense)
    assert torch.equal(loaded.visual_features(images).dense, original.visual_features(images).dense)
    assert torch.equal(loaded.text_features(TEXTS), original.text_features(TEXTS))


class _Code:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("ran"),))


@pytest.mark.usefixtures("small")
def test_unfit_weights_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def message(path: Path) -> str:
        with pytest.raises(WeightsError) as raised:
            small_encoder(weights=str(path))
        text = str(raised.value)
        assert "\n" not in text
        assert str(path) in text
        return text

    state = small_encoder().clip.state_dict()
    path = tmp_path / "clip.pt"
    torch.save({name: tensor for name, tensor in state.items() if name != "positional_embedding"}, path)
    assert "another model: 1 tensors missing, 0 unknown, 0 of another shape" in message(path)
    torch.save({**state, "visual.trunk.stem.0.weight": torch.zeros(7, 3, 4, 4)}, path)
    assert "1 of another shape, the first 'visual.trunk.stem.0.weight'" in message(path)
    torch.save([1, 2], path)
    assert "holds no weights by name" in message(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert "damaged" in message(path)
    torch.save({"weights": _Code()}, path)
    assert "cannot read" in message(path)
    assert not Path("ran").exists()
    for name in ("clip.safetensors", "empty.bin"):
        (tmp_path / name).write_bytes(b"")
        assert "damaged" in message(tmp_path / name)
    (tmp_path / "clip.zip").write_bytes(b"")
    assert "must end in one of .safetensors" in message(tmp_path / "clip.zip")
    assert "are a folder" in message(tmp_path)


def test_unknown_weights_are_suggested() -> None:
    with pytest.raises(WeightsError, match="did you mean 'laion_aesthetic_s13b_b82k'") as raised:
        find_weights(CLIP_SOURCES["base"], "laion_aesthetic_s13b_b28k")
    assert "\n" not in str(raised.value)
    with pytest.raises(WeightsError, match=r"no file has that path"):
        find_weights(CLIP_SOURCES["base"], "missing/clip.safetensors")


@pytest.fixture
def _offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No network, and an empty Hugging Face cache in `tmp_path`."""

    def blocked(*_: object, **__: object) -> None:
        raise OSError("the test has no network")

    monkeypatch.setattr(socket, "getaddrinfo", blocked)
    monkeypatch.setattr(socket.socket, "connect", blocked)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))


@pytest.mark.usefixtures("_offline")
@pytest.mark.parametrize(
    ("encoder", "repo"), [("base", REPO), ("large", "laion/CLIP-convnext_large_d_320.laion2B-s29B")]
)
def test_weights_that_cannot_be_fetched(encoder: str, repo: str, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(WeightsError) as raised:
        build_encoder(ModelConfig(encoder=encoder))  # type: ignore[arg-type]
    text = str(raised.value)
    assert "\n" not in text
    assert len(text) < 500
    assert repo in text
    assert "open_clip_model.safetensors" in text
    assert "`weights`" in text
    assert not caplog.records


@pytest.mark.usefixtures("_offline")
def test_cached_weights_need_no_network(tmp_path: Path) -> None:
    folder = tmp_path / f"models--{REPO.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    snapshot = folder / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "open_clip_pytorch_model.bin").write_bytes(b"weights")
    found = find_weights(CLIP_SOURCES["base"], "laion_aesthetic_s13b_b82k")
    assert found == snapshot / "open_clip_pytorch_model.bin"


@pytest.mark.usefixtures("_offline")
def test_a_repo_without_safetensors_gives_its_bin(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError

    def metadata(url: str, timeout: float) -> None:
        if url.endswith(".safetensors"):
            raise EntryNotFoundError("404")

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", metadata)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda repo, name: f"{repo}/{name}")
    found = find_weights(CLIP_SOURCES["base"], "laion_aesthetic_s13b_b82k")
    assert found == Path(REPO) / "open_clip_pytorch_model.bin"


def test_missing_open_clip_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'dpseg\[clip\]'"):
        build_clip(CLIP_SOURCES["base"], "random")
