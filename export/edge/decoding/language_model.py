"""An n-gram model of words, for the beams of a CTC model. KenLM reads and asks it; its Python package is needed for nothing else."""

from __future__ import annotations

import gzip
import math
import re
import zlib
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ..bundle.manifest import BundleError
from ..bundle.tokens import Detokenizer

LONGEST_LINE = 1 << 16  # bytes of a line of an ARPA file
SHORTEST_LINE = 4  # bytes: a number, a tab, a word, a line break


@dataclass(frozen=True)
class LanguageModelWeights:
    """How much a language model counts. Names, meanings and defaults are pyctcdecode's.

    A word adds `alpha` times the natural logarithm of its probability, and `beta`. Raises BundleError for values out of range.
    """

    alpha: float = 0.5  # 0 to 10
    beta: float = 1.5  # -100 to 100; it makes up for the words, each of which makes a text less likely
    unk_score_offset: float = -10.0  # -100 to 0; added to the log10 probability of a word that the model does not know

    def __post_init__(self) -> None:
        for name, low, high in (("alpha", 0, 10), ("beta", -100, 100), ("unk_score_offset", -100, 0)):
            if not low <= (value := getattr(self, name)) <= high:  # nan is not, either
                raise BundleError(f"{name} of the language model is {value:g}; expected {low} to {high}")


def weights_of_options(options: Mapping[str, float | None], file: Path | None) -> LanguageModelWeights:
    """What `--lm-alpha` and the other options say, by the weights' names, defaults for those that are None.

    Raises BundleError if any is given without a language model's file, or out of range.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if given and file is None:
        option = next(iter(given)).replace("_", "-")
        raise BundleError(f"--lm-{option}: there is no language model; name its file with --lm")
    return LanguageModelWeights(**given)


class WordState(NamedTuple):
    """What the model knows of a text so far."""

    context: Any  # KenLM's state after the complete words
    word: bytes  # as much as there is of the next one
    total: float  # of the complete words
    possible: bool  # whether a known word may come of `word`


class LanguageModel:
    """Scores of texts by an n-gram model, as `prefix_beam_search` takes them; made by `Recognizer.new_language_model`.

    With an ARPA file, the beginning of a word that the model does not know is scored as an unknown word at once, not only at its end.

    Args:
        path: ARPA file, plain or compressed with gzip, or one of KenLM's binaries.
        detokenize: the bundle's vocabulary.
        lower: whether the bundle's texts are put in lower case.
        weights: how much it counts.

    Raises:
        BundleError: the file cannot be read or is no such model, few of its words can be written with the vocabulary, or KenLM is not installed.
    """

    def __init__(
        self, path: str | Path, detokenize: Detokenizer, lower: bool = False, weights: LanguageModelWeights | None = None
    ) -> None:  # fmt: skip
        weights = weights or LanguageModelWeights()
        try:
            import kenlm
        except ImportError as error:
            raise BundleError(
                f"a language model needs the package kenlm, which cannot be imported ({error}); pip install kenlm, or distill-workbench[lm]"
            ) from None
        self.words = sorted(arpa_words(Path(path)))  # none of a binary
        self.new_state, self.model = kenlm.State, _opened(kenlm, Path(path))
        self.bytes_of, self.lower = detokenize.bytes_of, lower
        self.alpha, self.beta = weights.alpha * math.log(10), weights.beta  # KenLM's logarithms are to base 10
        self.unknown = weights.unk_score_offset
        some = self.words[:: 1 + len(self.words) // 1000]
        if 10 * sum(_written_with(detokenize, word, lower) for word in some) < len(some):
            raise BundleError(
                f"{path}: not one in ten of its words can be written with the bundle's tokens; its texts must look as the bundle's do, with the same "
                "upper and lower case and without punctuation where those have none"
            )

    def start(self) -> WordState:
        """State of the empty text."""
        context = self.new_state()
        self.model.BeginSentenceWrite(context)
        return WordState(context, b"", 0.0, True)

    def after(self, state: WordState, token: int) -> WordState:
        """State of a text that goes on with a token."""
        spelled = state.word + self.bytes_of(token)
        complete = spelled.split()
        word = complete.pop() if complete and not spelled[-1:].isspace() else b""
        context, total = state.context, state.total
        for one in complete:
            context, total = self._with(context, total, one)
        return WordState(context, word, total, self._possible(word))

    def so_far(self, state: WordState) -> float:
        """What is added while the text may go on."""
        return state.total + (0.0 if state.possible else self.alpha * self.unknown)

    def at_end(self, state: WordState) -> float:
        """What is added if the text ends here: its last word counts, and that it is the last."""
        context, total = state.context, state.total
        if state.word:
            context, total = self._with(context, total, state.word)
        return float(total + self.alpha * self.model.BaseScore(context, "</s>", self.new_state()))

    def _with(self, context: Any, total: float, word: bytes) -> tuple[Any, float]:
        after = self.new_state()
        found = self.model.BaseFullScore(context, self._text(word), after)
        return after, total + self.alpha * (found.log_prob + self.unknown * found.oov) + self.beta

    def _possible(self, word: bytes) -> bool:
        if not word or not self.words:
            return True
        begin = word.decode("utf-8", "ignore").lower().encode() if self.lower else word  # it may end within a character
        place = bisect_left(self.words, begin)
        return place < len(self.words) and self.words[place].startswith(begin)

    def _text(self, word: bytes) -> str:
        text = word.decode("utf-8", "replace")
        return text.lower() if self.lower else text


def arpa_words(path: Path) -> Iterator[bytes]:
    """Words of an ARPA file, without those that stand for something else, as `</s>`; none of a file that is none.

    Raises BundleError if it cannot be read, or says that it holds more than fits into it, which KenLM would ask memory for.
    """
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        with gzip.open(path) if packed else path.open("rb") as file:
            lines = (line.strip() for line in iter(lambda: file.readline(LONGEST_LINE), b""))
            if next(filter(None, lines), b"") != b"\\data\\":
                return
            most = 1 << 63 if packed else path.stat().st_size // SHORTEST_LINE
            inside = False
            for line in lines:
                if count := re.fullmatch(rb"ngram\s+\d+\s*=\s*(\d{1,30})", line):
                    if int(count[1]) > most:
                        raise BundleError(
                            f"{path}: says that it holds {int(count[1])} n-grams, which its size does not allow; it is damaged"
                        )
                elif line.startswith(b"\\"):
                    if inside or line != b"\\1-grams:":
                        return
                    inside = True
                elif (
                    inside
                    and len(fields := line.split()) > 1
                    and not re.fullmatch(rb"</?[a-z]+>", fields[1], re.IGNORECASE)
                ):
                    yield fields[1]
    except (EOFError, zlib.error):
        raise BundleError(f"{path}: is cut off or damaged") from None
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror or error})") from None


def _opened(kenlm: Any, path: Path) -> Any:
    """KenLM's model; raises BundleError in its words if it cannot be used."""
    config = kenlm.Config()
    config.show_progress, config.arpa_complain = False, kenlm.ARPALoadComplain.NONE
    try:
        return kenlm.Model(str(path), config)
    except (
        OSError,
        RuntimeError,
        ValueError,
        MemoryError,
    ) as error:  # a message with bytes of a damaged file is no text
        said = " ".join(str(error).split()) if not isinstance(error, UnicodeError) else "its format is not known"
        said = re.sub(r"^Cannot read model '.*?' \((.*)\)$", r"\1", said)
        said = re.sub(r"^.*? threw \w+(?: because `.*?')?\. ", "", said)  # where in KenLM's code
        said = "".join(c if c.isprintable() else "?" for c in said[:200])  # it may quote the file
        raise BundleError(f"{path}: is no n-gram model that KenLM reads: {said}") from None


def _written_with(detokenize: Detokenizer, word: bytes, lower: bool) -> bool:
    """Whether a vocabulary has the characters of a word, or their bytes."""
    text = word.decode("utf-8", "replace")
    if lower and text != text.lower():  # the bundle's texts are looked up in lower case
        return False
    return all(
        c.encode() in detokenize.ids or all(bytes([byte]) in detokenize.ids for byte in c.encode())
        for c in (text.upper() if lower else text)
    )
