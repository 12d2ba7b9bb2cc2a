import os
import subprocess
import sys
from pathlib import Path

import pytest

import dpseg
from dpseg import errors
from dpseg.errors import DPSegError, did_you_mean

KINDS = [
    (errors.ConfigError, ValueError),
    (errors.PromptError, ValueError),
    (errors.ImageError, ValueError),
    (errors.ModelNotFoundError, LookupError),
    (errors.WeightsError, RuntimeError),
    (errors.DataError, ValueError),
    (errors.OutputError, OSError),
    (errors.MissingExtraError, ImportError),
]


@pytest.mark.parametrize(("kind", "builtin"), KINDS)
def test_every_kind_is_caught_as_ours_and_as_the_builtin_that_it_resembles(kind, builtin):
    for caught in (DPSegError, builtin):
        with pytest.raises(caught) as info:
            raise kind("photo.jpg: no such file; check the path")
        assert str(info.value) == "photo.jpg: no such file; check the path"


def test_a_near_miss_is_suggested_and_only_that():
    assert did_you_mean("cocoo", ["coco", "ade150", "voc20"]) == "did you mean 'coco'?"
    assert did_you_mean("Person", ["person", "zebra"]) == "did you mean 'person'?"


def test_several_near_misses_are_joined_with_or():
    text = did_you_mean("dpseg-larg", ["dpseg-large", "dpseg-lite", "unrelated"])
    assert text.startswith("did you mean 'dpseg-large' or ")
    assert "unrelated" not in text


def test_all_choices_are_listed_when_none_is_near():
    assert did_you_mean("xyz", ["voc20", "coco"]) == "known: coco, voc20"


def test_import_loads_nothing_heavy():
    code = "import sys, dpseg; print([name for name in ('torch', 'numpy', 'PIL', 'scipy') if name in sys.modules])"
    environment = os.environ | {"PYTHONPATH": str(Path(dpseg.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == "[]"


def test_public_names_are_loaded_on_use_and_others_refused():
    from dpseg.result import Segmentation

    assert dpseg.Segmentation is Segmentation
    assert set(dir(dpseg)) == set(dpseg.__all__)
    assert all(getattr(dpseg, name) is not None for name in dpseg.__all__)
    with pytest.raises(AttributeError, match="Segmentor"):
        _ = dpseg.Segmentor
