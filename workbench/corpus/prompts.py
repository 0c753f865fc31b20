"""The built-in corpora of telephone prompts, built from Debian's packages.

asterisk-core-sounds-LANG-g722 (audio) and asterisk-core-sounds-LANG (transcripts) are downloaded with `apt-get download`,
which checks their signatures, unpacked without root, encoded as 16 kHz mono Opus, and given the manifest with its fixed
split and the corrected references (references.py). Needs a Debian or Ubuntu machine. English ships in the package, and was
built by this.
"""

from __future__ import annotations

import gzip
import json
import logging
import re
import shutil
import subprocess
import tempfile
from functools import partial
from pathlib import Path

import av

from workbench.audio.decode import SAMPLE_RATE, decode
from workbench.core.errors import UserError, did_you_mean, last_line
from workbench.core.files import write_json
from workbench.core.machine.children import killed_with_parent
from workbench.core.ownership import IsOwnFile, OutputKind, check_output, check_replaceable, replacing
from workbench.corpus.corrupt import RECORD
from workbench.corpus.references import (
    VERSION_FILE,
    build_version,
    built_language,
    corrected,
    corrections,
    corrections_file,
    is_current,
    why_not_scored,
)
from workbench.corpus.split import split_key, split_of

log = logging.getLogger("workbench")
LANGUAGES = ("en", "es", "fr", "it", "ru")
BIT_RATE = 40_000
SHORTEST, LONGEST = 0.3, 30.0  # seconds
_IN_BRACKETS = re.compile(r"\s*\[[^]]*\]\s*")
_SYMBOLS_IN_BRACKETS = re.compile(r"\s*\[(?:_|[^]\w])*\]\s*")


def build_prompts(language: str, output: Path) -> Path:
    """Build one language's corpus in `output`. What an earlier version built there is replaced; any other folder is left alone.

    Raises:
        UserError: another language, `output` holds something else, no apt-get or dpkg-deb here, the packages cannot be
            downloaded, or a text in them is not the one that a correction was made for.
    """
    if language not in LANGUAGES:
        raise UserError(f"--language {language!r}{did_you_mean(language, LANGUAGES)}")
    made = OutputKind(
        f"corpus built by `workbench corpus prompts --language {language}`", partial(_own_files, language)
    )
    check_output(output)
    if made.own(output) is not None:
        if is_current(output, language):
            log.info("%s is there already", output)
            return output
        log.info("%s was built by an earlier version and is rebuilt", output)
    check_replaceable(output, made)
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise UserError(f"{tool} is not installed; build the corpus on Debian or Ubuntu and copy the folder")
    with tempfile.TemporaryDirectory() as temporary:
        unpacked = unpack(language, Path(temporary))
        with replacing(output, made) as folder:
            build(unpacked, language, folder)
    return output


def _own_files(language: str, folder: Path) -> IsOwnFile | None:
    if built_language(folder) != language or (folder / RECORD).exists() or not (folder / "manifest.jsonl").is_file():
        return None
    audio = re.findall(r'"audio": "(audio/[^"/]+\.opus)"', (folder / "manifest.jsonl").read_text(encoding="utf-8"))
    return {"manifest.jsonl", "left_out.tsv", "LICENSE", VERSION_FILE, *audio}.__contains__


def unpack(language: str, folder: Path) -> Path:
    """Fetch and unpack both packages; returns the folder they were unpacked to."""
    packages = [f"asterisk-core-sounds-{language}-g722", f"asterisk-core-sounds-{language}"]
    fetch = killed_with_parent(["apt-get", "download", *packages])
    done = subprocess.run(fetch, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(
            f"apt-get download {' '.join(packages)}: {last_line(done.stderr)}; run `apt-get update`, or check the network"
        )
    for deb in folder.glob("*.deb"):
        subprocess.run(killed_with_parent(["dpkg-deb", "-x", deb.name, "unpacked"]), cwd=folder, check=True)
    return folder / "unpacked"


def build(unpacked: Path, language: str, folder: Path) -> None:
    """Write audio, manifest, the list of what was left out, licence and credit."""
    (folder / "audio").mkdir()
    documents = unpacked / "usr/share/doc" / f"asterisk-core-sounds-{language}"
    sounds = next((unpacked / "usr/share/asterisk/sounds").iterdir())
    left_out: list[str] = []
    manifest = []
    seen: set[str] = set()
    for name, written in transcripts(gzip.decompress((documents / f"core-sounds-{language}.txt.gz").read_bytes())):
        audio = sounds / f"{name}.g722"
        text = _IN_BRACKETS.sub(" ", written).strip()  # "at [@]" says "at"; "[beep tone]" says nothing
        key = split_key(text, language)  # of the text before corrections, so that every clip keeps its split
        if not key or not audio.is_file() or name in seen:
            reason = "no speech" if not key else "listed twice" if name in seen else "no recording"
            left_out.append(f"{name}\t{reason}\t{written}")
            continue
        wave = decode(audio)
        seconds = len(wave) / SAMPLE_RATE
        if not SHORTEST <= seconds <= LONGEST:
            left_out.append(f"{name}\tlasts {seconds:.2f} s\t{written}")
            continue
        seen.add(name)
        target = Path("audio") / f"{name.replace('/', '__')}.opus"
        encode(audio, folder / target)
        reference = corrected(name, text, language)
        # of the text as written, too: "[quello] non è" may be said whole or without its bracket, and the reference has lost it
        why = why_not_scored(reference, language) or why_not_scored(_SYMBOLS_IN_BRACKETS.sub(" ", written), language)
        manifest.append(
            {
                "id": name,
                "audio": target.as_posix(),
                "text": reference,
                "duration": round(seconds, 3),
                "language": language,
                "split": split_of(key),
                **({"scored": False, "why": why} if why else {}),
            }
        )
    if missing := sorted(set(corrections(language)) - seen):
        raise UserError(
            f"{corrections_file(language)}: id {missing[0]!r} is not among the package's clips; Debian's package has changed"
        )
    lines = [json.dumps(row, ensure_ascii=False) for row in sorted(manifest, key=lambda row: str(row["id"]))]
    (folder / "manifest.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "left_out.tsv").write_text("id\treason\ttranscript\n" + "\n".join(left_out) + "\n", encoding="utf-8")
    write_json(folder / VERSION_FILE, build_version(language))
    copyright_file = unpacked / "usr/share/doc" / f"asterisk-core-sounds-{language}-g722" / "copyright"
    (folder / "LICENSE").write_bytes(copyright_file.read_bytes())
    for split in ("train", "validation", "test"):
        part = [row for row in manifest if row["split"] == split]
        marked = sum(row.get("scored") is False for row in part)
        seconds = sum(float(str(row["duration"])) for row in part)
        log.info("%s: %d clips, %.0f s; %d of them are not scored", split, len(part), seconds, marked)


def transcripts(content: bytes) -> list[tuple[str, str]]:
    """Pairs of prompt name and transcript from Asterisk's `name: text` list; `;` starts a comment."""
    lines = [line for line in content.decode("utf-8-sig").splitlines() if line.strip() and not line.startswith(";")]
    pairs = [line.split(":", 1) for line in lines]
    if bad := [pair for pair in pairs if len(pair) != 2]:
        raise UserError(f"transcript list: {bad[0]!r} is not 'name: text'")
    return [(name.strip(), " ".join(text.split())) for name, text in pairs]


def encode(source: Path, target: Path) -> None:
    """Re-encode a recording as mono Opus in Ogg."""
    with av.open(str(source)) as audio, av.open(str(target), "w", format="ogg") as out:
        stream = out.add_stream("libopus", rate=SAMPLE_RATE, layout="mono")
        stream.bit_rate = BIT_RATE
        resampler = av.AudioResampler(format="s16", layout="mono", rate=SAMPLE_RATE)
        for frame in [*audio.decode(audio=0), None]:
            for piece in resampler.resample(frame):
                out.mux(stream.encode(piece))
        out.mux(stream.encode(None))
