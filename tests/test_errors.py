"""Errors that users meet, and the names that the package has for everyone."""

from __future__ import annotations

import pytest

import dpseg
from dpseg import errors
from dpseg.errors import DPSegError, did_you_mean

KINDS: dict[type[DPSegError], type[Exception]] = {
    errors.ConfigError: ValueError,
    errors.PromptError: ValueError,
    errors.ImageError: ValueError,
    errors.ModelNotFoundError: LookupError,
    errors.WeightsError: RuntimeError,
    errors.DataError: ValueError,
    errors.OutputError: OSError,
    errors.MissingExtraError: ImportError,
}


def test_every_kind_is_caught_as_ours_and_as_the_builtin_that_it_resembles() -> None:
    for kind, builtin in KINDS.items():
        assert issubclass(kind, DPSegError)
        assert issubclass(kind, builtin)
        assert str(kind("photo.jpg: no such file; check the path")) == "photo.jpg: no such file; check the path"


def test_near_misses_are_suggested_and_all_choices_listed_where_none_is_near() -> None:
    assert did_you_mean("cocoo", ["coco", "ade150", "voc20"]) == "did you mean 'coco'?"
    assert did_you_mean("Person", ["person", "zebra"]) == "did you mean 'person'?"
    several = did_you_mean("dpseg-larg", ["dpseg-large", "dpseg-lite", "unrelated"])
    assert several == "did you mean 'dpseg-large' or 'dpseg-lite'?"
    assert did_you_mean("xyz", ["voc20", "coco"]) == "known: coco, voc20"


def test_public_names_are_loaded_on_use_and_others_refused() -> None:
    from dpseg.result import Segmentation

    assert dpseg.Segmentation is Segmentation
    assert set(dir(dpseg)) == set(dpseg.__all__)
    assert all(getattr(dpseg, name) is not None for name in dpseg.__all__)
    with pytest.raises(AttributeError, match="Segmentor"):
        _ = dpseg.Segmentor
