"""Run one runtime in this process: `python -m export.verification.clients.worker CLIENT JOB.json RESULT.json`.

The job names the bundle, precision, threads and the clips as 16 kHz WAV files; the result holds a transcription for
each. A crash of the runtime ends only this process.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

from export.edge.audio.resample import read_wav
from export.verification.clients.protocol import Job
from export.verification.clients.registry import open_client


def main(name: str, job_path: str, result_path: str) -> None:
    """Open the bundle, transcribe every clip, write the result."""
    job: Job = json.loads(Path(job_path).read_text(encoding="utf-8"))
    client = open_client(name, Path(job["bundle"]), job["precision"], job["threads"])
    found = [asdict(client.transcribe(read_wav(clip["wav"]), clip["language"])) for clip in job["clips"]]
    Path(result_path).write_text(json.dumps({"version": client.version, "clips": found}), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
