"""The speed benchmark on tiny models: what it writes, and what it holds against the bounds."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import speed
import speed_memory
import torch
from speed_cases import QUICK, Case, prompt_bytes

from dpseg.rejection import Rejection

NAMED = (
    "sed_ratio_k150", "sed_ratio_k847", "plain_ratio_k150", "sgemm_share_k150", "peak_gb_k847", "memory_ratio_k847",
    "refine_ratio_k150", "start_seconds", "start_ratio", "largest_difference",
)  # fmt: skip


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Runs the benchmark on tiny models in this process, and returns what it writes."""
    monkeypatch.setattr(speed, "fresh_probe", speed_memory.probe)
    monkeypatch.setattr(speed, "start", lambda runs: {"predict": 3.0, "torch": 1.5})

    def run(*options: str) -> dict[str, Any]:
        monkeypatch.setattr(sys, "argv", ["speed.py", "--quick", "--out", str(tmp_path), *options])
        assert speed.main() == 0
        results: dict[str, Any] = json.loads((tmp_path / "latest.json").read_text())
        assert (tmp_path / "latest.md").read_text() == speed.markdown(results)
        return results

    return run


def test_every_figure_is_a_ratio_of_what_one_run_measured(quick: Any, capsys: pytest.CaptureFixture[str]) -> None:
    results = quick("--full")
    assert tuple(results)[: len(NAMED)] == NAMED
    usual, many = results["usual"], results["many"]
    assert results["sed_ratio_k150"] == usual["sed"] / usual["ours"] > 0
    assert results["sed_ratio_k847"] == many["sed"] / many["ours"] > 0
    assert results["plain_ratio_k150"] == usual["plain"] / usual["ours"] > 0
    assert results["sgemm_share_k150"] == usual["ours, GFLOP"] / usual["ours"] / usual["sgemm, GFLOP/s"] > 0
    assert results["largest_difference"] == usual["largest difference"] < 1e-4
    assert results["peak_gb_k847"] == results["memory"][1]["peak_gb"]
    assert results["memory_ratio_k847"] == results["memory"][1]["peak_gb"] / results["memory"][0]["peak_gb"]
    again = results["refinement"]
    assert results["refine_ratio_k150"] == 1 + again["second"] / again["first"]
    assert (results["start_seconds"], results["start_ratio"]) == (3.0, 2.0)
    out = capsys.readouterr().out
    assert all(bound.what in out for bound in speed.BOUNDS.values())


def test_long_lists_are_measured_where_asked_and_where_memory_holds_them(
    quick: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results = quick()
    assert [key for key in NAMED if results[key] is None] == ["sed_ratio_k847", "peak_gb_k847", "memory_ratio_k847"]
    monkeypatch.setattr(speed, "available_gb", lambda: -1.0)
    results = quick("--full")
    assert "in SED's decoder take" in capsys.readouterr().out
    assert results["sed_ratio_k847"] is None
    assert results["peak_gb_k847"] > 0


def test_a_broken_bound_is_told_and_none_counts_seconds() -> None:
    assert speed.Bound("", 4.0, least=True).kept(4.0)
    assert not speed.Bound("", 4.0, least=True).kept(3.9)
    assert speed.Bound("", 4.0).kept(4.0)
    assert not speed.Bound("", 4.0).kept(4.1)
    assert speed.Bound("", 4.0).kept(None)
    assert all("ratio" in key or "share" in key or "difference" in key for key in speed.BOUNDS)
    assert set(speed.BOUNDS) < set(NAMED)


def test_functions_take_turns_and_the_shortest_run_of_each_counts() -> None:
    order: list[str] = []
    found = speed.turns({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, ("a", "b", "a"))
    assert order == ["a", "b", "a"]
    assert found.keys() == {"a", "b"}
    naps = iter([0.2, 0.0])
    assert speed.turns({"a": lambda: time.sleep(next(naps))}, ("a", "a"))["a"] < 0.1


@pytest.mark.slow
def test_a_fresh_process_has_its_own_peak_and_a_cold_start_is_timed() -> None:
    large = torch.ones(150_000_000)  # 0.6 GB, which the new process must not be charged with
    here = speed_memory.peak_bytes() / 1e9
    found = speed_memory.fresh_probe("lite", 5, Rejection(3, 2), quick=True)
    assert (found["classes"], found["rejection"]) == (5, {"max_classes": 3, "keep_top": 2})
    assert 0.05 < found["peak_gb"] < here - 0.3
    assert found["seconds"] > 0
    del large
    began = speed.start(1)
    assert began["predict"] > began["torch"] > 0


def test_a_probe_that_fails_ends_the_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "false")
    with pytest.raises(SystemExit, match="base 5 --max-classes 3 failed"):
        speed_memory.fresh_probe("base", 5, Rejection(3))


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
    assert case.model.config.rejection == Rejection()


def test_the_committed_figures_are_whole() -> None:
    path = speed.RESULTS / "latest.json"
    results = json.loads(path.read_text())
    assert tuple(results)[: len(NAMED)] == NAMED
    assert not results["quick"]
    assert path.with_suffix(".md").read_text() == speed.markdown(results)
