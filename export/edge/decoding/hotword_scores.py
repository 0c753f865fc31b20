"""Hotwords in the beams of a CTC model: a text gains with every token that spells some more of one, and loses it if another word comes of it."""

from __future__ import annotations

from typing import NamedTuple

from .hotwords import START, Hotwords, Place

MOST_AHEAD = 10.0  # gained by the beginning of a hotword; with more than REACH it would push out all other texts, also where another word comes of it


class HotwordState(NamedTuple):
    """What hotwords are to a text so far."""

    place: Place
    kept: float  # gained by hotwords before this place
    complete: (
        float  # gained by the hotword here as far as it cannot be lost: `New` of `New York`, where a space follows
    )


class HotwordScores:
    """Scores of texts by the hotwords in them, as `prefix_beam_search` takes them."""

    def __init__(self, hotwords: Hotwords) -> None:
        self.hotwords = hotwords

    def start(self) -> HotwordState:
        """State of the empty text."""
        return HotwordState(START, 0.0, 0.0)

    def after(self, state: HotwordState, token: int) -> HotwordState:
        """State of a text that goes on with a token."""
        words, (place, kept, complete) = self.hotwords, state
        if words.ends_before(place, token):
            complete = words.gained[place.node]
        if not words.continues(place, token):
            kept, complete = kept + complete, 0.0
        place = words.after(place, token)
        if words.complete[place.node]:
            complete = words.gained[place.node]
        return HotwordState(place, kept, complete)

    def so_far(self, state: HotwordState) -> float:
        """What is gained while the text may go on."""
        return state.kept + max(state.complete, min(self.hotwords.gained[state.place.node], MOST_AHEAD))

    def at_end(self, state: HotwordState) -> float:
        """What is gained if the text ends here."""
        node = state.place.node
        return state.kept + (self.hotwords.gained[node] if self.hotwords.ends[node] else state.complete)
