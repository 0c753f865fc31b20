"""Recognisers that predict a token or blank at every encoder position: what wav2vec2's kind, Parakeet and Whisper encoders with a CTC head share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor, nn

from workbench.audio.decode import LONGEST_SECONDS, SAMPLE_RATE, Wave
from workbench.core.errors import UserError
from workbench.core.files import read_object
from workbench.models.ctc.refusals import check_recipe
from workbench.models.ctc.students import check_width
from workbench.models.ctc.tokens import CtcTokens, collapse
from workbench.models.protocol import Family, LayerOutputs, ObjectiveName, Tokens, Transcript
from workbench.models.quantization import ExportedWeight, PrecisionPart
from workbench.models.vocabulary import Vocabulary

if TYPE_CHECKING:
    from workbench.config.recipe import Recipe


class CtcFamily:
    """What is the same whatever the encoder; `lm_head` is every model's head. A subclass adds features, encoder, layers and weights."""

    name = "ctc"
    objective: ObjectiveName = "ctc"
    window_seconds = float(LONGEST_SECONDS)
    vocabulary: Vocabulary | None = None
    suppress_tokens: list[int]
    begin_suppress_tokens: list[int]
    config: Any
    ctc_tokens: CtcTokens
    trained_silence: float | None
    reads_waves: bool  # and not mels
    early_by_hook = False  # whether `encode_with_early` hooks into a layer, which is not compiled
    samples_per_position: int
    normalize = False  # whether each wave is brought to mean 0 and variance 1

    def __init__(self, folder: Path, config: Any, ctc_tokens: CtcTokens, silence: float | None) -> None:
        self.folder, self.config, self.ctc_tokens, self.trained_silence = folder, config, ctc_tokens, silence
        self.blank: int | None = ctc_tokens.blank
        self.eos_token_id = ctc_tokens.blank  # there is none; what fills a batch of transcripts
        self.suppress_tokens, self.begin_suppress_tokens = [], []
        self.head_dropout = 0.0  # of the states before the head, while `decoder_dropout` sets it

    # --- tokens

    @property
    def vocabulary_size(self) -> int:
        """Size of the head: the blank and all other tokens."""
        return len(self.ctc_tokens.pieces)

    def tokens(self, texts: Sequence[str], languages: Sequence[str]) -> Tokens:
        """Transcripts as labels.

        Raises:
            UserError: the vocabulary lacks most letters of a text, as one in another script has.
        """
        for text in texts:
            # many vocabularies lack digits
            lacking = [char for char in self.ctc_tokens.lacking(text) if char.isalpha()]
            if 2 * len(lacking) > sum(map(str.isalpha, text)):
                raise UserError(
                    f"transcript {text[:40]!r} has letters that the model's vocabulary lacks, such as {lacking[0]!r}; "
                    "choose a model of its language, or exclude its clips"
                )
        return self.ctc_tokens.tokens(texts)

    def lacking(self, text: str) -> list[str]:
        """Letters and digits of a transcript that the vocabulary lacks, so that `tokens` leaves them out."""
        return self.ctc_tokens.lacking(text)

    def same_tokens(self, other: Family) -> bool:
        """Whether it has a CTC head whose ids stand for the same text."""
        return isinstance(other, CtcFamily) and (other.ctc_tokens.pieces, other.blank) == (
            self.ctc_tokens.pieces,
            self.blank,
        )

    def special_tokens(self) -> list[int]:
        """The blank."""
        return [self.ctc_tokens.blank]

    def token_limit(self, seconds: float, language: str) -> int:
        """Most tokens that a clip of this length has room for: one at every position."""
        return self.positions(round(seconds * SAMPLE_RATE))

    # --- audio

    @property
    def silence(self) -> float:
        """Seconds of trailing silence that the checkpoint was trained with; none for one that is not ours."""
        return self.trained_silence or 0.0

    def positions(self, samples: int) -> int:
        """Number of encoder positions of a wave of this length."""
        raise NotImplementedError

    @property
    def mels(self) -> int:
        """Mel bands that the features begin with."""
        raise NotImplementedError

    def input_seconds(self, waves: Sequence[Wave]) -> float:
        """Input length in seconds for some waves: the longest and the silence after it, up to 30 s."""
        return min(max(map(len, waves)) / SAMPLE_RATE + self.silence, self.window_seconds)

    def attention_mask(self, samples: Sequence[int], seconds: float) -> Tensor:
        """Positions that each clip has with its silence, which is as long for all. -> bool [clips, positions]"""
        whole = round(min(seconds, self.window_seconds) * SAMPLE_RATE)
        silence = max(whole - max(samples), 0)
        lengths = torch.tensor([self.positions(min(count + silence, whole)) for count in samples])
        return torch.arange(self.positions(whole)) < lengths[:, None]

    # --- models

    def predicted(self, tokens: Tokens, attention_mask: Tensor | None) -> Tensor:
        """At every position that a clip has. -> bool [utterances, positions]"""
        assert attention_mask is not None  # noqa: S101  `attention_mask` always gives one
        return attention_mask

    def pooling(self, model: nn.Module) -> int:
        """Positions per state: always 1."""
        return 1

    def pooled(self, states: Tensor) -> Tensor:
        """No student of this family pools its states."""
        _unsupported("pooling")

    def encode(
        self, model: nn.Module, features: Tensor, attention_mask: Tensor | None = None, checkpointing: bool = False
    ) -> Tensor:
        """Encoder states [clips, positions, width]."""
        raise NotImplementedError

    def encode_with_early(
        self,
        model: nn.Module,
        features: Tensor,
        layer: int,
        attention_mask: Tensor | None = None,
        checkpointing: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Encoder states, and those after an earlier layer. -> twice [clips, positions, width]"""
        raise NotImplementedError

    def exported_weights(self, model: nn.Module, part: PrecisionPart) -> Sequence[ExportedWeight]:
        """The weights of the one graph of a bundle, which count as the encoder's."""
        if part == "decoder":
            raise UserError("a student with a CTC head is exported as one graph; name its scheme as encoder")
        return [*self._encoder_weights(model), ExportedWeight("lm_head.weight")]

    def _encoder_weights(self, model: nn.Module) -> Sequence[ExportedWeight]:
        """Those before the head."""
        raise NotImplementedError

    def encoder_depth(self, model: nn.Module) -> int:
        """How many layers the encoder has."""
        raise NotImplementedError

    def hidden(
        self,
        model: nn.Module,
        states: Tensor,
        tokens: Tokens,
        labelled: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """States that the head reads: those of the positions that the clips have. -> [positions of all clips, width]"""
        flat = states.flatten(0, 1)
        if labelled is None and attention_mask is not None:
            labelled = attention_mask.flatten().nonzero()[:, 0]
        chosen = flat if labelled is None else flat.index_select(0, labelled)
        return nn.functional.dropout(chosen, self.head_dropout) if self.head_dropout else chosen

    def logits(
        self,
        model: nn.Module,
        states: Tensor,
        tokens: Tokens,
        labelled: Tensor | None = None,
        attention_mask: Tensor | None = None,
        checkpointing: bool = False,
        early_layer: int | None = None,
    ) -> Tensor:
        """Logits at every position that a clip has. -> [positions of all clips, vocabulary]"""
        logits: Tensor = _head(model)(self.hidden(model, states, tokens, labelled, attention_mask))
        return logits

    def project(self, model: nn.Module, hidden: Tensor) -> Tensor:
        """Logits in fp32. [..., width] -> [..., vocabulary]"""
        logits: Tensor = _head(model)(hidden)
        return logits.float()

    def decoder_depth(self, model: nn.Module) -> int:
        """None: the head reads the encoder's last states."""
        return 0

    @contextmanager
    def _dropping(self, rate: float) -> Iterator[None]:
        self.head_dropout = rate
        try:
            yield
        finally:
            self.head_dropout = 0.0

    def decoder_dropout(self, model: nn.Module, rate: float) -> AbstractContextManager[None]:
        """Temporarily drop some of the states before the head, as transformers' `final_dropout` does in training."""
        return self._dropping(rate)

    def full_vocabulary(self, model: nn.Module, whole: Tensor) -> AbstractContextManager[None]:
        """Nothing to do: no head is narrowed."""
        return nullcontext()

    # --- transcribing

    def decode(
        self,
        model: nn.Module,
        states: Tensor,
        seconds: Sequence[float],
        languages: Sequence[str],
        attention_mask: Tensor | None = None,
    ) -> list[str]:
        """Transcribe encoder states greedily."""
        return [found.text for found in self.transcribe(model, states, seconds, languages, 1, attention_mask)]

    @torch.no_grad()
    def transcribe(
        self,
        model: nn.Module,
        states: Tensor,
        seconds: Sequence[float],
        languages: Sequence[str],
        beams: int = 1,
        attention_mask: Tensor | None = None,
    ) -> list[Transcript]:
        """The likeliest token at each position, repetitions once and blanks left out.

        A transcript's log-probability is the mean over its tokens of that of each token's surest frame; of an empty one, the mean of the blank's.
        """
        if beams != 1:
            raise UserError(f"beams is {beams}; a model with a CTC head is decoded greedily, leave it out")
        best = self.project(model, states).log_softmax(-1).max(-1)
        lengths = [states.shape[1]] * len(states) if attention_mask is None else attention_mask.sum(1).tolist()
        out = []
        for ids, scores, length in zip(best.indices.cpu(), best.values.cpu(), lengths, strict=True):
            text = self.ctc_tokens.decode(collapse(ids[:length], self.ctc_tokens.blank))
            out.append(Transcript(text, _confidence(ids[:length], scores[:length], self.ctc_tokens.blank)))
        return out

    def languages(self, model: nn.Module, states: Tensor) -> NoReturn:
        """Raise UserError: such a model writes in the language that it was trained on."""
        raise UserError("a model with a CTC head does not detect languages; name the language with --language")

    # --- what a student may be

    def token_and_feature_files(self) -> Sequence[Path]:
        """JSON and text files of the checkpoint, of which those of the model are written again."""
        return [p for p in self.folder.iterdir() if p.suffix in (".json", ".txt") and p.name != "source.json"]

    def check_recipe(self, recipe: Recipe) -> None:
        """Raise UserError for what needs a decoder, or is not supported with a CTC head."""
        check_recipe(recipe, self.reads_waves, self.early_by_hook)

    def check_pair(self, student: nn.Module, teacher: nn.Module, matched: Sequence[str]) -> None:
        """Raise UserError if states of both are to be compared and differ in width."""
        check_width(student, teacher, matched)

    def with_vocabulary(self, vocabulary: Vocabulary) -> NoReturn:
        """No head is narrowed."""
        _unsupported("student.vocabulary")

    def prune_vocabulary(self, model: nn.Module, vocabulary: Vocabulary) -> NoReturn:
        """No head is narrowed."""
        _unsupported("student.vocabulary")

    def factorize(self, model: nn.Module, features: Sequence[Tensor], share: float) -> NoReturn:
        """No encoder of this family is factorized."""
        _unsupported("student.encoder_low_rank_variance")

    def logits_and_layers(
        self,
        model: nn.Module,
        states: Tensor,
        tokens: Tokens,
        layers: Sequence[int],
        attention: bool = False,
        labelled: Tensor | None = None,
        attention_mask: Tensor | None = None,
        checkpointing: bool = False,
    ) -> tuple[Tensor, LayerOutputs]:
        """There are no decoder layers."""
        _unsupported("decoder_matching")

    def incremental_decoder(self, model: nn.Module, states: Tensor) -> Callable[[Tensor], Tensor]:
        """There is no decoder."""
        _unsupported("on_policy")


def trained_silence(folder: Path) -> float | None:
    """Seconds of silence after each clip that a student of ours was trained with; None for other checkpoints."""
    settings = folder / "workbench.json"
    says = read_object(settings, "a student's settings") if settings.is_file() else {}
    margin = says.get("margin_seconds", 0.0)
    if isinstance(margin, bool) or not isinstance(margin, (int, float)) or not 0 <= margin <= LONGEST_SECONDS:
        raise UserError(
            f"{settings}: margin_seconds is {str(margin)[:60]}; expected seconds from 0 to {LONGEST_SECONDS:g}"
        )
    return float(margin) if says.get("length") == "true" else None


def _head(model: nn.Module) -> nn.Module:
    head: nn.Module = model.lm_head  # type: ignore[assignment]
    return head


def _confidence(ids: Tensor, scores: Tensor, blank: int) -> float:
    """Mean over the tokens of the log-probability at each one's surest frame. ids, scores: [frames]"""
    _, run = ids.unique_consecutive(return_inverse=True)
    surest = torch.full((int(run[-1]) + 1,), -torch.inf).scatter_reduce(0, run, scores, "amax")
    written = torch.zeros(len(surest), dtype=torch.bool).index_fill(0, run[ids != blank], True)
    return float(surest[written].mean()) if bool(written.any()) else float(scores.mean())


def _unsupported(what: str) -> NoReturn:
    raise UserError(f"{what} is not supported for a student with a CTC head")
