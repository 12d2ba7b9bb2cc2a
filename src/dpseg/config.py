"""Frozen dataclasses that describe a model, a training run and an evaluation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from dpseg.errors import ConfigError
from dpseg.matching import Matching
from dpseg.plain_values import Loadable
from dpseg.rejection import Rejection

EncoderName = Literal["lite", "base", "large", "tiny"]
Fusion = Literal["average", "text", "visual", "cost_average", "cost_concat"]
Guidance = Literal["visual234", "visual2", "none", "upsampled", "cost_chain"]
Spatial = Literal["hybrid_dilated", "depthwise9"]
Precision = Literal["32", "bf16", "fp16"]
FeaturePrompts = Literal["off", "blend", "regress"]
"""What classes with words and no pictures get from banks: nothing ("off"); the pictures of names that mean nearly the
same ("blend"); and, where no name does, what a regression on the banks makes of the word ("regress")."""

Refine = bool | Literal["sequence"] | None
"""Whether Inference II runs, or prompts are carried from photo to photo; None: as the model's config says."""

Context = Literal["keep", "blur", "mean"]
"""What surrounds the thing in the crop of a reference: as it is, blurred, or the mean colour."""


@dataclass(frozen=True)
class ModelConfig(Loadable):
    """One DPSeg model. Everything that changes a tensor's shape or meaning is here.

    Attributes:
        encoder: which encoder; "lite" ships, "base" and "large" are CLIP ConvNeXt, "tiny" is random, for tests.
        image_size: side in pixels of the encoder's input: the square's, or the shorter side when `keep_aspect`.
        keep_aspect: keep the photo's proportions (lite) or stretch it to a square (SED's protocol).
        shortest_edge: the photo's shorter side is first brought to so many pixels, and the result to the input size
            without averaging (SED's protocol); None: at once, with averaging.
        templates: M, prompts a category, 1 to 80.
        fusion: how T and V meet: averaged as embeddings (the paper), one of them alone, or as two cost volumes that are
            averaged or concatenated (ablations).
        guidance: which visual cost volumes guide the decoder: F_v^{2,3,4} (the paper), F_v^2 alone, none, or an
            upsampled F_c in their place (ablations), or F_c through a chain of transposed convolutions (SED).
        spatial: the decoder's block that looks at a category's surroundings: hybrid dilated convolution (the paper) or
            a depthwise 9 x 9 convolution (SED).
        widths: channels of a category's embedding: at the cost volume, then after each decoder stage.
        image_widths: channels to which E_4, E_3, E_2 are projected, one a stage.
        heads: heads of the attention across categories.
        train_pool: side of the average pooling before that attention in training; testing uses 1 (SED).
        logit_scale: when above 0, the decoder's output is added to `logit_scale * cos(E, R)`, and its last layer starts
            at zero, so that an untrained model equals the plain cosine. 0: the paper's decoder.
        auxiliary_heads: each decoder stage has a head that predicts from its input, for an auxiliary loss and early
            rejection of categories (SED).
        resize_scores: a pixel's label is the category of the largest resized score, the logits' sigmoid (SED's
            protocol), not of the largest resized logit.
        mirrored_scales: when testing, the photo is also encoded mirrored at these multiples of its input size, and the
            logits are averaged; none: it is seen once.
        refine: whether Inference II runs where nobody says.
        decode_classes: only so many categories, those with the best maximum of F_c, are decoded; None: all.
        presence: when above 0, labels prefer classes of which the photo seems to show much: logits gain this times the
            log of a class's mean softmax over the photo, when classes compete; scores stay as they are. Not with
            `resize_scores`.
        tune_encoder: the image encoder is fine-tuned, so the frozen visual prompt encoder keeps weights of its own.
        text_names: names on which lite's trained text residual stands.
        weights: tag or path of the encoder's pretrained weights; None: the encoder's own default; "random": none.
        matching: how prompts are compared with a photo, when testing.
        rejection: which categories of a long list are given up early, when testing: by the auxiliary heads before each
            decoder stage; in a model without them by F_c, in place of `decode_classes`.
    """

    encoder: EncoderName = "base"
    image_size: int = 768
    keep_aspect: bool = False
    shortest_edge: int | None = None
    templates: int = 80
    fusion: Fusion = "average"
    guidance: Guidance = "visual234"
    spatial: Spatial = "hybrid_dilated"
    widths: tuple[int, ...] = (128, 64, 32, 16)
    image_widths: tuple[int, ...] = (32, 16, 8)
    heads: int = 4
    train_pool: int = 2
    logit_scale: float = 0.0
    auxiliary_heads: bool = False
    resize_scores: bool = False
    mirrored_scales: tuple[float, ...] = ()
    refine: bool = True
    decode_classes: int | None = None
    presence: float = 0.0
    tune_encoder: bool = True
    text_names: int = 0
    weights: str | None = None
    matching: Matching = field(default_factory=Matching)
    rejection: Rejection = field(default_factory=Rejection)

    def __post_init__(self) -> None:
        if not self.presence >= 0:
            raise ConfigError(f"presence {self.presence} is out of range; give a number from 0 on")
        if self.presence and self.resize_scores:
            raise ConfigError("presence does not go with resize_scores; leave one of the two out")


@dataclass(frozen=True)
class RefineConfig:
    """When a region of Inference I is good enough to become a prompt of Inference II, and what is made of it.

    Attributes:
        min_area: it covers at least this fraction of the photo, in [0, 1].
        min_confidence: its mean score is at least this, in [0, 1].
        max_regions: so many regions of a class at most, the largest first: as many crops.
        core: only this fraction of its pixels, the surest, counts and becomes the prompt, in (0, 1]; 1: all.
        features: a crop of it is encoded ("crop", as in the paper), or the frozen features of the whole photo are
            averaged over it ("pooled").
        blend: weight in [0, 1] of what was found, beside the pictures that its class had; 1: it replaces them, as in
            the paper. Where there were none, what was found stands alone.
        keep: of a sequence, the weight in [0, 1) of what earlier photos showed of a class when another shows it.
    """

    min_area: float = 0.01
    min_confidence: float = 0.9
    max_regions: int = 3
    core: float = 1.0
    features: Literal["crop", "pooled"] = "crop"
    blend: float = 1.0
    keep: float = 0.5

    def __post_init__(self) -> None:
        if not (0 < self.core <= 1 and 0 <= self.blend <= 1 and 0 <= self.keep < 1):
            raise ConfigError(
                f"core {self.core}, blend {self.blend}, keep {self.keep}: give a core above 0, a keep below 1, and all"
                " from 0 to 1"
            )


PromptKind = Literal["text", "bank", "pictures", "both"]


@dataclass(frozen=True)
class EvalConfig:
    """What is measured on a data set.

    Attributes:
        prompts: one row of the table each: words alone, words and the model's bank, reference pictures alone, or words
            and reference pictures.
        refine: Inference I alone, Inference II, or both; one row each.
        references: reference pictures a class, cut from photos outside the evaluated split.
        seed: which of them.
        ref_context: what surrounds the thing in them.
        ignore_background: leave pixels of line 0 of classes.txt out where it is "background"; else such pixels are
            right where no class scores `background`.
        background: threshold in [0, 1]; used when the background counts.
        size: the encoder's input size in pixels; None: the model's own.
        limit: only so many photos, evenly spread over the split; None: all.
        block: photos that are counted before their counts are written: what an interruption loses at most, 1 or more.
    """

    prompts: tuple[PromptKind, ...] = ("both",)
    refine: tuple[bool, ...] = (False, True)
    references: int = 3
    seed: int = 0
    ref_context: Context = "keep"
    ignore_background: bool = True
    background: float = 0.5
    size: int | None = None
    limit: int | None = None
    block: int = 16


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
