"""A bundle's manifest, read with our own errors, added to by what is measured, and written with every file's checksum."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from export.edge.bundle import BundleError, Manifest, read_manifest
from export.recorded import check_recorded
from workbench.errors import UserError
from workbench.files import sha256, write_json

# Names of the graphs in fp32, which are those that runtimes look for first, by their part in a manifest.
GRAPH_FILES = {
    "frontend": "frontend.onnx", "encoder": "encoder_model.onnx", "decoder": "decoder_model_merged.onnx",
    "step": "step_decoder.onnx", "sherpa": "sherpa_decoder.onnx",
}  # fmt: skip
# What the clients read besides graphs; a checkpoint that lacks one of the optional ones exports without it.
CHECKPOINT_FILES = (
    "config.json", "generation_config.json", "preprocessor_config.json",
    "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt",
    "added_tokens.json", "special_tokens_map.json", "normalizer.json",
)  # fmt: skip
RECORDED = ("parity", "verification", "measurement", "search")  # what is added to a manifest after the graphs


def open_manifest(bundle: Path, check: bool = False) -> Manifest:
    """Read a bundle's manifest; with `check` inspect its files and compare each with its checksum. Raises UserError."""
    from export.inspection import inspect

    try:
        manifest = read_manifest(bundle)
        check_recorded(manifest.content)
        if check:
            inspect(manifest)
    except BundleError as error:
        raise UserError(str(error)) from None
    except ValueError as error:
        raise UserError(f"{bundle / 'bundle.json'}: {error}; export the bundle again") from None
    return manifest


def record(bundle: Path, **found: Any) -> None:
    """Add what was measured of a bundle to its manifest and its model card."""
    from export.model_card import write_card

    content = open_manifest(bundle).content | {k: v for k, v in found.items() if k in RECORDED}
    write_card(bundle, content)
    write_manifest(bundle, content)


def write_manifest(folder: Path, content: dict[str, Any]) -> None:
    """Write the manifest last, with the checksum of every other file."""
    files = sorted(
        p for p in folder.rglob("*") if p.is_file() and p.name != "bundle.json" and "__pycache__" not in p.parts
    )
    content["files"] = {p.relative_to(folder).as_posix(): sha256(p) for p in files}
    write_json(folder / "bundle.json", content)


def size_mb(manifest: Manifest, precision: str) -> float:
    """Megabytes (10^6 bytes) that a device needs for one precision with our own runtime: three graphs and the vocabulary."""
    paths = [manifest.graph(part, precision) for part in ("frontend", "encoder", "step")]
    return sum(p.stat().st_size for p in [*paths, manifest.path("vocab.json")]) / 1e6
