"""SED's decoder (Xie et al., CVPR 2024) as its formulas stand, all classes at once: what `speed.py` compares ours with.

    python benchmarks/sed_decoder.py ../shared/parity/sed_decoder_b.safetensors     # checks it against one pass of SED

Written anew from the paper and from the shapes of the published weights, whose names it takes. Like SED's own code it
holds every class of a stage in memory at a time, repeats what all classes share for each, and sees a class's map as
(N, C, H, W) in convolutions and as (N, H, W, C) in attention and MLPs, with a copy in between.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTHS, GUIDANCE, CHAIN = (128, 64, 32, 16), (32, 16, 8), (80, 32, 16, 8)
HEADS = 4


class SpatialBlock(nn.Module):
    """ConvNeXt's block with a 9 x 9 kernel: (N, C, H, W) -> (N, C, H, W)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(width, width, 9, padding=4, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.pwconv1 = nn.Linear(width, 4 * width)
        self.pwconv2 = nn.Linear(4 * width, width)
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Refines each class's map."""
        y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        y = self.gamma * self.pwconv2(F.gelu(self.pwconv1(y)))
        refined: Tensor = x + y.permute(0, 3, 1, 2)
        return refined


class LinearAttention(nn.Module):
    """Linear attention across classes (Katharopoulos et al., ICML 2020): (N, K, C) -> (N, K, C)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        """Attends; values are divided by K, and the result is multiplied by it."""
        size, count, width = x.shape
        query, key, value = (
            projected.view(size, count, HEADS, width // HEADS) for projected in (self.q(x), self.k(x), self.v(x))
        )
        query, key, value = F.elu(query) + 1, F.elu(key) + 1, value / count
        summary = torch.einsum("nkhd,nkhv->nhdv", key, value)
        scale = 1 / (torch.einsum("nkhd,nhd->nkh", query, key.sum(dim=1)) + 1e-6)
        return (torch.einsum("nkhd,nhdv,nkh->nkhv", query, summary, scale) * count).reshape(size, count, width)


class ClassBlock(nn.Module):
    """Attention across classes and an MLP, on average-pooled maps: (B, K, C, H, W) -> (B, K, C, H, W)."""

    def __init__(self, width: int, pool: int) -> None:
        super().__init__()
        self.pool = pool
        self.attention = LinearAttention(width)
        self.MLP = nn.Sequential(nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width))
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """Mixes the classes at each position."""
        batch, count, width, height, side = x.shape
        pooled = F.avg_pool2d(x.flatten(0, 1), self.pool)
        small = pooled.shape[-2:]
        tokens = pooled.view(batch, count, width, *small).permute(0, 3, 4, 1, 2).reshape(-1, count, width)
        tokens = tokens + self.attention(self.norm1(tokens))
        tokens = tokens + self.MLP(self.norm2(tokens))
        maps = tokens.view(batch, *small, count, width).permute(0, 3, 4, 1, 2).reshape(-1, width, *small)
        maps = F.interpolate(maps, (height, side), mode="bilinear", align_corners=True)
        return x + maps.view(x.shape)


class DoubleConv(nn.Module):
    """Twice a 3 x 3 convolution, GroupNorm and ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for channels in (inputs, outputs):
            norm = nn.GroupNorm(outputs // 16, outputs)
            layers += [nn.Conv2d(channels, outputs, 3, padding=1, bias=False), norm, nn.ReLU()]
        self.double_conv = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Convolves (N, C, H, W)."""
        return torch.as_tensor(self.double_conv(x))


class Stage(nn.Module):
    """One stage, which doubles the resolution: (B, K, C, H, W) -> (B, K, C / 2, 2 H, 2 W)."""

    def __init__(self, width: int, outputs: int, guidance: int, pool: int) -> None:
        super().__init__()
        self.cnext = SpatialBlock(width)
        self.attention = ClassBlock(width, pool)
        self.up = nn.ConvTranspose2d(width, width - guidance, 2, stride=2)
        self.conv = DoubleConv(width + guidance, outputs)

    def forward(self, x: Tensor, image: Tensor, cost: Tensor) -> Tensor:
        """Runs it.

        Args:
            x: of each class.
            image: projected features of the image, (B, G, 2 H, 2 W).
            cost: the cost volume from the chain, (B * K, G, 2 H, 2 W).
        """
        batch, count = x.shape[:2]
        x = self.cnext(x.flatten(0, 1)).view(x.shape)
        x = self.up(self.attention(x).flatten(0, 1))
        repeated = image.repeat_interleave(count, dim=0)
        return torch.as_tensor(self.conv(torch.cat((x, repeated, cost), dim=1))).unflatten(0, (batch, count))


class SEDDecoder(nn.Module):
    """SED-B's decoder; the names of its weights are those of SED's checkpoints."""

    def __init__(self, stage_dims: tuple[int, int, int] = (128, 256, 512), templates: int = 80, pool: int = 1) -> None:
        """Builds it.

        Args:
            stage_dims: D_2, D_3, D_4.
            templates: M.
            pool: side of the pooling before the attention: 2 when SED trains, 1 when it tests.
        """
        super().__init__()
        self.conv1 = nn.Conv2d(templates, WIDTHS[0], 7, padding=3)
        for number in range(3):
            stage = Stage(WIDTHS[number], WIDTHS[number + 1], GUIDANCE[number], pool)
            self.add_module(f"decoder{number + 1}", stage)
            self.add_module(f"head{number}", nn.Conv2d(WIDTHS[number], 1, 3, padding=1))
        self.decoder_guidance_projection = nn.ModuleList(
            nn.Sequential(nn.Conv2d(dim, width, 3, padding=1), nn.ReLU())
            for dim, width in zip(stage_dims[::-1], GUIDANCE, strict=True)
        )
        self.decoder_corr_guidance_projection = nn.ModuleList(
            nn.Sequential(nn.ConvTranspose2d(inputs, outputs, 2, stride=2), nn.ReLU())
            for inputs, outputs in zip((templates, *CHAIN[1:3]), CHAIN[1:], strict=True)
        )
        self.head = nn.Conv2d(WIDTHS[3], 1, 3, padding=1)

    def forward(self, dense: Tensor, text: Tensor, stages: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """Decodes.

        Args:
            dense: E, (B, D, H, W).
            text: T, (B, K, M, D).
            stages: E_2, E_3, E_4.

        Returns:
            Logits (B, K, 8 H, 8 W).
        """
        cost = torch.einsum("bdhw,bkmd->bkmhw", F.normalize(dense, dim=1), F.normalize(text, dim=-1))
        batch, count = cost.shape[:2]
        x = self.conv1(cost.flatten(0, 1)).unflatten(0, (batch, count))
        chained = cost.flatten(0, 1)
        for number, image in enumerate(stages[::-1]):
            chained = self.decoder_corr_guidance_projection[number](chained)
            guidance = self.decoder_guidance_projection[number](image)
            x = self.get_submodule(f"decoder{number + 1}")(x, guidance, chained)
        return torch.as_tensor(self.head(x.flatten(0, 1))).view(batch, count, *x.shape[-2:])


@torch.inference_mode()
def parity(path: Path) -> float:
    """Returns the largest difference to the logits of SED's own pass, which pooled 2 x 2.

    Args:
        path: a file of weights, inputs and outputs.
    """
    from safetensors.torch import load_file

    golden = load_file(path)
    decoder = SEDDecoder(pool=2)
    weights = {name.removeprefix("weights."): value for name, value in golden.items() if name.startswith("weights.")}
    decoder.load_state_dict(weights)
    stages = golden["in.res2"], golden["in.res3"], golden["in.res4"]
    found = decoder(golden["in.image_embedding"], golden["in.text_embeddings"], stages)
    return float((found - golden["out.logits"]).abs().max())


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: sed_decoder.py PARITY.safetensors")
    largest = parity(Path(sys.argv[1]))
    print(f"largest difference to SED's own logits: {largest:.1e}")
    sys.exit(int(largest > 1e-4))
