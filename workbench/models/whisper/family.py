"""Whisper, the sequence-to-sequence family, at any audio length up to 30 s: all that is its own but the forward passes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor, nn

from workbench.audio.decode import SAMPLE_RATE, Wave
from workbench.config.sections import BLANK_WEIGHT, StudentRecipe
from workbench.core.errors import UserError
from workbench.core.files import read_object
from workbench.models.protocol import IGNORE_INDEX, Family, LayerOutputs, ObjectiveName, Part, Tokens, Transcript
from workbench.models.quantization import ExportedWeight, PrecisionPart
from workbench.models.vocabulary import Vocabulary
from workbench.models.whisper.decoding import IncrementalDecoder, beam_scored, greedy_scored
from workbench.models.whisper.exported import exported_weights
from workbench.models.whisper.forward.layers import as_whisper, decoder_of
from workbench.models.whisper.forward.log_mel import SAMPLES_PER_POSITION, LogMel, positions_of
from workbench.models.whisper.forward.passes import (
    decoder_hidden,
    decoder_logits,
    decoder_logits_and_layers,
    encode,
    with_dropout,
)
from workbench.models.whisper.forward.pooling import pool_after, pooled
from workbench.models.whisper.limits import PROMPT_TOKENS, TOKENS_AT_LEAST, max_tokens_per_second
from workbench.models.whisper.loading.checkpoint import check_checkpoint, generation_config
from workbench.models.whisper.loading.tokens import (
    ENGLISH_ONLY_TOKENS,
    label_ids,
    language_tokens,
    open_tokenizer,
    prompt_ids,
    text_of,
)
from workbench.models.whisper.loading.weights import load_whisper_weights
from workbench.models.whisper.low_rank import factorize, merged_state_dict, rebuild_factors, with_low_rank_layers
from workbench.models.whisper.narrowing import narrow_model, widened
from workbench.models.whisper.students import build_student, check_pair

if TYPE_CHECKING:
    from transformers import WhisperForConditionalGeneration, WhisperTokenizer

    from workbench.config.recipe import Recipe

WINDOW_SECONDS = 30.0


def trained_silence(folder: Path) -> float | None:
    """Seconds of silence to append after each clip; None if the checkpoint expects input padded to 30 s."""
    settings = folder / "workbench.json"  # `save_student` writes it
    says = read_object(settings, "a student's settings") if settings.is_file() else {}
    margin = says.get("margin_seconds", 0.0)
    if not isinstance(margin, (int, float)) or not 0 <= margin <= WINDOW_SECONDS:
        raise UserError(
            f"{settings}: margin_seconds is {str(margin)[:60]}; expected seconds from 0 to {WINDOW_SECONDS:g}"
        )
    return float(margin) if says.get("length") == "true" else None


def part_of(parameter: str) -> Part:
    """Which part of a Whisper a parameter belongs to; the encoder's sinusoidal positions are constants."""
    if "encoder.embed_positions" in parameter:
        return "constant"
    return "encoder" if parameter.startswith("model.encoder.") else "decoder"


class Whisper:
    """Whisper's specifics: features, tokens, unpadded encoder, teacher-forced logits, greedy decoding."""

    name = "whisper"
    objective: ObjectiveName = "cross_entropy"
    blank: int | None = None
    window_seconds = WINDOW_SECONDS
    samples_per_position = SAMPLES_PER_POSITION

    def __init__(self, folder: Path) -> None:
        """Open the tokenizer and features of a checkpoint folder; raises UserError for one that `check_checkpoint` does not accept."""
        self.config: Any = check_checkpoint(folder)
        self.folder = folder
        self.trained_silence = trained_silence(folder)
        self.tokenizer: WhisperTokenizer = open_tokenizer(folder, self.config)
        self.generation = generation_config(folder, self.config)
        self.frontend = LogMel(self.config.num_mel_bins)
        end = self.config.eos_token_id
        assert isinstance(end, int)  # noqa: S101  check_checkpoint takes no list
        self.eos_token_id = end
        self.suppress_tokens: list[int] = list(self.generation.suppress_tokens or [])
        self.begin_suppress_tokens: list[int] = list(self.generation.begin_suppress_tokens or [])
        self.vocabulary: Vocabulary | None = None
        said = getattr(self.generation, "is_multilingual", None)
        spoken = self.config.vocab_size != ENGLISH_ONLY_TOKENS and "<|en|>" in self.tokenizer.get_added_vocab()
        self.multilingual: bool = spoken if said is None else bool(said)

    @classmethod
    def check(cls, folder: Path) -> None:
        """Raise UserError for a folder that `check_checkpoint` does not accept."""
        check_checkpoint(folder)

    def with_vocabulary(self, vocabulary: Vocabulary) -> Whisper:
        """The same family for models that have only some of the tokens, renumbered."""
        other = copy.copy(self)
        other.vocabulary = vocabulary
        other.eos_token_id = vocabulary.index_of(self.eos_token_id)
        other.suppress_tokens = vocabulary.indices_of(self.suppress_tokens)
        other.begin_suppress_tokens = vocabulary.indices_of(self.begin_suppress_tokens)
        return other

    @property
    def language_ids(self) -> dict[str, int]:
        """Token of each language, by its ISO 639-1 code; none for an English-only model."""
        if not self.multilingual:
            return {}
        known: dict[str, int] | None = getattr(self.generation, "lang_to_id", None)
        if not known:  # checkpoints from before 2023 do not list them
            known = language_tokens(self.tokenizer.get_added_vocab())
        return {token.strip("<|>"): i for token, i in known.items()}

    def prompt(self, language: str) -> list[int]:
        """Forced first tokens of a transcript, in the checkpoint's own numbers; raises UserError for an unknown language."""
        return prompt_ids(self.tokenizer, language, self.multilingual)

    def special_tokens(self) -> list[int]:
        """Ids that every transcript may need: the specials before the timestamps, and the 256 bytes."""
        from tokenizers.pre_tokenizers import ByteLevel

        specials = self.tokenizer.get_added_vocab()
        no_times = specials.get("<|notimestamps|>", self.config.vocab_size)
        bytes_ = (self.tokenizer.backend_tokenizer.token_to_id(char) for char in ByteLevel.alphabet())
        return sorted({i for i in [*specials.values(), *bytes_] if i is not None and i <= no_times})

    def load(self) -> WhisperForConditionalGeneration:
        """Load the weights in fp32 on the CPU; factorized layers are factorized again.

        Raises:
            UserError: they are damaged, or hold NaN or infinity.
        """
        return rebuild_factors(load_whisper_weights(self.folder, self.config, copy.deepcopy(self.generation)))

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write a model as transformers does, with low-rank layers merged."""
        whisper = as_whisper(model)
        whisper.save_pretrained(folder, state_dict=merged_state_dict(whisper))

    def build_student(self, model: nn.Module, recipe: StudentRecipe) -> WhisperForConditionalGeneration:
        """Copy some of a model's layers into a valid transformers model."""
        return build_student(as_whisper(model), recipe)

    def check_pair(self, student: nn.Module, teacher: nn.Module, matched: Sequence[str]) -> None:
        """Raise UserError if a student cannot learn from a teacher."""
        check_pair(as_whisper(student).config, as_whisper(teacher).config, matched)

    def factorize(self, model: nn.Module, features: Sequence[Tensor], share: float) -> int:
        """Factorize encoder layers (models/whisper/low_rank.py)."""
        return len(factorize(as_whisper(model), features, share))

    def empty_copy(self, model: nn.Module) -> WhisperForConditionalGeneration:
        """A model of the same shape, to be filled."""
        whisper = as_whisper(model)
        copied = with_low_rank_layers(type(whisper)(whisper.config), whisper.config)
        copied.generation_config = whisper.generation_config
        return copied

    @property
    def width(self) -> int:
        """Width of the encoder's states."""
        return int(self.config.d_model)

    @property
    def vocabulary_size(self) -> int:
        """Size of the checkpoint's vocabulary."""
        return int(self.config.vocab_size)

    def positions(self, samples: int) -> int:
        """Number of encoder positions (20 ms each) that a wave of this length touches."""
        return positions_of(samples)

    def samples(self, positions: int) -> int:
        """Most samples of a wave that has this number of encoder positions."""
        return positions * SAMPLES_PER_POSITION

    def attention_mask(self, samples: Sequence[int], seconds: float) -> None:
        """None: the silence after a clip is part of it, however long."""

    def predicted(self, tokens: Tokens, attention_mask: Tensor | None) -> Tensor:
        """At every label. -> bool [utterances, tokens]"""
        return tokens.labels != IGNORE_INDEX

    def token_and_feature_files(self) -> Sequence[Path]:
        """The checkpoint's JSON and text files, of which those of its model are written again."""
        return [p for p in self.folder.iterdir() if p.suffix in (".json", ".txt") and p.name != "source.json"]

    def check_recipe(self, recipe: Recipe) -> None:
        """Raise UserError for what acts on CTC students alone."""
        for name, stage in recipe.stages.items():
            if stage.divergence.blank_weight != BLANK_WEIGHT:
                raise UserError(
                    f"stages.{name}.divergence.blank_weight would have no effect: this student has no CTC head; leave it out"
                )

    def check_origin(self, origin: Family, where: str) -> None:
        """Raise UserError unless it is a Whisper, too."""
        if origin.name != self.name:
            raise UserError(f"{where} is a {origin.name} model, the student a {self.name} one; expected one family")

    def same_tokens(self, other: Family) -> bool:
        """Whether it is a Whisper with as many tokens."""
        return other.name == self.name and other.vocabulary_size == self.vocabulary_size

    def pooling(self, model: nn.Module) -> int:
        """Encoder positions per state: 1, or 2 if neighbours are pooled."""
        return 2 if pool_after(as_whisper(model).config) else 1

    def pooled(self, states: Tensor) -> Tensor:
        """Means of two neighbours."""
        return pooled(states)

    def prune_vocabulary(self, model: nn.Module, vocabulary: Vocabulary) -> Tensor:
        """Cut a model's tied matrix down, in place; returns the whole one [vocabulary, width]."""
        return narrow_model(as_whisper(model), vocabulary)

    def full_vocabulary(self, model: nn.Module, whole: Tensor) -> AbstractContextManager[None]:
        """Temporarily give a narrowed model its whole vocabulary."""
        return nullcontext() if self.vocabulary is None else widened(as_whisper(model), self.vocabulary, whole)

    @property
    def mels(self) -> int:
        """Mel bands of the features."""
        return int(self.config.num_mel_bins)

    def features(self, waves: Sequence[Wave], seconds: float, device: torch.device | str = "cpu") -> Tensor:
        """Pad waves with silence to `seconds` and compute log-mel features on `device`. -> [clips, mels, frames]"""
        samples = min(round(seconds * SAMPLE_RATE), round(WINDOW_SECONDS * SAMPLE_RATE))
        samples = -(-samples // SAMPLES_PER_POSITION) * SAMPLES_PER_POSITION  # a whole number of encoder positions
        padded = torch.zeros(len(waves), samples)
        for row, wave in zip(padded, waves, strict=True):
            row[: len(wave)] = torch.from_numpy(wave[:samples])
        return self.spectrum(padded.to(device, non_blocking=True))

    @property
    def silence(self) -> float:
        """Seconds of trailing silence that the checkpoint was trained with; a stock checkpoint's fill its window."""
        return self.window_seconds if self.trained_silence is None else self.trained_silence

    def input_seconds(self, waves: Sequence[Wave]) -> float:
        """Input length in seconds for some waves: the longest and the silence after it, up to the checkpoint's window."""
        return min(max(map(len, waves)) / SAMPLE_RATE + self.silence, self.window_seconds)

    @torch.no_grad()
    def spectrum(self, padded: Tensor, samples: Tensor | None = None, heard: Tensor | None = None) -> Tensor:
        """Log-mel features of waves padded to one length, in fp32. [clips, samples] -> [clips, mels, frames]"""
        with torch.autocast(padded.device.type, enabled=False):  # a power spectrum does not fit into 8 bits of mantissa
            features: Tensor = self.frontend.to(padded.device)(padded)
        return features

    def tokens(self, texts: Sequence[str], languages: Sequence[str]) -> Tokens:
        """Tokenize transcripts for teacher forcing; raises UserError for one longer than the decoder's context."""
        inputs, labels = [], []
        for text, language in zip(texts, languages, strict=True):
            prompt, said = self.prompt(language), label_ids(self.tokenizer, text)
            if len(prompt) + len(said) > self.config.max_target_positions:
                raise UserError(
                    f"transcript {text[:40]!r}… has {len(said)} tokens, more than the decoder takes "
                    f"({self.config.max_target_positions - len(prompt)}); shorten it, or cut the clip into shorter ones"
                )
            inputs.append(torch.tensor([*prompt, *said]))
            end: int = self.config.eos_token_id
            labels.append(torch.tensor([*[IGNORE_INDEX] * (len(prompt) - 1), *said, end]))
        pad = torch.nn.utils.rnn.pad_sequence
        if self.vocabulary is not None:
            inputs, labels = ([self.vocabulary.map_ids(row) for row in rows] for rows in (inputs, labels))
        return Tokens(pad(inputs, True, self.eos_token_id), pad(labels, True, IGNORE_INDEX))

    def lacking(self, text: str) -> list[str]:
        """None: its tokens can write any text."""
        return []

    def encode(
        self, model: nn.Module, features: Tensor, attention_mask: Tensor | None = None, checkpointing: bool = False
    ) -> Tensor:
        """Run the encoder on any number of frames up to 3,000. [clips, mels, frames] -> [clips, frames / 2, width]"""
        return encode(as_whisper(model), features, attention_mask, checkpointing)

    def encode_with_early(
        self,
        model: nn.Module,
        features: Tensor,
        layer: int,
        attention_mask: Tensor | None = None,
        checkpointing: bool = False,
    ) -> NoReturn:
        """There is no head that an encoder layer could be read by."""
        raise UserError("intermediate_ctc needs a student with a CTC head")

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
        """Teacher-forced logits at the labelled positions. -> [labels, vocabulary]"""
        return decoder_logits(as_whisper(model), states, tokens, labelled, attention_mask, checkpointing, early_layer)

    def hidden(
        self,
        model: nn.Module,
        states: Tensor,
        tokens: Tokens,
        labelled: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """Input of the output projection at the labelled positions. -> [labels, width]"""
        return decoder_hidden(as_whisper(model), states, tokens, labelled, attention_mask)[0]

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
        """Teacher-forced logits [labels, vocabulary], and what some decoder layers compute."""
        return decoder_logits_and_layers(
            as_whisper(model), states, tokens, layers, attention, labelled, attention_mask, checkpointing
        )

    def project(self, model: nn.Module, hidden: Tensor) -> Tensor:
        """Logits in fp32. [..., width] -> [..., vocabulary]"""
        logits: Tensor = as_whisper(model).proj_out(hidden)
        return logits.float()

    def incremental_decoder(self, model: nn.Module, states: Tensor) -> Callable[[Tensor], Tensor]:
        """The decoder with its cache: given the next tokens [clips, tokens], the logits after the last [clips, vocabulary]."""
        return IncrementalDecoder(as_whisper(model), states)

    def part_of(self, parameter: str) -> Part:
        """Which part of a model a parameter belongs to."""
        return part_of(parameter)

    def exported_weights(self, model: nn.Module, part: PrecisionPart) -> Sequence[ExportedWeight]:
        """The weights that a bundle's graphs hold in the scheme of a part."""
        return exported_weights(model, part)

    def encoder_depth(self, model: nn.Module) -> int:
        """How many encoder layers a model has."""
        return int(as_whisper(model).config.encoder_layers)

    def decoder_depth(self, model: nn.Module) -> int:
        """How many decoder layers a model has."""
        return int(as_whisper(model).config.decoder_layers)

    def decoder_dropout(self, model: nn.Module, rate: float) -> AbstractContextManager[None]:
        """Temporarily run the decoder's layers, and nothing else, with dropout."""
        return with_dropout(decoder_of(as_whisper(model)).layers, rate)

    @property
    def most_tokens(self) -> int:
        """Tokens that fit the decoder's context after the longest prompt."""
        return int(self.config.max_target_positions) - PROMPT_TOKENS

    def token_limit(self, seconds: float, language: str) -> int:
        """Most tokens that a transcript of a clip of this length in this language may have."""
        return min(TOKENS_AT_LEAST + int(max_tokens_per_second(language) * seconds), self.most_tokens)

    def decode(
        self,
        model: nn.Module,
        states: Tensor,
        seconds: Sequence[float],
        languages: Sequence[str],
        attention_mask: Tensor | None = None,
    ) -> list[str]:
        """Transcribe encoder states greedily. states: [utterances, positions, width]"""
        return [found.text for found in self.transcribe(model, states, seconds, languages)]

    def transcribe(
        self,
        model: nn.Module,
        states: Tensor,
        seconds: Sequence[float],
        languages: Sequence[str],
        beams: int = 1,
        attention_mask: Tensor | None = None,
    ) -> list[Transcript]:
        """Transcribe encoder states greedily or with a beam. states: [utterances, positions, width]"""
        prompts = [self.prompt(language) for language in languages]
        if self.vocabulary is not None:
            prompts = [self.vocabulary.indices_of(prompt) for prompt in prompts]
        limits = [self.token_limit(s, language) for s, language in zip(seconds, languages, strict=True)]
        decode = greedy_scored if beams == 1 else partial(beam_scored, beams=beams)
        scored = decode(
            as_whisper(model),
            states,
            prompts,
            limits,
            self.eos_token_id,
            self.suppress_tokens,
            self.begin_suppress_tokens,
        )
        written = [ids if self.vocabulary is None else self.vocabulary.full_ids(ids) for ids, _ in scored]
        texts = [text_of(self.tokenizer, ids) for ids in written]
        return [Transcript(str(text).strip(), score) for text, (_, score) in zip(texts, scored, strict=True)]

    @torch.no_grad()
    def languages(self, model: nn.Module, states: Tensor) -> list[tuple[str, float]]:
        """Likeliest language of each clip and its probability, from the first token that Whisper writes."""
        known = self.language_ids
        if not known:
            return [("en", 1.0)] * len(states)
        start = torch.full((len(states), 1), self.config.decoder_start_token_id, device=states.device)
        whisper = as_whisper(model)
        hidden = decoder_of(whisper)(input_ids=start, encoder_hidden_states=states, use_cache=False).last_hidden_state
        logits = whisper.proj_out(hidden[:, 0]).float()[:, list(known.values())]  # [clips, languages]
        best = logits.softmax(-1).max(-1)
        codes = list(known)
        return [(codes[i], p) for i, p in zip(best.indices.tolist(), best.values.tolist(), strict=True)]
