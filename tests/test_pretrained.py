"""Names, folders, hub ids and devices; what is wrong with each is said in one line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dpseg.config import ModelConfig
from dpseg.errors import ConfigError, ModelNotFoundError, WeightsError
from dpseg.matching import Matching
from dpseg.pretrained import UNTRAINED_SCALE, load_pretrained, model_folder, pick_device, untrained
from dpseg.prompts.bank import Bank
from dpseg.segmenter import Segmenter
from support.pictures import halves
from support.tiny import save_tiny, tiny_config, tiny_model


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a bank of one row."""
    folder = Path(save_tiny(tmp_path_factory.mktemp("models") / "tiny"))
    encoder = tiny_model().encoder
    s2, s3, s4 = (torch.ones(1, size) for size in encoder.stage_dims)
    bank = Bank(("cat",), torch.ones(1, 20), torch.ones(1, encoder.embed_dim), (s2, s3, s4), encoder.fingerprint)
    bank.save(folder / "bank.safetensors")
    return folder


def test_a_saved_folder_comes_back_with_its_bank(saved: Path) -> None:
    model, bank = load_pretrained(saved)
    assert model.config == tiny_config()
    assert bank is not None
    assert bank.names == ("cat",)
    first, second = (Segmenter.from_pretrained(place, device="cpu") for place in (saved, str(saved)))
    assert np.array_equal(first(halves(), ["cat", "dog"]).logits, second(halves(), ["cat", "dog"]).logits)


@pytest.mark.parametrize("name", ["dpseg-lit", "DPSeg-Lite", "lite", Path("somewhere/else")])
def test_a_misspelt_name_gets_a_suggestion(name: str | Path) -> None:
    message = "no model and no folder" if isinstance(name, Path) else "'dpseg-lite'"
    for load in (model_folder, Segmenter.from_pretrained):
        with pytest.raises(ModelNotFoundError, match=message):
            load(name)


def test_a_folder_without_a_model_says_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place, message in (
        (tmp_path, r"holds no config\.json and no model\.safetensors"),
        (tmp_path / "file", "is a file"),
    ):
        with pytest.raises(WeightsError, match=message):
            load_pretrained(place)


def test_a_hub_id_is_fetched_or_says_what_to_do(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fetch(hub_id: str, allow_patterns: list[str]) -> str:
        if asked:
            raise ConnectionError("no route\nto host")
        asked.append((hub_id, allow_patterns))
        return str(saved)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    assert load_pretrained("somebody/some-model")[0].config == tiny_config()
    assert asked == [("somebody/some-model", ["config.json", "model.safetensors", "bank.safetensors", "names.txt"])]
    with pytest.raises(WeightsError, match="cannot be fetched") as caught:
        load_pretrained("somebody/some-model")
    assert "\n" not in str(caught.value)


def test_devices() -> None:
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device(None).type in ("cpu", "cuda")
    for name in ("gpu", "cuda:99", "cpux"):
        with pytest.raises(ConfigError, match=f"'{name}' cannot be used here") as caught:
            pick_device(name)
        assert "\n" not in str(caught.value)


def test_untrained_is_the_plain_cosine_of_the_same_encoder() -> None:
    config = ModelConfig(encoder="tiny", templates=1, widths=(16, 12), image_widths=(4,), heads=2, logit_scale=20.0)
    model = tiny_model(config, trained=True)
    plain = untrained(model)
    state = torch.get_rng_state()
    again = untrained(model).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in plain.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert not plain.decoder.head.weight.any()
    assert plain.config == config
    assert untrained(tiny_model(replace(config, logit_scale=0.0))).config.logit_scale == UNTRAINED_SCALE
    weighed = replace(config, presence=0.5, matching=Matching(contrast=1.0, prior=3.0, logit_adjustment=0.2))
    assert untrained(tiny_model(weighed)).config == replace(config, matching=Matching(contrast=1.0))
