"""Verify a bundle in third-party runtimes, each in its own process: tokens and WER against torch."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from export.bundle.inspection import changed_runtime
from export.bundle.manifest import open_manifest, record
from export.edge import read_wav
from export.edge.bundle.content import Content, Verification, VerifiedClient
from export.edge.bundle.fields import CTC
from export.graphs.padding import trim_or_pad_silence
from export.verification.agreement import (
    MIN_EQUAL,
    WORDS_ALLOWED,
    ReferenceTranscript,
    expected_text,
    first_difference,
    has_other_text,
    prefix_share,
    summary,
    wer_budget,
    within_budget,
)
from export.verification.clients import (
    client_module,
    is_exact,
    known_clients,
    unavailable_reason,
    unreadable_reason,
)
from export.verification.clients.protocol import ClipFile, Job, Outcome
from workbench.core.errors import UserError, last_line
from workbench.core.machine.children import killed_with_parent
from workbench.core.progress import Progress, step
from workbench.corpus import Utterance
from workbench.evaluation.scoring import score_utterances

log = logging.getLogger("workbench")
SECONDS_A_CLIP = 60  # per clip, before a client counts as hung


def verify_bundle(
    bundle: Path,
    checkpoint: Path,
    utterances: Sequence[Utterance],
    corpus: str,
    clients: Sequence[str] = (),
    threads: int | None = None,
) -> Verification:
    """Transcribe clips with every installed runtime and precision, compare with torch, record the result in the manifest.

    Args:
        bundle: the bundle's folder.
        checkpoint: the transformers checkpoint that it was exported from.
        utterances: clips to compare on, of validation rather than test.
        corpus: their name in the record.
        clients: names of runtimes; all known ones by default.
        threads: number of threads of each runtime.

    Returns:
        The record: for each client and precision whether it passed, its equal clips, and its WER beside torch's.

    Raises:
        UserError: a bundle that fails its checksums, another checkpoint, an unknown client, or none that reads it.
    """
    for name in clients:
        client_module(name)  # fail early on an unknown name
    manifest = open_manifest(bundle, check=True)
    if changed := changed_runtime(manifest):
        log.warning("%s: edge/ differs from the workbench's version: %s; the workbench runs its own copy", bundle, ", ".join(changed))  # fmt: skip
    names = list(clients) or known_clients()
    results: list[VerifiedClient] = []
    unread: dict[str, str] = {}
    absent: dict[str, str] = {}
    jobs: list[tuple[str, str]] = []
    with tempfile.TemporaryDirectory() as temporary:
        for name in names:
            if reason := unreadable_reason(manifest, name):
                unread[name] = reason
                log.info("client %s does not read this bundle: %s", name, reason)
                continue
            if remedy := unavailable_reason(name):
                absent[name] = remedy
                log.info("client %s is not installed; %s", name, remedy)
                continue
            jobs += [(name, precision) for precision in manifest.precisions]
        if clients and unread and not jobs:
            raise UserError(
                f"{bundle}: " + "; ".join(f"{name} does not read it: {why}" for name, why in unread.items())
            )
        with step("reading %d clips", len(utterances)):
            clips = _write_clips(utterances, Path(temporary))
        reference = _torch_reference(checkpoint, bundle, clips, manifest.content, Path(temporary))
        with Progress("verifying", len(jobs)) as progress:
            for name, precision in jobs:
                progress.advance(0, f"{name} {precision}, {len(clips)} clips")
                job: Job = {
                    "bundle": str(bundle.resolve()),
                    "precision": precision,
                    "threads": threads,
                    "clips": clips,
                }
                found = _compare(name, job, Path(temporary), utterances, reference, wer_budget(manifest.content))
                results.append(found)
                progress.advance(1, f"{name} {precision}")
                log.info(
                    "%d of %d, %s %s: %s, %s", len(results), len(jobs), name, precision,
                    "pass" if found["passed"] else "FAIL" if found["required"] else "over the WER budget", summary(found),
                )  # fmt: skip
    verification: Verification = {
        "corpus": corpus,
        "clips": len(utterances),
        "clients": results,
        "not_installed": {**unread, **absent},
    }
    record(bundle, verification=verification)
    return verification


def _torch_reference(
    checkpoint: Path, bundle: Path, clips: Sequence[ClipFile], content: Content, folder: Path
) -> list[ReferenceTranscript]:
    """The torch model's transcript of each clip, with batch size 1 like the clients'."""
    import torch

    from export.graphs.build import margin_frames
    from workbench.models.resolve import fingerprint
    from workbench.models.whisper.decoding import greedy
    from workbench.models.whisper.family import WINDOW_SECONDS, Whisper
    from workbench.models.whisper.forward.passes import encode
    from workbench.models.whisper.loading.tokens import text_of

    if not checkpoint.is_dir():
        raise UserError(f"{checkpoint}: no such folder; name the checkpoint that the bundle was exported from")
    if fingerprint(checkpoint) != content["checkpoint_sha256"]:
        raise UserError(
            f"{checkpoint}: is not the checkpoint that the bundle was exported from; name that one with --checkpoint"
        )
    if content["family"] == CTC:
        from export.verification.ctc import ctc_reference

        with step("reading %s", checkpoint):
            return ctc_reference(checkpoint, clips)
    if content.get("vocabulary"):
        from export.bundle.vocabulary import prune_like

        (folder / "pruned").mkdir()
        checkpoint = prune_like(checkpoint, bundle, folder / "pruned")
    with step("reading %s", checkpoint):
        family = Whisper(checkpoint)
        model = family.load()
    decode = partial(text_of, family.tokenizer)
    margin = margin_frames(content["length"], content["margin_seconds"])
    out = []
    with torch.no_grad(), Progress("torch's reference", len(clips)) as progress:
        for clip in clips:
            progress.advance()
            wave = read_wav(clip["wav"])  # the same samples that the clients get
            seconds = len(wave) / 16_000
            features = family.features(
                [wave], WINDOW_SECONDS if margin is None else seconds + content["margin_seconds"]
            )
            states = encode(model, trim_or_pad_silence(features, margin))
            prompt = [family.prompt(clip["language"])]
            limit = family.token_limit(seconds, clip["language"])
            ids = greedy(
                model,
                states,
                prompt,
                [limit],
                family.eos_token_id,
                family.suppress_tokens,
                family.begin_suppress_tokens,
            )[0]
            out.append(ReferenceTranscript(decode(ids), ids, len(ids) >= limit, decode))
    return out


def _write_clips(utterances: Sequence[Utterance], folder: Path) -> list[ClipFile]:
    from workbench.audio.decode import write_wav

    clips: list[ClipFile] = []
    for i, utterance in enumerate(utterances):
        write_wav(folder / f"{i}.wav", utterance.wave())
        clips.append({"wav": str(folder / f"{i}.wav"), "language": utterance.language})
    return clips


def _compare(
    name: str,
    job: Job,
    folder: Path,
    utterances: Sequence[Utterance],
    reference: Sequence[ReferenceTranscript],
    points: float,
) -> VerifiedClient:
    torchs = score_utterances(utterances, [written.text for written in reference])
    found: VerifiedClient = {"client": name, "precision": job["precision"], "version": "", "required": is_exact(name), "passed": False, "error": None,
                             "tokens_equal": "0", "prefix_share": 0.0, "wer": float("nan"), "wer_torch": round(torchs.wer, 3)}  # fmt: skip
    result, error = _run(name, job, folder)
    if result is None:
        return {**found, "error": error, "wer": None}
    clips = result["clips"]
    scored = score_utterances(utterances, [c["text"] for c in clips])
    prefixes = [prefix_share(c, written) for c, written in zip(clips, reference, strict=True)]
    equal = sum(share == 1.0 for share in prefixes)
    enough = equal >= MIN_EQUAL * len(clips)
    exact = is_exact(name) and job["precision"] == "fp32"
    passed = enough if exact else within_budget(scored, torchs, points)
    different = [
        (i, c["text"], expected_text(c, written))
        for i, (c, written) in enumerate(zip(clips, reference, strict=True))
        if has_other_text(c, written)
    ]
    if different:
        i, ours, theirs = different[0]
        error = f"{len(different)} of {len(clips)} clips have torch's tokens but a different text, first clip {utterances[i].id!r}: {ours!r} instead of {theirs!r}"
        found |= {"error": error, "required": True}
    return {
        **found,
        "texts_differ": len(different),
        "version": result["version"],
        "passed": passed and not different,
        "tokens_equal": f"{equal} of {len(clips)}",
        "prefix_share": round(sum(prefixes) / len(prefixes), 4),
        "wer": round(scored.wer, 3),
        "threshold": f"{100 * MIN_EQUAL:g} % of the clips equal"
        if exact
        else f"WER at most {points:g} points above torch's"
        + (f", or {WORDS_ALLOWED} more word errors" if points else ""),
        "first_difference": first_difference(utterances, clips, reference, prefixes),
    }


def _run(name: str, job: Job, folder: Path) -> tuple[Outcome | None, str]:
    """Run a client in its own process; returns its result, or None and the reason."""
    job_path, result_path = folder / "job.json", folder / "result.json"
    job_path.write_text(json.dumps(job), encoding="utf-8")
    result_path.unlink(missing_ok=True)
    command = [sys.executable, "-m", "export.verification.clients.worker", name, str(job_path), str(result_path)]
    # Python imports from the current folder first, which may be the bundle: the worker runs in our temporary folder, without stdin
    places = [str(Path(__file__).parents[2]), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(str(Path(place).resolve()) for place in places)}
    try:
        done = subprocess.run(
            killed_with_parent(command), capture_output=True, text=True, check=False, cwd=folder, env=environment,
            stdin=subprocess.DEVNULL, timeout=120 + SECONDS_A_CLIP * len(job["clips"]),
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        return None, f"no answer within {error.timeout:.0f} s"
    if done.returncode or not result_path.is_file():
        return None, f"exit status {done.returncode}: {last_line(done.stderr)}"
    result: Outcome = json.loads(result_path.read_text(encoding="utf-8"))
    return result, ""
