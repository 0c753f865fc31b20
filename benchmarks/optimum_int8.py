"""Quantize graphs with Optimum's `ORTQuantizer`; int8_through_optimum.py runs this in Optimum's environment.

As Optimum's guide does: dynamically and per channel.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def main() -> None:
    """Write the quantized graphs under their own names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="of the fp32 graphs")
    parser.add_argument("target", type=Path, help="folder of the quantized ones")
    parser.add_argument("graphs", nargs="+", help="names of the graphs' files")
    parser.add_argument(
        "--cpu", choices=("avx512_vnni", "avx2"), required=True, help="Optimum's settings; avx2 takes 7 bits"
    )
    parser.add_argument(
        "--operators", default="", help="kinds to quantize, joined by commas; Optimum's choice by default"
    )
    args = parser.parse_args()
    from optimum.onnxruntime import ORTQuantizer
    from optimum.onnxruntime.configuration import AutoQuantizationConfig

    chosen = args.operators.split(",") if args.operators else None
    for graph in args.graphs:
        settings = getattr(AutoQuantizationConfig, args.cpu)
        how = settings(is_static=False, per_channel=True, operators_to_quantize=chosen)
        ORTQuantizer.from_pretrained(args.folder, file_name=graph).quantize(how, save_dir=args.target, file_suffix="")


if __name__ == "__main__":
    main()
