"""One explicit training loop: draw, encode, decode, compare, step; checkpoints that resume."""

from __future__ import annotations

import io
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from dpseg.config import TrainConfig
from dpseg.errors import ConfigError
from dpseg.files import make_folder, write_atomically
from dpseg.model.cost_volume import cosine_volume
from dpseg.model.dpseg import DPSeg
from dpseg.model.encoders import Pyramid
from dpseg.model.lite import LiteEncoder
from dpseg.prompts.text import parse_class, templates
from dpseg.training import losses
from dpseg.training.corpus import Corpus, load_corpus
from dpseg.training.lite_setup import fit_encoder
from dpseg.training.prompt_tables import PromptSource, PromptTables
from dpseg.training.regions import Regions, encode_regions
from dpseg.training.sampler import LABEL_STRIDE, Batch, Sampler

CHECKPOINT = "checkpoint.pt"

Log = Callable[[str], None]


@dataclass(eq=False)
class Setup:
    """What a run needs besides its state.

    Attributes:
        config: the recipe, its model with the names of the corpus.
        corpus: the photos.
        regions: their objects, encoded.
        model: to be trained.
        sampler: draws batches.
        prompts: makes their prompts.
    """

    config: TrainConfig
    corpus: Corpus
    regions: Regions
    model: DPSeg
    sampler: Sampler
    prompts: PromptSource

    def own_names(self, sources: list[int]) -> Tensor:
        """Returns (B, N) bool: which names are of the vocabularies of B data sets."""
        own = torch.zeros(len(sources), len(self.corpus.names), dtype=torch.bool)
        for row, source in zip(own, sources, strict=True):
            row[list(self.corpus.vocabularies[source])] = True
        return own


def prepare(config: TrainConfig, log: Log) -> Setup:
    """Reads the photos, builds the model and encodes everything frozen.

    Args:
        config: the recipe.
        log: told what goes on.
    """
    torch.manual_seed(config.seed)
    corpus = load_corpus(config)
    log(f"{len(corpus.photos)} photos, {len(corpus.names)} names")
    lite = config.model.encoder == "lite"
    config = replace(config, model=replace(config.model, text_names=len(corpus.names) if lite else 0))
    model = DPSeg(config.model)
    encoder = model.encoder
    text = _text_features(encoder.text_features, corpus, config.model.templates)
    names = F.normalize(encoder.text_features([name.split(",")[0] for name in corpus.names]), dim=-1)
    make_folder(Path(config.out))
    start = time.monotonic()
    regions = encode_regions(corpus, encoder, Path(config.out) / "regions.safetensors")
    log(f"{len(regions.names)} objects as visual prompts ({time.monotonic() - start:.0f} s)")
    if isinstance(encoder, LiteEncoder):
        fit_encoder(encoder, text[:, 0], regions)
    sampler = Sampler(corpus, names, config)
    return Setup(config, corpus, regions, model, sampler, PromptSource(text, regions, config))


@torch.no_grad()
def _text_features(encode: Callable[[list[str]], Tensor], corpus: Corpus, count: int) -> Tensor:
    """Returns (N, M, F_t), averaged over synonyms."""
    rows = []
    for name in corpus.names:
        synonyms = parse_class(name).synonyms
        features = torch.stack([encode([t.format(s) for t in templates(count)]) for s in synonyms])
        rows.append(F.normalize(features.mean(dim=0), dim=-1))
    return torch.stack(rows)


def step_loss(setup: Setup, batch: Batch, step: int) -> tuple[Tensor, dict[str, float]]:
    """Returns the loss of a batch and its parts.

    Args:
        setup: the run.
        batch: training crops.
        step: seeds the choice of prompts.
    """
    config, model = setup.config, setup.model
    random = torch.Generator().manual_seed(config.seed * 7_919 + step)
    tables = setup.prompts.tables(model.encoder, batch.photos, random)
    with torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bf16"):
        pyramid = model.encode(batch.images)
        if config.hard_negatives > 0:
            batch = _harden(setup, batch, tables, pyramid.dense.detach(), random)
        prompts = setup.prompts.select(tables, batch, model.encoder, random, step >= config.refined_from)
        logits = model.decode(pyramid, prompts).float()
        parts = _decoder_losses(config, logits, batch)
        if config.auxiliary > 0:
            jump = model.encoder.strides[3] // LABEL_STRIDE
            coarse = batch.labels[:, jump // 2 :: jump, jump // 2 :: jump]
            balance = losses.class_weights(coarse, config.class_balance)
            allowed = setup.own_names(batch.sources)
            parts["aux"] = config.auxiliary * losses.auxiliary_loss(pyramid.dense, tables, allowed, coarse, balance)
        if config.retention > 0 and isinstance(model.encoder, LiteEncoder):
            parts["keep"] = config.retention * _retention(model.encoder, pyramid)
    return torch.stack(list(parts.values())).sum(), {name: float(part.detach()) for name, part in parts.items()}


def _decoder_losses(config: TrainConfig, logits: Tensor, batch: Batch) -> dict[str, Tensor]:
    logits = F.interpolate(logits, batch.labels.shape[-2:], mode="bilinear", align_corners=False)
    target = losses.to_local(batch.labels, batch.classes)
    weights = losses.class_weights(batch.labels, config.class_balance)
    return {
        "ce": config.cross_entropy * losses.cross_entropy(logits, target, weights),
        "bce": config.bce * losses.binary_cross_entropy(logits, target, batch),
    }


def _retention(encoder: LiteEncoder, pyramid: Pyramid) -> Tensor:
    with torch.no_grad():
        frozen = encoder.late(pyramid.stages[2]) - encoder.centre[:, None, None]
    return losses.retention_loss(pyramid.dense, frozen, encoder.text_map.vectors)


@torch.no_grad()
def _harden(setup: Setup, batch: Batch, tables: PromptTables, dense: Tensor, random: torch.Generator) -> Batch:
    """Picks a crop's categories again: of its set's names that it lacks, those with the best maximum of F_c come first.

    Testing decodes exactly those (`ModelConfig.decode_classes`), and random ones are too easy to learn much from.
    """
    best = cosine_volume(dense, tables.text.mean(dim=1, keepdim=True) + tables.visual)[:, :, 0].amax(dim=(2, 3))
    hard = torch.rand(best.shape, generator=random) < setup.config.hard_negatives
    order = torch.where(hard & setup.own_names(batch.sources), 2 + best, torch.rand(best.shape, generator=random))
    classes, own = setup.sampler.pick_classes(batch.labels, batch.sources, order)
    return replace(batch, classes=classes, own=own)


def build_optimizer(model: DPSeg, config: TrainConfig) -> tuple[AdamW, LambdaLR]:
    """Returns AdamW with its three groups, and the cosine schedule."""
    tuned, projections = model.encoder.parameter_groups()
    rest = list(model.decoder.parameters())
    if model.baseline is not None:
        rest += list(model.baseline.parameters())
    groups = [
        {"params": rest, "lr": config.lr},
        {"params": projections, "lr": config.lr * config.projection_lr},
        {"params": tuned, "lr": config.lr * config.encoder_lr},
    ]
    optimizer = AdamW([group for group in groups if group["params"]], weight_decay=config.weight_decay)

    def factor(step: int) -> float:
        warm = min(1.0, (step + 1) / max(1, config.warmup))
        return warm * 0.5 * (1 + math.cos(math.pi * min(1.0, step / max(1, config.iterations))))

    return optimizer, LambdaLR(optimizer, factor)


def train(setup: Setup, resume: bool, log: Log) -> DPSeg:
    """Trains a model, and returns it with its averaged weights.

    Args:
        setup: of `prepare`; checkpoints go to its recipe's `out`.
        resume: go on from the last checkpoint there, if there is one.
        log: told a line at a time.

    Raises:
        ConfigError: The checkpoint is of another recipe, or the loss is no longer a number.
        OutputError: A checkpoint cannot be written.
    """
    config, model = setup.config, setup.model
    optimizer, schedule = build_optimizer(model, config)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.ema)) if config.ema > 0 else None
    checkpoint = Path(config.out) / CHECKPOINT
    first = 0
    if resume and checkpoint.is_file():
        first = _restore(checkpoint, setup, optimizer, schedule, average)
        log(f"resumed at step {first}")
    model.train()
    started = saved = time.monotonic()
    for step in range(first, config.iterations):
        loss, parts = step_loss(setup, setup.sampler.draw(step), step)
        if not torch.isfinite(loss):
            raise ConfigError(f"the loss is {float(loss.detach())} at step {step}; lower lr, then resume with --resume")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_([p for p in model.parameters() if p.grad is not None], config.clip_norm)
        optimizer.step()
        schedule.step()
        if average is not None:
            average.update_parameters(model)
        if (step + 1) % config.log_steps == 0:
            _report(config, step + 1, first, started, loss, parts, log)
        if time.monotonic() - saved > 60 * config.checkpoint_minutes:
            _save(checkpoint, step + 1, setup, optimizer, schedule, average)
            saved = time.monotonic()
    _save(checkpoint, config.iterations, setup, optimizer, schedule, average)
    final: nn.Module = average.module if average is not None else model
    assert isinstance(final, DPSeg)
    return final.eval()


def _report(
    config: TrainConfig, step: int, first: int, started: float, loss: Tensor, parts: dict[str, float], log: Log
) -> None:
    pace = (time.monotonic() - started) / (step - first)
    details = " ".join(f"{name} {value:.3f}" for name, value in parts.items())
    left = f"{pace:.2f} s/step, {pace * (config.iterations - step) / 60:.0f} min left"
    log(f"step {step}/{config.iterations} loss {float(loss.detach()):.3f} ({details}) {left}")


def _trained(module: nn.Module) -> dict[str, Tensor]:
    """Returns what training changes, and the fitted buffers."""
    assert isinstance(module, DPSeg)
    return module.saved_state()


def _save(
    path: Path,
    step: int,
    setup: Setup,
    optimizer: AdamW,
    schedule: LambdaLR,
    average: AveragedModel | None,
) -> None:
    state = {
        "step": step,
        "config": json.dumps(asdict(setup.config), sort_keys=True),
        "model": _trained(setup.model),
        "optimizer": optimizer.state_dict(),
        "schedule": schedule.state_dict(),
        "average": None if average is None else (_trained(average.module), int(average.n_averaged)),
    }
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomically(path, buffer.getvalue())


def _restore(path: Path, setup: Setup, optimizer: AdamW, schedule: LambdaLR, average: AveragedModel | None) -> int:
    state = torch.load(path, weights_only=True)
    if state["config"] != json.dumps(asdict(setup.config), sort_keys=True):
        raise ConfigError(f"{path} was written by another recipe; give another out:, or delete it to start again")
    setup.model.load_saved_state(state["model"], str(path))
    optimizer.load_state_dict(state["optimizer"])
    schedule.load_state_dict(state["schedule"])
    if average is not None and state["average"] is not None:
        module = average.module
        assert isinstance(module, DPSeg)
        module.load_saved_state(state["average"][0], str(path))
        average.n_averaged.fill_(state["average"][1])
    step: int = state["step"]
    return step
