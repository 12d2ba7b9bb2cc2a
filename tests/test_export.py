"""`dpseg export`: what is written computes what the model computes, for any size and number of classes."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dpseg.cli import run
from dpseg.config import ModelConfig
from dpseg.exporting import graph, parity
from dpseg.exporting.about import KEY, PROMPT_INPUTS, About
from dpseg.exporting.session import OnnxSession
from dpseg.matching import Matching
from dpseg.model.dpseg import DPSeg
from dpseg.prompts.prompt_set import PromptSet

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

CONFIG = ModelConfig(
    encoder="tiny",
    image_size=64,
    keep_aspect=True,
    templates=2,
    logit_scale=10.0,
    widths=(16, 12, 8, 8),
    image_widths=(4, 4, 4),
    heads=2,
    tune_encoder=False,
    mirrored_scales=(0.75,),
    decode_classes=4,
    presence=0.5,
)


def tiny_model(config: ModelConfig = CONFIG, seed: int = 0) -> DPSeg:
    """A model whose decoder says something, as after training."""
    torch.manual_seed(seed)
    model = DPSeg(config).eval()
    torch.nn.init.normal_(model.decoder.head.weight, std=0.3)
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_model().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def open_model(folder: Path) -> OnnxSession:
    path = folder.parent / "open.onnx"
    assert run(["export", "--model", str(folder), "--out", str(path)]) == 0
    return OnnxSession(path)


@pytest.mark.parametrize(("count", "height", "width"), [(1, 64, 64), (2, 32, 32), (40, 32, 160), (5, 160, 96)])
def test_size_and_number_of_classes_are_free(open_model: OnnxSession, count: int, height: int, width: int) -> None:
    model, image = tiny_model(), torch.rand(1, 3, height, width)
    prompts = graph.random_prompts(model, count, seed=9)
    tensors = {name: t.numpy() for name, t in zip(PROMPT_INPUTS, graph.prompt_tensors(prompts), strict=True)}
    with torch.no_grad():
        plain = DPSeg.decode_plainly(graph.one_view(model), model.encoder.pyramid(image), prompts)
    found = open_model(image.numpy(), tensors)
    assert found.shape == (1, count, height // 4, width // 4)
    assert float(plain.std()) > 0.1
    assert parity.difference(plain, torch.from_numpy(found)) < parity.TOLERANCE


def test_the_file_says_what_it_is(open_model: OnnxSession) -> None:
    about = open_model.about
    assert about.names is None
    assert about == graph.about(tiny_model(), about.model, None)
    assert (about.stride, about.templates, about.mirrored_scales, about.presence) == (32, 2, (0.75,), 0.5)


def test_classes_are_frozen_in(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "frozen.onnx"
    words = ["--text", "cat", "--text", "couch, sofa", "--text", "wall"]
    assert run(["export", "--model", str(folder), "--out", str(path), *words]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[:2]] == ["3 classes at 64 x 64", "3 classes at 64 x 32"]
    assert "for 3 classes" in lines[2]
    session = OnnxSession(path)
    assert session.about.names == ("cat", "couch", "wall")
    assert session.about.sources == (("text",),) * 3
    assert session(np.zeros((1, 3, 32, 64), np.float32)).shape == (1, 3, 8, 16)


def test_torch_reads_the_other_format(folder: Path, tmp_path: Path) -> None:
    path, extra = tmp_path / "model.pt2", {KEY: ""}
    assert run(["export", "--model", str(folder), "--out", str(path), "--format", "torch-export"]) == 0
    program = torch.export.load(path, extra_files=extra)
    assert About.from_json(str(extra[KEY]), "it").image_size == 64
    model, image = tiny_model(), torch.rand(1, 3, 96, 32)
    prompts = graph.random_prompts(model, 11)
    with torch.no_grad():
        plain = graph.one_view(model).decode_plainly(model.encoder.pyramid(image), prompts)
    assert parity.difference(plain, program.module()(image, *graph.prompt_tensors(prompts))) < parity.TOLERANCE


def test_sed_is_exported(tmp_path: Path) -> None:
    sed = replace(CONFIG, fusion="text", guidance="cost_chain", spatial="depthwise9", logit_scale=0.0)
    model = tiny_model(sed)
    content = graph.to_onnx(graph.trace(model, None), graph.about(model, "sed", None))
    assert max(one.difference for one in parity.compare(model, None, parity.onnx_runner(content))) < parity.TOLERANCE


def test_a_file_that_differs_is_not_written(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.pt2"
    monkeypatch.setattr(parity, "TOLERANCE", -1.0)
    words = ["--text", "cat", "--format", "torch-export"]
    assert run(["export", "--model", str(folder), "--out", str(path), *words]) == 1
    assert "and at most -1 is let pass; nothing is written" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_differences_are_seen() -> None:
    ones = torch.ones(1, 2, 4, 4)
    wrong = ones.clone()
    wrong[0, 1, 2, 3] = 0.5
    assert parity.difference(ones, wrong) == 0.5
    wrong[0, 0, 0, 0] = float("nan")
    assert parity.difference(ones, wrong) == float("inf")
    assert parity.difference(ones, ones[:, :1]) == float("inf")


def test_prompts_of_another_model_are_refused(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_model()
    prompts = PromptSet(("a", "b"), graph.random_prompts(model, 2), "another")
    path = prompts.save(tmp_path / "set.safetensors")
    status = run(["export", "--model", str(folder), "--out", str(tmp_path / "m.onnx"), "--prompts", str(path)])
    assert (status, "another model" in capsys.readouterr().err) == (2, True)


def test_mistakes_are_one_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def said(*options: str) -> str:
        assert run(["export", *options]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    assert "'onxx' is unknown; did you mean 'onnx'" in said("--out", str(tmp_path / "m.onnx"), "--format", "onxx")
    assert "is a folder; name a file in it" in said("--out", str(tmp_path))
    whole = tmp_path / "whole"
    model = tiny_model(replace(CONFIG, matching=Matching(whole=1.0)))
    model.save_pretrained(whole)
    assert "exports do not have" in said("--model", str(whole), "--out", str(tmp_path / "m.onnx"))
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert "pip install 'dpseg[export]'" in said("--model", str(folder), "--out", str(tmp_path / "m.onnx"))
