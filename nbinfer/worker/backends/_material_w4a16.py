"""The material ``w4a16``: the embedded model with four-bit weights, as compressed-tensors."""

from __future__ import annotations

from nbinfer.worker.backends._quantize import material


def main(folder, source):
    """Write the checkpoint into ``folder``."""
    material(folder, source, 4)
