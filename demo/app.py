"""The Gradio page: teacher and students side by side, on a clip that is chosen, uploaded or recorded, or live."""

from __future__ import annotations

import html
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from demo.difference import COLOURS
from demo.live import Live
from demo.session import Result, Systems, Tally, compare, load_clip, seconds
from workbench.audio import write_wav
from workbench.corpus import Utterance, scored_clips
from workbench.errors import UserError

EXAMPLES = 12
SYSTEM_FONT = ["system-ui", "sans-serif"]  # Gradio's default theme fetches fonts from the network
CSS = """
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(300px,1fr));gap:1rem}
.card{border:1px solid var(--border-color-primary);border-radius:8px;padding:1rem}
.card h3{margin:0 0 .3rem}.card .said{font-size:1.15rem;line-height:1.7;min-height:3.4em}
.card .big{font-size:1.6rem;font-weight:600;font-variant-numeric:tabular-nums}
.card .bar{height:6px;border-radius:3px;background:#4c6ef5;margin:.4rem 0}
.card small{opacity:.75}.card .saying{opacity:.6}
"""
STREAM_SECONDS = 0.25  # between blocks of the microphone
LONGEST_LIVE = 3600  # seconds


def build(systems: Systems, examples: Sequence[Utterance]) -> Any:
    """Build the page.

    Args:
        systems: teacher and students, opened.
        examples: clips to choose from, with their references.
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # it would call home, which also delays an offline start
    import gradio as gr

    with gr.Blocks(title="Teacher and students side by side") as page:
        gr.Markdown(
            "# Teacher and students side by side\nThe same speech, transcribed by each in turn on this machine."
        )
        with gr.Tab("A clip"):
            _clip_tab(systems, examples)
        with gr.Tab("Live"):
            _live_tab(systems)
    return page


def _clip_tab(systems: Systems, examples: Sequence[Utterance]) -> None:
    """A clip or recording, transcribed as a whole."""
    import gradio as gr

    by_label = {f"{u.text[:70]}{'…' if len(u.text) > 70 else ''} ({u.seconds:.1f} s)": u for u in examples}

    def choose(label: str | None) -> tuple[str | None, str, str]:
        if not label:
            return None, "", "en"
        utterance = by_label[label]
        return _as_file(utterance), utterance.text, utterance.language

    def run(path: str | None, reference: str, language: str, tally: Tally) -> tuple[str, Tally]:
        if not path:
            raise gr.Error("Choose an example, upload a recording or record one first.", print_exception=False)
        try:
            wave = load_clip(Path(path))
            results = compare(systems, wave, reference, language, tally)
        except UserError as error:
            raise gr.Error(str(error), print_exception=False) from None
        return cards(results, seconds(wave)), tally

    tally = gr.State(Tally())
    with gr.Row():
        with gr.Column():
            example = gr.Dropdown(
                list(by_label), value=None, label="Example with a known transcript", elem_id="example"
            )
            audio = gr.Audio(
                sources=["upload", "microphone"],
                type="filepath",
                label="Clip, or a recording of up to ten minutes",
                elem_id="clip",
            )
        with gr.Column():
            reference = gr.Textbox(label="What was said (leave empty if not known)", elem_id="reference")
            language = _languages(systems)
            button = gr.Button("Transcribe", variant="primary", elem_id="transcribe")
            gr.HTML(_legend())
    shown = gr.HTML(elem_id="results")
    example.input(choose, example, [audio, reference, language])
    audio.input(lambda: (None, ""), None, [example, reference])  # an upload has no known transcript
    button.click(run, [audio, reference, language, tally], [shown, tally], api_name="transcribe", concurrency_limit=1)


def _live_tab(systems: Systems) -> None:
    """A microphone, written along with."""
    import gradio as gr

    def listen(chunk: tuple[int, Any] | None, live: Live | None, names: list[str], language: str) -> Any:
        if chunk is None:
            return live, gr.skip()
        try:
            live = live or Live(systems, names, language, chunk[0])
            live.hear(chunk[1])
        except UserError as error:  # shown in place: a message would pop up for every block
            return live, f'<div class="card">{html.escape(str(error))}</div>'
        return live, live.as_html()

    def stop(live: Live | None) -> Any:
        if live is None:
            return gr.skip()
        live.finish()
        return live.as_html()

    names = list(systems.recognizers)
    with gr.Row():
        listening = gr.CheckboxGroup(names, value=names[1:], label="Who listens")
        language = _languages(systems)
    microphone = gr.Audio(sources=["microphone"], streaming=True, label="Microphone", elem_id="microphone")
    heard = gr.HTML(elem_id="heard")
    live = gr.State(None)
    microphone.start_recording(lambda: (None, ""), None, [live, heard])
    microphone.stream(
        listen, [microphone, live, listening, language], [live, heard], stream_every=STREAM_SECONDS,
        time_limit=LONGEST_LIVE, concurrency_limit=1, show_progress="hidden",
    )  # fmt: skip
    microphone.stop_recording(stop, live, heard, show_progress="hidden")


def _languages(systems: Systems) -> Any:
    """What every system knows, to choose from."""
    import gradio as gr

    known = systems.languages
    return gr.Dropdown(known, value="en" if "en" in known else known[0], label="Language")


def launch(page: Any, host: str, port: int, **options: Any) -> Any:
    """Serve a page with its theme and styles, from this machine alone."""
    import gradio as gr

    theme = gr.themes.Default(font=SYSTEM_FONT, font_mono=["ui-monospace", "monospace"])
    return page.launch(server_name=host, server_port=port, theme=theme, css=CSS, share=False, ssr_mode=False, **options)


def cards(results: Sequence[Result], clip_seconds: float) -> str:
    """One card a system, as HTML; bars are latency relative to the slowest."""
    slowest = max(1e-3, *(r.latency_ms for r in results))
    out = []
    for result in results:
        stages = " · ".join(
            f"{stage.replace('_', ' ')} {ms:.0f}" for stage, ms in result.stages_ms.items() if ms >= 0.5
        )
        wer = f"running WER {result.running_wer:.1f} %" if result.running_wer is not None else "no reference"
        against = f"differences from the {result.compared_with}" if result.compared_with else ""
        out.append(
            f'<div class="card"><h3>{html.escape(result.name)}</h3><div class="said">{result.coloured or "<i>nothing</i>"}</div>'
            f'<div class="big">{result.latency_ms:.0f} ms <span class="speedup">{result.speedup:.1f} x</span></div>'
            f'<div class="bar" style="width:{100 * result.latency_ms / slowest:.1f}%"></div>'
            f"<small>{stages} ms<br>{wer}{' · ' + against if against else ''}</small></div>"
        )
    return f'<div class="cards">{"".join(out)}</div><small>{clip_seconds:.1f} s of audio. Speed-up is against the teacher.</small>'


def serve(
    bundles: Sequence[Path], teacher: str, corpus: str, precision: str | None, host: str, port: int, threads: int | None,
    vad: bool | None = None,
) -> None:  # fmt: skip
    """Open the systems and serve the page until interrupted; raises UserError if the port is taken."""
    systems = Systems.open(bundles, teacher, precision, threads, vad)
    clips = scored_clips(corpus, "test")
    step = max(1, len(clips) // EXAMPLES)
    page = build(systems, sorted(clips[::step][:EXAMPLES], key=lambda u: u.seconds))
    try:
        launch(page, host, port)
    except OSError as error:
        raise UserError(f"port {port} on {host} cannot be used ({error}); choose another with --port") from None


def _legend() -> str:
    marks = " ".join(
        f'<span style="background:{colour};color:#1b1f24;border-radius:3px;padding:0 .3em">{kind}</span>'
        for kind, colour in COLOURS.items()
    )
    return f"<small>Words as WER counts them: {marks} (a deletion shows the word that is missing).</small>"


def _as_file(utterance: Utterance) -> str:
    """Path of a clip for the player; what is not a file of its own is written to a temporary one first."""
    if isinstance(utterance.audio, Path):
        return str(utterance.audio)
    with tempfile.NamedTemporaryFile(suffix=".wav", delete=False) as file:
        write_wav(Path(file.name), utterance.wave())
    return file.name
