"""Languages by their names, the likely ones first."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def language_choices(codes: Iterable[str], likely: Sequence[str] = ()) -> list[tuple[str, str]]:
    """Names and codes of languages for a list to choose from.

    Args:
        codes: languages that every system supports.
        likely: languages of the page's clips, the most frequent first; they head the list.

    Returns:
        Pairs (name, code): the likely ones, then the others in the order of how much speech Whisper was trained on.
    """
    from transformers.models.whisper.tokenization_whisper import LANGUAGES

    known = set(codes)
    ordered = [*likely, *LANGUAGES, *sorted(known)]
    return [(LANGUAGES.get(code, code).title(), code) for code in dict.fromkeys(ordered) if code in known]
