"""An evaluation shared by processes and shards, killed and resumed: always the same figures."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dpseg.commands.evaluate import EvaluateOptions, evaluate, shard_of
from dpseg.config import EvalConfig
from dpseg.data.folder import FolderDataset
from dpseg.errors import ConfigError, DataError, DPSegError
from dpseg.evaluation import workers
from dpseg.evaluation.blocks import check_setting, describe, merge_blocks, missing_blocks, write_block
from dpseg.evaluation.evaluate import evaluate as measure
from dpseg.evaluation.plan import Plan, make_plan
from dpseg.evaluation.workers import Job, ModelSource, run_jobs, run_processes
from dpseg.segmenter import Segmenter
from support.downloads import ran, write_voc
from support.labelled_set import write_set
from support.tiny import tiny_model

CONFIG = EvalConfig(prompts=("text", "pictures"), references=2, block=1)
STARTS = ["fork", pytest.param("spawn", marks=pytest.mark.slow)]


@pytest.fixture
def start(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Starts processes as forks, which need not import everything again; as they are where a GPU forbids it."""
    if request.param == "fork" and not torch.cuda.is_available():
        fork = multiprocessing.get_context("fork")
        monkeypatch.setattr(multiprocessing, "get_context", lambda method: fork)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    splits = {"train": (0, 1), "val": range(2, 9)}
    return write_set(tmp_path_factory.mktemp("data") / "shapes", photos=9, side=64, splits=splits)


def job(folder: Path, plan: Plan, segmenter: Segmenter) -> Job:
    digest = check_setting(folder, describe(segmenter, [plan]))
    return Job(plan, folder, digest, missing_blocks(folder, plan))


def counts(done: Job) -> list[dict[str, Any]]:
    """All counts of all rows, as lists."""
    tallies, _ = merge_blocks(done.folder, done.plan, done.digest)
    return [{name: array.tolist() for name, array in tally.to_arrays().items()} for tally in tallies]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, data: Path, segmenter: Segmenter) -> Job:
    """All blocks, counted by one process."""
    plan = make_plan(FolderDataset(data, "val"), CONFIG, pool=FolderDataset(data))
    done = job(tmp_path_factory.mktemp("whole"), plan, segmenter)
    steps: list[int] = []
    run_jobs(segmenter, [done], lambda: steps.append(1))
    assert len(steps) == 7
    return done


def after(photos: int, act: Callable[[], None]) -> Callable[[], None]:
    """Returns a step that acts when so many photos are counted."""
    done: list[None] = []

    def step() -> None:
        done.append(None)
        if len(done) == photos:
            act()

    return step


def kill_a_child() -> None:
    child = multiprocessing.active_children()[0]
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)


def stop() -> None:
    raise KeyboardInterrupt


def test_blocks_hold_the_integers_of_an_evaluation_without_files(whole: Job, segmenter: Segmenter) -> None:
    expected = counts(whole)
    assert [len(row["photos"]) for row in expected] == [7] * 4
    report = measure(segmenter, whole.plan.dataset, CONFIG, pool=whole.plan.pool)
    assert [row.matrix.counts.tolist() for row in report.rows] == [row["matrix"] for row in expected]
    with np.load(next(whole.folder.rglob("00000.npz"))) as arrays:
        kinds = {name: arrays[name].dtype for name in arrays.files}
    assert {kind for name, kind in kinds.items() if name[0].isdigit()} == {np.dtype(np.int64)}
    assert set(kinds) >= {"digest", "seconds", "0.matrix", "3.photos"}


KILLED = r"ended before its time \(exit code -9\); run the same command again"


@pytest.mark.skipif(torch.cuda.is_available(), reason="a fork cannot use the GPU; the slow test below kills as well")
@pytest.mark.parametrize("start", ["fork"], indirect=True)
def test_a_killed_process_loses_no_finished_block(
    tmp_path: Path, whole: Job, segmenter: Segmenter, model: str, start: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(folder: Path, plan: Plan, number: int, *rest: Any) -> Path:
        if number == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return write_block(folder, plan, number, *rest)

    half = job(tmp_path, whole.plan, segmenter)
    with monkeypatch.context() as patch:
        patch.setattr(workers, "write_block", write)
        with pytest.raises(DPSegError, match=KILLED):
            run_processes(ModelSource(model), [half], 2, 1)
    assert multiprocessing.active_children() == []
    left = job(tmp_path, whole.plan, segmenter)
    assert {4, 6} <= set(left.blocks) <= {1, 3, 4, 5, 6}  # the first process takes every other one
    run_jobs(segmenter, [left])
    assert counts(left) == counts(whole)


@pytest.mark.slow
def test_three_processes_and_two_that_go_on_after_a_kill_give_the_same(
    tmp_path: Path, whole: Job, segmenter: Segmenter, model: str
) -> None:
    three = job(tmp_path / "three", whole.plan, segmenter)
    steps: list[int] = []
    run_processes(ModelSource(model), [three], 3, 1, lambda: steps.append(1))
    assert len(steps) == 7
    # Of two children, one that reported its second photo has written its first: so the third report is late enough.
    half = job(tmp_path / "half", whole.plan, segmenter)
    with pytest.raises(DPSegError, match=KILLED):
        run_processes(ModelSource(model), [half], 2, 1, after(3, kill_a_child))
    left = job(tmp_path / "half", whole.plan, segmenter)
    assert 0 < len(left.blocks) < 7
    run_processes(ModelSource(model), [left], 2, 1)
    assert counts(three) == counts(left) == counts(whole)


def test_neither_a_stop_in_the_middle_nor_larger_blocks_change_the_figures(
    tmp_path: Path, whole: Job, segmenter: Segmenter
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_jobs(segmenter, [job(tmp_path / "stopped", whole.plan, segmenter)], after(3, stop))
    left = job(tmp_path / "stopped", whole.plan, segmenter)
    assert left.blocks == (2, 3, 4, 5, 6)  # the third photo was counted but not written
    larger = make_plan(whole.plan.dataset, replace(CONFIG, block=4), pool=whole.plan.pool)
    assert [len(block) for block in larger.blocks] == [4, 3]
    four = job(tmp_path / "four", larger, segmenter)
    run_jobs(segmenter, [left, four])
    assert counts(left) == counts(four) == counts(whole)


@pytest.mark.parametrize("start", STARTS, indirect=True)
def test_a_mistake_in_a_process_is_told_in_one_line(
    tmp_path: Path, model: str, segmenter: Segmenter, start: None
) -> None:
    root = write_set(tmp_path / "damaged", photos=3, side=64)
    (root / "images" / "photo1.png").write_bytes(b"no picture")
    plan = make_plan(FolderDataset(root, "val"), replace(CONFIG, prompts=("text",)))
    todo = job(tmp_path / "out", plan, segmenter)
    with pytest.raises(DPSegError, match=r"photo1\.png") as caught:
        run_processes(ModelSource(model), [todo], 2, 1)
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="processes 0, threads 1: give numbers of 1 or more"):
        run_processes(ModelSource(model), [todo], 0, 1)


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"seed": 1}, r"reference photos was|options\.seed was 0, now it is 1"),
        ({"prompts": ("text",)}, r"options\.prompts was|reference photos was"),
        ({"limit": 3}, r"sets\.shapes\.photos was 7, now it is 3"),
        ("another model", r"holds another evaluation: model\.weights was"),
        ("another set", "data sets was"),
    ],
)
def test_another_setting_in_the_same_folder_is_refused(
    whole: Job, segmenter: Segmenter, change: dict[str, Any] | str, difference: str
) -> None:
    plans = [whole.plan]
    if isinstance(change, dict):
        plans = [make_plan(whole.plan.dataset, replace(CONFIG, **change), pool=whole.plan.pool)]
    elif change == "another set":
        plans.append(replace(whole.plan, name="more"))
    other = Segmenter(tiny_model(trained=True)) if change == "another model" else segmenter
    with pytest.raises(DataError, match=difference) as caught:
        check_setting(whole.folder, describe(other, plans))
    assert "choose another --out" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_damaged_and_foreign_files_are_named(tmp_path: Path, whole: Job, segmenter: Segmenter) -> None:
    folder = shutil.copytree(whole.folder, tmp_path / "copy")
    with pytest.raises(DataError, match=r"00000\.npz: is of another evaluation"):
        merge_blocks(folder, whole.plan, "another digest")
    block = next(folder.rglob("00003.npz"))
    block.write_bytes(block.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"00003\.npz: is damaged; delete it"):
        merge_blocks(folder, whole.plan, whole.digest)
    (folder / "setting.json").write_text("{")
    with pytest.raises(DataError, match="is damaged"):
        check_setting(folder, describe(segmenter, [whole.plan]))


def run(options: EvaluateOptions) -> str:
    """Runs the command and returns what it prints."""
    status, printed, _ = ran(evaluate, options)
    assert status == 0
    return printed


@pytest.mark.parametrize("start", STARTS, indirect=True)
def test_two_processes_measure_benchmarks_with_pictures_from_their_train_split(
    tmp_path: Path, model: str, start: None
) -> None:
    mask = np.zeros((60, 90), dtype=int)
    mask[10:50, 10:40], mask[20:50, 50:80] = 8, 13  # cat, horse
    mask[9, 10:40] = 255
    write_voc(tmp_path, dict.fromkeys("0123", mask), {"train": "01", "val": "23"})
    config = EvalConfig(prompts=("text", "both"), refine=(True,), block=1)
    text = run(EvaluateOptions(None, config, model=model, sets=("pas20", "PAS20b"), root=tmp_path, processes=2))
    assert "pas20 val: 2 photos, 20 classes" in text
    assert "pas20b val: 2 photos, 21 classes" in text
    assert "| model | PAS-20 | PAS-20b |" in text
    assert "| SED, ConvNeXt-B (paper) | 94.4 | - |" in text
    assert len(re.findall(r"^\| (?:text|both) \| II \|", text, flags=re.MULTILINE)) == 4


def test_shards_write_the_report_when_all_are_there(tmp_path: Path, model: str, data: Path) -> None:
    pytest.importorskip("matplotlib")
    config = replace(CONFIG, refine=(False,))
    options = EvaluateOptions(data, config, model=model, out=tmp_path / "report")
    first = run(replace(options, shard=(0, 2)))
    assert first.startswith("shard 1/2 is done: 4 of 7 blocks are counted in")
    assert not (tmp_path / "report" / "report.md").exists()
    second = run(replace(options, shard=(1, 2)))
    assert "shapes val: 7 photos, 4 classes" in second
    sharded = json.loads((tmp_path / "report" / "report.json").read_text())
    again = run(options)  # everything is counted: it only merges
    assert again.replace("\n", "") == second.replace("\n", "")
    run(replace(options, out=tmp_path / "alone.json"))
    alone = json.loads((tmp_path / "alone.json").read_text())
    assert sharded["sets"][0]["rows"] == alone["rows"]
    with pytest.raises(DataError, match="holds another evaluation"):
        run(replace(options, config=replace(config, limit=2)))


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
def test_options_that_do_not_go_together_are_refused(data: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run(replace(EvaluateOptions(data, CONFIG), **options))
