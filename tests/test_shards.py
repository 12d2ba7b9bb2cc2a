"""An evaluation shared by processes and shards, killed and resumed: always the same figures."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from dpseg.commands.evaluate import EvaluateOptions, evaluate, shard_of
from dpseg.config import EvalConfig, ModelConfig
from dpseg.data.folder import FolderDataset
from dpseg.errors import ConfigError, DataError, DPSegError
from dpseg.evaluation.blocks import check_setting, describe, merge_blocks, missing_blocks
from dpseg.evaluation.evaluate import evaluate as measure
from dpseg.evaluation.plan import Plan, make_plan
from dpseg.evaluation.workers import Job, ModelSource, run_jobs, run_processes
from dpseg.model.dpseg import DPSeg
from dpseg.segmenter import Segmenter
from support.labelled_set import write_set

MODEL = ModelConfig(encoder="tiny", image_size=64, keep_aspect=True, templates=1, logit_scale=10.0, tune_encoder=False)
CONFIG = EvalConfig(prompts=("text", "pictures"), references=2, block=1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models") / "tiny"
    DPSeg(MODEL).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_set(tmp_path_factory.mktemp("data") / "shapes", photos=9)
    (root / "train.txt").write_text("photo0\nphoto1\n")
    (root / "val.txt").write_text("\n".join(f"photo{number}" for number in range(2, 9)))
    return root


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DPSEG_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def plan(data: Path) -> Plan:
    return make_plan(FolderDataset(data, "val"), CONFIG, pool=FolderDataset(data))


@pytest.fixture
def segmenter(model: str) -> Segmenter:
    return Segmenter.from_pretrained(model)


def counts(folder: Path, plan: Plan, digest: str) -> list[dict[str, Any]]:
    """All counts of all rows, as lists."""
    tallies, _ = merge_blocks(folder, plan, digest)
    return [{name: array.tolist() for name, array in tally.to_arrays().items()} for tally in tallies]


def job(folder: Path, plan: Plan, segmenter: Segmenter) -> Job:
    digest = check_setting(folder, describe(segmenter, [plan]))
    return Job(plan, folder, digest, missing_blocks(folder, plan))


def test_one_process_equals_three_and_two_of_which_one_was_killed(
    tmp_path: Path, plan: Plan, segmenter: Segmenter, model: str
) -> None:
    alone = job(tmp_path / "one", plan, segmenter)
    steps: list[int] = []
    run_jobs(segmenter, [alone], lambda: steps.append(1))
    expected = counts(alone.folder, plan, alone.digest)
    assert len(steps) == 7
    assert [len(row["photos"]) for row in expected] == [7] * 4
    report = measure(segmenter, plan.dataset, CONFIG, pool=plan.pool)  # without any file
    assert [row.matrix.counts.tolist() for row in report.rows] == [row["matrix"] for row in expected]

    three = job(tmp_path / "three", plan, segmenter)
    steps.clear()
    run_processes(ModelSource(model), [three], 3, 1, lambda: steps.append(1))
    assert len(steps) == 7
    assert counts(three.folder, plan, three.digest) == expected

    killed = job(tmp_path / "killed", plan, segmenter)
    with pytest.raises(DPSegError, match=r"ended before its time \(exit code -9\); run the same command again"):
        run_processes(ModelSource(model), [killed], 2, 1, kill_one_child_after(3))
    assert multiprocessing.active_children() == []
    left = job(tmp_path / "killed", plan, segmenter)
    assert 0 < len(left.blocks) < 7
    run_processes(ModelSource(model), [left], 2, 1)
    assert counts(left.folder, plan, left.digest) == expected


def kill_one_child_after(photos: int) -> Callable[[], None]:
    """Of two children, one that reported its second photo has written its first: so the third report is late enough."""
    done: list[None] = []

    def step() -> None:
        done.append(None)
        if len(done) == photos:
            child = multiprocessing.active_children()[0]
            assert child.pid is not None
            os.kill(child.pid, signal.SIGKILL)

    return step


def test_a_stop_in_the_middle_loses_no_finished_block(tmp_path: Path, plan: Plan, segmenter: Segmenter) -> None:
    whole = job(tmp_path / "whole", plan, segmenter)
    run_jobs(segmenter, [whole])
    stopped = job(tmp_path / "stopped", plan, segmenter)
    with pytest.raises(KeyboardInterrupt):
        run_jobs(segmenter, [stopped], stop_after(3))
    left = job(tmp_path / "stopped", plan, segmenter)
    assert left.blocks == (2, 3, 4, 5, 6)  # the third photo was counted but not written
    run_jobs(segmenter, [left])
    assert counts(left.folder, plan, left.digest) == counts(whole.folder, plan, whole.digest)


def stop_after(photos: int) -> Callable[[], None]:
    done: list[None] = []

    def step() -> None:
        done.append(None)
        if len(done) == photos:
            raise KeyboardInterrupt

    return step


def test_the_size_of_blocks_does_not_change_the_figures(tmp_path: Path, plan: Plan, segmenter: Segmenter) -> None:
    single = job(tmp_path / "single", plan, segmenter)
    run_jobs(segmenter, [single])
    larger = make_plan(plan.dataset, replace(CONFIG, block=4), pool=plan.pool)
    assert [len(block) for block in larger.blocks] == [4, 3]
    four = job(tmp_path / "four", larger, segmenter)
    run_jobs(segmenter, [four])
    assert counts(four.folder, larger, four.digest) == counts(single.folder, plan, single.digest)


def test_a_mistake_in_a_process_is_told_in_one_line(tmp_path: Path, model: str, segmenter: Segmenter) -> None:
    root = write_set(tmp_path / "damaged", photos=3)
    (root / "images" / "photo1.png").write_bytes(b"no picture")
    plan = make_plan(FolderDataset(root, "val"), replace(CONFIG, prompts=("text",)))
    with pytest.raises(DPSegError, match=r"photo1\.png"):
        run_processes(ModelSource(model), [job(tmp_path / "out", plan, segmenter)], 2, 1)


@pytest.mark.parametrize(
    ("config", "difference"),
    [
        ({"seed": 1}, r"reference photos was|options\.seed was 0, now it is 1"),
        ({"prompts": ("text",)}, r"options\.prompts was|reference photos was"),
        ({"limit": 3}, r"sets\.shapes\.photos was 7, now it is 3"),
    ],
)
def test_another_setting_in_the_same_folder_is_refused(
    tmp_path: Path, plan: Plan, segmenter: Segmenter, config: dict[str, Any], difference: str
) -> None:
    check_setting(tmp_path / "out", describe(segmenter, [plan]))
    other = make_plan(plan.dataset, replace(CONFIG, **config), pool=plan.pool)
    with pytest.raises(DataError, match=difference) as info:
        check_setting(tmp_path / "out", describe(segmenter, [other]))
    assert "choose another --out" in str(info.value)
    assert "\n" not in str(info.value)


def test_another_model_or_data_set_in_the_same_folder_is_refused(
    tmp_path: Path, plan: Plan, segmenter: Segmenter
) -> None:
    check_setting(tmp_path / "out", describe(segmenter, [plan]))
    torch.manual_seed(1)
    with pytest.raises(DataError, match=r"holds another evaluation: model\.weights was"):
        check_setting(tmp_path / "out", describe(Segmenter(DPSeg(MODEL)), [plan]))
    with pytest.raises(DataError, match="data sets was"):
        check_setting(tmp_path / "out", describe(segmenter, [plan, replace(plan, name="more")]))
    (tmp_path / "out" / "setting.json").write_text("{")
    with pytest.raises(DataError, match="is damaged"):
        check_setting(tmp_path / "out", describe(segmenter, [plan]))


def test_a_damaged_or_foreign_block_is_named(tmp_path: Path, plan: Plan, segmenter: Segmenter) -> None:
    whole = job(tmp_path / "out", plan, segmenter)
    run_jobs(segmenter, [whole])
    with pytest.raises(DataError, match=r"00000\.npz: is of another evaluation"):
        merge_blocks(whole.folder, plan, "another digest")
    block = next(whole.folder.rglob("00003.npz"))
    block.write_bytes(block.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"00003\.npz: is damaged; delete it"):
        merge_blocks(whole.folder, plan, whole.digest)


def run(options: EvaluateOptions) -> str:
    """Runs the command and returns what it prints."""
    console = Console(file=io.StringIO(), width=300)
    assert evaluate(options, console, Console(file=io.StringIO())) == 0
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_shards_write_the_report_when_all_are_there(tmp_path: Path, model: str, data: Path) -> None:
    pytest.importorskip("matplotlib")
    options = EvaluateOptions(data, CONFIG, model=model, out=tmp_path / "report")
    first = run(replace(options, shard=(0, 2)))
    assert first.startswith("shard 1/2 is done: 4 of 7 blocks are counted in")
    assert not (tmp_path / "report" / "report.md").exists()
    second = run(replace(options, shard=(1, 2)))
    assert "shapes val: 7 photos, 4 classes" in second
    sharded = json.loads((tmp_path / "report" / "report.json").read_text())
    again = run(options)  # everything is counted: it only merges
    assert again.replace("\n", "") == second.replace("\n", "")
    run(replace(options, out=tmp_path / "alone"))
    alone = json.loads((tmp_path / "alone" / "report.json").read_text())
    assert sharded["sets"][0]["rows"] == alone["sets"][0]["rows"]
    with pytest.raises(DataError, match="holds another evaluation"):
        run(replace(options, config=replace(CONFIG, limit=2)))


def test_shards_are_read_strictly() -> None:
    assert shard_of("2/8") == (1, 8)
    for text in ("0/2", "3/2", "1", "a/b", "-1/2", ""):
        with pytest.raises(ConfigError, match="give I/N"):
            shard_of(text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": None}, "no data set given"),
        ({"shard": (0, 2)}, "--shard needs --out FOLDER"),
        ({"processes": 0}, "processes 0"),
        ({"sets": ("a150",), "names": "coco"}, "--names with 2 data sets"),
        ({"sets": ("a150",), "out": Path("report.json")}, "one file for 2 data sets"),
    ],
)
def test_options_that_do_not_go_together(data: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run(replace(EvaluateOptions(data, CONFIG), **options))


def test_blocks_hold_integers_and_are_small(tmp_path: Path, plan: Plan, segmenter: Segmenter) -> None:
    whole = job(tmp_path / "out", plan, segmenter)
    run_jobs(segmenter, [whole])
    with np.load(next(whole.folder.rglob("00000.npz"))) as arrays:
        kinds = {name: arrays[name].dtype for name in arrays.files}
    assert {kind for name, kind in kinds.items() if name[0].isdigit()} == {np.dtype(np.int64)}
    assert set(kinds) >= {"digest", "seconds", "0.matrix", "3.photos"}
