"""The model: image and PromptSet -> one logit a class and position.

Reading order: `encoders` (the protocol), `clip` (CLIP ConvNeXt), `lite` (the embedded default), `tiny` (random, for
tests), `build` (which of them), `cost_volume` (R, F_c, F_v^j), `blocks`, `decoder`, and `dpseg`, where they meet.
"""
