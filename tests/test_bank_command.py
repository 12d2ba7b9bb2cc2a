"""`dpseg prompts bank` and `dpseg predict --bank` as a user meets them; `bank add` has a file of its own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from dpseg.cli import run
from dpseg.errors import WeightsError
from dpseg.prompts.bank import Bank
from dpseg.prompts.bank_store import BankStore
from dpseg.prompts.visual import Reference
from dpseg.segmenter import Segmenter
from support.bank_workplace import RED, add, enter, features_of, noisy_picture, refused, save_model, words_of


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model with another encoder."""
    return save_model(tmp_path_factory.mktemp("models") / "other", scale=0.9)


@pytest.fixture(autouse=True)
def _workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    enter(tmp_path, monkeypatch)


def test_list_shows_names_and_pictures(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    add(model, "pictures")
    capsys.readouterr()
    assert run(["prompts", "bank", "list", "bank"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["name", "pictures", "sources"]
    assert lines[1:] == [
        "blue      1         pictures/blue/0.png",
        "leaf      2         pictures/leaf/0.png, pictures/leaf/1.png",
        "red wall  2         pictures/red_wall/0.png, pictures/red_wall/1.png",
        "5 pictures of 3 names",
    ]
    assert run(["prompts", "bank", "list", "bank", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["encoder"] == BankStore("bank").encoder
    assert content["entries"][0] == {"name": "blue", "pictures": 1, "sources": ["pictures/blue/0.png"]}
    assert run(["prompts", "bank", "list", "bank", "--name", "leaf", "--json"]) == 0
    own = json.loads(capsys.readouterr().out)["entries"]
    assert [entry["source"] for entry in own] == ["pictures/leaf/0.png", "pictures/leaf/1.png"]
    assert run(["prompts", "bank", "list", "bank", "--name", "leaf"]) == 0
    assert capsys.readouterr().out.splitlines()[2].startswith(own[1]["key"][:12])


def test_remove_and_compact(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    add(model, "pictures")
    key = next(entry.key for entry in BankStore("bank").entries("leaf"))
    assert run(["prompts", "bank", "remove", "bank", "--name", "red wall"]) == 0
    assert "2 removed; bank holds 3 pictures of 2 names" in capsys.readouterr().out
    assert run(["prompts", "bank", "remove", "bank", "--key", key[:12]]) == 0
    assert "1 removed; bank holds 2 pictures of 2 names" in capsys.readouterr().out
    size = sum(path.stat().st_size for path in Path("bank").rglob("*.safetensors"))
    assert run(["prompts", "bank", "compact", "bank"]) == 0
    assert sum(path.stat().st_size for path in Path("bank").rglob("*.safetensors")) < size
    assert [entry.source for entry in BankStore("bank").entries()] == ["pictures/blue/0.png", "pictures/leaf/1.png"]
    assert "did you mean 'leaf'" in refused(capsys, "remove", "bank", "--name", "leaves")


def test_merge_takes_folders_and_files_of_one_encoder(
    model: str, other: str, capsys: pytest.CaptureFixture[str]
) -> None:
    add(model, "pictures")
    add(model, "--ref", "mug=pictures/leaf/1.png", "--ref", "blue=pictures/blue/0.png", bank="second")
    add(other, "pictures", bank="strange")
    assert run(["prompts", "bank", "export", "second", "kept/second.safetensors"]) == 0
    assert len(Bank.load("kept/second.safetensors")) == 2
    assert run(["prompts", "bank", "merge", "all", "bank", "second"]) == 0
    assert "bank: 5 added\nsecond: 1 added\nall holds 6 pictures of 4 names" in capsys.readouterr().out
    assert run(["prompts", "bank", "merge", "all", "kept/second.safetensors"]) == 0
    assert "all holds 8 pictures of 4 names" in capsys.readouterr().out
    assert "several encoders cannot be merged" in refused(capsys, "merge", "new", "bank", "strange")
    assert not Path("new").exists()
    assert "make it again" in refused(capsys, "add", "bank", "pictures", "--model", other)


def test_verify_names_the_damage_and_merge_saves_the_rest(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    add(model, "pictures")
    add(model, "--ref", "mug=pictures/leaf/1.png")
    capsys.readouterr()
    assert run(["prompts", "bank", "verify", "bank"]) == 0
    assert "bank is sound: 6 pictures of 4 names" in capsys.readouterr().out
    hurt = max(Path("bank/segments").glob("*.safetensors"), key=lambda path: path.stat().st_size)
    data = bytearray(hurt.read_bytes())
    length = int.from_bytes(data[:8], "little")
    data[8 + length + json.loads(data[8 : 8 + length])["dense"]["data_offsets"][0] + 1] ^= 4
    hurt.write_bytes(data)
    assert run(["prompts", "bank", "verify", "bank"]) == 1
    error = capsys.readouterr().err
    assert f"{hurt.stem}: 1 of 5 entries are damaged, of blue" in error
    assert "5 of the 6 pictures that can be read are sound; save them with: dpseg prompts bank merge NEW bank" in error
    assert run(["prompts", "bank", "merge", "new", "bank"]) == 1
    assert "bank: 1 left out, they are damaged" in capsys.readouterr().err
    assert run(["prompts", "bank", "verify", "new"]) == 0
    assert set(BankStore("new").names) == {"red wall", "leaf", "mug"}
    hurt.write_bytes(data[:-100])
    assert "dpseg prompts bank verify" in refused(capsys, "list", "bank")


def test_search_shows_cosines_and_weights(model: str, other: str, capsys: pytest.CaptureFixture[str]) -> None:
    add(model, "pictures", "--ref", "red walls=pictures/red_wall/0.png")
    capsys.readouterr()
    assert run(["prompts", "bank", "search", "bank", "red wall", "--top", "3", "--model", model]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["name", "pictures", "cosine", "weight"]
    query, *stored = words_of(model, "red wall", "red walls", "blue", "leaf")
    cosines = [1.0, *sorted((float(query @ text) for text in stored), reverse=True)]
    assert [float(line.split()[-2]) for line in lines] == pytest.approx(cosines[:3], abs=1e-3)
    near = [cosine for cosine in cosines[:3] if cosine >= 0.8]
    shares = (torch.tensor(near) / 0.05).softmax(0).tolist()
    assert len(near) == 2
    assert [line.split()[-1] for line in lines] == [*(f"{share:.1%}" for share in shares), "-"]
    assert run(["prompts", "bank", "search", "bank", "xyzzy", "--model", model]) == 0
    assert "no name is near enough; 'xyzzy' gets no pictures" in capsys.readouterr().out
    assert "make it again" in refused(capsys, "search", "bank", "cat", "--model", other)


def scores(out: str) -> np.ndarray:
    return np.asarray(np.load(f"{out}/photo_scores.npz")["logits"])


def test_predict_uses_a_bank_of_ones_own(model: str, other: str, capsys: pytest.CaptureFixture[str]) -> None:
    add(model, "pictures")
    noisy_picture(RED, 9, side=64).save("photo.png")
    common = ["predict", "photo.png", "--text", "red wall", "--text", "blue", "--text", "xyzzy", "-f", "npz,json"]
    common += ["--no-refine", "-m"]
    assert run([*common, model, "-o", "plain"]) == 0
    assert run([*common, model, "-o", "folder", "--bank", "bank"]) == 0
    assert run([*common, model, "-o", "only", "--bank", "bank", "--no-bank"]) == 0
    assert not np.array_equal(scores("plain"), scores("folder"))
    assert np.array_equal(scores("folder"), scores("only"))  # the model has no bank
    shutil.copytree(model, "with-bank")
    assert run(["prompts", "bank", "export", "bank", "with-bank/bank.safetensors"]) == 0
    assert run([*common, "with-bank", "-o", "shipped"]) == 0
    np.testing.assert_allclose(scores("shipped"), scores("folder"), atol=2e-2)
    assert run([*common, "with-bank", "-o", "off", "--no-bank"]) == 0
    assert np.array_equal(scores("off"), scores("plain"))
    assert run([*common, model, "-o", "file", "--bank", "with-bank/bank.safetensors"]) == 0
    assert np.array_equal(scores("file"), scores("shipped"))
    capsys.readouterr()
    assert run([*common, other, "-o", "x", "--bank", "bank"]) == 2
    assert "the bank was made with the encoder" in capsys.readouterr().err
    assert run([*common, model, "-o", "x", "--bank", "nowhere"]) == 2


def test_a_segmenter_asks_its_store_before_its_bank(model: str) -> None:
    add(model, "--ref", "red wall=pictures/blue/0.png")
    segmenter = Segmenter.from_pretrained(model, store="bank")
    own = features_of(model, Reference("pictures/blue/0.png")).dense
    shipped = segmenter.model.encoder.visual_features(torch.rand(2, 3, 32, 32))
    text = words_of(model, "red wall", "leaf")
    segmenter.bank = Bank(
        ("red wall", "leaf"), text, shipped.dense, shipped.stages, segmenter.model.encoder.fingerprint
    )
    prompts = segmenter.prompts(["red wall", "leaf", "xyzzy"])
    assert prompts.sources == (("text", "bank"), ("text", "bank"), ("text",))
    visual = prompts.embeddings.visual[:, 0]
    torch.testing.assert_close(visual[0], F.normalize(own[0], dim=-1), atol=2e-3, rtol=0)
    torch.testing.assert_close(visual[1], F.normalize(shipped.dense[1], dim=-1))
    assert segmenter.prompts(["red wall"], bank=False).sources == (("text",),)
    with pytest.raises(WeightsError, match="make it again"):
        Segmenter(segmenter.model, store=Bank(("a",), text[:1], own, shipped.stages, "other"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["add", "bank"], "no pictures given"),
        (["add", "bank", "nowhere"], "'nowhere' holds no pictures"),
        (["add", "bank", "--ref", "cat"], "is not NAME=PICTURE"),
        (["add", "bank", "pictures", "--per-class", "0"], "--per-class 0 is out of range"),
        (["add", "pictures", "pictures"], "pictures: holds other files, such as blue"),
        (["add", "bank", "--data", "nowhere"], "'nowhere'"),
        (["list", "pictures"], "pictures: is no bank of pictures"),
        (["remove", "pictures", "--name", "cat"], "is no bank of pictures"),
        (["merge", "new", "nowhere"], "nowhere: is no bank of pictures"),
        (["verify", "nowhere"], "is no bank of pictures"),
        (["search", "pictures", "cat"], "is no bank of pictures"),
        (["search", "pictures", " , "], "has no name"),
        (["search", "pictures", "cat", "--top", "0"], "--top 0 is out of range"),
        (["export", "nowhere", "file"], "is no bank of pictures"),
    ],
)
def test_mistakes_are_one_line(
    model: str, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    with_model = ["--model", model] if arguments[0] == "add" else []
    assert message in refused(capsys, *arguments, *with_model)
    assert not Path("bank").exists()
