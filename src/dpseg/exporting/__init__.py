"""Exports: a model as one file for other runtimes.

Reading order: `graph` (what is exported), `about` (what a file says of itself), `parity` (whether it computes the
same), `session` and `pixels` (onnxruntime and numpy around it, without torch), and `dpseg.onnx_runner`, where these
meet.
"""
