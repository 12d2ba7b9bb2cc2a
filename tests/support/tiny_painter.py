"""A Stable Diffusion of a few thousand random weights, as diffusers saves it, and what a run of it leaves."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

SIDE = 32
"""Of the pictures, in pixels."""


def write_painter(folder: Path, change: Callable[[Any], None] | None = None, channels: int = 3) -> str:
    """Saves a pipeline, and returns its folder.

    Args:
        folder: is made.
        change: is applied to the pipeline before it is saved.
        channels: of the pictures; 4: with alpha.
    """
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    words = folder.with_name("words")
    words.mkdir(parents=True, exist_ok=True)
    letters = [chr(code) for code in range(33, 127)]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (words / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    (words / "merges.txt").write_text("#version: 0.2\n")
    text = CLIPTextConfig(
        vocab_size=len(tokens), bos_token_id=len(tokens) - 2, eos_token_id=len(tokens) - 1, hidden_size=16,
        intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipeline = StableDiffusionPipeline(
            vae=AutoencoderKL(
                channels, channels, down_block_types=("DownEncoderBlock2D",) * 2,
                up_block_types=("UpDecoderBlock2D",) * 2, block_out_channels=(8, 8), norm_num_groups=4,
            ),
            text_encoder=CLIPTextModel(text),
            tokenizer=CLIPTokenizer.from_pretrained(words, model_max_length=77),
            unet=UNet2DConditionModel(
                sample_size=SIDE // 2, block_out_channels=(8, 16), layers_per_block=1, cross_attention_dim=16,
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), attention_head_dim=4, norm_num_groups=4,
            ),
            scheduler=DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )  # fmt: skip
        if change is not None:
            with torch.no_grad():
                change(pipeline)
    pipeline.save_pretrained(folder)
    return str(folder)


def generate(painter: str, model: str, *options: str) -> list[str]:
    """Returns a command without classes for two pictures each; options that are added replace its own."""
    plain = ["--generator", painter, "--model", model, "--device", "cpu", "--steps", "2", "--out", "out"]
    return ["prompts", "generate", *plain, "--per-class", "2", *options]


def rows(folder: str = "out") -> list[dict[str, Any]]:
    """Returns the lines of a manifest."""
    return [json.loads(line) for line in Path(folder, "manifest.jsonl").read_text("utf-8").splitlines()]


def files(folder: str = "out") -> dict[str, bytes]:
    """Returns the pictures below a folder, by place."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in Path(folder).rglob("*.png")}


def pixels(path: Path) -> npt.NDArray[np.int64]:
    """Returns a picture's values, (height, width, channels)."""
    return np.asarray(Image.open(path)).astype(np.int64)
