"""Short names of weights."""

from __future__ import annotations

import torch

from dpseg.model.fingerprint import weights_fingerprint


def test_it_tells_weights_and_labels_apart() -> None:
    weights = torch.tensor([1.0, 2.0])
    assert weights_fingerprint("a", [weights]) == weights_fingerprint("a", [weights.clone()])
    assert weights_fingerprint("a", [weights]) != weights_fingerprint("b", [weights])
    assert weights_fingerprint("a", [weights]) != weights_fingerprint("a", [weights + 1e-6])


def test_the_sign_of_zero_does_not_change_it() -> None:
    weights = torch.tensor([-0.0, 1.5])
    assert weights_fingerprint("a", [torch.tensor([0.0, 1.5])]) == weights_fingerprint("a", [weights])
