"""A static page that transcribes in the visitor's browser, with all that it needs: page, library and model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from export.assembly.part import Part, open_part
from export.bundle.card import card
from export.verification.clients import transformers_js
from workbench.core.errors import UserError
from workbench.core.files import read_json, write_json, write_text
from workbench.core.hashing import sha256
from workbench.core.locks import output_lock
from workbench.core.ownership import IsOwnFile, OutputKind, check_replaceable, replacing

PAGE = Path(__file__).parent / "browser"  # index.html and what it loads
RECORD = "site.json"  # read by the page and by the next `pack`
FORMAT = "workbench browser site"
# What a browser loads of the npm packages; the library brings the JavaScript of onnxruntime-web along.
LIBRARY = {
    "library/transformers.min.js": "@huggingface/transformers/dist/transformers.min.js",
    "library/LICENSE-transformers.js": "@huggingface/transformers/LICENSE",
    "library/ort-wasm-simd-threaded.asyncify.mjs": "onnxruntime-web/dist/ort-wasm-simd-threaded.asyncify.mjs",
    "library/ort-wasm-simd-threaded.asyncify.wasm": "onnxruntime-web/dist/ort-wasm-simd-threaded.asyncify.wasm",
}
DOWNLOADED = (".onnx", ".wasm", "tokenizer.json")  # nearly all of what a visit transfers


def pack_site(bundle: Path, output: Path, precision: str = "", overwrite: bool = False) -> Path:
    """Write a folder that any static web server can serve; its page fetches nothing from another host.

    Args:
        bundle: a whole bundle, or one packed for transformers_js.
        output: folder to write.
        precision: one of the bundle's; the last by default.
        overwrite: replace an earlier site.

    Returns:
        The folder.

    Raises:
        UserError: the bundle is damaged or has no such precision, the npm packages are missing or of another version, or the folder exists
            or is not a site.
    """
    if output.exists() and not overwrite:
        raise UserError(f"{output}: exists; choose another -o, or add --overwrite")
    check_replaceable(output, SITE, [bundle])
    part = open_part(bundle, "transformers_js", precision, runtime=False)
    library = {name: _package_file(path) for name, path in LIBRARY.items()}
    page = {path.name: path for path in sorted(PAGE.iterdir()) if path.is_file()}
    model = {f"models/model/{name}": path for name, path in part.files.items()}
    with output_lock(output), replacing(output, SITE, [bundle]) as folder:
        for name, source in {**page, **library, **model}.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, folder / name)
        write_text(folder / "models/model/MODEL_CARD.md", card(part.content).replace("bundle.json", RECORD))
        files = {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()}
        record = {"format": FORMAT, **_settings(part), "bytes": sum(p.stat().st_size for n, p in files.items() if n.endswith(DOWNLOADED)),
                  "files": {name: sha256(path) for name, path in files.items()}}  # fmt: skip
        write_json(folder / RECORD, record)
    return output


def _settings(part: Part) -> dict[str, Any]:
    """What the page must know of the model."""
    content = part.content
    languages: list[str] = []  # to choose from
    if not part.manifest.has_ctc_head:
        generation = read_json(part.files["generation_config.json"], "a checkpoint's generation settings")
        if isinstance(generation, dict) and generation.get("is_multilingual"):
            languages = sorted(content["tokens"]["prompts"])
    return {
        "name": content["name"],
        "precision": part.precision,
        "ctc": part.manifest.has_ctc_head,
        "languages": languages,
        "decoding": content["decoding"],  # limits the tokens of a transcript by the length of the clip
    }


def _package_file(name: str) -> Path:
    """A file of the npm packages that the client in Node uses, too; of the pinned version, the one that was tried."""
    modules = transformers_js.FOLDER / "node_modules"
    wanted = json.loads((transformers_js.FOLDER / "package.json").read_text(encoding="utf-8"))["dependencies"]
    try:
        found = json.loads((modules / "@huggingface/transformers/package.json").read_text(encoding="utf-8"))["version"]
    except (OSError, ValueError, KeyError):
        found = None
    path = modules / name
    if found != wanted["@huggingface/transformers"] or not path.is_file():
        problem = f"{path}: missing" if found is None or not path.is_file() else f"transformers.js {found} is installed, expected {wanted['@huggingface/transformers']}"  # fmt: skip
        raise UserError(f"{problem}; {transformers_js.INSTALL}")
    return path


def _own_files(folder: Path) -> IsOwnFile | None:
    """The files that a site's record lists."""
    if not (folder / RECORD).is_file():
        return None
    content = read_json(folder / RECORD, "the record of a browser site")
    if not isinstance(content, dict) or content.get("format") != FORMAT or not isinstance(content.get("files"), dict):
        return None
    return {RECORD, *map(str, content["files"])}.__contains__


SITE = OutputKind("browser site", _own_files)
