"""The tab for a whole split: progress, scores, and the worst clips."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import gradio as gr
from starlette.concurrency import run_in_threadpool

from demo.clip.difference import KINDS, Kind
from demo.corpus.run import CorpusRun
from demo.corpus.table import SHOWN, progress_html, summary_html, worst_html

REFRESH_SECONDS = 1.0
LIST_EVERY = 10  # clips after which the list of the worst ones is drawn anew
ALL = "any error"


def corpus_tab(page: gr.Blocks, run: CorpusRun, corpus: str) -> None:
    """Lay out the tab; the run is shared by all visitors."""
    systems = run.systems
    first = (systems.students or [systems.teacher])[0]

    def show(system: str, kind: str, shown: int) -> tuple[str, str, str]:
        chosen: Kind | None = next((k for k in KINDS if f"{k}s" == kind), None)
        name = system if system in systems.recognizers else first
        return progress_html(run), summary_html(run), worst_html(run, name, chosen, shown)

    async def follow(system: str, kind: str, shown: int) -> AsyncIterator[tuple[object, object, object]]:
        """Follow the run; asynchronous, so that any number of visitors may watch without a thread each."""
        before = -LIST_EVERY
        while run.running:
            progress, summary, worst = await run_in_threadpool(show, system, kind, shown)
            due = run.at - before >= LIST_EVERY
            before = run.at if due else before
            yield progress, summary, worst if due else gr.skip()
            await asyncio.sleep(REFRESH_SECONDS)
        yield await run_in_threadpool(show, system, kind, shown)

    async def begin(clips: float, system: str, kind: str, shown: int) -> AsyncIterator[tuple[object, object, object]]:
        run.start(int(clips))
        async for step in follow(system, kind, shown):
            yield step

    gr.Markdown(
        f"Every clip of the test split of *{corpus}*, by every system, once, in turn with what other visitors ask for. "
        "Whoever opens this page sees the same run."
    )
    with gr.Row():
        most = len(run.clips)
        clips = gr.Slider(1, most, value=min(most, 50), step=1, label=f"Clips, of {most}", elem_id="corpus-clips")
        button = gr.Button("Transcribe the split", variant="primary", elem_id="corpus-start")
        pause = gr.Button("Pause", elem_id="corpus-pause")
    progress = gr.HTML(elem_id="corpus-progress", elem_classes="status")
    summary = gr.HTML(elem_id="corpus-summary")
    with gr.Row():
        system = gr.Dropdown(list(systems.recognizers), value=first, label="Errors of", elem_id="corpus-system")
        kind = gr.Radio([ALL, *(f"{k}s" for k in KINDS)], value=ALL, label="Kind of error", elem_id="corpus-kind")
        shown = gr.Dropdown([SHOWN, 100, 500], value=SHOWN, label="Clips shown", elem_id="corpus-shown")
    worst = gr.HTML(elem_id="corpus-worst")
    chosen, answers = [system, kind, shown], [progress, summary, worst]
    button.click(
        begin, [clips, *chosen], answers, api_visibility="private", show_progress="hidden", concurrency_limit=None
    )
    pause.click(run.stop, None, None, api_visibility="private", queue=False)
    gr.on(
        [system.change, kind.change, shown.change],
        show,
        chosen,
        answers,
        api_visibility="private",
        show_progress="hidden",
    )
    # whoever opens the page while the run is going on sees it, too
    page.load(follow, chosen, answers, api_visibility="private", show_progress="hidden", concurrency_limit=None)
