"""Word-level differences between a reference and a hypothesis, as pieces to colour."""

from __future__ import annotations

import html

from workbench.evaluation.scoring import normalize

COLOURS = {"substitution": "#ffd8a8", "insertion": "#b2f2bb", "deletion": "#ffc9c9"}


def differences(reference: str, hypothesis: str, language: str = "en") -> list[tuple[str, str | None]]:
    """Pieces of a hypothesis, each with its kind of error, None if correct.

    Words are compared and shown as normalized by Whisper's normalizer, as WER counts them. A deletion shows the missing word.
    """
    import jiwer

    wanted, said = normalize(reference, language), normalize(hypothesis, language)
    alignment = jiwer.process_words([wanted], [said])
    words, heard = alignment.references[0], alignment.hypotheses[0]
    pieces: list[tuple[str, str | None]] = []
    for chunk in alignment.alignments[0]:
        ours = " ".join(heard[chunk.hyp_start_idx : chunk.hyp_end_idx])
        theirs = " ".join(words[chunk.ref_start_idx : chunk.ref_end_idx])
        if chunk.type == "equal":
            pieces.append((ours, None))
        elif chunk.type == "substitute":
            pieces.append((ours, "substitution"))
        elif chunk.type == "insert":
            pieces.append((ours, "insertion"))
        else:
            pieces.append((theirs, "deletion"))
    return pieces


def as_html(pieces: list[tuple[str, str | None]]) -> str:
    """Coloured words as HTML; deletions are struck through, and each error's kind is its title (hover, screen readers)."""
    out = []
    for text, kind in pieces:
        safe = html.escape(text)
        if kind is None:
            out.append(safe)
            continue
        tag = "del" if kind == "deletion" else "mark"
        out.append(
            f'<{tag} class="{kind}" title="{kind}" style="background:{COLOURS[kind]};color:#1b1f24;border-radius:3px;padding:0 .2em">{safe}</{tag}>'
        )
    return " ".join(out)
