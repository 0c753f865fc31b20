"""Whisper, the sequence-to-sequence family, at any audio length up to its 30 s.

transformers' encoder accepts exactly 3,000 frames. Here its layers run on as many frames as the clip has, with the
first positions of the embedding (length-adaptive distillation: our interpretation, docs/decisions/0003).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from workbench.audio import SAMPLE_RATE, Wave
from workbench.errors import UserError
from workbench.families.convolution import convolve
from workbench.families.decoding import beam_scored, greedy_scored
from workbench.families.log_mel import SAMPLES_PER_POSITION, LogMel
from workbench.families.low_rank import restore
from workbench.families.packed import PackedTokens, drops, packed_decoder_layer, run_layer, run_packed
from workbench.families.pooling import pool_after, pooled, pooled_mask
from workbench.families.protocol import IGNORED, Tokens, Transcript
from workbench.families.tied import TiedMatrix
from workbench.families.whisper_tokens import ENGLISH_ONLY_TOKENS, label_ids, prompt_ids
from workbench.files import read_json
from workbench.vocabulary import Vocabulary

if TYPE_CHECKING:
    from transformers import WhisperForConditionalGeneration, WhisperTokenizerFast

WINDOW_SECONDS = 30.0
TOKENS_PER_SECOND = 8.0  # nobody speaks faster; a decoder that writes more is looping
TOKENS_AT_LEAST = 12
PROMPT_TOKENS = 4  # <|startoftranscript|>, language, task, <|notimestamps|>


def own_margin(folder: Path) -> float | None:
    """Seconds of silence that a checkpoint hears after a clip which reads clips at their own length; None for one that reads 30 s."""
    settings = folder / "workbench.json"  # `save_student` writes it
    says = read_json(settings, "a student's settings") if settings.is_file() else {}
    return float(says.get("margin_seconds", 0.0)) if says.get("length") == "true" else None


class Whisper:
    """What is Whisper's own: features, tokens, encoder at true length, teacher-forced logits, greedy decoding."""

    name = "whisper"
    window_seconds = WINDOW_SECONDS

    def __init__(self, folder: Path) -> None:
        """Open the tokenizer and features of a checkpoint folder; raises UserError if it is not Whisper."""
        from transformers import AutoConfig, GenerationConfig, WhisperTokenizerFast

        try:
            self.config = AutoConfig.from_pretrained(folder)
        except (OSError, ValueError) as error:
            raise UserError(f"{folder}: config.json cannot be read ({str(error).splitlines()[0]})") from None
        if self.config.model_type != "whisper":
            raise UserError(f"{folder}: a {self.config.model_type!r} model; expected a 'whisper' checkpoint")
        self.folder = folder
        self.own_margin = own_margin(folder)
        self.tokenizer: WhisperTokenizerFast = WhisperTokenizerFast.from_pretrained(folder)
        self.generation = GenerationConfig.from_pretrained(folder)
        self.frontend = LogMel(self.config.num_mel_bins)
        self.end: int = self.config.eos_token_id
        self.suppressed: list[int] = list(self.generation.suppress_tokens or [])
        self.suppressed_first: list[int] = list(self.generation.begin_suppress_tokens or [])
        self.vocabulary: Vocabulary | None = None
        said = getattr(self.generation, "is_multilingual", None)
        spoken = self.config.vocab_size != ENGLISH_ONLY_TOKENS and "<|en|>" in self.tokenizer.get_added_vocab()
        self.multilingual: bool = spoken if said is None else bool(said)

    def narrowed(self, vocabulary: Vocabulary) -> Whisper:
        """The same family for models that know only some of the tokens, by numbers of their own."""
        other = copy.copy(self)
        other.vocabulary = vocabulary
        other.end = vocabulary.place(self.end)
        other.suppressed = vocabulary.places(self.suppressed)
        other.suppressed_first = vocabulary.places(self.suppressed_first)
        return other

    @property
    def language_ids(self) -> dict[str, int]:
        """Token of each language, by its ISO 639-1 code; none for an English-only model."""
        known: dict[str, int] = (self.multilingual and getattr(self.generation, "lang_to_id", None)) or {}
        return {token.strip("<|>"): i for token, i in known.items()}

    def prompt(self, language: str) -> list[int]:
        """Forced first tokens of a transcript, in the checkpoint's own numbers; raises UserError for an unknown language."""
        return prompt_ids(self.tokenizer, language, self.multilingual)

    def special_tokens(self) -> list[int]:
        """Ids that every transcript may need: the specials before the timestamps, and the 256 bytes."""
        from tokenizers.pre_tokenizers import ByteLevel

        specials = self.tokenizer.get_added_vocab()
        no_times = specials.get("<|notimestamps|>", self.config.vocab_size)
        bytes_ = self.tokenizer.convert_tokens_to_ids(sorted(ByteLevel.alphabet()))
        return sorted({i for i in [*specials.values(), *bytes_] if i is not None and i <= no_times})

    def load(self) -> WhisperForConditionalGeneration:
        """Load the weights in fp32 on the CPU, products that were taken apart in two as two again."""
        from transformers import WhisperForConditionalGeneration

        model = WhisperForConditionalGeneration.from_pretrained(self.folder, dtype=torch.float32).eval()
        return restore(model)

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
        """Seconds of silence after a clip that the checkpoint was trained to hear, up to its window: all of it for a stock one."""
        return self.window_seconds if self.own_margin is None else self.own_margin

    def heard(self, waves: Sequence[Wave]) -> float:
        """Seconds that the checkpoint was trained to hear of waves: the longest and the silence after it, up to its window."""
        return min(max(map(len, waves)) / SAMPLE_RATE + self.silence, self.window_seconds)

    @torch.no_grad()
    def spectrum(self, padded: Tensor) -> Tensor:
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
                    f"transcript {text[:40]!r}… has {len(said)} tokens, more than the decoder's {self.config.max_target_positions}"
                )
            inputs.append(torch.tensor([*prompt, *said]))
            end: int = self.config.eos_token_id
            labels.append(torch.tensor([*[IGNORED] * (len(prompt) - 1), *said, end]))
        pad = torch.nn.utils.rnn.pad_sequence
        if self.vocabulary is not None:
            inputs, labels = ([self.vocabulary.narrow(row) for row in rows] for rows in (inputs, labels))
        return Tokens(pad(inputs, True, self.end), pad(labels, True, IGNORED))

    def encode(self, model: Any, features: Tensor, heard: Tensor | None = None, checkpointing: bool = False) -> Tensor:
        """Run the encoder on any number of frames up to 3,000. [clips, mels, frames] -> [clips, frames / 2, width]"""
        return encode(model, features, heard, checkpointing)

    def logits(
        self,
        model: Any,
        states: Tensor,
        tokens: Tokens,
        labelled: Tensor | None = None,
        heard: Tensor | None = None,
        checkpointing: bool = False,
        early: int | None = None,
    ) -> Tensor:
        """Teacher-forced logits at the labelled positions. -> [labels, vocabulary]"""
        return decoder_logits(model, states, tokens, labelled, heard, checkpointing, early)

    def hidden(
        self, model: Any, states: Tensor, tokens: Tokens, labelled: Tensor | None = None, heard: Tensor | None = None
    ) -> Tensor:
        """What the output projection is given at the labelled positions. -> [labels, width]"""
        return decoder_hidden(model, states, tokens, labelled, heard)[0]

    @property
    def most_tokens(self) -> int:
        """Tokens that fit the decoder's context after the longest prompt."""
        return int(self.config.max_target_positions) - PROMPT_TOKENS

    def token_limit(self, seconds: float) -> int:
        """Most tokens that a transcript of a clip of this length may have."""
        return min(TOKENS_AT_LEAST + int(TOKENS_PER_SECOND * seconds), self.most_tokens)

    def decode(self, model: Any, states: Tensor, seconds: Sequence[float], languages: Sequence[str]) -> list[str]:
        """Transcribe encoder states greedily. states: [utterances, positions, width]"""
        return [found.text for found in self.transcribe(model, states, seconds, languages)]

    def transcribe(
        self, model: Any, states: Tensor, seconds: Sequence[float], languages: Sequence[str], beams: int = 1
    ) -> list[Transcript]:
        """Transcribe encoder states greedily or with a beam. states: [utterances, positions, width]"""
        prompts = [self.prompt(language) for language in languages]
        if self.vocabulary is not None:
            prompts = [self.vocabulary.places(prompt) for prompt in prompts]
        limits = [self.token_limit(s) for s in seconds]
        decode = greedy_scored if beams == 1 else partial(beam_scored, beams=beams)
        scored = decode(model, states, prompts, limits, self.end, self.suppressed, self.suppressed_first)
        written = [ids if self.vocabulary is None else self.vocabulary.widened(ids) for ids, _ in scored]
        texts = self.tokenizer.batch_decode(written, skip_special_tokens=True)
        return [Transcript(str(text).strip(), score) for text, (_, score) in zip(texts, scored, strict=True)]

    @torch.no_grad()
    def languages(self, model: Any, states: Tensor) -> list[tuple[str, float]]:
        """Likeliest language of each clip and its probability, from the first token that Whisper writes."""
        known = self.language_ids
        if not known:
            return [("en", 1.0)] * len(states)
        start = torch.full((len(states), 1), self.config.decoder_start_token_id, device=states.device)
        hidden = model.model.decoder(input_ids=start, encoder_hidden_states=states, use_cache=False).last_hidden_state
        logits = model.proj_out(hidden[:, 0]).float()[:, list(known.values())]  # [clips, languages]
        best = logits.softmax(-1).max(-1)
        codes = list(known)
        return [(codes[i], p) for i, p in zip(best.indices.tolist(), best.values.tolist(), strict=True)]


def encode(model: Any, features: Tensor, heard: Tensor | None = None, checkpointing: bool = False) -> Tensor:
    """Run the encoder on any number of frames up to 3,000.

    Args:
        model: a WhisperForConditionalGeneration.
        features: [clips, mels, frames].
        heard: which positions a clip has, bool [clips, frames / 2]; the others are padding, and no clip attends to them.
        checkpointing: compute a layer's activations again in the backward pass instead of keeping them.

    Returns:
        States [clips, frames / 2, width], of no meaning at padding; half as many where the model pools them.
    """
    encoder, pools = model.model.encoder, pool_after(model.config)
    hidden = F.gelu(convolve(encoder.conv1, features))
    hidden = F.gelu(convolve(encoder.conv2, hidden)).transpose(1, 2)  # [clips, positions, width]
    hidden = hidden + encoder.embed_positions.weight[: hidden.shape[1]]
    if pools:
        hidden = _run_layers(encoder.layers[:pools], hidden, heard, checkpointing)
        hidden, heard = pooled(hidden, heard), None if heard is None else pooled_mask(heard)
    states: Tensor = encoder.layer_norm(_run_layers(encoder.layers[pools:], hidden, heard, checkpointing))
    return states


def _run_layers(layers: Any, hidden: Tensor, heard: Tensor | None, checkpointing: bool) -> Tensor:
    if heard is not None and hidden.device.type == "cpu" and not torch.compiler.is_compiling():
        return run_packed(layers, hidden, heard, checkpointing)
    mask = None if heard is None else heard[:, None, None, :].expand(-1, 1, hidden.shape[1], -1)
    for layer in layers:
        hidden = run_layer(lambda layer, *given: layer(*given)[0], checkpointing, layer, hidden, mask, None)
    return hidden


def decoder_logits(
    model: Any,
    states: Tensor,
    tokens: Tokens,
    labelled: Tensor | None = None,
    heard: Tensor | None = None,
    checkpointing: bool = False,
    early: int | None = None,
) -> Tensor:
    """Teacher-forced logits at the labelled positions only, in order of utterance and position.

    Gathering before the projection saves the product with the vocabulary at prompt and padding positions.

    Args:
        model: a WhisperForConditionalGeneration.
        states: encoder states [utterances, positions, width].
        tokens: inputs and labels [utterances, tokens].
        labelled: flat indices of the labelled positions [labels], if they are known already.
        heard: which states are there to be attended to, bool [utterances, positions], or as many as the encoder had before it
            pooled them; all by default.
        checkpointing: compute a layer's activations again in the backward pass instead of keeping them.
        early: also the logits after this decoder layer, under the same norm and projection.

    Returns:
        Logits [labels, vocabulary]; with `early` [2 * labels, vocabulary], the early ones last.
    """
    weight = model.model.decoder.embed_tokens.weight
    # torch.compile does not see through the hand-over between the two
    tied = weight is model.proj_out.weight and weight.requires_grad and not torch.compiler.is_compiling()
    matrix = TiedMatrix(weight, model.model.decoder.embed_tokens.padding_idx) if tied else None
    chosen, early_chosen = decoder_hidden(model, states, tokens, labelled, heard, checkpointing, matrix, early)
    if early_chosen is not None:
        chosen = torch.cat([chosen, early_chosen])
    logits: Tensor = matrix.project(chosen) if matrix else model.proj_out(chosen)
    return logits


def decoder_hidden(
    model: Any,
    states: Tensor,
    tokens: Tokens,
    labelled: Tensor | None = None,
    heard: Tensor | None = None,
    checkpointing: bool = False,
    matrix: TiedMatrix | None = None,
    early: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """What the output projection is given at the labelled positions, and after an early layer; see `decoder_logits`."""
    decoder = model.model.decoder
    if heard is not None and heard.shape[1] != states.shape[1]:
        heard = pooled_mask(heard)  # the encoder has halved them
    hidden = matrix.embed(tokens.inputs) if matrix else decoder.embed_tokens(tokens.inputs)
    hidden = hidden + decoder.embed_positions.weight[: tokens.inputs.shape[1]]
    places = tokens.labelled() if labelled is None else labelled
    given: tuple[Any, ...]
    call: Callable[..., Tensor]
    if hidden.device.type == "cpu" and not torch.compiler.is_compiling() and not drops(decoder.layers):
        packed = PackedTokens.of(tokens.labels, states, heard)
        rows, places, given, call = packed.rows(hidden), packed.places(places), (packed,), packed_decoder_layer
    else:
        mask = None if heard is None else heard[:, None, None, :].expand(-1, 1, tokens.inputs.shape[1], -1)
        # without a mask of its own, self-attention is causal
        rows, given, call = hidden, (None, states, mask), lambda layer, *given: layer(*given)[0]
    early_rows = None
    for number, layer in enumerate(decoder.layers):
        rows = run_layer(call, checkpointing, layer, rows, *given)
        if number == early:
            early_rows = _norm_at(decoder, rows, places)
    return _norm_at(decoder, rows, places), early_rows


def _norm_at(decoder: Any, rows: Tensor, places: Tensor) -> Tensor:
    """The decoder's last norm, at some positions. [..., width] -> [places, width]"""
    chosen: Tensor = decoder.layer_norm(rows.flatten(0, -2).index_select(0, places))
    return chosen
