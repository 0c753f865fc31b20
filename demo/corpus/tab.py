"""The tab for a whole split: progress, scores, and the worst clips."""

from __future__ import annotations

from dataclasses import dataclass, replace

import gradio as gr

from demo.corpus.run import CorpusRun
from demo.corpus.table import SHOWN, progress_html, summary_html, worst_html
from workbench.evaluation.alignment import KINDS, Kind

REFRESH_SECONDS = 1.0
LIST_EVERY = 10  # clips after which the list of the worst ones is drawn anew
ALL = "any error"
TITLE = "Corpus"


@dataclass(frozen=True)
class Drawn:
    """What a visitor sees of the run."""

    chosen: tuple[str, str, int]  # system, kind of error, clips shown
    progress: str
    listed: int  # clips done when the list was drawn


def corpus_tab(tabs: gr.Tabs, run: CorpusRun, corpus: str) -> None:
    """Lay out the tab.

    Args:
        tabs: all tabs of the page.
        run: shared by all visitors.
        corpus: the corpus's name.
    """
    systems = run.systems
    first = (systems.students or [systems.teacher])[0]

    def draw(system: str, kind: str, shown: int, drawn: Drawn | None = None) -> tuple[object, ...]:
        """Progress, scores, list and what is now drawn; only what has changed since `drawn`, in a moment where nothing has."""
        chosen, progress, rows, running = (system, kind, shown), progress_html(run), len(run.rows), run.running
        unchanged = gr.skip()
        if drawn is not None and (drawn.chosen, drawn.progress) == (chosen, progress):
            return unchanged, unchanged, unchanged, unchanged
        if drawn is not None and drawn.chosen == chosen and rows - drawn.listed < (LIST_EVERY if running else 1):
            return progress, summary_html(run), unchanged, replace(drawn, progress=progress)
        of_kind: Kind | None = next((k for k in KINDS if f"{k}s" == kind), None)
        name = system if system in systems.recognizers else first
        listed = worst_html(run, name, of_kind, shown)
        return progress, summary_html(run), listed, Drawn(chosen, progress, rows)

    def begin(clips: float, system: str, kind: str, shown: int) -> tuple[object, ...]:
        run.start(int(clips))
        return draw(system, kind, shown)

    def watch(selected: gr.SelectData) -> gr.Timer:
        """Only who looks at the tab asks for news."""
        return gr.Timer(active=selected.value == TITLE)

    gr.Markdown(
        f"Every clip of the test split of *{corpus}*, by every system, once, in turn with what other visitors ask for. "
        "Whoever opens this page sees the same run."
    )
    with gr.Row():
        most = len(run.clips)
        # a slider has two ends, even where the split has a single clip
        clips = gr.Slider(
            1, max(most, 2), value=min(most, 50), step=1, label=f"Clips, of {most}", elem_id="corpus-clips"
        )
        button = gr.Button("Transcribe the split", variant="primary", elem_id="corpus-start")
        pause = gr.Button("Pause", elem_id="corpus-pause")
    progress = gr.HTML(elem_id="corpus-progress", elem_classes="status")
    summary = gr.HTML(elem_id="corpus-summary")
    with gr.Row():
        system = gr.Dropdown(list(systems.recognizers), value=first, label="Errors of", elem_id="corpus-system")
        kind = gr.Radio([ALL, *(f"{k}s" for k in KINDS)], value=ALL, label="Kind of error", elem_id="corpus-kind")
        shown = gr.Dropdown([SHOWN, 100, 500], value=SHOWN, label="Clips shown", elem_id="corpus-shown")
    worst = gr.HTML(elem_id="corpus-worst")
    chosen: list[gr.Dropdown | gr.Radio] = [system, kind, shown]
    drawn = gr.State(None)
    answers = [progress, summary, worst, drawn]
    # Short events, with the choices of the moment: none lasts as long as the run, and whoever opened the page before the run sees it.
    timer = gr.Timer(REFRESH_SECONDS, active=False)
    timer.tick(draw, [*chosen, drawn], answers, api_visibility="private", show_progress="hidden", queue=False)
    tabs.select(watch, None, timer, api_visibility="private", show_progress="hidden", queue=False)
    button.click(begin, [clips, *chosen], answers, api_visibility="private", show_progress="hidden")
    pause.click(run.stop, None, None, api_visibility="private", queue=False)
    gr.on(
        [system.change, kind.change, shown.change],
        draw,
        chosen,
        answers,
        api_visibility="private",
        show_progress="hidden",
    )
