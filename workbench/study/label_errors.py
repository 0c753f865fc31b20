"""How a run weighed its utterances over time, and which labels it learnt to distrust: a finder of wrong transcripts."""

from __future__ import annotations

import functools
import html
import json
import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import typer

from workbench.audio.player import flac_bytes, player
from workbench.config.named_corpora import is_dataset
from workbench.config.recipe import Recipe, load_recipe
from workbench.config.weightings import parse_controls
from workbench.core.errors import UserError, first_line
from workbench.core.files import json_lines, write_text
from workbench.core.html_page import html_page
from workbench.core.plots import ORDERED, as_svg, legend_below, new_figure
from workbench.core.tables import print_rows
from workbench.corpus import Utterance, recipe_training_set
from workbench.corpus.corrupt import RECORD
from workbench.corpus.sources import find_corpus

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger("workbench")
LAST_SHARE = 1 / 3  # of an utterance's visits, over which weights and losses are averaged for a ranking
BINS = 5  # of difficulty
FIFTHS = ("easiest fifth", "second", "third", "fourth", "hardest fifth")
RANKINGS = ("system", "student_loss", "teacher_loss")
EVEN = 1e-6  # weights that differ by less count as equal


@dataclass(frozen=True)
class RunWeights:
    """The weights of a run's last stage that decodes."""

    folder: Path
    recipe: Recipe
    stage: str
    ids: list[str]  # of each row
    # step, alpha, task_weight, task, distillation, teacher_loss of each row
    columns: dict[str, npt.NDArray[np.float64]]

    @property
    def system(self) -> str:
        """Name of the weighting, and of the control on it if there is one."""
        return ", ".join([str(self.weighting["name"]), *parse_controls(self.weighting)])

    @property
    def weighting(self) -> Mapping[str, object]:
        """Options of the weighting."""
        return self.recipe.stages[self.stage].weighting

    def late(self, column: str) -> dict[str, float]:
        """Mean of a column over the last third of the times that an utterance was trained on, at least one."""
        visits: dict[str, list[float]] = {}
        for i in np.argsort(self.columns["step"], kind="stable"):
            visits.setdefault(self.ids[i], []).append(float(self.columns[column][i]))
        return {name: float(np.mean(v[-max(1, round(LAST_SHARE * len(v))) :])) for name, v in visits.items()}

    def distrust(self, by: str = "system") -> tuple[dict[str, tuple[float, float]], str]:
        """How little a label is trusted, by utterance, and what that was taken from.

        A system that weights task losses differently shows which labels it trusts: the less weight, the less trust; of equal weights the
        student's loss decides. For one that does not, labels are ranked by the student's own loss at the end of training.

        Args:
            by: `system`, or the rankings that it is compared with: `student_loss`, `teacher_loss`.
        """
        loss = self.late("task")
        if by == "teacher_loss":
            return {name: (x, 0.0) for name, x in self.late("teacher_loss").items()}, "the teacher's loss"
        weights = self.late("task_weight")
        if by == "system" and (control := next(iter(parse_controls(self.weighting)), None)) is not None:
            said = f"the student's loss, because with {control} the weights are not the utterances' own"
            return {name: (x, 0.0) for name, x in loss.items()}, said
        if by == "student_loss":
            return {name: (x, 0.0) for name, x in loss.items()}, "the student's loss"
        if np.ptp(list(weights.values())) <= EVEN:
            said = "the student's loss, because this system weights all labels alike"
            return {name: (x, 0.0) for name, x in loss.items()}, said
        return {name: (-weight, loss[name]) for name, weight in weights.items()}, "weight of the task loss"

    def over_time(self, column: str) -> tuple[list[float], list[list[float]]]:
        """Mean of a column for fifths of the utterances by difficulty (the teacher's loss), easiest first, over time.

        Returns:
            Steps, and for each fifth its mean at each of them.
        """
        step, values, loss = (self.columns[name] for name in ("step", column, "teacher_loss"))
        edges = np.quantile(loss, np.linspace(0, 1, BINS + 1)[1:-1])
        part = np.searchsorted(edges, loss)
        times = np.linspace(step.min(), step.max() + 1, min(40, len(np.unique(step))) + 1)
        when = np.clip(np.searchsorted(times, step, "right") - 1, 0, len(times) - 2)
        lines = []
        for fifth in range(BINS):
            means = [values[(part == fifth) & (when == t)] for t in range(len(times) - 1)]
            lines.append([float(m.mean()) if len(m) else float("nan") for m in means])
        return [float(t) for t in (times[:-1] + times[1:]) / 2], lines

    @functools.cached_property
    def corrupted(self) -> set[str] | None:
        """Ids whose transcripts were corrupted on purpose, if the corpus records them."""
        if is_dataset(self.recipe.corpus):
            return None
        try:
            place = find_corpus(self.recipe.corpus)
        except UserError as error:
            log.info("which labels were corrupted is not known here: %s", error)
            return None
        record = (place if place.is_dir() else place.parent) / RECORD
        if not record.is_file():
            return None
        return {json.loads(line)["id"] for line in json_lines(record)}

    @functools.cached_property
    def found(self) -> dict[str, dict[str, float]] | None:
        """How well rankings find the corrupted labels: the system's, and for comparison those by loss alone."""
        wrong = self.corrupted
        if wrong is None:
            return None
        return {by: retrieval(self.distrust(by)[0], wrong) for by in RANKINGS}

    def print(self, worst: int, by: str = "system") -> None:
        """Print the ranking, and how accurate it is where that is known."""
        scores, basis = self.distrust(by)
        texts, rows = self.utterances, []
        columns = [self.late(name) for name in ("alpha", "task_weight", "task", "teacher_loss")]
        for rank, name in enumerate(ranked(scores)[:worst], 1):
            text = texts[name].text if name in texts else ""
            rows.append((str(rank), name, text, *(f"{column[name]:.3f}" for column in columns)))
        heads = ("rank", "utterance", "transcript", "alpha", "task weight", "student's loss", "teacher's loss")
        task, alpha = (float(np.nanmean(self.columns[name])) for name in ("task_weight", "alpha"))
        constant = (
            f"alpha: {alpha:.3f}" if abs(task + alpha - 1) < 1e-3 else f"task: {task:.3f}, distillation: {alpha:.3f}"
        )
        typer.echo(
            f"mean weights over all steps: task {task:.3f}, distillation {alpha:.3f}; constant ones of that size: {{name: fixed, {constant}}}"
        )
        print_rows(heads, rows, f"{self.system}: least trusted labels, by {basis}", prose=True)
        for name, figures in (self.found or {}).items():
            typer.echo(
                f"{name}: of {figures['corrupted']:.0f} corrupted labels the first {figures['corrupted']:.0f} hold "
                f"{100 * figures['precision']:.1f} % (precision = recall); average precision {figures['average_precision']:.3f}"
            )

    @functools.cached_property
    def utterances(self) -> dict[str, Utterance]:
        try:
            return {u.id: u for u in recipe_training_set(self.recipe)}
        except UserError as error:
            log.info("transcripts and audio are left out: %s", error)
            return {}


def read_run(folder: Path) -> RunWeights:
    """Read a run's weights; raises UserError if the folder holds none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder / "weights.parquet"
    if not path.is_file():
        raise UserError(
            f"{path}: no such file; expected the folder of a finished run (workbench distill, workbench study)"
        )
    recipe = load_recipe(folder / "recipe.yaml")
    stage = [name for name, stage in recipe.stages.items() if stage.decoder_losses]
    if not stage:
        raise UserError(f"{folder}: none of its stages decodes, so it weighted nothing")
    try:
        table = pq.read_table(path, filters=[("stage", "==", stage[-1])])
        ids, names = table["id"].to_pylist(), [name for name in table.column_names if name not in ("stage", "id")]
        columns = {name: table[name].to_numpy().astype(np.float64) for name in names}
    except (pa.ArrowException, KeyError, ValueError, TypeError) as error:  # not Parquet, or other columns
        raise UserError(f"{path}: not the weights of a run ({first_line(error)})") from None
    if absent := {"step", "alpha", "task_weight", "task", "teacher_loss"} - columns.keys():
        raise UserError(f"{path}: lacks the columns {', '.join(sorted(absent))}; expected the weights of a run")
    if not table.num_rows:
        raise UserError(
            f"{path}: stage {stage[-1]} weighted no utterance, because all of its micro-batches were on-policy"
        )
    return RunWeights(folder, recipe, stage[-1], ids, columns)


def ranked(scores: Mapping[str, tuple[float, float]]) -> list[str]:
    """Ids by falling score, then by the second one, then by id."""
    return sorted(scores, key=lambda name: (-scores[name][0], -scores[name][1], name))


def retrieval(scores: Mapping[str, tuple[float, float]], wrong: Collection[str]) -> dict[str, float]:
    """How well a ranking finds wrong labels.

    Returns:
        `corrupted`: how many there are, n. `precision` and `recall` of the first n, which are one number. `average_precision`:
        mean precision at each wrong label. `chance`: what a random order would give for both.
    """
    order = ranked(scores)
    hits = np.array([name in wrong for name in order])
    n = int(hits.sum())
    at = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    first = float(hits[:n].mean()) if n else 0.0
    average = float(at[hits].mean()) if n else 0.0
    return {
        "corrupted": float(n),
        "precision": first,
        "recall": first,
        "average_precision": average,
        "chance": n / len(hits),
    }


def plot(run: RunWeights) -> list[Figure]:
    """Two figures, distillation and the task loss: its weight over time for fifths of the utterances by difficulty."""
    figures = []
    for column, title in {"alpha": "Weight of distillation", "task_weight": "Weight of the task loss"}.items():
        with new_figure() as (figure, (axes,)):
            steps, lines = run.over_time(column)
            for name, shade, line in zip(FIFTHS, ORDERED, lines, strict=True):
                axes.plot(steps, line, color=shade, label=name)
            axes.set(xlabel="optimizer step", title=f"{title} ({run.system})")
            legend_below(figure, axes, 3, "by the teacher's loss")
        figures.append(figure)
    return figures


def write_page(run: RunWeights, path: Path, worst: int, by: str = "system") -> Path:
    """A self-contained page: the plot, and the least trusted labels with their audio and the teacher's transcript."""
    scores, basis = run.distrust(by)
    utterances = run.utterances
    chosen = [utterances[name] for name in ranked(scores)[:worst] if name in utterances]
    heard = _heard(run.recipe, chosen)
    late = {name: run.late(name) for name in ("alpha", "task_weight", "task", "teacher_loss")}
    wrong = run.corrupted or set()
    rows = []
    for rank, (utterance, said) in enumerate(zip(chosen, heard, strict=True), 1):
        figures = "".join(f"<td>{late[name][utterance.id]:.3f}</td>" for name in late)
        mark = " <b>(corrupted on purpose)</b>" if utterance.id in wrong else ""
        rows.append(
            f"<tr><td>{rank}</td><td>{html.escape(utterance.id)}{mark}</td><td>{player(flac_bytes(utterance.wave()))}</td>"
            f"<td>{html.escape(utterance.text)}</td><td>{html.escape(said)}</td>{figures}</tr>"
        )
    found = "".join(
        f"<p>Ranking by {name.replace('_', ' ')}: the first {f['corrupted']:.0f} hold {100 * f['precision']:.1f} % of the "
        f"corrupted labels (chance {100 * f['chance']:.1f} %), average precision {f['average_precision']:.3f}.</p>"
        for name, f in (run.found or {}).items()
    )
    head = ("rank", "utterance", "audio", "transcript", "teacher's transcript", "alpha", "task weight",
            "student's loss", "teacher's loss")  # fmt: skip
    figures = "".join(as_svg(figure, f"{run.system}: weights over time by difficulty") for figure in plot(run))
    content = (
        f'<h1>{html.escape(run.system)}, stage {html.escape(run.stage)}</h1><div class="plots">{figures}</div>'
        f"<h2>Least trusted labels, by {html.escape(basis)}</h2>{found}"
        f"<div class='scroll'><table class='texts'><tr>{''.join(f'<th>{name}</th>' for name in head)}</tr>{''.join(rows)}</table></div>"
    )
    write_text(path, html_page(f"Weights: {run.folder.name}", content))
    return path


def _heard(recipe: Recipe, utterances: list[Utterance]) -> list[str]:
    """Transcripts of the run's teacher."""
    if not utterances:
        return []
    from workbench.evaluation.transcribe import validate
    from workbench.models import open_family
    from workbench.models.resolve import resolve_teacher

    family = open_family(resolve_teacher(recipe.teacher))
    return validate(family.load(), family, utterances, family.silence).hypotheses
