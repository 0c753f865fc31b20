"""What decoding with drafts saves: passes and time of the decoder with and without, on clips and in streams.

    python benchmarks/drafted.py --bundle BUNDLE --precision fp32 --corpus CORPUS --json FILE

Drafts of clips: `lookup` (n-grams of the text so far), `right` (the text itself, which no draft can beat). Streams: each clip is fed as a live
signal whose partial texts are drafts of the next. With and without alternate; times are medians over `--repeats`. Texts must be equal.
Of a decoder that takes no drafts, only by how much its logits differ between one pass over a text and passes over single tokens.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import arguments, finish

OPTIONS = {
    "bundle": ("", "folder of a bundle"),
    "precision": ("fp32", "one that it has"),
    "corpus": ("prompts-en", "an English corpus"),
    "split": ("test", "of the corpus"),
    "clips": (40, "drawn at random"),
    "repeats": (3, "of every measurement"),
    "threads": (2, "of the runtime"),
    "older": ("", "a step graph without drafts, whose passes over one token are timed in turns with this bundle's"),
}
SIZES = (1, 2, 4, 8, 16, 32)  # tokens of a pass
Tokens = Sequence[int]


class Right:
    """Proposes the text itself."""

    def __init__(self, tokens: Tokens) -> None:
        self.tokens = tokens

    def __call__(self, written: Tokens) -> Tokens:
        return self.tokens[len(written) :]


class Decoding:
    """A bundle's decoder alone: greedy, from the encoder's output."""

    def __init__(self, recognizer: Any) -> None:
        self.recognizer, self.model = recognizer, recognizer.model

    def encoded(self, wave: Any) -> tuple[Any, int]:
        """The encoder's output, and the most tokens."""
        return self.model.cross_kv([wave]), self.recognizer.manifest.token_limit(len(wave) / 16_000, "en")

    def run(self, cross_kv: Any, limit: int, draft: Any, counts: Any = None) -> tuple[list[int], float]:
        """Tokens, and ms."""
        from export.edge.decoding.decoder import greedy
        from export.edge.decoding.drafted import greedy_with_draft

        started = time.perf_counter()
        prompt = self.model.prompts["en"]
        decoder = self.model.decoder(cross_kv, len(prompt) + limit)
        end = self.model.end_token
        if draft is None:
            (found,) = greedy(decoder, [prompt], [limit], end)
        else:
            found = greedy_with_draft(decoder, prompt, limit, end, draft, counts=counts)
        return found.tokens, 1000 * (time.perf_counter() - started)


def main() -> None:
    """Measure and print the figures."""
    options = arguments(__doc__, **OPTIONS)
    from export.edge import Recognizer
    from workbench.core.errors import UserError
    from workbench.corpus import scored_clips

    recognizer = Recognizer(options.bundle, options.precision, options.threads, vad=False)
    if recognizer.manifest.has_ctc_head:
        raise UserError(f"{options.bundle}: has a CTC head and no decoder; name a bundle of a Whisper")
    found = scored_clips(options.corpus, options.split)
    chosen = sorted(np.random.default_rng(1).permutation(len(found))[: options.clips].tolist())
    decoding = Decoding(recognizer)
    decoding.run(*decoding.encoded(found[chosen[0]].wave()), None)  # the first run is slower
    rows: list[dict[str, Any]] = []
    for i in chosen:
        wave = found[i].wave()
        row = {"id": found[i].id, "seconds": len(wave) / 16_000, **differences(decoding, wave)}
        if recognizer.model.takes_drafts:
            row |= {**clip(decoding, wave, options.repeats), "stream": stream(decoding, wave, options.repeats)}
        rows.append(row)
        print({k: v for k, v in row.items() if k != "stream"}, flush=True)
    out = {
        "logits_differ_by": max(row["logits_differ_by"] for row in rows),
        "likeliest_tokens_that_differ": sum(row["likeliest_tokens_that_differ"] for row in rows),
    }
    if recognizer.model.takes_drafts:
        out |= figures(rows) | pass_costs(decoding, found[chosen[0]].wave(), 10 * options.repeats)
    if options.older:
        out |= against_older(decoding, found[chosen[0]].wave(), 100 * options.repeats, options.older)
    finish(options.json, out, rows, bundle=recognizer.manifest.name, precision=options.precision,
           corpus=Path(options.corpus).name, split=options.split, threads=options.threads)  # fmt: skip


def differences(decoding: Decoding, wave: Any) -> dict[str, Any]:
    """The logits of a clip's text from one pass, against those from passes over single tokens; suppressed tokens left out."""
    cross_kv, limit = decoding.encoded(wave)
    text, _ = decoding.run(cross_kv, limit, None)
    prompt = decoding.model.prompts["en"]
    decoder = decoding.model.decoder(cross_kv, len(prompt) + limit)
    single = [decoder(np.array([read]))[0].copy() for read in (prompt, *([token] for token in text))]
    decoder.done[:] = 0
    together = decoder.several(np.array([[*prompt, *text]]), len(single))[0]
    said = np.stack(single) > -5e3
    return {
        "logits_differ_by": float(np.abs(together - np.stack(single))[said].max()),
        "likeliest_tokens_that_differ": int((together.argmax(1) != np.stack(single).argmax(1)).sum()),
    }


def clip(decoding: Decoding, wave: Any, repeats: int) -> dict[str, Any]:
    """One clip decoded without and with each draft, in turns."""
    from export.edge.decoding.drafted import DraftCounts
    from export.edge.decoding.drafts import PromptLookup

    cross_kv, limit = decoding.encoded(wave)
    plain, _ = decoding.run(cross_kv, limit, None)
    makers = {"without": lambda: None, "lookup": PromptLookup, "right": lambda: Right(plain)}
    times: dict[str, list[float]] = {name: [] for name in makers}
    counts = {name: DraftCounts() for name in makers}
    same = True
    for _ in range(repeats):
        for name, make in makers.items():
            tokens, ms = decoding.run(cross_kv, limit, make(), counts[name])
            times[name].append(ms)
            same = same and tokens == plain
    row: dict[str, Any] = {"tokens": len(plain) + 1, "same": same}
    for name in makers:
        row[f"{name}_ms"] = statistics.median(times[name])
        if name != "without":
            row[f"{name}_passes"] = counts[name].passes / repeats
            row[f"{name}_given_up"] = counts[name].given_up / repeats
    return row


def stream(decoding: Decoding, wave: Any, repeats: int) -> dict[str, Any]:
    """The decoder on each beginning of a clip, as a stream has it. The encoder's time, features included, is the same with and without."""
    from export.edge.decoding.drafted import DraftCounts
    from export.edge.decoding.drafts import EarlierText
    from export.edge.stream import EVERY

    ends = [*range(int(EVERY * 16_000), len(wave), int(EVERY * 16_000)), len(wave)]
    started = time.perf_counter()
    encoded = [decoding.encoded(wave[:end]) for end in ends]
    encoder_ms = 1000 * (time.perf_counter() - started)
    times: dict[str, list[float]] = {"without": [], "with": []}
    passes = plain_passes = 0
    texts: dict[str, list[list[int]]] = {}
    for _ in range(repeats):
        for name in times:
            texts[name], ms, passes = [], 0.0, 0
            for cross_kv, limit in encoded:
                earlier = texts[name][-1] if texts[name] else []
                draft = EarlierText(earlier) if name == "with" and earlier else None
                counts = DraftCounts()
                tokens, took = decoding.run(cross_kv, limit, draft, counts)
                texts[name].append(tokens)
                ms += took
                again = draft is None or counts.given_up
                passes += counts.passes + (len(tokens) + 1 if again else 0)
            times[name].append(ms)
            if name == "without":
                plain_passes = passes
    tokens_in_all = sum(len(tokens) + 1 for tokens in texts["with"])
    return {"texts": len(ends), "encoder_ms": encoder_ms, "tokens": tokens_in_all, "same": texts["with"] == texts["without"], "without_passes": plain_passes,
            "with_passes": passes, **{f"{name}_ms": statistics.median(each) for name, each in times.items()}}  # fmt: skip


def pass_costs(decoding: Decoding, wave: Any, repeats: int) -> dict[str, float]:
    """Median ms of a pass over some tokens, in turns."""
    cross_kv, _ = decoding.encoded(wave)
    decoder = decoding.model.decoder(cross_kv, 64)
    times: dict[int, list[float]] = {size: [] for size in SIZES}
    for _ in range(repeats):
        for size in SIZES:
            times[size].append(one_pass(decoder, size)[0])
    return {f"pass_over_{size}_ms": statistics.median(each) for size, each in times.items()}


def against_older(decoding: Decoding, wave: Any, repeats: int, older: str) -> dict[str, float]:
    """A pass over one token in this graph and in an older one, in turns, either first: median ms, and ms of the processor's time."""
    from export.edge.decoding.decoder import DecoderSession
    from export.edge.decoding.sessions import open_session, session_options

    cross_kv, _ = decoding.encoded(wave)
    threads = decoding.model.step.get_session_options().intra_op_num_threads
    step = open_session(Path(older), session_options(threads), ["CPUExecutionProvider"])
    decoders = {
        "one_pass": decoding.model.decoder(cross_kv, 64),
        "older_graph_pass": DecoderSession(step, cross_kv, 64),
    }
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in decoders}
    for i in range(repeats):
        for name in decoders if i % 2 else reversed(decoders):
            times[name].append(one_pass(decoders[name], 1))
    return {
        f"{name}_{kind}": statistics.median(one[j] for one in each)
        for name, each in times.items()
        for j, kind in enumerate(("ms", "cpu_ms"))
    }


def one_pass(decoder: Any, size: int) -> tuple[float, float]:
    """Ms of a pass over random tokens, and ms of the processor's time."""
    decoder.done[:] = 8
    tokens = np.random.default_rng(size).integers(0, 1000, (1, size))
    started, cpu = time.perf_counter(), time.process_time()
    decoder.several(tokens, size)
    return 1000 * (time.perf_counter() - started), 1000 * (time.process_time() - cpu)


def figures(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Sums over clips."""

    def total(name: str, key: str = "") -> float:
        return sum(float((row[key] if key else row)[name]) for row in rows)

    out = {
        "same_percent": 100 * sum(row["same"] and row["stream"]["same"] for row in rows) / len(rows),
        "tokens_a_clip": total("tokens") / len(rows),
        "decoder_ms_a_clip": total("without_ms") / len(rows),
    }
    for name in ("lookup", "right"):
        out[f"{name}_tokens_a_pass"] = total("tokens") / total(f"{name}_passes")
        out[f"{name}_times_as_fast"] = total("without_ms") / total(f"{name}_ms")
        out[f"{name}_given_up"] = total(f"{name}_given_up")
    out["stream_texts_a_clip"] = total("texts", "stream") / len(rows)
    out["stream_passes_fewer"] = total("without_passes", "stream") / total("with_passes", "stream")
    out["stream_encoder_ms_a_text"] = total("encoder_ms", "stream") / total("texts", "stream")
    out["stream_decoder_ms_a_text"] = total("without_ms", "stream") / total("texts", "stream")
    out["stream_decoder_ms_a_text_with"] = total("with_ms", "stream") / total("texts", "stream")
    out["stream_times_as_fast"] = total("without_ms", "stream") / total("with_ms", "stream")
    return out


if __name__ == "__main__":
    main()
