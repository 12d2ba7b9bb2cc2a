"""PromptSet: everything that the model is told about the classes, as one value.

Words, reference pictures, generated pictures, the bank and the crops of Inference II are only ways to fill it. A class
may have text only, pictures only, or both.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from dpseg.errors import PromptError, did_you_mean
from dpseg.tensor_files import read_tensors, write_tensors

TEXT_SOURCE = "text"
_KIND, _VERSION = "prompts", 1


@dataclass(frozen=True)
class PromptEmbeddings:
    """The tensors of a prompt set, as the model takes them. A leading batch dimension is optional everywhere.

    Attributes:
        text: T, (K, M, D) unit vectors, or longer ones where words weigh more beside pictures than these (`Matching`);
            rows of classes without text are zero.
        visual: V, (K, Mv, D) unit vectors, Mv = 1 or M; rows of classes without pictures are zero.
        stages: GAP(V_j) for j = 2, 3, 4: three tensors (K, Mv, D_j) of unit vectors; zero where there is no picture.
        has_text: (K,) bool.
        has_visual: (K,) bool.
        adjustment: (K,), what the logits of each class gain when classes compete for labels
            (`Matching.logit_adjustment`); None: nothing.
    """

    text: Tensor
    visual: Tensor
    stages: tuple[Tensor, Tensor, Tensor]
    has_text: Tensor
    has_visual: Tensor
    adjustment: Tensor | None = None

    def map(self, function: Callable[[Tensor], Tensor]) -> PromptEmbeddings:
        """Returns a copy with `function` applied to every tensor, e.g. `lambda t: t[keep]` to keep some classes."""
        s2, s3, s4 = self.stages
        return PromptEmbeddings(
            text=function(self.text),
            visual=function(self.visual),
            stages=(function(s2), function(s3), function(s4)),
            has_text=function(self.has_text),
            has_visual=function(self.has_visual),
            adjustment=None if self.adjustment is None else function(self.adjustment),
        )

    def tensors(self) -> dict[str, Tensor]:
        """Returns all that are there, by the names that they have in a file."""
        s2, s3, s4 = self.stages
        named = {"text": self.text, "visual": self.visual, "stage2": s2, "stage3": s3, "stage4": s4}
        named |= {"has_text": self.has_text, "has_visual": self.has_visual}
        return named if self.adjustment is None else named | {"adjustment": self.adjustment}

    def to(self, device: torch.device | str) -> PromptEmbeddings:
        """Returns a copy on `device`."""
        return self.map(lambda tensor: tensor.to(device))


@dataclass(frozen=True)
class VisualPrompts:
    """Visual prompts of C classes, to put into a prompt set that holds more.

    Attributes:
        names: C names of classes, unique.
        visual: V, (C, Mv, D) unit vectors.
        stages: GAP(V_j) for j = 2, 3, 4: three tensors (C, Mv, D_j) of unit vectors.
        source: where they come from, e.g. "crop".
    """

    names: tuple[str, ...]
    visual: Tensor
    stages: tuple[Tensor, Tensor, Tensor]
    source: str = "crop"


@dataclass(frozen=True)
class PromptSet:
    """K named classes with their prompt embeddings, made by one encoder.

    Attributes:
        names: K display names, unique.
        embeddings: the tensors, without a batch dimension.
        encoder: fingerprint of the encoder that made them; a model with another encoder refuses them.
        sources: for each class, where its prompts came from, e.g. ("text", "reference") or ("text", "bank").
    """

    names: tuple[str, ...]
    embeddings: PromptEmbeddings
    encoder: str
    sources: tuple[tuple[str, ...], ...] = field(default=())

    def __len__(self) -> int:
        return len(self.names)

    def with_embeddings(self, embeddings: PromptEmbeddings) -> PromptSet:
        """Returns the same classes with other embeddings."""
        return dataclasses.replace(self, embeddings=embeddings)

    def select(self, names: Sequence[str]) -> PromptSet:
        """Returns only some classes, in the order asked for.

        Raises:
            PromptError: None is named, one twice, or one that is not there.
        """
        if not names:
            raise PromptError("no classes selected; name at least one")
        index = self._find(names)
        return PromptSet(
            names=tuple(names),
            embeddings=self.embeddings.map(lambda tensor: tensor[index.to(tensor.device)]),
            encoder=self.encoder,
            sources=tuple(self.sources[k] for k in index.tolist()) if self.sources else (),
        )

    def replace(self, visual: VisualPrompts) -> PromptSet:
        """Returns the same classes; those in `visual` have its pictures instead of their own.

        This is the step between Inference I and Inference II. Where one side has Mv = 1 and the other more, the one is
        repeated.

        Raises:
            PromptError: A class is not in this set or stands twice, or Mv or a dimension does not fit.
        """
        old, index = self.embeddings, self._find(visual.names)
        s2, s3, s4 = (_put(mine, index, new) for mine, new in zip(old.stages, visual.stages, strict=True))
        has_visual = old.has_visual.clone()
        has_visual[index.to(has_visual.device)] = True
        embeddings = dataclasses.replace(
            old, visual=_put(old.visual, index, visual.visual), stages=(s2, s3, s4), has_visual=has_visual
        )
        sources = list(self.sources or self._plain_sources())
        for k in index.tolist():
            sources[k] = (*(kind for kind in sources[k] if kind == TEXT_SOURCE), visual.source)
        return dataclasses.replace(self, embeddings=embeddings, sources=tuple(sources))

    def save(self, path: str | Path) -> Path:
        """Writes the set to one safetensors file, atomically.

        Raises:
            OutputError: It cannot be written.
        """
        about = {"names": self.names, "encoder": self.encoder, "sources": self.sources}
        return write_tensors(path, _KIND, _VERSION, self.embeddings.tensors(), about)

    @classmethod
    def load(cls, path: str | Path) -> PromptSet:
        """Reads what `save` wrote, onto the CPU.

        Raises:
            PromptError: The file is missing, damaged, or no prompt set.
        """
        tensors, about = read_tensors(path, _KIND, _VERSION, PromptError)
        try:
            embeddings = PromptEmbeddings(
                text=tensors["text"],
                visual=tensors["visual"],
                stages=(tensors["stage2"], tensors["stage3"], tensors["stage4"]),
                has_text=tensors["has_text"],
                has_visual=tensors["has_visual"],
                adjustment=tensors.get("adjustment"),
            )
            names, sources = tuple(about["names"]), tuple(tuple(kinds) for kinds in about["sources"])
            encoder = str(about["encoder"])
        except (KeyError, TypeError) as error:
            raise PromptError(f"{path}: holds no complete prompt set ({error}); save it again") from error
        if any(len(tensor) != len(names) for tensor in tensors.values()):
            raise PromptError(
                f"{path}: its tensors do not have one row for each of {len(names)} classes; save it again"
            )
        return cls(names=names, embeddings=embeddings, encoder=encoder, sources=sources)

    def _find(self, names: Sequence[str]) -> Tensor:
        positions = {name: k for k, name in enumerate(self.names)}
        for name in names:
            if name not in positions:
                raise PromptError(f"class {name!r} is not in this prompt set; {did_you_mean(name, self.names)}")
        if len(set(names)) < len(names):
            raise PromptError(f"a class stands twice in {', '.join(names)}; name each once")
        return torch.tensor([positions[name] for name in names], dtype=torch.long)

    def _plain_sources(self) -> tuple[tuple[str, ...], ...]:
        return tuple((TEXT_SOURCE,) if has else () for has in self.embeddings.has_text.tolist())


def _put(old: Tensor, index: Tensor, new: Tensor) -> Tensor:
    """Returns `old` (K, Mv, D) with the rows `index` from `new` (C, Mv', D)."""
    prompts = max(old.shape[1], new.shape[1])
    if old.shape[1] not in (1, prompts) or new.shape[1] not in (1, prompts) or old.shape[2] != new.shape[2]:
        raise PromptError(
            f"visual prompts of shape {tuple(new.shape)} do not fit {tuple(old.shape)}; encode both with one model"
        )
    merged = old.expand(-1, prompts, -1).clone()
    merged[index.to(old.device)] = new.to(old).expand(-1, prompts, -1)
    return merged
