"""The Gradio page: its tabs, its header, and how it is served."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, Unpack

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # Gradio's telemetry, which also delays an offline start
import gradio as gr
from starlette.middleware import Middleware

from demo.api import add_endpoints
from demo.blind.preferences import check_preferences_file
from demo.blind.tab import blind_tab
from demo.browser_security import STATIC, BrowserSecurity
from demo.clip.tab import clip_tab
from demo.corpus.audio import CorpusAudio
from demo.corpus.run import CorpusRun
from demo.corpus.tab import TITLE as CORPUS
from demo.corpus.tab import corpus_tab
from demo.guard import Guard, fetch_nothing
from demo.limits import DemoLimits, private_folder
from demo.live import Visitors
from demo.live_tab import live_tab
from demo.measured import header, report_pages
from demo.systems import Systems
from export.assembly.teacher import short_name, teacher_bundle
from workbench.core.errors import UserError
from workbench.corpus import Utterance, scored_clips

if TYPE_CHECKING:
    from gradio.routes import App

EXAMPLES = 12
SYSTEM_FONT = ["system-ui", "sans-serif"]  # Gradio's default theme fetches fonts from the network
SESSIONS = 200  # browser sessions whose state is kept
OTHER_EVENTS = 16  # concurrent events besides transcriptions and microphones
TITLE = "Teacher and students side by side"
ITSELF = (
    "What you see: {teacher} beside itself. No student was named, so its own weights in {precision} stand for one, against fp32. This shows what "
    "quantization does, not what distillation does: name a student's bundle (workbench demo BUNDLE) to see that."
)


@dataclass
class Page:
    """The page before it is served."""

    blocks: gr.Blocks
    systems: Systems
    clips: CorpusAudio  # of the split
    visitors: Visitors  # who speaks live
    run: CorpusRun


def build(
    systems: Systems, clips: Sequence[Utterance], limits: DemoLimits, corpus: str = "a corpus", note: str = "",
    preferences: Path | None = None,
) -> Page:  # fmt: skip
    """Build the page.

    Args:
        systems: teacher and students, opened.
        clips: the scored clips of a split; some of them are the examples.
        limits: bounds on each visitor's requests.
        corpus: the corpus's name.
        note: what is shown, in a sentence, where nobody chose it.
        preferences: file that visitors' preferences are appended to.
    """
    keep = round(60 * limits.keep_minutes)
    likely = [code for code, _ in Counter(u.language for u in clips).most_common()]
    run = CorpusRun(systems, clips)
    with gr.Blocks(title=TITLE, delete_cache=(max(1, keep // 10), keep)) as page:
        gr.Markdown(f"# {TITLE}\nThe same speech, transcribed by each system in turn on this machine.")
        gr.HTML(header(systems, corpus, note), elem_id="measured")
        with gr.Tabs() as tabs:
            with gr.Tab("A clip"):
                clip_tab(systems, choose_examples(clips), likely, limits)
            with gr.Tab("Live"):
                visitors = live_tab(page, systems, likely, limits)
            with gr.Tab(CORPUS):
                corpus_tab(tabs, run, corpus)
            if systems.students:
                with gr.Tab("Blind A/B"):
                    blind_tab(run, limits.at_once, preferences)
        add_endpoints(systems, run, limits)
    # api_open=False: direct API calls would bypass the queue
    page.queue(max_size=limits.waiting, default_concurrency_limit=OTHER_EVENTS, api_open=False)
    return Page(page, systems, CorpusAudio(clips), visitors, run)


def choose_examples(clips: Sequence[Utterance]) -> list[Utterance]:
    """A dozen clips from all over the split, the shortest first."""
    step = max(1, len(clips) // EXAMPLES)
    return sorted(clips[::step][:EXAMPLES], key=lambda u: u.seconds)


def theme() -> gr.themes.Base:
    """Gradio's theme with the system's fonts, and with colours of enough contrast to read: 4.5 to 1, in light and dark."""
    default = gr.themes.Default(font=SYSTEM_FONT, font_mono=["ui-monospace", "monospace"], primary_hue="blue")
    return default.set(
        body_text_color_subdued="#57606a",
        body_text_color_subdued_dark="#b6bec9",
        block_label_text_color="#57606a",
        block_info_text_color="#57606a",
        input_placeholder_color="#57606a",
        button_primary_background_fill="#1864ab",
        button_primary_background_fill_hover="#0b4f8a",
        button_primary_background_fill_dark="#1864ab",
        button_primary_background_fill_hover_dark="#0b4f8a",
        button_primary_text_color="white",
        button_primary_text_color_dark="white",
        link_text_color="#1558b0",
        link_text_color_dark="#8ab4f8",
    )


class Served(TypedDict, total=False):
    """Options for serving a page, besides those that are always set."""

    prevent_thread_lock: bool  # return at once
    quiet: bool


def launch(page: Page, host: str, port: int, limits: DemoLimits, **options: Unpack[Served]) -> tuple[App, str, str]:
    """Serve a page with its theme and styles, loading nothing from the network."""
    fetch_nothing()
    # otherwise Gradio 6.31 stores transcripts in the visitor's browser; 6.16 lacks the launch() argument
    os.environ["GRADIO_RUN_HISTORY"] = "False"
    guarded = Middleware(Guard, upload_bytes=limits.upload_mb * 1_000_000 + 10_000)
    secured = Middleware(BrowserSecurity, reports=report_pages(page.systems), clips=page.clips)
    return page.blocks.launch(
        server_name=host,
        server_port=port,
        theme=theme(),
        css=(STATIC / "page.css").read_text("utf-8"),
        footer_links=["api", "settings"],
        share=False,
        ssr_mode=False,
        enable_monitoring=False,
        max_file_size=limits.upload_mb * 1_000_000,
        max_threads=limits.at_once + 4 * limits.live + OTHER_EVENTS,
        state_session_capacity=SESSIONS,
        app_kwargs={"middleware": [secured, guarded]},
        **options,
    )


def serve(
    bundles: Sequence[Path], teacher: str, corpus: str, precision: str | None, host: str, port: int, threads: int | None,
    vad: bool | None = None, limits: DemoLimits | None = None, preferences: Path | None = None,
) -> None:  # fmt: skip
    """Open the systems and serve the page until interrupted; raises UserError if the port is taken, or preferences cannot be kept.

    Without bundles the teacher is shown beside itself, quantized.
    """
    limits, note = limits or DemoLimits(), ""
    if preferences is not None:
        check_preferences_file(preferences)
    if not bundles:
        precision = precision or "int8"
        bundles = [teacher_bundle(teacher, ["fp32", precision])]
        note = ITSELF.format(teacher=short_name(teacher), precision=precision)
        teacher = str(bundles[0])
    systems = Systems.open(bundles, teacher, precision, threads, vad)
    clips = scored_clips(corpus, "test")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that uploads are removed however the server ends
    try:
        with private_folder(limits.keep_minutes):
            page = build(systems, clips, limits, corpus, note, preferences)
            launch(page, host, port, limits)
    except OSError as error:
        raise UserError(f"port {port} on {host} cannot be used ({error}); choose another with --port") from None
    finally:
        systems.close()
