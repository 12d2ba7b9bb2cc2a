"""The speed benchmark on tiny models: what it writes, and what it holds against the bounds."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from dpseg.model.block_decoder import BlockDecoder
from dpseg.model.stage_run import StageRun
from dpseg.rejection import Rejection

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))

import speed
import speed_memory
import speed_parts
from speed_cases import QUICK, Case, prompt_bytes
from speed_report import BOUNDS, Bound, markdown

KEYS = (
    "decoder_speedup_k150", "seconds_k150", "seconds_k847", "peak_gb_k847", "seconds_k847_reject",
    "peak_gb_k847_reject", "memory_ratio_k10000", "sgemm_share_k150", "lite_seconds_20", "lite_seconds_150",
    "refine_ratio_k150",
)  # fmt: skip


def test_the_benchmark_writes_every_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(speed, "fresh_probe", speed_memory.probe)  # fresh processes would take a while
    monkeypatch.setattr(sys, "argv", ["speed.py", "--quick", "--full", "--out", str(tmp_path / "out")])
    assert speed.main() == 0
    results = json.loads((tmp_path / "out" / "latest.json").read_text())
    assert list(results)[: len(KEYS)] == list(KEYS) == list(BOUNDS)
    assert all(results[key] > 0 for key in KEYS)
    compared = results["against_plain"]
    assert compared["largest_difference"] < 1e-4  # both paths gave the same
    assert results["decoder_speedup_k150"] == pytest.approx(compared["plain_seconds"] / compared["blocks_seconds"])
    assert compared["gflop"]["both"] == pytest.approx(compared["gflop"]["encoder"] + compared["gflop"]["decoder"])
    rows = [(row["model"], row["classes"], (row["rejection"] or {}).get("max_classes", 0)) for row in results["memory"]]
    assert ("base", QUICK.most, None) in rows
    assert ("base", QUICK.many, QUICK.rejection.max_classes) in rows
    assert ("lite", QUICK.most, 0) in rows
    assert set(results["memory_ratios"]) == {
        f"{m}, {how}" for m in ("base", "lite") for how in ("exact", "early rejection")
    }
    text = (tmp_path / "out" / "latest.md").read_text()
    assert text in capsys.readouterr().out
    assert all(bound.what in text for bound in BOUNDS.values())
    with Image.open(tmp_path / "out" / "latest.png") as plot:
        assert plot.width > plot.height


def test_a_broken_bound_is_told() -> None:
    assert Bound("", 4.0, least=True).kept(4.0)
    assert not Bound("", 4.0, least=True).kept(3.9)
    assert Bound("", 4.0).kept(4.0)
    assert not Bound("", 4.0).kept(4.1)


def test_a_probe_of_a_fresh_process_has_its_own_peak() -> None:
    large = torch.ones(150_000_000)  # 0.6 GB, which the new process must not be charged with
    here = speed_memory.peak_bytes() / 1e9
    found = speed_memory.fresh_probe("lite", 5, Rejection(3, 2), quick=True)
    assert found["classes"] == 5
    assert found["rejection"] == {"max_classes": 3, "keep_top": 2}
    assert 0.05 < found["peak_gb"] < here - 0.3
    assert found["seconds"] > 0
    del large


def test_a_probe_that_fails_ends_the_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "false")
    with pytest.raises(SystemExit, match="base 5 --max-classes 3 failed"):
        speed_memory.fresh_probe("base", 5, Rejection(3))


@torch.inference_mode()
def test_parts_add_up_and_leave_no_trace() -> None:
    before = StageRun.rise, BlockDecoder.__init__
    case = Case("base", quick=True)
    prompts = case.prompts(QUICK.many)
    with case.rejecting(QUICK.rejection):
        seconds = speed_parts.seconds_by_part(lambda: case.look(case.encode(), prompts))
    assert set(seconds) == set(speed_parts.PART_ORDER)
    assert all(value >= 0 for value in seconds.values())
    assert (StageRun.rise, BlockDecoder.__init__) == before
    assert case.model.config.rejection == Rejection()


@torch.inference_mode()
def test_cases_reject_what_they_are_told() -> None:
    case = Case("base", quick=True)
    prompts = case.prompts(QUICK.many)
    encoded = case.encode()
    assert prompt_bytes(prompts) == 4 * QUICK.many * sum(
        [(case.config.templates + 1) * case.model.encoder.embed_dim, *case.model.encoder.stage_dims]
    )
    decoded: list[int] = []
    for rejection in (Rejection(), QUICK.rejection):
        with case.rejecting(rejection):
            found: Any = case.look(encoded, prompts)[0]
        decoded.append(int((found.logits > -1e3).flatten(1).any(dim=1).sum()))
    assert decoded[0] == QUICK.many
    assert 1 <= decoded[1] <= 4


def test_the_committed_figures_are_whole() -> None:
    path = speed.RESULTS / "latest.json"
    if not path.is_file():
        pytest.skip("no benchmark data: make bench has not been run here")
    results = json.loads(path.read_text())
    assert list(results)[: len(KEYS)] == list(KEYS)
    assert not results["quick"]
    assert path.with_suffix(".md").read_text() == markdown(results)
