"""Write an n-gram language model of a corpus's training texts, for the beams of a bundle with a CTC head.

    python scripts/ngram.py --student runs/ctc-whisper/student --corpus prompts-en --output prompts.arpa

The texts are spelled as the student writes them. It is for small texts: interpolated Witten-Bell probabilities, counted in memory, in the ARPA
format. For much text use KenLM's `lmplz`, whose modified Kneser-Ney is better.
"""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from workbench.core.errors import UserError, install_one_line_excepthook, output_file
from workbench.core.files import write_text

BEGIN, END, UNKNOWN = "<s>", "</s>", "<unk>"
Gram = tuple[str, ...]


def main() -> None:
    """Read the texts, write the file."""
    install_one_line_excepthook()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--student", type=Path, required=True, help="folder of a checkpoint with a CTC head")
    parser.add_argument(
        "--corpus", action="append", required=True, help="of which the training split is read; repeatable"
    )
    parser.add_argument("--language", default="en", help="ISO 639-1 code of the texts to read (en)")
    parser.add_argument("--order", type=int, default=3, choices=range(1, 7), help="words of the longest n-gram (3)")
    parser.add_argument("--output", type=output_file, required=True, help="ARPA file to write")
    options = parser.parse_args()
    from workbench.corpus import open_corpus
    from workbench.models import open_family

    tokens = getattr(open_family(options.student), "ctc_tokens", None)
    if tokens is None:
        raise UserError(f"{options.student}: has no CTC head")
    texts = [
        tokens.decode(tokens.encode(u.text))
        for name in options.corpus
        for u in open_corpus(name, "train")
        if u.language == options.language
    ]
    write_text(options.output, arpa(texts, options.order))
    print(f"{options.output}: {len(texts)} texts of {sum(len(text.split()) for text in texts)} words")


def arpa(texts: Iterable[str], order: int) -> str:
    """An n-gram model of sentences, as an ARPA file."""
    counts = count(texts, order)
    probabilities = witten_bell(counts)
    contexts: list[Counter[Gram]] = [Counter() for _ in range(order)]  # how often each is followed by a word
    followers: list[Counter[Gram]] = [Counter() for _ in range(order)]  # by how many different ones
    for size in range(1, order):
        for gram, times in counts[size].items():
            contexts[size][gram[:-1]] += times
            followers[size][gram[:-1]] += 1
    lines = ["\\data\\", *(f"ngram {size}={len(found)}" for size, found in enumerate(probabilities, 1))]
    for size, found in enumerate(probabilities, 1):
        lines += ["", f"\\{size}-grams:"]
        for gram, probability in sorted(found.items()):
            said = math.log10(probability) if gram != (BEGIN,) else -99.0
            line = f"{said:.7f}\t{' '.join(gram)}"
            if size < order and gram in followers[size]:
                kinds = followers[size][gram]
                line += f"\t{math.log10(kinds / (contexts[size][gram] + kinds)):.7f}"
            lines.append(line)
    return "\n".join([*lines, "", "\\end\\", ""])


def count(texts: Iterable[str], order: int) -> list[Counter[Gram]]:
    """How often each n-gram stands in the texts, by its size less one."""
    counts: list[Counter[Gram]] = [Counter() for _ in range(order)]
    for text in texts:
        if words := text.split():
            sentence = [BEGIN, *words, END]
            for size, found in enumerate(counts, 1):
                found.update(tuple(sentence[i : i + size]) for i in range(len(sentence) - size + 1))
    if not counts[0]:
        raise UserError("the texts hold no words")
    return counts


def witten_bell(counts: list[Counter[Gram]]) -> list[dict[Gram, float]]:
    """Probability of each n-gram's last word after the others.

    (times + kinds * probability without the first word) / (all times + kinds), where kinds is the number of different words seen after the context.
    """
    words = Counter({gram: times for gram, times in counts[0].items() if gram != (BEGIN,)})
    kinds, total, size = len(words), words.total(), len(words) + 1  # with the unknown word, seen never
    found = [{gram: (words[gram] + kinds / size) / (total + kinds) for gram in [*words, (UNKNOWN,), (BEGIN,)]}]
    for longer in counts[1:]:
        times: Counter[Gram] = Counter()
        different: Counter[Gram] = Counter()
        for gram, seen in longer.items():
            times[gram[:-1]] += seen
            different[gram[:-1]] += 1
        found.append({
            gram: (seen + different[gram[:-1]] * found[-1][gram[1:]]) / (times[gram[:-1]] + different[gram[:-1]])
            for gram, seen in longer.items()
        })  # fmt: skip
    return found


if __name__ == "__main__":
    main()
