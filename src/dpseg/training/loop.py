"""One explicit training loop on lightning-fabric: draw, encode, decode, compare, step; checkpoints that resume."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader

from dpseg.errors import ConfigError, MissingExtraError
from dpseg.files import make_folder
from dpseg.model.dpseg import DPSeg
from dpseg.model.lite import LiteEncoder
from dpseg.model.warm_start import warm_start
from dpseg.prompts.text import parse_class, templates
from dpseg.recipe import TrainConfig
from dpseg.training.average import moving_average
from dpseg.training.checkpoint import CHECKPOINT, State, restore, save
from dpseg.training.corpus import Corpus, load_corpus
from dpseg.training.frequency import log_frequency
from dpseg.training.lite_setup import fit_encoder
from dpseg.training.prompt_tables import PromptSource
from dpseg.training.regions import Regions, encode_regions
from dpseg.training.sampler import Batch, Sampler, Share
from dpseg.training.step import Losses, TrainingStep

if TYPE_CHECKING:
    from lightning_fabric import Fabric

Log = Callable[[str], None]

PRECISIONS = {"32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


@dataclass(frozen=True)
class Progress:
    """Where a run stands after a step.

    Attributes:
        step: so many steps are done.
        loss: of all processes' crops.
        parts: of the loss, weighted.
        lr: of the decoder.
        skipped: so many photos could not be read so far.
    """

    step: int
    loss: float
    parts: dict[str, float]
    lr: float
    skipped: int


class Watch(Protocol):
    """Sees a run's steps."""

    def start(self, step: int) -> None:
        """Is told how many steps were done before."""
        ...

    def add(self, progress: Progress) -> None:
        """Is told of each step."""
        ...


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
        step: the module that computes a step's losses.
    """

    config: TrainConfig
    corpus: Corpus
    regions: Regions
    model: DPSeg
    sampler: Sampler
    prompts: PromptSource

    def __post_init__(self) -> None:
        self.step = TrainingStep(self.model, self.config, self.corpus, self.sampler, self.prompts)


def launch(config: TrainConfig, accelerator: str = "auto", devices: int = 1, nodes: int = 1) -> Fabric:
    """Starts the processes of a run: one a device. Under torchrun, those that it started are taken as they are.

    Args:
        config: names the precision.
        accelerator: "auto", "cpu", "cuda", ...
        devices: so many on each machine.
        nodes: so many machines.

    Raises:
        MissingExtraError: lightning-fabric is not installed.
        ConfigError: The batch cannot be shared equally, or the device is not there.
    """
    try:
        from lightning_fabric import Fabric
        from lightning_fabric.strategies.ddp import DDPStrategy
    except ImportError as error:
        raise MissingExtraError("training needs lightning-fabric: pip install 'dpseg[train]'") from error
    if config.batch_size % (devices * nodes):
        raise ConfigError(f"batch_size {config.batch_size} cannot be shared by {devices * nodes} processes equally")
    try:
        fabric = Fabric(
            accelerator=accelerator,
            devices=devices,
            num_nodes=nodes,
            strategy=DDPStrategy(find_unused_parameters=True) if devices * nodes > 1 else "auto",
            precision=PRECISIONS[config.precision],  # type: ignore[arg-type]
        )
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"cannot train on {devices} x {accelerator}: {error}") from error
    fabric.launch()
    return fabric


def prepare(config: TrainConfig, log: Log, fabric: Fabric | None = None) -> Setup:
    """Reads the photos, builds the model and encodes everything frozen.

    Args:
        config: the recipe.
        log: told what goes on.
        fabric: the processes; None: this one, on the CPU.
    """
    torch.manual_seed(config.seed)
    corpus = load_corpus(config)
    unmasked = len(corpus.names) - corpus.known
    log(
        f"{len(corpus.photos)} photos, {corpus.known} names"
        + (f", and {unmasked} names of pictures without masks" if unmasked else "")
    )
    lite = config.model.encoder == "lite"
    config = replace(config, model=replace(config.model, text_names=corpus.known if lite else 0))
    model = DPSeg(config.model)
    device = torch.device("cpu") if fabric is None else fabric.device
    model.set_grad_checkpointing(config.grad_checkpointing)
    model.to(device)
    if config.channels_last:
        model.to(memory_format=torch.channels_last)  # activations follow the weights
    encoder = model.encoder
    text = _text_features(encoder.text_features, corpus, config.model.templates)
    names = F.normalize(encoder.text_features([name.split(",")[0] for name in corpus.names]), dim=-1)
    make_folder(Path(config.out))
    start = time.monotonic()
    with nullcontext() if fabric is None else fabric.rank_zero_first():  # the others read what it encoded
        cache = Path(config.out) / "regions.safetensors"
        regions = encode_regions(corpus, encoder, cache, config.regions_per_class, config.seed, device)
    log(f"{len(regions.names)} objects as visual prompts ({time.monotonic() - start:.0f} s)")
    if isinstance(encoder, LiteEncoder):
        fit_encoder(encoder, text[: corpus.known, 0], log_frequency(corpus)[: corpus.known], regions)
    if config.start_from is not None:
        taken = warm_start(model, Path(config.start_from))
        counts = f"{len(taken.taken)} tensors taken, {len(taken.kept)} kept, {len(taken.unused)} unused"
        log(f"started from {config.start_from}: {counts}")
    share = None if fabric is None else Share(fabric.global_rank, fabric.world_size)
    sampler = Sampler(corpus, names.cpu(), config, share)
    return Setup(config, corpus, regions, model, sampler, PromptSource(text, regions.to(device), config))


@torch.no_grad()
def _text_features(encode: Callable[[list[str]], Tensor], corpus: Corpus, count: int) -> Tensor:
    """Returns (N, M, F_t), averaged over synonyms."""
    rows = []
    for name in corpus.names:
        synonyms = parse_class(name).synonyms
        features = torch.stack([encode([t.format(s) for t in templates(count)]) for s in synonyms])
        rows.append(F.normalize(features.mean(dim=0), dim=-1))
    return torch.stack(rows)


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


def train(setup: Setup, fabric: Fabric, resume: bool, log: Log, watch: Watch | None = None) -> DPSeg:
    """Trains a model, and returns it with its averaged weights where the recipe averages them.

    Args:
        setup: of `prepare`; checkpoints go to its recipe's `out`.
        fabric: of `launch`.
        resume: go on from the last checkpoint there, if there is one.
        log: told a line at a time.
        watch: told of the steps.

    Raises:
        ConfigError: The checkpoint is of another recipe or other photos, or the loss is no longer a number.
        DataError: Too many photos in a row cannot be read.
        OutputError: A checkpoint cannot be written.
    """
    config = setup.config
    data = setup.corpus.digest()
    optimizer, schedule = build_optimizer(setup.model, config)
    average = AveragedModel(setup.model, multi_avg_fn=moving_average(config.ema)) if config.ema > 0 else None
    step, optimizer = fabric.setup(setup.step, optimizer)
    if average is not None:
        average.to(fabric.device)
    scaler = getattr(fabric.strategy.precision, "scaler", None)
    state = State(setup.model, optimizer, schedule, average, scaler)
    checkpoint = Path(config.out) / CHECKPOINT
    if resume and checkpoint.is_file():
        restore(checkpoint, state, config, data)
        log(f"resumed at step {state.step}")
    if watch is not None:
        watch.start(state.step)
    step.train()
    saved = time.monotonic()
    for batch in _batches(setup, state.step):
        progress = _advance(fabric, step, state, setup, batch)
        if watch is not None:
            watch.add(progress)
        if fabric.is_global_zero and time.monotonic() - saved > 60 * config.checkpoint_minutes:
            save(checkpoint, state, config, data)
            saved = time.monotonic()
    if fabric.is_global_zero:
        save(checkpoint, state, config, data)
    return state.averaged.eval()


def _batches(setup: Setup, first: int) -> Iterator[Batch]:
    """Yields the batches from a step on, drawn by the recipe's workers."""
    workers = setup.config.workers
    loader: DataLoader[Batch] = DataLoader(
        setup.sampler,
        batch_size=None,
        sampler=range(first, setup.config.iterations),
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    yield from loader


def _advance(fabric: Fabric, step: torch.nn.Module, state: State, setup: Setup, batch: Batch) -> Progress:
    """Takes one step."""
    config = setup.config
    parts: Losses = step(batch.to(fabric.device), state.step)
    weights = setup.step.weights
    counts = torch.stack([part.weight for part in parts.values()])
    counts = torch.as_tensor(fabric.all_reduce(counts, reduce_op="mean")).clamp_min(1e-6)
    shares = torch.stack([weights[name] * part.total for name, part in parts.items()]) / counts
    shown = torch.as_tensor(fabric.all_reduce(shares.detach(), reduce_op="mean"))
    if not torch.isfinite(shown).all():
        raise ConfigError(
            f"the loss is {float(shown.sum())} at step {state.step}; lower lr, then go on from the last checkpoint"
        )
    state.optimizer.zero_grad(set_to_none=True)
    fabric.backward(shares.sum())  # averaged over processes, this is the gradient of the whole batch's means
    if config.clip_norm > 0:
        fabric.clip_gradients(step, state.optimizer, max_norm=config.clip_norm, error_if_nonfinite=False)
    state.optimizer.step()
    lr = float(state.schedule.get_last_lr()[0])
    state.schedule.step()
    if state.average is not None:
        state.average.update_parameters(setup.model)
    state.step += 1
    state.skipped += len(batch.skipped)
    values = dict(zip(parts, shown.tolist(), strict=True))
    return Progress(state.step, sum(values.values()), values, lr, state.skipped)
