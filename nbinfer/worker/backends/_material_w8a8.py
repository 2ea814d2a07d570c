"""The material ``w8a8``: eight-bit weights and activations, as compressed-tensors."""

from __future__ import annotations

from nbinfer.worker.backends._quantize import material


def main(folder, source):
    """Write the checkpoint into ``folder``."""
    material(folder, source, 8)
