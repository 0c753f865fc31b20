"""The manifest of a bundle, read with care: every field is within bounds, every path inside the folder, every file matches its checksum."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .content import Content
from .fields import CTC, MAX_BYTES, abbreviated, check_fields, in_one_line, is_finite
from .graph_file import unsafe_reason

FORMAT = 2


class BundleError(Exception):
    """A bundle that cannot be used; the message is one line that names the file and says what to do."""

    def __str__(self) -> str:
        return in_one_line(super().__str__())


@dataclass(frozen=True)
class Manifest:
    """What a client needs to know of a bundle."""

    folder: Path
    content: Content  # bundle.json as it stands

    @property
    def name(self) -> str:
        """Name of the model."""
        return str(self.content["name"])

    @property
    def precisions(self) -> list[str]:
        """Precisions that the bundle holds."""
        return list(self.content["precisions"])

    @property
    def packed_for(self) -> str:
        """The runtime that this bundle was packed for; empty for a whole bundle."""
        return str(self.content.get("packed_for", ""))

    @property
    def has_ctc_head(self) -> bool:
        """Whether the model has a CTC head instead of a decoder."""
        return self.content["family"] == CTC

    @property
    def vocabulary(self) -> str:
        """The file that says what text each token stands for."""
        return self.content["ctc"]["pieces"] if self.has_ctc_head else "vocab.json"

    @property
    def added(self) -> dict[int, str]:
        """Words that were added to the tokenizer, by id; vocab.json does not have them."""
        return {int(i): str(word) for i, word in self.content["tokens"].get("added", {}).items()}

    def is_text(self, token: int) -> bool:
        """Whether a token stands for text, rather than for the prompt or the end."""
        return token < int(self.content["tokens"]["end"]) or str(token) in self.content["tokens"].get("added", {})

    def token_limit(self, seconds: float, language: str) -> int:
        """Most tokens that a transcript of a clip of this length in this language may have."""
        caps = self.content["decoding"]
        # languages that are spelled in bytes need more; bundles of earlier versions have one rate for all
        rate = caps.get("tokens_per_second_of", {}).get(language, caps["tokens_per_second"])
        return int(min(caps["tokens_at_least"] + int(rate * seconds), caps["most_tokens"]))

    def graph(self, part: str, precision: str) -> Path:
        """Path of a graph (`frontend`, `encoder`, `step`, ...) in a precision; raises BundleError if there is none."""
        if precision not in self.content["precisions"]:
            raise BundleError(f"{self.folder}: no precision {precision!r}; it has {', '.join(self.precisions)}")
        if part not in (graphs := self.content["precisions"][precision]):
            raise BundleError(
                f"{self.folder}: has no {part} graph, it was packed for {self.packed_for}; pack the whole bundle again"
            )
        return self.path(str(graphs[part]))

    def path(self, name: str) -> Path:
        """Path of a file named in the manifest; raises BundleError if it points outside the bundle or is not a regular file."""
        path = self.folder / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise BundleError(f"{self.folder / 'bundle.json'}: {name!r} points outside the bundle")
        with readable(path):
            for place in (path, *(self.folder / above for above in Path(name).parents[:-1])):
                if place.is_symlink():
                    raise BundleError(
                        f"{place}: is a symbolic link, which may point outside the bundle; copy the bundle with what its links point to"
                    )
            if not path.is_file():  # a pipe or device might never end
                what = "is not a regular file" if path.exists() else "missing"
                raise BundleError(f"{path}: {what}, though bundle.json lists it; copy the whole folder again")
            return path.resolve()

    def speech_detector(self) -> Path:
        """Path of the speech detector, checked; raises BundleError if there is none."""
        if not (name := self.content.get("speech_detector")):
            raise BundleError(
                f"{self.name}: was exported without a speech detector, which recordings and streams need; install silero-vad and export again"
            )
        self.check([name])
        return self.path(name)

    def check(self, names: list[str] | None = None) -> None:
        """Compare files with their recorded SHA-256; raises BundleError at the first difference."""
        recorded = self.content["files"]
        for name in recorded if names is None else names:
            path = self.path(name)
            if name not in recorded:
                raise BundleError(f"{path}: bundle.json does not list it; export the bundle again")
            digest = hashlib.sha256()
            with readable(path), path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
            if digest.hexdigest() != recorded[name]:
                raise BundleError(
                    f"{path}: its SHA-256 is not the one in bundle.json; the file is damaged, copy the bundle again"
                )


def check_graph(path: Path) -> None:
    """Raise BundleError where a graph holds what this runtime refuses to run (see `graph_file`)."""
    with readable(path):
        why = unsafe_reason(path)
    if why:
        raise BundleError(f"{path}: {why}")


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn the system's errors on reading a file into BundleError."""
    try:
        yield
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror})") from None


def read_json(path: Path) -> object:
    """Read a JSON file of a bundle; raises BundleError if it is missing, too large, not a regular file or malformed."""
    try:
        if path.exists() and not path.is_file():
            raise BundleError(f"{path}: is not a regular file; copy the bundle again")
        if (size := path.stat().st_size) > MAX_BYTES:
            raise BundleError(f"{path}: has {size} bytes; expected at most {MAX_BYTES}")
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=is_finite)
    except FileNotFoundError:
        raise BundleError(f"{path}: no such file; expected the folder that `workbench export` wrote") from None
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path}: not valid JSON ({error}); copy the bundle again") from None


def read_manifest(folder: str | Path) -> Manifest:
    """Read bundle.json; raises BundleError if it is missing, malformed, of another format version, or has a field out of bounds."""
    folder = Path(folder)
    path = folder / "bundle.json"
    content = read_json(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = abbreviated(content.get("format") if isinstance(content, dict) else content)
        raise BundleError(f"{path}: field 'format' is {found}; this runtime reads format {FORMAT}")
    try:
        return Manifest(folder, check_fields(content))
    except ValueError as error:
        raise BundleError(f"{path}: {error}; export the bundle again") from None
