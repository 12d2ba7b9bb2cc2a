"""Frozen dataclasses that describe a training run: the recipes of configs/."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dpseg.config import ModelConfig
from dpseg.plain_values import Loadable

Precision = Literal["32", "bf16", "fp16"]


@dataclass(frozen=True)
class Teacher(Loadable):
    """A trained model that names what a data set leaves unlabelled (pseudo-labels).

    Attributes:
        model: name, folder or hub id.
        names_of: another data set of the recipe, whose names it gives.
        confidence: it names a pixel where its softmax over those names is at least this, in [0, 1].
        locate: the data set is a folder of pictures NAME/PICTURE without masks; the teacher finds where in a picture
            its name is.
    """

    model: str
    names_of: str
    confidence: float = 0.8
    locate: bool = False


@dataclass(frozen=True)
class DataSource(Loadable):
    """A data set that training draws from.

    Attributes:
        name: what `dpseg.data.benchmarks.open_dataset` opens below `TrainConfig.data_root`: a benchmark such as
            "cocostuff", or a folder with images/, masks/, classes.txt and train.txt.
        weight: how often a photo is drawn from it, relative to the others, above 0.
        split: which of its photos; "train" but for trials.
        teacher: names the pixels that have no label; None: they stay without.
    """

    name: str
    weight: float = 1.0
    split: str = "train"
    teacher: Teacher | None = None


@dataclass(frozen=True)
class TrainConfig(Loadable):
    """A training run.

    Attributes:
        model: what is trained.
        data_root: folder that holds the data sets.
        data: which data sets.
        exemplars: folders below `data_root` with one folder of pictures a name, for the bank.
        out: folder of checkpoints, logs and the final model.
        seed: of every random choice.
        iterations: optimizer steps.
        batch_size: photos a step, of all processes together.
        crop: side of a training crop in pixels.
        photo_size: the shorter side to which a photo is brought before cropping, in pixels, before the scale jitter.
        scale: smallest and largest factor of the scale jitter.
        colour_jitter: strength in [0, 1] of brightness, contrast and saturation jitter.
        class_balanced: probability of drawing a photo by drawing one of its set's names first; else all of a set's
            photos are equally likely.
        paste: probability of pasting an object of another photo, of a name drawn first, tried twice a crop.
        classes: K, categories decoded in a training step: those in the crop, and others.
        hard_negatives: fraction of its set's names, drawn at random, of which the ones that F_c likes best become those
            others; 0: they are random.
        references: pictures averaged for a visual prompt: 1 to this many, at random.
        prompt_mix: probabilities of prompting with text alone, with pictures alone, and with both.
        mixed_prompts: probability that a photo's classes differ in that.
        unseen: of the photos, in which every other name is prompted without the text residual of lite, as a name that
            training never sees; in [0, 1].
        refined: probability of prompting a photo as Inference II does, with objects of that very photo.
        refined_from: step from which on that happens; before, Inference I would find nothing of use.
        false_finds: probability that a class which the photo lacks is then prompted with one of the photo's objects, as
            after a wrong Inference I; a class that it has is overlooked twice as often.
        lr: AdamW's peak learning rate, of the decoder.
        projection_lr: factor for the maps into the joint space.
        encoder_lr: factor for the fine-tuned part of the image encoder.
        weight_decay: of AdamW.
        warmup: steps of linear warm-up.
        clip_norm: largest norm of the whole gradient.
        cross_entropy: weight of the softmax cross-entropy over the K categories.
        bce: weight of the binary cross-entropy.
        auxiliary: weight of the cross-entropy of the plain cosines with T, V and R over the whole vocabulary.
        heads: weight of the binary cross-entropy of the auxiliary heads, where the model has them; it trains nothing
            but them.
        retention: weight of keeping the frozen classifier's opinion at each position (lite).
        logit_adjustment: 0 to 1: the softmax losses see the logits of names that the masks show more often than others
            raised, so that the logits themselves need not be (`training/frequency.py:log_frequency`); 0: as they are.
        class_balance: a class with a share a of the labelled pixels weighs a ** -class_balance, 0 to 1.
        ema: decay of the averaged weights that are kept; 0: none.
        precision: "bf16" or "fp16": matrix products and convolutions of a step in half precision (autocast, and for
            fp16 scaled gradients); weights stay in single precision.
        grad_checkpointing: compute activations again in the backward pass: less memory, more time.
        channels_last: keep feature maps with channels innermost, which suits convolutions on GPUs.
        start_from: folder of a model from which every tensor that fits is taken, such as a converted SED; None: none.
        workers: processes that read and crop photos ahead; 0: the training process itself does.
        in_memory: all photos are read at the start and kept, so a damaged one stops the run there; else each is read
            when it is drawn, and damaged ones are counted and replaced.
        regions_per_class: so many objects of a name become visual prompts, of photos in random order; 0: all objects.
        hold_out: names whose pixels and prompts training never sees.
        checkpoint_minutes: between checkpoints.
        log_steps: between log lines.
    """

    model: ModelConfig
    data: tuple[DataSource, ...]
    data_root: str = "data"
    exemplars: tuple[str, ...] = ()
    out: str = "runs/train"
    seed: int = 0
    iterations: int = 2000
    batch_size: int = 8
    crop: int = 256
    photo_size: int = 384
    scale: tuple[float, float] = (0.5, 2.0)
    colour_jitter: float = 0.4
    class_balanced: float = 0.0
    paste: float = 0.3
    classes: int = 24
    hard_negatives: float = 0.0
    references: int = 3
    prompt_mix: tuple[float, float, float] = (0.3, 0.3, 0.4)
    mixed_prompts: float = 0.2
    unseen: float = 0.0
    refined: float = 0.0
    refined_from: int = 0
    false_finds: float = 0.1
    lr: float = 2e-3
    projection_lr: float = 0.2
    encoder_lr: float = 0.05
    weight_decay: float = 1e-4
    warmup: int = 50
    clip_norm: float = 1.0
    cross_entropy: float = 1.0
    bce: float = 0.5
    auxiliary: float = 0.5
    heads: float = 0.0
    retention: float = 0.5
    logit_adjustment: float = 0.0
    class_balance: float = 0.3
    ema: float = 0.998
    precision: Precision = "32"
    grad_checkpointing: bool = False
    channels_last: bool = False
    start_from: str | None = None
    workers: int = 0
    in_memory: bool = True
    regions_per_class: int = 0
    hold_out: tuple[str, ...] = ()
    checkpoint_minutes: float = 3.0
    log_steps: int = 20
