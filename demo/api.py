"""Named endpoints that return JSON, for `gradio_client` (docs/demo.md)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr

from demo.clip.downloads import as_json
from demo.clip.tab import usable, usable_hotwords
from demo.clip.transcribe import RUNS, compare, load_clip
from demo.corpus.run import CorpusRun
from demo.limits import CLIPS, DemoLimits
from demo.systems import Systems
from export.bundle.manifest import size_mb
from workbench.core.errors import UserError

MOST_RUNS = 9


def add_endpoints(systems: Systems, corpus_run: CorpusRun, limits: DemoLimits) -> None:
    """Add /systems, /transcribe, /compare and /corpus to the page that is being built."""

    def describe() -> list[dict[str, Any]]:
        return [
            {
                "name": name,
                "role": "teacher" if name == systems.teacher else "student",
                "precision": one.precision,
                "size_mb": round(size_mb(one.manifest, one.precision), 1),
                "word_times": one.times_words,
                "languages": sorted(one.prompts),
            }
            for name, one in systems.recognizers.items()
        ]

    def answer(
        path: str | None, reference: str, language: str, runs: float, names: list[str] | None, hotwords: str | None
    ) -> dict[str, Any]:
        try:
            runs, reference = runs or 0, reference or ""  # a client may send null
            _check(systems, language, runs, names or [])
            clip, expected = usable(path, reference, limits), usable_hotwords(hotwords)
            wave = systems.decoding.submit(load_clip, clip, limits.longest_seconds).result()
            *_, found = compare(systems, wave, reference.strip(), language, int(runs), names, hotwords=expected)
        except UserError as error:
            raise gr.Error(str(error), print_exception=False) from None
        return as_json(found)

    def both(audio: str | None, reference: str, language: str, runs: float, hotwords: str) -> dict[str, Any]:
        return answer(audio, reference, language, runs, None, hotwords)

    def one(audio: str | None, language: str, system: str, hotwords: str) -> dict[str, Any]:
        content = answer(audio, "", language, 1, [system or (systems.students or [systems.teacher])[0]], hotwords)
        return {**content["systems"][0], "seconds": content["seconds"], "language": content["language"]}

    first = "en" if "en" in systems.languages else systems.languages[0]
    with gr.Row(visible=False):  # what a client gives and gets; the page itself does not show it
        audio = gr.Audio(type="filepath", label="audio")
        reference = gr.Textbox("", label="reference")
        language = gr.Textbox(first, label="language")
        system = gr.Textbox("", label="system")
        hotwords = gr.Textbox("", label="hotwords")
        runs = gr.Number(RUNS, label="runs")
        found = gr.JSON(label="result")

        def endpoint(
            name: str, work: Callable[..., Any], inputs: list[gr.components.Component], what: str, **limited: Any
        ) -> None:
            gr.Button(name).click(work, inputs, found, api_name=name, api_description=what, **limited)

        transcribes: dict[str, Any] = {"concurrency_limit": limits.at_once, "concurrency_id": CLIPS}

        endpoint("systems", describe, [], "The teacher (first) and the students of this page.")
        endpoint("transcribe", one, [audio, language, system, hotwords], "A clip by one system; the first student by default.",
                 **transcribes)  # fmt: skip
        endpoint(
            "compare", both, [audio, reference, language, runs, hotwords],
            "A clip by every system, with errors if there is a reference, and median times.", **transcribes,
        )  # fmt: skip
        endpoint("corpus", corpus_run.as_json, [], "What is known so far of the whole split, worst clips first.")


def _check(systems: Systems, language: str, runs: float, names: list[str]) -> None:
    """Raise UserError for a value that no system can use."""
    if language not in systems.languages:
        raise UserError(f"language {language!r}; expected one of {', '.join(systems.languages)}")
    if not 1 <= runs <= MOST_RUNS:
        raise UserError(f"runs {runs:g}; expected 1 to {MOST_RUNS}")
    for name in names:
        if name not in systems.recognizers:
            raise UserError(f"system {name!r}; expected one of {', '.join(systems.recognizers)}")
