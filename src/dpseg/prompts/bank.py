"""A bank of visual prompt embeddings, looked up by meaning, so that a word alone gets a visual prompt too.

The paper paints its visual prompts with Stable Diffusion. Without a GPU, embeddings of existing pictures stand in for
them (ours): a class takes the bank's entries whose names mean the same or nearly so, by cosine of text features, and
blends their visual features.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from dpseg.errors import PromptError, WeightsError
from dpseg.tensor_files import read_tensors, write_tensors

BANK_SOURCE = "bank"
_KIND, _VERSION = "bank", 1
_TEMPERATURE = 0.05


@dataclass(frozen=True)
class BankMatch:
    """What a bank holds for K classes.

    Attributes:
        found: (K,) bool; False where no name is near enough.
        dense: (K, F) blended features, as `VisualFeatures.dense`; zero where nothing is found.
        stages: three tensors (K, D_j), as `VisualFeatures.stages`; zero where nothing is found.
        names: for each class the bank's names that were blended, heaviest first; empty where nothing is found.
        weights: the shares of those names, in (0, 1], together 1.
        sources: for each class where its features come from, `BANK_SOURCE` or another; empty where nothing is found.
    """

    found: Tensor
    dense: Tensor
    stages: tuple[Tensor, Tensor, Tensor]
    names: tuple[tuple[str, ...], ...]
    weights: tuple[tuple[float, ...], ...]
    sources: tuple[str, ...]


@dataclass(frozen=True)
class Bank:
    """Visual features of N named entries, before any projection that training changes.

    Attributes:
        names: N names.
        text: (N, F_t) text features of the names, unit vectors.
        dense: (N, F), as `VisualFeatures.dense`.
        stages: GAP(V_j) for j = 2, 3, 4: three tensors (N, D_j).
        encoder: fingerprint of the encoder that made them.
    """

    names: tuple[str, ...]
    text: Tensor
    dense: Tensor
    stages: tuple[Tensor, Tensor, Tensor]
    encoder: str

    def __len__(self) -> int:
        return len(self.names)

    def lookup(self, text_features: Tensor, top: int = 3, floor: float = 0.8) -> BankMatch:
        """Blends, for each class, the entries whose names are nearest in meaning.

        The shares are the softmax of the cosines with temperature 0.05, so that an entry of the very name outweighs all
        others, while several equally good ones share.

        Args:
            text_features: (K, F_t), any length.
            top: so many entries a class at most, 1 or more.
            floor: entries with a lower cosine are no match, in [-1, 1]. With MiniLM, names that only share a word come
                nearest from about 0.78 down ("horse": sea horse, "sand": sandal), so a lower floor does harm.

        Raises:
            PromptError: The text features are of another encoder.
        """
        if text_features.ndim != 2 or text_features.shape[1] != self.text.shape[1]:
            raise PromptError(
                f"text features of shape {tuple(text_features.shape)} do not fit the bank's, (K, {self.text.shape[1]});"
                " use the bank of the same model"
            )
        queries = F.normalize(text_features.detach().to(self.text.device, torch.float32), dim=-1)
        cosines, entries = (queries @ self.text.float().T).topk(min(top, len(self)), dim=-1)
        near = cosines >= floor
        shares = (cosines / _TEMPERATURE).masked_fill(~near, -torch.inf).softmax(-1).masked_fill(~near, 0.0)
        s2, s3, s4 = (_blend(stage, entries, shares) for stage in self.stages)
        counts = near.sum(-1).tolist()  # entries come sorted by cosine, so the near ones come first
        return BankMatch(
            found=near[:, 0],
            dense=_blend(self.dense, entries, shares),
            stages=(s2, s3, s4),
            names=tuple(tuple(self.names[i] for i in row[:n]) for row, n in zip(entries.tolist(), counts, strict=True)),
            weights=tuple(tuple(row[:n]) for row, n in zip(shares.tolist(), counts, strict=True)),
            sources=tuple(BANK_SOURCE if n else "" for n in counts),
        )

    def save(self, path: str | Path, dtype: torch.dtype = torch.float16) -> Path:
        """Writes the bank to one safetensors file, atomically.

        Args:
            path: the file.
            dtype: how the features are stored. Half precision costs a thousandth of a value and halves the file.

        Raises:
            OutputError: It cannot be written.
        """
        tensors = {"text": self.text, "dense": self.dense}
        tensors |= {f"stage{j}": stage for j, stage in enumerate(self.stages, start=2)}
        tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
        return write_tensors(path, _KIND, _VERSION, tensors, {"names": self.names, "encoder": self.encoder})

    @classmethod
    def load(cls, path: str | Path) -> Bank:
        """Reads what `save` wrote, as float32 on the CPU.

        Raises:
            WeightsError: The file is missing, damaged, or no bank.
        """
        tensors, about = read_tensors(path, _KIND, _VERSION, WeightsError)
        try:
            names, encoder = tuple(about["names"]), str(about["encoder"])
            text, dense, s2, s3, s4 = (
                tensors[name].float() for name in ("text", "dense", "stage2", "stage3", "stage4")
            )
        except (KeyError, TypeError) as error:
            raise WeightsError(f"{path}: holds no complete bank ({error}); make it again") from error
        if not names or any(len(tensor) != len(names) for tensor in tensors.values()):
            raise WeightsError(f"{path}: its tensors do not have one row for each of {len(names)} names; make it again")
        return cls(names=names, text=F.normalize(text, dim=-1), dense=dense, stages=(s2, s3, s4), encoder=encoder)


def _blend(features: Tensor, entries: Tensor, shares: Tensor) -> Tensor:
    """Returns sum_i shares(k, i) * features(entries(k, i)): (N, D), (K, top), (K, top) -> (K, D)."""
    return torch.einsum("kt,ktd->kd", shares, features.float()[entries])
