"""What training a recipe costs, computed and not measured: operations, parameters and their memory.

    python benchmarks/training_cost.py configs/base.yaml

counts the operations of one crop's forward pass on torch's meta device, which computes nothing, and takes the backward
pass as twice as many. So it counts what the backward pass keeps of the forward pass, in single precision; autocast
halves most of it. Hours are for a GPU that reaches a given rate; nobody has trained these recipes with this code.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from dpseg.model.dpseg import DPSeg
from dpseg.plain_values import read_yaml
from dpseg.prompts.prompt_set import PromptEmbeddings
from dpseg.recipe import TrainConfig

RATES = {"100 TFLOP/s (an A100 or H100 in bf16, at a third of an A100's peak)": 100e12, "15 TFLOP/s (a V100)": 15e12}


def prompts_of(model: DPSeg, batch: int, count: int) -> PromptEmbeddings:
    """Returns prompts of K categories for a batch, on the meta device."""
    templates, size = model.config.templates, model.encoder.embed_dim
    text = torch.empty(batch, count, templates, size, device="meta")
    s2, s3, s4 = (torch.empty(batch, count, 1, dim, device="meta") for dim in model.encoder.stage_dims)
    visual = torch.empty(batch, count, 1, size, device="meta")
    yes = torch.ones(batch, count, dtype=torch.bool, device="meta")
    return PromptEmbeddings(text, visual, (s2, s3, s4), yes, yes)


def kept_bytes(model: DPSeg, image: torch.Tensor, prompts: PromptEmbeddings) -> int:
    """Returns how much the backward pass of one crop needs of its forward pass, in single precision."""
    weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = model(image, prompts)
    del logits
    return sum(storage.nbytes() for storage in kept.values())


def main(recipe: Path) -> None:
    """Prints the figures of a recipe."""
    config = TrainConfig.from_dict(read_yaml(recipe))
    with torch.device("meta"):
        model = DPSeg(replace(config.model, weights="random")).to("meta").train()
    image = torch.empty(1, 3, config.crop, config.crop, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        pyramid = model.encode(image)
        encoder = counter.get_total_flops()
        model.decode(pyramid, prompts_of(model, 1, config.classes))
    forward = counter.get_total_flops()
    tuned, projections = model.encoder.parameter_groups()
    trained = sum(p.numel() for p in [*tuned, *projections, *model.decoder.parameters()])
    everything = sum(p.numel() for p in model.parameters())
    step = 3 * forward * config.batch_size
    print(f"{recipe}: crop {config.crop}, {config.classes} classes, batch {config.batch_size}")
    print(f"parameters: {everything / 1e6:.0f} M, of which trained {trained / 1e6:.0f} M")
    print(f"weights, gradients and AdamW's moments: {(4 * everything + 12 * trained) / 1e9:.1f} GB in single precision")
    prompts = prompts_of(model, 1, config.classes)
    kept = [kept_bytes(model, image, prompts)]
    model.set_grad_checkpointing()
    kept.append(kept_bytes(model, image, prompts))
    print(f"activations of a crop: {kept[0] / 1e9:.1f} GB in single precision")
    print(f"with grad_checkpointing: {kept[1] / 1e9:.1f} GB, and those of one stage at a time")
    print(f"a crop's forward pass: {forward / 1e12:.2f} TFLOP, of which the image encoder {encoder / 1e12:.2f}")
    print(
        f"a step: {step / 1e12:.1f} TFLOP; all {config.iterations} steps: {step * config.iterations / 1e18:.2f} EFLOP"
    )
    for name, rate in RATES.items():
        print(f"at {name}: {step * config.iterations / rate / 3600:.0f} hours")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
