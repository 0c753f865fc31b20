"""The Gradio page: teacher and students side by side, on an example, upload or recording, or live."""

from __future__ import annotations

import html
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, Unpack

import numpy as np
import numpy.typing as npt

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # Gradio's telemetry, which also delays an offline start
import gradio as gr
from starlette.middleware import Middleware

from demo.difference import COLOURS
from demo.guard import Guard, fetch_nothing
from demo.limits import REFERENCE_CHARACTERS, DemoLimits, private_folder
from demo.live import Visitors
from demo.session import Result, RunningWer, Systems, compare, load_clip, seconds
from workbench.audio.decode import SAMPLE_RATE
from workbench.core.errors import UserError
from workbench.corpus import Utterance, scored_clips

if TYPE_CHECKING:
    from gradio.routes import App

EXAMPLES = 12
SYSTEM_FONT = ["system-ui", "sans-serif"]  # Gradio's default theme fetches fonts from the network
CSS = """
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(300px,1fr));gap:1rem}
.card{border:1px solid var(--border-color-primary);border-radius:8px;padding:1rem}
.card h3{margin:0 0 .3rem}.card .said{font-size:1.15rem;line-height:1.7;min-height:3.4em}
.card .big{font-size:1.6rem;font-weight:600;font-variant-numeric:tabular-nums}
.card .bar{height:6px;border-radius:3px;background:#4c6ef5;margin:.4rem 0}
.card small{opacity:.75}.card .saying{opacity:.6}.problem{border-left:4px solid #e03131;padding:.3rem .8rem;overflow-wrap:anywhere}
"""
STREAM_SECONDS = 0.25  # between microphone blocks
SESSIONS = 200  # browser sessions whose state is kept
OTHER_EVENTS = 16  # concurrent events besides transcriptions and microphones


def build(systems: Systems, examples: Sequence[Utterance], limits: DemoLimits) -> gr.Blocks:
    """Build the page.

    Args:
        systems: teacher and students, opened.
        examples: clips to choose from, with their references.
        limits: bounds on each visitor's requests.
    """
    keep = round(60 * limits.keep_minutes)
    with gr.Blocks(title="Teacher and students side by side", delete_cache=(max(1, keep // 10), keep)) as page:
        gr.Markdown(
            "# Teacher and students side by side\nThe same speech, transcribed by each system in turn on this machine."
        )
        with gr.Tab("A clip"):
            _clip_tab(systems, examples, limits)
        with gr.Tab("Live"):
            _live_tab(page, systems, limits)
    # api_open=False: direct API calls would bypass the queue
    queued: gr.Blocks = page.queue(max_size=limits.waiting, default_concurrency_limit=OTHER_EVENTS, api_open=False)
    return queued


def _clip_tab(systems: Systems, examples: Sequence[Utterance], limits: DemoLimits) -> None:
    """A clip or recording, transcribed as a whole."""
    labels = [
        (f"{u.text[:70]}{'…' if len(u.text) > 70 else ''} ({u.seconds:.1f} s)", i) for i, u in enumerate(examples)
    ]

    def choose(number: int | None) -> tuple[tuple[int, npt.NDArray[np.int16]] | None, str, str | dict[str, object]]:
        if number is None:
            return None, "", gr.skip()
        utterance = examples[number]
        # Passed as samples, which Gradio writes to its own folder: it does not serve files of the corpus, wherever they are.
        samples = (np.clip(utterance.wave(), -1, 1) * 32767).astype(np.int16)
        return (SAMPLE_RATE, samples), utterance.text, utterance.language

    def run(path: str | None, reference: str, language: str, tally: RunningWer) -> tuple[str, str, RunningWer]:
        try:
            clip = _usable(path, reference, limits)
            wave = systems.decoding.submit(load_clip, clip, limits.longest_seconds).result()
            results = compare(systems, wave, reference, language, tally)
        except UserError as error:
            return _problem(error), "", tally
        return "", cards(results, seconds(wave)), tally

    tally = gr.State(RunningWer())
    with gr.Row():
        with gr.Column():
            example = gr.Dropdown(labels, value=None, label="Example with a known transcript", elem_id="example")
            audio = gr.Audio(
                sources=["upload", "microphone"],
                type="filepath",
                label=f"Clip, or a recording of up to {limits.longest_seconds / 60:g} minutes and {limits.upload_mb} MB",
                elem_id="clip",
                buttons=["download"],  # Gradio's share button uploads a recording to another site
            )
            problem = gr.HTML(elem_id="problem")
        with gr.Column():
            reference = gr.Textbox(
                label="Reference transcript (leave empty if unknown)",
                max_length=REFERENCE_CHARACTERS,
                elem_id="reference",
            )
            language = _languages(systems)
            button = gr.Button("Transcribe", variant="primary", elem_id="transcribe")
            gr.HTML(_legend())
    shown = gr.HTML(elem_id="results")
    example.input(choose, example, [audio, reference, language])
    audio.input(lambda: (None, "", ""), None, [example, reference, problem])  # an upload has no known transcript
    button.click(
        run, [audio, reference, language, tally], [problem, shown, tally], api_name="transcribe",
        concurrency_limit=limits.at_once,
    )  # fmt: skip


def _live_tab(page: gr.Blocks, systems: Systems, limits: DemoLimits) -> None:
    """A microphone, transcribed live."""
    visitors = Visitors(systems, limits.live)

    def listen(block: str | None, names: list[str], language: str, request: gr.Request) -> str | dict[str, object]:
        if block is None:
            unchanged: dict[str, object] = gr.skip()
            return unchanged
        try:
            return visitors.hear(str(request.session_hash), Path(block), names, language).as_html()
        except UserError as error:  # shown in the page: a pop-up would appear for every block
            return _problem(error)

    def start(request: gr.Request) -> str:
        visitors.leave(str(request.session_hash))
        return ""

    def stop(request: gr.Request) -> Iterator[str]:
        yield from visitors.finish(str(request.session_hash))

    def leave(request: gr.Request) -> None:
        visitors.leave(str(request.session_hash))

    names = list(systems.recognizers)
    with gr.Row():
        listening = gr.CheckboxGroup(names, value=names[1:], label="Systems")
        language = _languages(systems)
    microphone = gr.Audio(
        sources=["microphone"], type="filepath", streaming=True, label="Microphone", elem_id="microphone", buttons=[]
    )
    shown = gr.HTML(elem_id="heard")
    microphone.start_recording(start, None, shown, queue=False)  # before the first block
    microphone.stream(
        listen, [microphone, listening, language], shown, stream_every=STREAM_SECONDS,
        time_limit=limits.longest_seconds, concurrency_limit=2 * limits.live, show_progress="hidden",
    )  # fmt: skip
    microphone.stop_recording(stop, None, shown, concurrency_limit=2 * limits.live, show_progress="hidden")
    page.unload(leave)


def _usable(path: str | None, reference: str, limits: DemoLimits) -> Path:
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


def _problem(error: UserError) -> str:
    return f'<div class="problem">{html.escape(str(error))}</div>'


def _languages(systems: Systems) -> gr.Dropdown:
    """Dropdown of the languages that every system supports."""
    known = systems.languages
    return gr.Dropdown(known, value="en" if "en" in known else known[0], label="Language")


class Served(TypedDict, total=False):
    """Options for serving a page, besides those that are always set."""

    prevent_thread_lock: bool  # return at once
    quiet: bool


def launch(
    page: gr.Blocks, host: str, port: int, limits: DemoLimits, **options: Unpack[Served]
) -> tuple[App, str, str]:
    """Serve a page with its theme and styles, loading nothing from the network."""
    fetch_nothing()
    # otherwise Gradio 6.31 stores transcripts in the visitor's browser; 6.16 lacks the launch() argument
    os.environ["GRADIO_RUN_HISTORY"] = "False"
    return page.launch(
        server_name=host,
        server_port=port,
        theme=gr.themes.Default(font=SYSTEM_FONT, font_mono=["ui-monospace", "monospace"]),
        css=CSS,
        share=False,
        ssr_mode=False,
        enable_monitoring=False,
        max_file_size=limits.upload_mb * 1_000_000,
        max_threads=limits.at_once + 4 * limits.live + OTHER_EVENTS,
        state_session_capacity=SESSIONS,
        app_kwargs={"middleware": [Middleware(Guard, upload_bytes=limits.upload_mb * 1_000_000 + 10_000)]},
        **options,
    )


def cards(results: Sequence[Result], clip_seconds: float) -> str:
    """One card per system, as HTML; bars show latency relative to the slowest."""
    slowest = max(1e-3, *(r.latency_ms for r in results))
    out = []
    for result in results:
        stages = " · ".join(
            f"{html.escape(stage.replace('_', ' '))} {ms:.0f}" for stage, ms in result.stages_ms.items() if ms >= 0.5
        )
        wer = f"running WER {result.running_wer:.1f} %" if result.running_wer is not None else "no reference"
        against = f"differences from the {html.escape(result.compared_with)}" if result.compared_with else ""
        out.append(
            f'<div class="card"><h3>{html.escape(result.name)}</h3><div class="said">{result.coloured or "<i>nothing</i>"}</div>'
            f'<div class="big">{result.latency_ms:.0f} ms <span class="speedup">{result.speedup:.1f} x</span></div>'
            f'<div class="bar" style="width:{100 * result.latency_ms / slowest:.1f}%"></div>'
            f"<small>{stages} ms<br>{wer}{' · ' + against if against else ''}</small></div>"
        )
    return f'<div class="cards">{"".join(out)}</div><small>{clip_seconds:.1f} s of audio. Speed-up is relative to the teacher.</small>'


def serve(
    bundles: Sequence[Path], teacher: str, corpus: str, precision: str | None, host: str, port: int, threads: int | None,
    vad: bool | None = None, limits: DemoLimits | None = None,
) -> None:  # fmt: skip
    """Open the systems and serve the page until interrupted; raises UserError if the port is taken."""
    limits = limits or DemoLimits()
    systems = Systems.open(bundles, teacher, precision, threads, vad)
    clips = scored_clips(corpus, "test")
    step = max(1, len(clips) // EXAMPLES)
    examples = sorted(clips[::step][:EXAMPLES], key=lambda u: u.seconds)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that uploads are removed however the server ends
    try:
        with private_folder(limits.keep_minutes):
            launch(build(systems, examples, limits), host, port, limits)
    except OSError as error:
        raise UserError(f"port {port} on {host} cannot be used ({error}); choose another with --port") from None
    finally:
        systems.close()


def _legend() -> str:
    marks = " ".join(
        f'<span style="background:{colour};color:#1b1f24;border-radius:3px;padding:0 .3em">{kind}</span>'
        for kind, colour in COLOURS.items()
    )
    return f"<small>Word errors as counted in WER: {marks} (a deletion shows the missing word).</small>"
