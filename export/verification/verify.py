"""Verify a bundle in third-party runtimes, each in its own process: tokens and WER against torch."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from export.bundle.inspection import changed_runtime
from export.bundle.manifest import open_manifest, record
from export.edge import read_wav
from export.edge.bundle.content import Content, FirstDifference, Verification, VerifiedClient
from export.graphs.padding import trim_or_pad_silence
from export.verification.clients import client_module, has_graphs_of, is_exact, known_clients, unavailable_reason
from export.verification.clients.protocol import ClipFile, Job, Outcome, Transcribed
from workbench.core.errors import UserError, last_line
from workbench.core.machine.children import killed_with_parent
from workbench.core.progress import Progress
from workbench.corpus import Utterance
from workbench.evaluation.scoring import Score, score_utterances

log = logging.getLogger("workbench")
MIN_EQUAL = 0.99  # share of clips whose fp32 tokens must equal torch's
WER_BUDGET = 0.5  # allowed WER above torch's otherwise, in percentage points,
WORDS_ALLOWED = 2  # or this many additional word errors if that is more: on 24 clips one word is already 0.6 points
SECONDS_A_CLIP = 60  # per clip, before a client counts as hung


@dataclass(frozen=True)
class ReferenceTranscript:
    """A transcript by torch."""

    text: str
    tokens: list[int]
    capped: bool  # whether it reached the token limit
    # detokenizes with the checkpoint's tokenizer, for transcripts that stop earlier
    text_of: Callable[[Sequence[int]], str] | None = None


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
        UserError: a bundle that fails its checksums, another checkpoint, or an unknown client.
    """
    for name in clients:
        client_module(name)  # fail early on an unknown name
    manifest = open_manifest(bundle, check=True)
    if changed := changed_runtime(manifest):
        log.warning("%s: edge/ differs from the workbench's version: %s; the workbench runs its own copy", bundle, ", ".join(changed))  # fmt: skip
    names = list(clients) or known_clients()
    results: list[VerifiedClient] = []
    absent: dict[str, str] = {}
    jobs: list[tuple[str, str]] = []
    with tempfile.TemporaryDirectory() as temporary:
        for name in names:
            if not has_graphs_of(manifest, name):
                absent[name] = f"the bundle was packed for {manifest.packed_for}"
                continue
            if remedy := unavailable_reason(name):
                absent[name] = remedy
                log.info("client %s is not installed; %s", name, remedy)
                continue
            jobs += [(name, precision) for precision in manifest.precisions]
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
        "not_installed": absent,
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
    if content.get("vocabulary"):
        from export.bundle.vocabulary import prune_like

        (folder / "pruned").mkdir()
        checkpoint = prune_like(checkpoint, bundle, folder / "pruned")
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
    prefixes = [_prefix_share(c, written) for c, written in zip(clips, reference, strict=True)]
    equal = sum(share == 1.0 for share in prefixes)
    enough = equal >= MIN_EQUAL * len(clips)
    exact = is_exact(name) and job["precision"] == "fp32"
    passed = enough if exact else within_budget(scored, torchs, points)
    different = [
        (i, c["text"], expected_text(c, written))
        for i, (c, written) in enumerate(zip(clips, reference, strict=True))
        if differs(c, written)
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
        "first_difference": _first_difference(utterances, clips, reference, prefixes),
    }


def _first_difference(
    utterances: Sequence[Utterance], clips: Sequence[Transcribed], reference: Sequence[ReferenceTranscript], prefixes: Sequence[float]
) -> FirstDifference | None:  # fmt: skip
    """The first clip whose text differs from torch's, or failing that, whose tokens do."""
    unequal = [i for i, share in enumerate(prefixes) if share < 1]
    others = [i for i in unequal if clips[i]["text"].split() != reference[i].text.split()] or unequal
    if not others:
        return None
    return {"id": utterances[others[0]].id, "text": clips[others[0]]["text"], "torch": reference[others[0]].text}


def summary(found: VerifiedClient) -> str:
    """The result of a client and a precision in one line."""
    if found["wer"] is None:
        return f"the client did not run ({found['error']})"
    return f"{found['tokens_equal']} clips equal torch's, WER {found['wer']:.2f} % (torch {found['wer_torch']:.2f} %)"


def explain(found: VerifiedClient) -> list[str]:
    """Lines that explain why a client and a precision failed, and what to do about it."""
    first = found.get("first_difference")
    out = [f"{found['client']} {found['precision']}: {summary(found)}"]
    if threshold := found.get("threshold"):
        out.append(f"  expected: {threshold}")
    if found["wer"] is not None and found["error"]:
        out.append(f"  {found['error']}")
    elif first:
        out.append(f"  first difference, clip {first['id']}: {first['text']!r}, torch {first['torch']!r}")
    if found["wer"] is None:
        out.append(f"  to do: check whether the runtime works here; to repeat only this: --client {found['client']}")
    elif found["precision"] == "fp32" or found["error"]:
        out.append(
            f"  to do: the runtime's output differs from torch's; try a version other than {found['client']} {found['version']}, or another runtime"
        )
    else:
        out.append(
            '  to do: choose another --precision for `workbench export`, or let it find one: --budget "wer<=+0.5"'
        )
    return out


def expected_text(clip: Transcribed, written: ReferenceTranscript) -> str | None:
    """The text that a runtime must return, given its tokens; None if they differ from torch's or are not returned.

    If torch reached the token limit, the runtime may have stopped earlier.
    """
    tokens = clip["tokens"]
    if tokens is None:
        return None
    if list(tokens) == written.tokens:
        return written.text
    stopped = written.capped and list(tokens) == written.tokens[: len(tokens)]
    return written.text_of(tokens) if stopped and written.text_of else None


def differs(clip: Transcribed, written: ReferenceTranscript) -> bool:
    """Whether a runtime returned torch's tokens but a different text: its vocabulary is not the checkpoint's."""
    expected = expected_text(clip, written)
    return expected is not None and clip["text"].split() != expected.split()


def wer_budget(content: Content) -> float:
    """Allowed WER above torch's in points: the budget of the bundle's search (`--budget`), or half a point."""
    searched = (content.get("search") or {}).get("wer_above")
    return WER_BUDGET if searched is None else float(searched)


def within_budget(found: Score, torchs: Score, points: float = WER_BUDGET) -> bool:
    """Whether a runtime's word errors exceed torch's by no more than the budget; with 0 points, not even one is allowed."""
    allowed = max(WORDS_ALLOWED, points / 100 * torchs.words) if points else 0
    return found.errors - torchs.errors <= allowed


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


def _prefix_share(clip: Transcribed, written: ReferenceTranscript) -> float:
    """Share of torch's tokens (or characters, without tokens) before the first difference; 1 only if all are equal."""
    ours: Sequence[str | int] = clip["text"] if clip["tokens"] is None else clip["tokens"]
    theirs: Sequence[str | int] = written.text if clip["tokens"] is None else written.tokens
    same = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
    # a looping decoder stops at the token limit, and runtimes have different ones
    if same == len(ours) == len(theirs) or (written.capped and same == min(len(ours), len(theirs)) > 0):
        return 1.0
    return min(same / max(len(theirs), 1), 1 - 1e-6)
