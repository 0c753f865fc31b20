"""The likeliest text of a CTC model: prefix beam search, with scores of the text itself where there are any.

Many paths spell one text: a letter can stand at several positions, and blanks anywhere. The search adds up the probabilities of all paths of
a text, in two parts: after a blank, a letter like the last one is a further letter, otherwise it is the same ([P] Hannun et al. 1408.2873).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

# natural logarithms
TOKEN_FLOOR = -7.0  # a token that is less likely than this at a position is not tried there
REACH = 12.0  # a text whose score is lower than the best one's by more than this is dropped

Floats = npt.NDArray[np.float64]
State = Any  # of a text, as one of its scores sees it


class TextScores(Protocol):
    """What is added to the log-probability of a text because of what it says."""

    def start(self) -> State:
        """State of the empty text."""

    def after(self, state: State, token: int) -> State:
        """State of a text that goes on with a token."""

    def so_far(self, state: State) -> float:
        """What is added while the text may go on."""

    def at_end(self, state: State) -> float:
        """What is added if the text ends here."""


def prefix_beam_search(
    likely: Floats,
    blank: int,
    beams: int,
    scores: Sequence[TextScores] = (),
    floor: float = TOKEN_FLOOR,
    reach: float = REACH,
) -> tuple[list[int], float]:
    """The text of the highest score that is found, as tokens, and its score: the log-probability of all its paths, and what `scores` add.

    Args:
        likely: log-probabilities [positions, vocabulary].
        blank: the token that stands for nothing.
        beams: number of texts that are kept at each position.
        scores: of what a text says, such as a language model's.
        floor: log-probability of the unlikeliest token that is tried; -inf for all.
        reach: by how much the score of a text that is kept may be lower than the best one's; inf for any.
    """
    texts = _Texts(scores, beams, reach)
    for row in likely:
        tokens = np.flatnonzero(row >= floor)
        texts.step(row, blank, tokens[tokens != blank])
    return texts.best()


class _Texts:
    """The texts that are kept at a position, each a node of a tree in which its parent is the text without the last token."""

    def __init__(self, scores: Sequence[TextScores], beams: int, reach: float) -> None:
        self.scores, self.beams, self.reach = scores, beams, reach
        # of all nodes, the first of which is the empty text
        self.parents, self.tokens = [-1], [-1]
        self.children: dict[tuple[int, int], int] = {}  # by parent and token
        # of the texts that are kept
        self.nodes = [0]
        self.in_blank, self.in_token = np.zeros(1), np.full(1, -np.inf)  # log-probability of the paths that end in one
        self.states = [[one.start() for one in scores]]
        self.added = np.array([self._so_far(self.states[0])])  # by the scores
        self.longer: list[dict[int, tuple[list[State], float]]] = [
            {}
        ]  # of each text by a further token: the states and the score with it, computed once
        self._look_up()

    def _look_up(self) -> None:
        """What follows from which texts are kept: their last tokens, and those whose parents are kept, too."""
        self.last = np.array([self.tokens[node] for node in self.nodes])
        rows = {node: row for row, node in enumerate(self.nodes)}
        parents = np.array([rows.get(self.parents[node], -1) for node in self.nodes])
        self.below = np.flatnonzero(parents >= 0)  # rows of texts whose parent is kept, too
        self.above = parents[self.below]  # and the rows of those parents

    def step(self, likely: Floats, blank: int, tokens: npt.NDArray[np.intp]) -> None:
        """Go on to the next position, with its log-probabilities [vocabulary] and the tokens to try, in rising order."""
        total = np.logaddexp(self.in_blank, self.in_token)
        in_blank, in_token = total + likely[blank], self.in_token + likely[self.last]
        # a text that is kept may also come of its parent and its last token
        above, last = self.above, self.last[self.below]
        arrived = np.where(self.last[above] == last, self.in_blank[above], total[above]) + likely[last]
        in_token[self.below] = np.logaddexp(in_token[self.below], arrived)
        if not len(tokens):  # as in most positions
            self.in_blank, self.in_token = in_blank, in_token
            return
        same = self.last[:, None] == tokens
        longer = np.where(same, self.in_blank[:, None], total[:, None]) + likely[tokens]  # [texts, tokens]
        places = np.minimum(np.searchsorted(tokens, last), len(tokens) - 1)
        tried = tokens[places] == last
        longer[above[tried], places[tried]] = -np.inf  # these are in in_token already
        self._keep(in_blank, in_token, longer, tokens)

    def _keep(self, in_blank: Floats, in_token: Floats, longer: Floats, tokens: npt.NDArray[np.intp]) -> None:
        """Keep the best of the texts as they are and of those with one token more."""
        staying = np.logaddexp(in_blank, in_token) + self.added
        raised = longer + self.added[:, None]
        if self.scores:  # only of what is within reach without them
            least = max(staying.max(), raised.max()) - self.reach
            for row, column in np.argwhere((raised >= least) & (raised > -np.inf)).tolist():
                raised[row, column] = longer[row, column] + self._with(row, int(tokens[column]))[1]
        found = np.concatenate([staying, raised.ravel()])
        best = np.argpartition(-found, self.beams)[: self.beams] if len(found) > self.beams else np.arange(len(found))
        best = best[(found[best] >= found[best].max() - self.reach) & (found[best] > -np.inf)]
        stay, new = best[best < len(staying)], best[best >= len(staying)] - len(staying)
        rows, columns = np.divmod(new, len(tokens))
        extended = list(zip(rows.tolist(), tokens[columns].tolist(), strict=True))
        self.in_blank = np.concatenate([in_blank[stay], np.full(len(new), -np.inf)])
        self.in_token = np.concatenate([in_token[stay], longer.ravel()[new]])
        further = [self._with(*one) for one in extended]
        self.added = np.concatenate([self.added[stay], [score for _, score in further]])
        self.states = [self.states[row] for row in stay] + [states for states, _ in further]
        self.longer = [self.longer[row] for row in stay] + [{} for _ in new]
        self.nodes = [self.nodes[row] for row in stay] + [self._node(self.nodes[row], token) for row, token in extended]
        self._look_up()

    def best(self) -> tuple[list[int], float]:
        """The best text if all end now, and its score."""
        ends = [sum(one.at_end(s) for one, s in zip(self.scores, states, strict=True)) for states in self.states]
        totals = np.logaddexp(self.in_blank, self.in_token) + ends
        row = int(totals.argmax())
        return self.written(self.nodes[row]), float(totals[row])

    def written(self, node: int) -> list[int]:
        """The tokens of a text."""
        tokens = []
        while node:
            tokens.append(self.tokens[node])
            node = self.parents[node]
        return tokens[::-1]

    def _with(self, row: int, token: int) -> tuple[list[State], float]:
        """States and score of a text with a further token."""
        known = self.longer[row]
        if token not in known:
            states = [one.after(s, token) for one, s in zip(self.scores, self.states[row], strict=True)]
            known[token] = states, self._so_far(states)
        return known[token]

    def _so_far(self, states: Sequence[State]) -> float:
        return sum(one.so_far(s) for one, s in zip(self.scores, states, strict=True))

    def _node(self, parent: int, token: int) -> int:
        """The node of a text. One that was dropped and comes back is the same as before: longer texts may have been kept."""
        if (parent, token) not in self.children:
            self.children[parent, token] = len(self.parents)
            self.parents.append(parent)
            self.tokens.append(token)
        return self.children[parent, token]
