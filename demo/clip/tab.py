"""The tab for one clip: an example, an upload or a recording."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from demo.clip.cards import cards, problem_html, status
from demo.clip.downloads import write_downloads, write_player
from demo.clip.tally import Tally
from demo.clip.transcribe import compare, load_clip
from demo.languages import language_choices
from demo.limits import CLIPS, HOTWORD_CHARACTERS, REFERENCE_CHARACTERS, DemoLimits
from demo.systems import Systems
from export.edge.decoding.hotwords import parse_hotwords
from workbench.audio.decode import SAMPLE_RATE
from workbench.core.errors import UserError
from workbench.corpus import Utterance

INTRO = (
    "Choose an example, upload a clip (WAV, MP3, M4A, OGG, WebM, FLAC, ...) or record one. The students answer first, the teacher when it "
    "is ready; then each runs again, one at a time, and medians are shown. **Click a word to hear it.**"
)


def clip_tab(systems: Systems, examples: Sequence[Utterance], likely: Sequence[str], limits: DemoLimits) -> None:
    """Lay out the tab.

    Args:
        systems: teacher and students, opened.
        examples: clips to choose from, with their references.
        likely: languages of the corpus, which head the list of languages.
        limits: bounds on each visitor's requests.
    """
    labels = [
        (f"{u.text[:70]}{'…' if len(u.text) > 70 else ''} ({u.seconds:.1f} s)", i) for i, u in enumerate(examples)
    ]
    gr.Markdown(INTRO)
    tally = gr.State(Tally())
    with gr.Row():
        with gr.Column():
            example = gr.Dropdown(labels, value=None, label="Example with a known transcript", elem_id="example")
            audio = gr.Audio(
                sources=["upload", "microphone"],
                type="filepath",
                label=f"Clip (up to {limits.longest_seconds / 60:g} min, {limits.upload_mb} MB)",
                elem_id="clip",
                buttons=["download"],  # Gradio's share button uploads a recording to another site
            )
            problem = gr.HTML(elem_id="problem")
        with gr.Column():
            reference = gr.Textbox(
                label="Reference transcript (leave empty if unknown)",
                max_length=REFERENCE_CHARACTERS,
                lines=2,
                elem_id="reference",
            )
            language = languages(systems, likely)
            hotwords = gr.Textbox(
                label="Hotwords: names and terms to expect, between commas (optional)",
                max_length=HOTWORD_CHARACTERS,
                elem_id="hotwords",
            )
            button = gr.Button("Transcribe", variant="primary", elem_id="transcribe")
    progress = gr.HTML(elem_id="status", elem_classes="status")
    player = gr.HTML(elem_id="player")
    shown = gr.HTML(elem_id="results")
    files = gr.HTML(elem_id="files")
    rates = gr.HTML(elem_id="tally")
    answers = [problem, player, progress, shown, files]
    running = button.click(
        _transcriber(systems, limits), [audio, reference, language, hotwords, tally], [*answers, rates, tally], api_name="run_clip", api_visibility="undocumented",
        concurrency_limit=limits.at_once, concurrency_id=CLIPS, show_progress="hidden",
    )  # fmt: skip
    example.input(
        _chooser(examples),
        example,
        [audio, reference, language, example, problem],
        api_name="choose",
        api_visibility="undocumented",
    )
    audio.input(
        lambda: (None, ""), None, [example, reference], api_visibility="private"
    )  # an upload has no known transcript
    # Old answers are about another clip: they vanish, and what is still running stops.
    gr.on(
        [audio.change, reference.input, language.input, hotwords.input], lambda: [""] * len(answers), None, answers, cancels=[running],
        show_progress="hidden", queue=False, api_visibility="private",
    )  # fmt: skip


def _chooser(examples: Sequence[Utterance]) -> Callable[[int | None], tuple[object, ...]]:
    """What choosing an example does: clip, reference and language are filled in, or the problem is told beside it."""

    def choose(number: int | None) -> tuple[object, ...]:
        unchanged = gr.skip()
        if number is None:
            return None, "", unchanged, unchanged, unchanged
        utterance = examples[number]
        try:
            wave = utterance.wave()
        except UserError as error:  # the clip before stays, and no example is chosen
            return unchanged, unchanged, unchanged, None, problem_html(error)
        # Passed as samples, which Gradio writes to its own folder: it does not serve files of the corpus, wherever they are.
        samples = (np.clip(wave, -1, 1) * 32767).astype(np.int16)
        return (SAMPLE_RATE, samples), utterance.text, utterance.language, unchanged, ""

    return choose


def _transcriber(
    systems: Systems, limits: DemoLimits
) -> Callable[[str | None, str, str, str, Tally | None], Iterator[tuple[Any, ...]]]:
    """What the button does: the clip is transcribed by one system after another, and each answer is shown when it is there."""

    def run(
        path: str | None, reference: str, language: str, hotwords: str, tally: Tally | None
    ) -> Iterator[tuple[Any, ...]]:
        skip = gr.skip()
        tally, reference = tally or Tally(), reference or ""  # a client may send null
        try:
            clip, expected = usable(path, reference, limits), usable_hotwords(hotwords)
            wave = systems.decoding.submit(load_clip, clip, limits.longest_seconds).result()
        except UserError as error:
            yield problem_html(error), "", "", "", "", skip, skip
            return
        yield (
            "",
            write_player(wave),
            f"{html.escape((systems.students or [systems.teacher])[0])} is transcribing …",
            "",
            "",
            skip,
            skip,
        )
        try:
            for comparison in compare(systems, wave, reference.strip(), language, hotwords=expected):
                if not comparison.done:
                    yield skip, skip, status(comparison), cards(comparison), skip, skip, skip
                    continue
                files, of_systems = write_downloads(comparison)
                tally.add(wave, comparison)
                yield (
                    skip,
                    skip,
                    status(comparison),
                    cards(comparison, of_systems),
                    files,
                    tally.as_html(systems.teacher),
                    tally,
                )
        except UserError as error:  # hotwords that a system cannot write
            yield problem_html(error), "", "", "", "", skip, skip

    return run


def usable(path: str | None, reference: str, limits: DemoLimits) -> Path:
    """Validate a visitor's input and return the recording's path; raises UserError."""
    if not path:
        raise UserError("Choose an example, upload a recording or record one first.")
    if not Path(path).is_file():
        raise UserError(f"Recordings are removed after {limits.keep_minutes:g} minutes; choose this one again.")
    if len(reference) > REFERENCE_CHARACTERS:
        raise UserError(
            f"The reference transcript has {len(reference)} characters; expected at most {REFERENCE_CHARACTERS}."
        )
    return Path(path)


def usable_hotwords(text: str | None) -> list[str]:
    """The hotwords that a visitor gave; raises UserError for too long a text."""
    text = text or ""  # a client may send null
    if len(text) > HOTWORD_CHARACTERS:
        raise UserError(f"The hotwords have {len(text)} characters; expected at most {HOTWORD_CHARACTERS}.")
    return parse_hotwords(text)


def languages(systems: Systems, likely: Sequence[str]) -> gr.Dropdown:
    """Dropdown of the languages that every system supports, by name, the corpus's first."""
    choices = language_choices(systems.languages, likely)
    return gr.Dropdown(choices, value=choices[0][1], label="Language spoken", elem_classes="language")
