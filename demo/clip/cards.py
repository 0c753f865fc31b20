"""A comparison as HTML: one card per system, with its words, its times and its stages."""

from __future__ import annotations

import html
from collections.abc import Mapping

from demo.clip.difference import as_html, marked_html, split_words
from demo.clip.transcribe import STAGES, Comparison, Outcome
from workbench.evaluation.alignment import KINDS, units
from workbench.evaluation.scoring import headline, normalize

MEANINGS = {
    "substitution": "another word than in the reference",
    "deletion": "missing; the word shown is the reference's",
    "insertion": "not in the reference",
}


def cards(comparison: Comparison, links: Mapping[str, str] | None = None) -> str:
    """One card per system that has answered, and one for each that is still to answer.

    Args:
        comparison: what is known so far.
        links: HTML of each system's downloads, by its name.
    """
    slowest = max([1e-3, *(one.latency_ms for one in comparison.outcomes.values())])
    names = [*comparison.outcomes, *comparison.waiting]
    # students first: they answer first, and a card keeps its place when the teacher's comes
    names.sort(key=lambda name: name == comparison.teacher)
    out = [
        _card(comparison, comparison.outcomes[name], slowest, (links or {}).get(name, ""))
        if name in comparison.outcomes
        else f'<section class="card waiting" aria-label="{html.escape(name)}"><h3>{html.escape(name)}</h3><p>transcribing …</p></section>'
        for name in names
    ]
    return f'<div class="cards">{"".join(out)}</div>{_legend(comparison)}'


def said_html(comparison: Comparison, outcome: Outcome) -> str:
    """A transcript as it was written, marked against the reference, or else against the teacher's."""
    teacher = comparison.outcomes.get(comparison.teacher)
    if comparison.reference:
        return marked_html(comparison.reference, outcome.text, comparison.language, outcome.words)
    if teacher is None or teacher.problem or outcome is teacher:
        return as_html(split_words(outcome.text, comparison.language, outcome.words))
    return marked_html(teacher.text, outcome.text, comparison.language, outcome.words, "teacher")


def _card(comparison: Comparison, outcome: Outcome, slowest: float, links: str) -> str:
    name = html.escape(outcome.name)
    opened = f'<section class="card" aria-label="{name}"><h3>{name}</h3>'
    if outcome.problem:
        return f'{opened}<div class="problem" role="alert">{html.escape(outcome.problem)}</div></section>'
    said = said_html(comparison, outcome) or "<i>no speech found</i>"
    arrows = (
        ' role="group" aria-label="transcript; arrow keys move between words, Enter plays one"' if outcome.words else ""
    )
    incomplete = (
        "" if outcome.complete else "<p><b>The transcript repeats itself or reached its limit, and was cut.</b></p>"
    )
    return (
        f'{opened}<div class="said" lang="{html.escape(comparison.language)}" dir="auto" data-audio="#player audio"{arrows}>{said}</div>{incomplete}'
        f'<p class="figures">{_figures(comparison, outcome)}</p>{stage_bar(outcome.stages_ms, slowest)}'
        f'<p class="about">{_verdict(comparison, outcome)}{links}</p></section>'
    )


def _figures(comparison: Comparison, outcome: Outcome) -> str:
    runs = len(outcome.runs)
    how = f"median of {runs} runs" if runs > 1 else "one run so far" if not comparison.done else "one run"
    speedup = comparison.speedup(outcome.name)
    if outcome.name == comparison.teacher:
        relative = "the teacher"
    elif speedup is None or not outcome.text:
        relative = ""
    else:
        relative = f'<span class="speedup">{speedup:.1f} x</span> as fast as the teacher'
    return f'<span class="big">{outcome.latency_ms:.0f} ms</span> <small>{how}</small> {relative}'


def stage_bar(stages_ms: Mapping[str, float], slowest: float) -> str:
    """Stages as a bar, as long as the share of the slowest system's time, and in words."""
    shown = [(stage, stages_ms[stage]) for stage in STAGES if stage in stages_ms]
    if not shown:
        return ""
    parts = "".join(
        f'<span class="{stage}" style="width:{100 * ms / slowest:.2f}%"></span>' for stage, ms in shown if ms
    )
    words = " ".join(f'<li><span class="key {stage}"></span>{stage} {_ms(ms)} ms</li>' for stage, ms in shown)
    return f'<div class="bar" aria-hidden="true">{parts}</div><ul class="stages">{words}</ul>'


def _ms(ms: float) -> str:
    return f"{ms:.0f}" if ms >= 1 else f"{ms:.1f}"


def _verdict(comparison: Comparison, outcome: Outcome) -> str:
    errors = comparison.errors(outcome.name)
    if errors is not None:
        unit = "words" if headline(comparison.language) == "wer" else "characters"
        kinds = f"{errors.substitutions} substituted, {errors.deletions} deleted, {errors.insertions} inserted"
        return f"{errors.total} of {errors.length} {unit} wrong" + (f" ({kinds})" if errors.total else "")
    if outcome.name == comparison.teacher:
        return "no reference: the teacher may be wrong, too"
    if comparison.teacher not in comparison.outcomes:
        return ""
    texts = comparison.outcomes[comparison.teacher].text, outcome.text
    ours, theirs = (units(normalize(text, comparison.language), comparison.language) for text in texts)
    return "the same words as the teacher" if ours == theirs else "differs from the teacher"


def _legend(comparison: Comparison) -> str:
    if comparison.reference:
        marks = " ".join(f'<mark class="{kind}">{kind}</mark> {MEANINGS[kind]};' for kind in KINDS)
        what = f"{marks} spelling, case and punctuation do not count."
    else:
        what = '<mark class="differs">differs from the teacher</mark>: without a reference nobody knows which is right.'
    once = "Recordings of more than 30 s are run once. " if comparison.runs == 1 else ""
    return (
        f'<p class="legend">{what} {comparison.seconds:.1f} s of audio; one system at a time, students first. {once}'
        "Times do not include waiting, decoding the file or finding word times.</p>"
    )


def status(comparison: Comparison) -> str:
    """What is happening, for the line that screen readers announce."""
    if not comparison.done:
        if comparison.waiting:
            return f"{html.escape(comparison.waiting[0])} is transcribing …"
        return f"All have answered; running each {comparison.runs} times for the speed-up …"
    sped = [
        f"{html.escape(name)} {speedup:.1f} x as fast as the teacher"
        for name in comparison.outcomes
        if name != comparison.teacher and (speedup := comparison.speedup(name))
    ]
    return "Done" + (": " + "; ".join(sped) if sped else "") + "."


def problem_html(error: Exception | str) -> str:
    """An error for a visitor, escaped."""
    return f'<div class="problem" role="alert">{html.escape(str(error))}</div>'
