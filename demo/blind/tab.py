"""The tab for blind comparison."""

from __future__ import annotations

import html
import json
import random
from dataclasses import dataclass, field
from pathlib import Path

import gradio as gr

from demo.blind.preferences import Choice, Pair, Preference, append_preference, count, draw_pair
from demo.clip.cards import problem_html
from demo.clip.downloads import link, served_folder
from demo.corpus.run import CorpusRun
from demo.limits import CLIPS
from workbench.core.errors import UserError

INTRO = (
    "Two transcripts of one clip, a student's and the teacher's, in random order and without names. Listen, and say which is better. "
    "Only clips on which they differ are drawn, so this tells who is right where they disagree, not how often they do."
)


@dataclass
class Judging:
    """A visitor's preferences, kept by the server until an hour after the page is closed."""

    preferences: list[Preference] = field(default_factory=list)
    judged: dict[str, set[int]] = field(default_factory=dict)  # by student: clips that are not drawn again
    pair: Pair | None = None  # waits for a preference


def blind_tab(run: CorpusRun, at_once: int, keep: Path | None = None) -> None:
    """Lay out the tab.

    Args:
        run: the split that clips are drawn from.
        at_once: bounds the visitors whose clips are drawn at the same time.
        keep: file to which every preference of every visitor is appended, a JSON object a line.
    """
    systems = run.systems
    first = systems.students[0]

    def draw(student: str, judging: Judging | None) -> tuple[object, ...]:
        judging = judging or Judging()
        student = student if student in systems.students else first
        try:
            judged = judging.judged.setdefault(student, set())
            judging.pair = draw_pair(run, student, judged, random.SystemRandom())
        except UserError as error:
            judging.pair = None
            return problem_html(error), judging, *_buttons(active=False)
        if judging.pair is None:
            text = "No other clip was found on which the two differ; try again, or judge another student."
            return f"<p>{text}</p>", judging, *_buttons(active=False)
        return pair_html(judging.pair), judging, *_buttons(active=True)

    def judge(choice: Choice, student: str, judging: Judging | None) -> tuple[object, ...]:
        if judging is None or judging.pair is None:
            return gr.skip(), gr.skip(), gr.skip(), *_buttons(active=False)
        pair, judging.pair = judging.pair, None
        if student not in pair.names:  # another one was chosen while this pair was drawn
            return "", gr.skip(), judging, *_buttons(active=False)
        judging.judged.setdefault(student, set()).add(pair.clip)
        preference = Preference(pair, choice)
        try:
            if keep is not None:
                append_preference(keep, preference)
        except OSError as error:
            judging.pair = pair
            return (
                problem_html(f"The preference could not be kept ({error.strerror})."),
                gr.skip(),
                judging,
                *_buttons(active=True),
            )
        judging.preferences.append(preference)
        return (
            pair_html(pair, judging.preferences[-1]),
            counts_html(judging, systems.teacher),
            judging,
            *_buttons(active=False),
        )

    gr.Markdown(INTRO)
    judging = gr.State(Judging())
    with gr.Row():
        student = gr.Dropdown(systems.students, value=first, label="Student", elem_id="blind-student")
        drawing = gr.Button("Draw a clip", variant="primary", elem_id="blind-draw")
    shown = gr.HTML(elem_id="blind-pair", elem_classes="blind")
    with gr.Row():
        buttons = [
            gr.Button(text, interactive=False, elem_id=f"blind-{name}")
            for name, text in (("A", "A is better"), ("B", "B is better"), ("none", "No preference"))
        ]
    counts = gr.HTML(elem_id="blind-counts")
    draws = drawing.click(
        draw,
        [student, judging],
        [shown, judging, *buttons],
        api_visibility="private",
        concurrency_limit=at_once,
        concurrency_id=CLIPS,
    )
    # a pair of another student is not judged, nor shown when it comes late
    student.change(lambda one: ("", Judging(one.preferences, one.judged), *_buttons(active=False)), judging,
                   [shown, judging, *buttons], api_visibility="private", cancels=[draws])  # fmt: skip
    choices: tuple[Choice, ...] = ("A", "B", "none")
    for button, choice in zip(buttons, choices, strict=True):
        fixed = gr.State(choice)
        button.click(
            judge,
            [fixed, student, judging],
            [shown, counts, judging, *buttons],
            api_visibility="private",
            show_progress="hidden",
        )


def _buttons(*, active: bool) -> list[gr.Button]:
    return [gr.Button(interactive=active) for _ in range(3)]


def pair_html(pair: Pair, preference: Preference | None = None) -> str:
    """The two transcripts; with a preference, whose they are and what the reference is."""
    language = html.escape(pair.language)
    cards = []
    for letter, name, text in zip("AB", pair.names, pair.texts, strict=True):
        title = letter
        if preference is not None:
            title += f": {html.escape(name)}" + (" (preferred)" if preference.choice == letter else "")
        said = html.escape(text) or "<i>nothing</i>"
        cards.append(
            f'<section class="card"><h3>{title}</h3><div class="said" lang="{language}" dir="auto">{said}</div></section>'
        )
    reference = (
        f'<p class="about">Reference: <span lang="{language}">{html.escape(pair.reference)}</span></p>'
        if preference
        else ""
    )
    return (
        f'<audio controls preload="auto" src="clip/{pair.clip}.wav" aria-label="the clip"></audio>'
        f'<div class="pair">{"".join(cards)}</div>{reference}'
    )


def counts_html(judging: Judging, teacher: str) -> str:
    """How often each student was preferred to the teacher, and a file of all preferences."""
    rows = []
    for student in dict.fromkeys(name for one in judging.preferences for name in one.pair.names if name != teacher):
        found = count(judging.preferences, student, teacher)
        share = "–"
        if found.interval is not None:
            low, high = found.interval
            share = (
                f"{100 * found.wins / found.decided:.0f} % ({100 * low:.0f} to {100 * high:.0f} %), p = {found.p:.2g}"
            )
        cells = "".join(f"<td>{cell}</td>" for cell in (found.wins, found.losses, found.undecided, share))
        rows.append(f'<tr><th scope="row">{html.escape(student)}</th>{cells}</tr>')
    path = served_folder() / "preferences.json"
    content = [one.as_dict() for one in judging.preferences]
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    return (
        '<table class="plain"><caption>Your preferences</caption><thead><tr><th scope="col">student</th><th scope="col">student better</th>'
        '<th scope="col">teacher better</th><th scope="col">undecided</th><th scope="col">student preferred (95 % interval, exact binomial)</th></tr></thead>'
        f'<tbody>{"".join(rows)}</tbody></table><p class="downloads">Save: {link(path, "Preferences (JSON)")}</p>'
    )
