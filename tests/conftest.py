"""For all tests: one thread, for their models are small, and threads that wait on a busy machine are slow."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported; subprocesses inherit it
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
