"""An exported ONNX file, opened with onnxruntime; without torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dpseg.errors import MissingExtraError, PromptError, WeightsError
from dpseg.exporting.about import KEY, PROMPT_INPUTS, About

if TYPE_CHECKING:
    import onnxruntime

# onnxruntime reports the machine to its makers from 1.32 on, unless this is set before it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

Floats = npt.NDArray[np.float32]


class OnnxSession:
    """The graph of an exported file.

    Attributes:
        about: what the file says of itself.
    """

    def __init__(self, model: str | Path | bytes, threads: int | None = None) -> None:
        """Opens it, on the CPU.

        Args:
            model: path, or the file's content.
            threads: of onnxruntime; None: as it likes.

        Raises:
            MissingExtraError: onnxruntime is not installed.
            WeightsError: The file is missing, no ONNX model, or not one that dpseg exported.
        """
        try:
            import onnxruntime
        except ImportError as error:
            raise MissingExtraError("running ONNX models needs onnxruntime; pip install 'dpseg[onnx]'") from error
        name = "the model" if isinstance(model, bytes) else str(model)
        if not isinstance(model, bytes) and not Path(model).is_file():
            raise WeightsError(f"{name}: no such file; give what dpseg export --format onnx wrote")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors; they are raised as well
        options.intra_op_num_threads = threads or 0
        content = model if isinstance(model, bytes) else str(model)
        try:
            self._session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has a kind of its own for each status
            raise WeightsError(
                f"{name}: onnxruntime cannot read it; give what dpseg export --format onnx wrote"
            ) from error
        self.about = _about(self._session, name)
        self._inputs = {one.name for one in self._session.get_inputs()}

    def __call__(self, image: Floats, prompts: Mapping[str, npt.NDArray[Any]] | None = None) -> Floats:
        """Runs the graph.

        Args:
            image: (1, 3, H, W), RGB in [0, 1], sides multiples of the stride.
            prompts: by name, as `PROMPT_INPUTS`; None where they are frozen in.

        Returns:
            Logits (1, K, h, w) of one view.

        Raises:
            PromptError: The graph needs prompts and there are none.
        """
        needed = self._inputs.intersection(PROMPT_INPUTS)
        if needed and prompts is None:
            raise PromptError("this model takes its prompts as inputs; give --prompts SET.safetensors")
        values = {"image": image} | {name: value for name, value in (prompts or {}).items() if name in needed}
        logits: Floats = self._session.run(["logits"], values)[0]
        return logits


def _about(session: onnxruntime.InferenceSession, name: str) -> About:
    text = session.get_modelmeta().custom_metadata_map.get(KEY)
    if text is None:
        raise WeightsError(f"{name}: is an ONNX model, but none that dpseg exported; use dpseg export --format onnx")
    return About.from_json(text, name)
