"""A short name for an encoder's weights, by which embeddings are cached and prompt sets are matched with models."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor

_SAMPLES = 64  # values read of each tensor


def weights_fingerprint(label: str, tensors: Iterable[Tensor]) -> str:
    """Hashes a label and up to 64 evenly spaced values of every tensor: milliseconds, whatever the model's size.

    Training changes all values of a tensor that it touches, so a sample of each tells weights apart.

    Args:
        label: what the weights alone do not say: the architecture and the rules by which features are made.
        tensors: the weights, always in the same order, on one device.

    Returns:
        `label` and 16 hexadecimal digits.
    """
    samples = []
    for tensor in tensors:
        values = tensor.detach().reshape(-1)
        samples.append(values[:: max(1, len(values) // _SAMPLES)][:_SAMPLES].float() + 0.0)  # -0.0 becomes 0.0
    content = torch.cat(samples).cpu().numpy().tobytes()
    return f"{label}-{hashlib.sha256(label.encode() + content).hexdigest()[:16]}"
