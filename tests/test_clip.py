"""CLIP ConvNeXt: parity with open_clip, training, and its weights: files, tags, the cache. No network is used."""

from __future__ import annotations

import itertools
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from dpseg.config import ModelConfig
from dpseg.errors import MissingExtraError, WeightsError
from dpseg.model.build import build_encoder
from dpseg.model.clip import ClipEncoder
from dpseg.model.clip_weights import CLIP_SOURCES, build_clip, find_weights
from support.encoder_contract import check_encoder
from support.small_clip import NAME, STAGE_DIMS, Code, enliven, needs_clip, small_clip, small_encoder

pytestmark = needs_clip

TEXTS = ["a photo of a cat", "sky", "a very long text " * 40, ""]
REPO = "laion/CLIP-convnext_base_w_320-laion_aesthetic-s13B-b82K"
LARGE_REPO = "laion/CLIP-convnext_large_d_320.laion2B-s29B"


def colour_normalised(images: Tensor) -> Tensor:
    """CLIP's preprocessing, written out."""
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    return (images - mean) / std


@pytest.fixture
def small(tmp_path: Path) -> Iterator[None]:
    with small_clip(tmp_path):
        yield


@torch.no_grad()
def check_parity(encoder: ClipEncoder) -> None:
    """V and T are CLIP's own, the stages those that timm lists, and E is what CLIP's own head makes of the last."""
    import open_clip

    images = torch.rand(2, 3, 32, 32)  # the last map is 1 x 1
    embedding = encoder.clip.encode_image(colour_normalised(images))
    assert embedding.std() > 0.05
    dense = encoder.pyramid(images).dense
    assert dense.shape == (2, encoder.embed_dim, 1, 1)
    assert_close(dense[:, :, 0, 0], embedding, atol=1e-5, rtol=0)
    assert_close(encoder.visual_features(images).dense, embedding, atol=1e-5, rtol=0)
    text = encoder.clip.encode_text(open_clip.get_tokenizer(encoder.name)(TEXTS))  # T
    assert text.std() > 0.05
    assert_close(encoder.project_text(encoder.text_features(TEXTS)), text, atol=1e-5, rtol=0)

    wide, visual = torch.rand(1, 3, 64, 96), encoder.clip.visual
    last, maps = visual.trunk.forward_intermediates(colour_normalised(wide))
    pyramid = encoder.pyramid(wide)
    for stage, expected in zip(pyramid.stages, maps[:3], strict=True):
        assert_close(stage, expected, atol=1e-5, rtol=1e-5)
    assert pyramid.dense.shape[2:] == last.shape[2:] == (2, 3)
    for row, column in itertools.product(range(2), range(3)):
        alone = last[:, :, row : row + 1, column : column + 1]
        expected = visual.head(visual.trunk.forward_head(alone))
        assert_close(pyramid.dense[:, :, row, column], expected, atol=1e-5, rtol=0)


@torch.no_grad()
def check_parity_at_crop_size(encoder: ClipEncoder) -> None:
    """V is the whole CLIP embedding, and, where the head is linear, E averages to it."""
    crop = torch.rand(1, 3, encoder.crop_size, encoder.crop_size)
    visual = encoder.visual_features(crop)
    assert_close(visual.dense, encoder.clip.encode_image(colour_normalised(crop)), atol=1e-5, rtol=0)
    encoder.clip.visual.trunk.head.norm = nn.Identity()  # LayerNorm is all that is not linear in base's head
    pyramid, linear = encoder.pyramid(crop), encoder.clip.encode_image(colour_normalised(crop))
    assert_close(pyramid.dense.mean(dim=(2, 3)), linear, atol=1e-5, rtol=1e-5)
    for pooled, stage in zip(visual.stages, pyramid.stages, strict=True):
        assert_close(pooled, stage.mean(dim=(2, 3)), atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "dims", "width"), [("base", (128, 256, 512), 640), ("large", (192, 384, 768), 768)])
def test_full_size_equals_open_clip(name: Any, dims: tuple[int, ...], width: int) -> None:
    torch.manual_seed(0)
    encoder = build_encoder(ModelConfig(encoder=name, weights="random", tune_encoder=False))
    assert isinstance(encoder, ClipEncoder)
    enliven(encoder.clip)
    assert (encoder.strides, encoder.crop_size) == ((4, 8, 16, 32), 320)
    assert (encoder.stage_dims, encoder.embed_dim) == (dims, width)
    assert encoder.parameter_groups() == ([], [])
    check_parity(encoder.eval())
    if name == "base":
        check_parity_at_crop_size(encoder)


@pytest.mark.numeric
@pytest.mark.usefixtures("small")
def test_small_equals_open_clip() -> None:
    torch.manual_seed(0)
    encoder = small_encoder()
    assert (encoder.strides, encoder.crop_size) == ((4, 8, 16, 32), 64)
    assert (encoder.stage_dims, encoder.embed_dim) == (STAGE_DIMS, 24)
    assert encoder.parameter_groups() == ([], [])
    check_parity(encoder)


@pytest.mark.numeric
@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("tune_encoder", [False, True])
def test_contract(tune_encoder: bool) -> None:
    check_encoder(small_encoder(tune_encoder=tune_encoder))


@pytest.mark.usefixtures("small")
def test_visual_prompts_share_the_weights_unless_they_are_tuned() -> None:
    shared, tuned = small_encoder(), small_encoder(tune_encoder=True)
    assert shared.visual_trunk is None
    assert not any(name.startswith("visual_trunk") for name in shared.state_dict())
    tuned.clip.load_state_dict(shared.clip.state_dict())
    assert tuned.visual_trunk is not None
    tuned.visual_trunk.load_state_dict(shared.clip.visual.state_dict())
    assert tuned.fingerprint == shared.fingerprint
    crops = torch.rand(2, 3, 64, 64)
    assert torch.equal(tuned.visual_features(crops).dense, shared.visual_features(crops).dense)
    trained = {name for name, parameter in tuned.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in tuned.named_parameters() if name.startswith("clip.visual.")}


@pytest.mark.usefixtures("small")
def test_activations_that_write_over_their_input_change_nothing() -> None:
    import open_clip

    encoder, plain = small_encoder(tune_encoder=True), open_clip.create_model(NAME).eval()
    plain.load_state_dict(encoder.clip.state_dict())
    kinds = [(type(own), type(other)) for own, other in zip(encoder.clip.modules(), plain.modules(), strict=True)]
    assert sum(own is not other for own, other in kinds) > 5
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(encoder.clip.encode_image(images), plain.encode_image(images))
    for model in (encoder.clip, plain):
        model.encode_image(images).square().sum().backward()
    pairs = zip(encoder.clip.visual.named_parameters(), plain.visual.parameters(), strict=True)
    assert all(torch.equal(own.grad, other.grad) for (_, own), other in pairs), "gradients"


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("tune_encoder", [False, True])
def test_only_a_tuned_image_encoder_has_stochastic_depth(tune_encoder: bool) -> None:
    images = torch.rand(4, 3, 64, 64)
    encoder = small_encoder(tune_encoder=tune_encoder).train()
    same = torch.equal(encoder.pyramid(images).dense, encoder.pyramid(images).dense)
    assert same is not tune_encoder


@pytest.mark.usefixtures("small")
def test_checkpointing_changes_no_gradient() -> None:
    encoder = small_encoder(tune_encoder=True)
    images = torch.rand(1, 3, 64, 64)
    gradients = []
    for enable in (False, True):
        encoder.set_grad_checkpointing(enable)
        encoder.zero_grad(set_to_none=True)
        encoder.pyramid(images).dense.square().mean().backward()
        gradients.append(encoder.clip.visual.trunk.stem[0].weight.grad.clone())
    assert gradients[0].abs().max() > 0
    assert_close(gradients[1], gradients[0], atol=1e-7, rtol=1e-4)


@pytest.mark.usefixtures("small")
def test_batches_are_of_no_importance(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = small_encoder()
    crops, masks = torch.rand(5, 3, 64, 64), torch.rand(5, 64, 64)
    visual, text = encoder.visual_features(crops, masks), encoder.text_features(TEXTS)
    monkeypatch.setattr("dpseg.model.clip._VISUAL_BATCH", 2)
    monkeypatch.setattr("dpseg.model.clip._TEXT_BATCH", 3)
    assert_close(encoder.visual_features(crops, masks).dense, visual.dense, atol=1e-5, rtol=0)
    assert_close(encoder.visual_features(crops, masks).stages[0], visual.stages[0], atol=1e-5, rtol=0)
    assert_close(encoder.text_features(TEXTS), text, atol=1e-5, rtol=0)
    assert encoder.text_features([]).shape == (0, encoder.embed_dim)


def save_safetensors(state: dict[str, Tensor], path: Path) -> None:
    from safetensors.torch import save_file

    save_file(state, path)


def save_as_training(state: dict[str, Tensor], path: Path) -> None:
    """As open_clip's training saves it."""
    wrapped = {f"module.{name}": tensor for name, tensor in state.items()}
    torch.save({"epoch": 1, "name": "run", "state_dict": wrapped}, path)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("suffix", "save"), [(".safetensors", save_safetensors), (".pt", save_as_training), (".bin", torch.save)]
)
def test_a_local_weights_file_is_read(tmp_path: Path, suffix: str, save: Callable[..., None]) -> None:
    original = small_encoder()
    save(original.clip.state_dict(), tmp_path / f"clip{suffix}")
    loaded = small_encoder(weights=str(tmp_path / f"clip{suffix}"), tune_encoder=True)
    assert loaded.fingerprint == original.fingerprint != small_encoder().fingerprint
    images = torch.rand(1, 3, 64, 64)
    assert torch.equal(loaded.pyramid(images).dense, original.pyramid(images).dense)
    assert torch.equal(loaded.visual_features(images).dense, original.visual_features(images).dense)
    assert torch.equal(loaded.text_features(TEXTS), original.text_features(TEXTS))


@pytest.mark.usefixtures("small")
def test_weights_files_that_do_not_fit_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def message(path: Path) -> str:
        with pytest.raises(WeightsError) as raised:
            small_encoder(weights=str(path))
        text = str(raised.value)
        assert "\n" not in text
        assert str(path) in text
        return text

    state = small_encoder().clip.state_dict()
    path, stem = tmp_path / "clip.pt", "visual.trunk.stem.0.weight"
    fewer = {name: tensor for name, tensor in state.items() if name != "positional_embedding"}
    for wrong, expected in (
        (fewer, "another model: 1 tensors missing, 0 unknown, 0 of another shape"),
        ({**state, stem: torch.zeros(7, 3, 4, 4)}, f"1 of another shape, the first '{stem}'"),
        ({"weights": Code()}, "cannot read"),
        ([1, 2], "holds no weights by name"),
    ):
        torch.save(wrong, path)
        assert expected in message(path)
    assert not Path("ran").exists()
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert "damaged" in message(path)
    for name in ("clip.safetensors", "empty.bin", "clip.zip"):
        (tmp_path / name).write_bytes(b"")
        expected = "must end in one of .safetensors" if name == "clip.zip" else "damaged"
        assert expected in message(tmp_path / name)
    assert "are a folder" in message(tmp_path)


def test_unknown_weights_are_suggested() -> None:
    for wrong, message in (
        ("laion_aesthetic_s13b_b28k", "did you mean 'laion_aesthetic_s13b_b82k'"),
        ("missing/clip.safetensors", "no file has that path"),
    ):
        with pytest.raises(WeightsError, match=message) as raised:
            find_weights(CLIP_SOURCES["base"], wrong)
        assert "\n" not in str(raised.value)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No network, and an empty Hugging Face cache in `tmp_path`."""

    def blocked(*_: object, **__: object) -> None:
        raise OSError("the test has no network")

    monkeypatch.setattr(socket, "getaddrinfo", blocked)
    monkeypatch.setattr(socket.socket, "connect", blocked)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(("encoder", "repo"), [("base", REPO), ("large", LARGE_REPO)])
def test_weights_that_cannot_be_fetched(encoder: Any, repo: str, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(WeightsError) as raised:
        build_encoder(ModelConfig(encoder=encoder))
    text = str(raised.value)
    assert "\n" not in text
    assert len(text) < 500
    assert all(word in text for word in (repo, "open_clip_model.safetensors", "`weights`"))
    assert not caplog.records


@pytest.mark.usefixtures("offline")
def test_cached_weights_need_no_network(tmp_path: Path) -> None:
    folder, revision = tmp_path / f"models--{REPO.replace('/', '--')}", "0" * 40
    weights = folder / "snapshots" / revision / "open_clip_pytorch_model.bin"
    for path, content in ((folder / "refs" / "main", revision), (weights, "weights")):
        path.parent.mkdir(parents=True)
        path.write_text(content)
    assert find_weights(CLIP_SOURCES["base"], "laion_aesthetic_s13b_b82k") == weights


@pytest.mark.usefixtures("offline")
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
