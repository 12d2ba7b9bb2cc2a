"""`dpseg export`: what is written computes what the model computes, for any size and number of classes."""

from __future__ import annotations

import io
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.export import ExportedProgram

from dpseg.cli import run
from dpseg.exporting import graph, parity
from dpseg.exporting.about import KEY, PROMPT_INPUTS, About
from dpseg.exporting.session import OnnxSession
from dpseg.matching import Matching
from dpseg.model.dpseg import DPSeg
from dpseg.prompts.prompt_set import PromptSet
from support.exported import CONFIG, exported_folder, tiny_model

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def folder() -> Path:
    return exported_folder() / "tiny"


@pytest.fixture(scope="module")
def program() -> ExportedProgram:
    return graph.trace(tiny_model(), None)


@pytest.fixture(scope="module")
def open_model() -> OnnxSession:
    return OnnxSession(exported_folder() / "model.onnx")


@pytest.mark.parametrize(("count", "height", "width"), [(1, 64, 64), (2, 32, 32), (40, 32, 160), (5, 160, 96)])
def test_size_and_number_of_classes_are_free(open_model: OnnxSession, count: int, height: int, width: int) -> None:
    model, image = tiny_model(), torch.rand(1, 3, height, width)
    prompts = graph.random_prompts(model, count, seed=9)
    tensors = {name: t.numpy() for name, t in zip(PROMPT_INPUTS, graph.prompt_tensors(prompts), strict=True)}
    with torch.no_grad():
        plain = DPSeg.decode_plainly(graph.one_view(model), model.encoder.pyramid(image), prompts)
    found = open_model(image.numpy(), tensors)
    assert found.shape == (1, count, height // 16, width // 16)
    assert float(plain.std()) > 0.1
    assert parity.difference(plain, torch.from_numpy(found)) < parity.TOLERANCE


def test_the_file_says_what_it_is(open_model: OnnxSession) -> None:
    about = open_model.about
    assert about.names is None
    assert about == graph.about(tiny_model(), about.model, None)
    assert (about.stride, about.templates, about.mirrored_scales, about.presence) == (32, 2, (0.75,), 0.5)


def test_classes_are_frozen_in(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, extra = tmp_path / "frozen.pt2", {KEY: ""}
    words = ["--text", "cat", "--text", "couch, sofa", "--text", "wall"]
    assert run(["export", "--model", str(folder), "--out", str(path), "--format", "torch-export", *words]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[:2]] == ["3 classes at 64 x 64", "3 classes at 96 x 64"]
    assert "for 3 classes" in lines[2]
    frozen = torch.export.load(path, extra_files=extra).module()
    about = About.from_json(str(extra[KEY]), "it")
    assert (about.names, about.sources) == (("cat", "couch", "wall"), (("text",),) * 3)
    assert frozen(torch.zeros(1, 3, 64, 96)).shape == (1, 3, 4, 6)


def test_torch_reads_the_other_format(program: ExportedProgram) -> None:
    model = tiny_model()
    content, extra = graph.to_torch(program, graph.about(model, "tiny", None)), {KEY: ""}
    loaded = torch.export.load(io.BytesIO(content), extra_files=extra)
    assert About.from_json(str(extra[KEY]), "it").image_size == 64
    assert not any("text_projection" in name for name in loaded.state_dict)  # nothing that the graph does not read
    image, prompts = torch.rand(1, 3, 96, 64), graph.random_prompts(model, 11)
    with torch.no_grad():
        plain = graph.one_view(model).decode_plainly(model.encoder.pyramid(image), prompts)
        found = loaded.module()(image, *graph.prompt_tensors(prompts))
    assert parity.difference(plain, found) < parity.TOLERANCE


def test_sed_with_frozen_classes_is_exported() -> None:
    model = tiny_model(replace(CONFIG, fusion="text", guidance="cost_chain", spatial="depthwise9", logit_scale=0.0))
    prompts = PromptSet(("a", "b", "c"), graph.random_prompts(model, 3), "print")
    program = graph.trace(model, prompts.embeddings)
    content = graph.to_onnx(program, graph.about(model, "sed", prompts))
    assert OnnxSession(content).about.names == ("a", "b", "c")
    found = parity.compare(model, prompts.embeddings, parity.onnx_runner(content))
    assert [(one.classes, one.width) for one in found] == [(3, 64), (3, 96)]
    assert max(one.difference for one in found) < parity.TOLERANCE


def test_a_file_that_differs_is_not_written(
    folder: Path,
    program: ExportedProgram,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "model.pt2"
    monkeypatch.setattr(graph, "trace", lambda *_: program)
    monkeypatch.setattr(parity, "difference", lambda *_: 2e-4)
    assert run(["export", "--model", str(folder), "--out", str(path), "--format", "torch-export"]) == 1
    said = capsys.readouterr()
    assert "20 classes at 96 x 64: differs by 2.0e-04 of the largest logit" in said.out
    assert said.err.endswith("differs from the model by 2.0e-04, and at most 0.0001 is let pass; nothing is written\n")
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
    prompts = PromptSet(("a", "b"), graph.random_prompts(tiny_model(), 2), "another")
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
