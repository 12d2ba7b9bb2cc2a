"""For all tests: one thread, a cache of their own, and the parts that most of them use."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

# Before torch is imported, and inherited by subprocesses: tiny models gain nothing by threads, and waiting ones cost.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # tests that import onnxruntime themselves

pytest.register_assert_rewrite("support")
settings.register_profile("all", derandomize=True, deadline=None)  # the same examples each time, however slow a machine
settings.load_profile("all")

if TYPE_CHECKING:
    from dpseg.prompts.prompt_set import PromptSet
    from dpseg.segmenter import Segmenter


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Embeddings are kept in a folder of this run, never in the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DPSEG_CACHE", str(tmp_path_factory.mktemp("embeddings")))
        yield


@pytest.fixture(autouse=True)
def _same_numbers() -> None:
    """Whatever a test draws without a generator of its own does not depend on the tests before it."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of the tiny model, as --model takes it."""
    from support.tiny import save_tiny

    return save_tiny(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> Segmenter:
    """The tiny model, ready to use."""
    from support.tiny import tiny_segmenter

    return tiny_segmenter(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def colours(segmenter: Segmenter) -> PromptSet:
    """Prompts of the classes red and blue, a picture each."""
    from support.pictures import BLUE, RED, plain

    return segmenter.prompts(references={"red": plain(RED), "blue": plain(BLUE)})


@pytest.fixture(scope="session")
def lite() -> Segmenter:
    """The default model, loaded once; a test that changes it changes it back."""
    from dpseg.segmenter import Segmenter

    return Segmenter.from_pretrained()


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with red.png, blue.png and photos/both.png, and a cache of its own."""
    from support.pictures import write_workplace

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DPSEG_CACHE", str(tmp_path / "cache"))
    write_workplace(tmp_path)
    return tmp_path


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """`refused("predict", ...)` runs a command that fails with status 2, and returns the one line that it prints."""
    from support.commands import refused

    return lambda *arguments, status=2: refused(capsys, *arguments, status=status)
