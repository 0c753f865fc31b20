"""The tab that transcribes a microphone live."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import gradio as gr

from demo.clip.cards import problem_html
from demo.clip.tab import languages
from demo.limits import DemoLimits
from demo.live import Visitors
from demo.systems import Systems
from workbench.core.errors import UserError

STREAM_SECONDS = 0.25  # between microphone blocks


def live_tab(page: gr.Blocks, systems: Systems, likely: Sequence[str], limits: DemoLimits) -> Visitors:
    """Lay out the tab; arguments as for `clip_tab`. Returns who speaks."""
    visitors = Visitors(systems, limits.live)

    def listen(block: str | None, names: list[str], language: str, request: gr.Request) -> str | dict[str, object]:
        if block is None:
            unchanged: dict[str, object] = gr.skip()
            return unchanged
        try:
            return visitors.hear(str(request.session_hash), Path(block), names, language).as_html()
        except UserError as error:  # shown in the page: a pop-up would appear for every block
            return problem_html(error)

    def start(request: gr.Request) -> str:
        visitors.leave(str(request.session_hash))
        return ""

    def stop(request: gr.Request) -> Iterator[str]:
        yield from visitors.finish(str(request.session_hash))

    def leave(request: gr.Request) -> None:
        visitors.leave(str(request.session_hash))

    names = list(systems.recognizers)
    with gr.Row():
        listening = gr.CheckboxGroup(names, value=systems.students or names, label="Systems")
        language = languages(systems, likely)
    microphone = gr.Audio(
        sources=["microphone"], type="filepath", streaming=True, label="Microphone", elem_id="microphone", buttons=[]
    )
    shown = gr.HTML(elem_id="heard")
    # before the first block
    microphone.start_recording(start, None, shown, queue=False, api_visibility="private")
    microphone.stream(
        listen, [microphone, listening, language], shown, stream_every=STREAM_SECONDS, time_limit=limits.longest_seconds,
        concurrency_limit=2 * limits.live, show_progress="hidden", api_name="listen", api_visibility="undocumented",
    )  # fmt: skip
    microphone.stop_recording(
        stop, None, shown, concurrency_limit=2 * limits.live, show_progress="hidden", api_visibility="private"
    )
    page.unload(leave)
    return visitors
