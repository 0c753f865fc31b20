"""The running WER of a visitor: over the clips with a reference that they tried."""

from __future__ import annotations

import hashlib
import html
from dataclasses import dataclass, field

from demo.clip.transcribe import Comparison
from workbench.audio.decode import Wave
from workbench.evaluation.scoring import FEWEST_CLIPS, headline, paired_difference, score


@dataclass
class Tally:
    """What each system wrote of each clip tried; the same clip with the same reference counts once.

    Only clips that every system has answered count, so that all are scored on the same ones.
    """

    clips: dict[str, tuple[str, str, dict[str, str]]] = field(default_factory=dict)  # reference, language, texts

    def add(self, wave: Wave, comparison: Comparison) -> None:
        """Count a finished comparison, if it has a reference and no system failed."""
        outcomes = comparison.outcomes
        if not comparison.reference or any(
            one.problem or comparison.errors(one.name) is None for one in outcomes.values()
        ):
            return
        key = f"{comparison.language} {comparison.reference} {hashlib.sha256(wave.tobytes()).hexdigest()}"
        texts = {name: one.text for name, one in outcomes.items()}
        self.clips[key] = (comparison.reference, comparison.language, texts)

    def as_html(self, teacher: str) -> str:
        """A table of each system's error rate so far, with its 95 % interval; empty before the first clip with a reference."""
        if not self.clips:
            return ""
        references = [reference for reference, _, _ in self.clips.values()]
        languages = [language for _, language, _ in self.clips.values()]
        texts = {
            name: [said[name] for _, _, said in self.clips.values()] for name in next(iter(self.clips.values()))[2]
        }
        unit = headline(languages)
        rows = []
        for name, said in texts.items():
            found = score(references, said, languages)
            rate, interval = (found.wer, found.wer_ci) if unit == "wer" else (found.cer, found.cer_ci)
            shown = f"{interval[0]:.1f} to {interval[1]:.1f}" if interval else f"from {FEWEST_CLIPS} clips on"
            against = ""
            if name != teacher:
                difference = paired_difference(references, said, texts[teacher], languages, unit=unit)
                ci = difference["ci"]
                against = f"{difference['points']:+.1f}" + (f" ({ci[0]:+.1f} to {ci[1]:+.1f})" if ci else "")
            rows.append(
                f'<tr><th scope="row">{html.escape(name)}</th><td>{rate:.1f}</td><td>{shown}</td><td>{against}</td></tr>'
            )
        clips = f"{len(self.clips)} clip" + ("s" if len(self.clips) > 1 else "")
        return (
            f'<table class="plain"><caption>Your running {unit.upper()}, over the {clips} with a reference that you tried</caption>'
            f'<thead><tr><th scope="col">system</th><th scope="col">{unit.upper()} %</th><th scope="col">95 % interval</th>'
            f'<th scope="col">points from the teacher</th></tr></thead><tbody>{"".join(rows)}</tbody></table>'
        )
