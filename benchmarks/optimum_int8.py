"""Run in Optimum's environment by int8_through_optimum.py: `python optimum_int8.py FOLDER TARGET CPU OPERATORS GRAPH...`.

Quantizes each graph of a folder with `ORTQuantizer` as Optimum's guide does, dynamically and per channel. CPU is the configuration:
avx512_vnni, or avx2, which takes 7 bits.
OPERATORS, joined by commas, are the kinds to quantize, none for Optimum's own choice.
"""

from __future__ import annotations

import sys
from pathlib import Path


def main(folder: str, target: str, cpu: str, operators: str, *graphs: str) -> None:
    """Write the quantized graphs to TARGET under their own names."""
    from optimum.onnxruntime import ORTQuantizer
    from optimum.onnxruntime.configuration import AutoQuantizationConfig

    chosen = operators.split(",") if operators else None
    for graph in graphs:
        how = getattr(AutoQuantizationConfig, cpu)(is_static=False, per_channel=True, operators_to_quantize=chosen)
        ORTQuantizer.from_pretrained(Path(folder), file_name=graph).quantize(how, save_dir=target, file_suffix="")


if __name__ == "__main__":
    main(*sys.argv[1:])
