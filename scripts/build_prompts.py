"""Build the built-in corpus of telephone prompts from Debian's packages.

    python scripts/build_prompts.py --language en --output workbench/corpus/prompts-en

Downloads asterisk-core-sounds-LANG-g722 (audio) and asterisk-core-sounds-LANG (transcripts) with `apt-get download`,
unpacks them without root, encodes each prompt as 16 kHz mono Opus, and writes the manifest with its fixed split.
Needs a Debian or Ubuntu machine; the result ships in the package, so users never run this.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import subprocess
import tempfile
from pathlib import Path

import av

from workbench.audio import SAMPLE_RATE, decode
from workbench.corpus.split import split_of
from workbench.errors import UserError
from workbench.files import atomic_folder
from workbench.scoring import normalize

BIT_RATE = 40_000
SHORTEST, LONGEST = 0.3, 30.0  # seconds


def main() -> None:
    """Parse arguments and build one language."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--language", default="en")
    parser.add_argument("--output", type=Path, default=Path("workbench/corpus/prompts-en"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        unpacked = unpack(args.language, Path(temporary))
        with atomic_folder(args.output) as folder:
            build(unpacked, args.language, folder)
    print(f"wrote {args.output}")


def unpack(language: str, folder: Path) -> Path:
    """Fetch and unpack both packages; returns the folder they were unpacked to."""
    packages = [f"asterisk-core-sounds-{language}-g722", f"asterisk-core-sounds-{language}"]
    subprocess.run(["apt-get", "download", *packages], cwd=folder, check=True)
    for deb in folder.glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", deb.name, "unpacked"], cwd=folder, check=True)
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
        text = re.sub(r"\s*\[[^]]*\]\s*", " ", written).strip()  # "at [@]" says "at"; "[beep tone]" says nothing
        normalized = normalize(text, language)
        if not normalized or not audio.is_file() or name in seen:
            reason = "no speech" if not normalized else "listed twice" if name in seen else "no recording"
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
        manifest.append(
            {
                "id": name,
                "audio": target.as_posix(),
                "text": text,
                "duration": round(seconds, 3),
                "language": language,
                "split": split_of(normalized),
            }
        )
    lines = [json.dumps(row, ensure_ascii=False) for row in sorted(manifest, key=lambda row: str(row["id"]))]
    (folder / "manifest.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "left_out.tsv").write_text("id\treason\ttranscript\n" + "\n".join(left_out) + "\n", encoding="utf-8")
    copyright_file = unpacked / "usr/share/doc" / f"asterisk-core-sounds-{language}-g722" / "copyright"
    (folder / "LICENSE").write_bytes(copyright_file.read_bytes())
    for split in ("train", "validation", "test"):
        part = [row for row in manifest if row["split"] == split]
        print(f"{split}: {len(part)} clips, {sum(float(str(row['duration'])) for row in part):.0f} s")


def transcripts(content: bytes) -> list[tuple[str, str]]:
    """Pairs of prompt name and transcript from Asterisk's `name: text` list; `;` starts a comment."""
    lines = [line for line in content.decode("utf-8").splitlines() if line.strip() and not line.startswith(";")]
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


if __name__ == "__main__":
    main()
