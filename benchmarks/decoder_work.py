"""What the decoder does for each class, counted and not timed: multiplications and bytes of new tensors.

    python benchmarks/decoder_work.py [--write]

prints the counts of base's and lite's decoders on a small image, and writes them to benchmarks/decoder_work.json. They
do not depend on the machine or on what else it does, so a test compares them with that file: a change that adds work
fails. Where work is added or saved on purpose, --write keeps the new counts.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from dpseg.config import ModelConfig
from dpseg.model.block_decoder import BlockDecoder
from dpseg.model.cost_volume import dual_cost_volume, visual_cost_volumes
from dpseg.model.decoder import Decoder, EncoderShape
from dpseg.model.encoders import Pyramid
from dpseg.prompts.prompt_set import PromptEmbeddings
from dpseg.rejection import Rejection

FILE = Path(__file__).parent / "decoder_work.json"
FEWER, MORE = 16, 32  # classes; the difference is what a class costs
SHAPES = {
    "base": (
        ModelConfig(encoder="base", auxiliary_heads=True),
        EncoderShape((128, 256, 512), (4, 8, 16, 32)),
        640,
        (128, 128),
    ),
    "lite": (
        ModelConfig(encoder="lite", templates=1, widths=(32, 24, 16), image_widths=(8, 8), heads=4),
        EncoderShape((24, 40, 112), (4, 8, 16, 16)),
        1280,
        (128, 128),
    ),
}
"""Name -> config, encoder, D, and the image's size in pixels."""


class NewBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that operations make; views and results that were written in place are none."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), options: dict[str, Any] | None = None
    ) -> Any:
        """Runs an operation, and counts what it made."""
        options = options or {}
        given = {leaf.untyped_storage()._cdata for leaf in tree_leaves((arguments, options)) if torch.is_tensor(leaf)}
        result = function(*arguments, **options)
        made = {
            leaf.untyped_storage()._cdata: leaf.untyped_storage().nbytes()
            for leaf in tree_leaves(result)
            if torch.is_tensor(leaf)
        }
        self.bytes += sum(size for storage, size in made.items() if storage not in given)
        return result


def count_multiplications(function: Callable[[], object]) -> int:
    """Runs a function, and returns the multiplications of its matrix products and convolutions."""

    def in_place(_into: Any, left: Any, right: Any, **_: Any) -> int:
        batch, rows, inner = left
        return int(2 * batch * rows * inner * right[-1])

    mapping = {torch.ops.aten.baddbmm_: in_place}
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        function()
    return int(counter.get_total_flops()) // 2


def count_bytes(function: Callable[[], object]) -> int:
    """Runs a function, and returns the bytes of all tensors that its operations make."""
    with NewBytes() as counter:
        function()
    return counter.bytes


class Case:
    """One decoder with random weights, a random image, and random prompts, text and one picture each."""

    def __init__(self, name: str) -> None:
        torch.manual_seed(0)
        self.config, encoder, dim, size = SHAPES[name]
        self.decoder = Decoder(self.config, encoder).eval()
        dims = (*encoder.stage_dims, dim)
        maps = [torch.randn(1, d, size[0] // s, size[1] // s) for d, s in zip(dims, encoder.strides, strict=True)]
        self.pyramid = Pyramid((maps[0], maps[1], maps[2]), maps[3])
        self.dims = dims

    def prompts(self, count: int) -> PromptEmbeddings:
        """Returns prompts of so many classes."""

        def rows(size: int, each: int = 1) -> Tensor:
            return F.normalize(torch.randn(count, each, size), dim=-1)

        s2, s3, s4, dim = self.dims
        yes = torch.ones(count, dtype=torch.bool)
        return PromptEmbeddings(
            rows(dim, self.config.templates), rows(dim), (rows(s2), rows(s3), rows(s4)), yes, yes.clone()
        )

    @torch.no_grad()
    def blocks(self, prompts: PromptEmbeddings, rejection: Rejection | None = None) -> None:
        """Decodes block by block."""
        for _ in BlockDecoder(self.decoder, self.config.fusion, self.pyramid, prompts, rejection=rejection):
            pass

    @torch.no_grad()
    def plain(self, prompts: PromptEmbeddings) -> None:
        """Decodes as the formulas stand."""
        cost = dual_cost_volume(self.pyramid.dense, prompts, self.config.fusion)
        self.decoder(cost, self.pyramid.stages, visual_cost_volumes(self.pyramid.stages, prompts, self.decoder.guided))


def count_work(name: str) -> dict[str, float]:
    """Returns what a class costs: thousands of multiplications, and kB of new tensors; and what all share."""
    case = Case(name)
    few, many = case.prompts(FEWER), case.prompts(MORE)
    counts = {}
    for what, count in (("multiplications", count_multiplications), ("new bytes", count_bytes)):
        fewer, more = count(lambda: case.blocks(few)), count(lambda: case.blocks(many))
        each = (more - fewer) / (MORE - FEWER)
        counts[f"{what} a class, thousands"] = round(each / 1e3, 1)
        counts[f"{what} for all, thousands"] = round((fewer - FEWER * each) / 1e3, 1)
    plain = count_multiplications(lambda: case.plain(many)) - count_multiplications(lambda: case.plain(few))
    counts["multiplications a class as the formulas stand, thousands"] = round(plain / (MORE - FEWER) / 1e3, 1)
    if case.decoder.auxiliary:
        rejecting = count_multiplications(lambda: case.blocks(many, Rejection(FEWER)))
        counts[f"multiplications with {MORE - FEWER} of {MORE} classes given up, thousands"] = round(rejecting / 1e3, 1)
    return counts


def main() -> None:
    """Counts, prints and, where asked, writes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--write", action="store_true", help=f"keep the counts in {FILE.name}")
    asked = parser.parse_args()
    text = json.dumps({name: count_work(name) for name in SHAPES}, indent=1)
    print(text)
    if asked.write:
        FILE.write_text(text + "\n")


if __name__ == "__main__":
    main()
