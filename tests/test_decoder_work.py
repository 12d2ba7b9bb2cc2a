"""The decoder does no more work than what is written down: multiplications and bytes, which no machine changes."""

from __future__ import annotations

import json

import decoder_work
import pytest
import torch
from torch.nn import functional as F

KEPT = json.loads(decoder_work.FILE.read_text())


@pytest.mark.parametrize("name", list(decoder_work.SHAPES))
def test_the_decoder_does_not_do_more_than_it_did(name: str) -> None:
    assert decoder_work.count_work(name) == pytest.approx(KEPT[name], rel=0.01), (
        "where that is meant, run: python benchmarks/decoder_work.py --write"
    )


def test_blocks_save_multiplications_and_rejection_saves_more() -> None:
    for counts in KEPT.values():
        whole = counts["multiplications a class as the formulas stand, thousands"]
        assert counts["multiplications a class, thousands"] < whole
    base = KEPT["base"]
    exact = base["multiplications for all, thousands"] + 32 * base["multiplications a class, thousands"]
    assert base["multiplications with 16 of 32 classes given up, thousands"] < 0.75 * exact


def test_multiplications_are_those_of_the_formulas() -> None:
    a, b, c = torch.rand(3, 4, 5), torch.rand(3, 5, 6), torch.rand(3, 4, 6)
    image, kernel = torch.rand(2, 4, 8, 8), torch.rand(6, 4, 3, 3)
    count = decoder_work.count_multiplications
    for product in (lambda: a @ b, lambda: torch.bmm(a, b, out=c), lambda: c.baddbmm_(a, b, alpha=-1)):
        assert count(product) == 3 * 4 * 5 * 6
    assert count(lambda: F.conv2d(image, kernel, padding=1)) == 2 * 64 * 6 * 4 * 9
    with torch.inference_mode():
        assert count(lambda: F.linear(a, b[0].T)) == 3 * 4 * 5 * 6


def test_new_bytes_are_those_of_new_tensors() -> None:
    a = torch.rand(10, 10)
    assert decoder_work.count_bytes(lambda: a + 1) == 400
    assert decoder_work.count_bytes(lambda: a.add_(1)) == 0
    assert decoder_work.count_bytes(lambda: a.T[3:].permute(1, 0)) == 0
    assert decoder_work.count_bytes(lambda: torch.cat([a, a]).relu_() * 2) == 1600


def test_an_added_copy_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    original = decoder_work.BlockDecoder._output

    def wasteful(self: object, number: int, classes: slice, x: torch.Tensor) -> torch.Tensor:
        return original(self, number, classes, x.clone())  # type: ignore[arg-type]

    monkeypatch.setattr(decoder_work.BlockDecoder, "_output", wasteful)
    what = "new bytes a class, thousands"
    assert decoder_work.count_work("lite")[what] > 1.01 * KEPT["lite"][what]
