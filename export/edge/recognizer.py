"""Transcribe waves with a bundle's graphs on onnxruntime."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import onnxruntime as ort

from .after_loop import join_transcripts, rest_after
from .audio.resample import SAMPLE_RATE, AudioError, Wave
from .bundle.manifest import BundleError, Manifest, read_manifest
from .bundle.tokens import Detokenizer
from .clock import Clock
from .decoding.ctc import CtcModel
from .decoding.decoder import Hypothesis, beam_search, gives_several_logits, greedy
from .decoding.drafted import greedy_with_draft
from .decoding.drafts import Draft
from .decoding.hotword_scores import HotwordScores
from .decoding.hotwords import DEFAULT_SCORE, Hotwords
from .decoding.language_model import LanguageModel, LanguageModelWeights
from .decoding.model import SpeechModel
from .decoding.prefix_search import TextScores
from .decoding.sessions import Provider
from .options import Options
from .transcript import Segment, Transcript
from .vad import SpeechSpan, VoiceActivityDetector, anybody_speaks, find_speech
from .words import WITHOUT_SPACES, Word, timed_words

AUTO = "auto"  # as a language: detect it
UNDETERMINED = "und"  # ISO 639-2: a language that is not known
LONGEST = 28.0  # seconds of a stretch of a recording
DECODER_BEAMS = 20  # most beams of a decoder, each of which has caches of its own
SPREAD_SECONDS = 0.4  # by how much clips of one batch may differ in length: shorter ones get up to that much more silence than they would alone


class Recognizer:
    """A bundle opened in one precision.

    Args:
        bundle: folder that `workbench export` wrote.
        precision: one that the bundle holds; the first by default.
        threads: number of onnxruntime's threads; all cores by default.
        providers: onnxruntime's providers in order of preference, names or (name, options); the CPU by default.
        check: compare the SHA-256 of the graphs and the vocabulary with the manifest first.
        spin: let threads wait for work without sleeping while a graph runs. Clips that follow each other take 8 % less time,
            single short ones after a pause 10 to 20 % more.
        cuda_graphs: capture the decoder's step, for the CUDA provider and clips whose lengths recur (cuda_graphs.py says more).
        vad: skip clips in which the bundle's speech detector finds no speech, so that silence and noise give no text. On by default if the
            bundle has a detector. A clip with speech anywhere is transcribed as a whole, as without it.
        frugal: release the memory that only loading needed, which lowers the peak by a tenth; sets glibc's thresholds for the whole process.

    Raises:
        BundleError: the bundle is damaged, has no such precision or lacks the detector that `vad` requires, or onnxruntime lacks the first provider.
    """

    def __init__(
        self,
        bundle: str | Path,
        precision: str | None = None,
        threads: int | None = None,
        providers: Sequence[Provider] = ("CPUExecutionProvider",),
        check: bool = True,
        frugal: bool = False,
        spin: bool = False,
        cuda_graphs: bool = False,
        vad: bool | None = None,
    ) -> None:
        self.manifest: Manifest = read_manifest(bundle)
        self.precision = precision or self.manifest.precisions[0]
        self._whisper: SpeechModel | None = None
        self.ctc: CtcModel | None = None  # where the model has a CTC head instead of a decoder
        if self.manifest.has_ctc_head:
            if cuda_graphs:
                raise BundleError(
                    f"{self.manifest.name}: has a CTC head and no decoder; CUDA graphs are for a decoder's steps"
                )
            self.ctc = CtcModel(self.manifest, self.precision, threads, providers, check, frugal, spin)
            self.detokenize = self.ctc.detokenize
        else:
            self._whisper = SpeechModel(
                self.manifest, self.precision, threads, providers, check=check, frugal=frugal, spin=spin, cuda_graphs=cuda_graphs
            )  # fmt: skip
            self.detokenize = Detokenizer(self.manifest.path(self.manifest.vocabulary), self.manifest.added)
        self.window = float(self.manifest.content["window_seconds"])
        self.prompts = self.manifest.content["tokens"]["prompts"]  # token ids by language
        wanted = bool(self.manifest.content.get("speech_detector")) if vad is None else vad
        self.detector = self.new_detector() if wanted else None  # for clips
        self._suppressed: set[int] | None = None  # tokens, found out when hotwords are made
        self._cutter = self.detector  # for recordings, opened when one needs it

    @property
    def model(self) -> SpeechModel:
        """The encoder and decoder; raises BundleError for a model without a decoder."""
        if self._whisper is None:
            raise BundleError(f"{self.manifest.name}: has a CTC head and no decoder")
        return self._whisper

    @cached_property
    def gives_probabilities(self) -> bool:
        """Whether transcripts can have probabilities; bundles of earlier versions give none."""
        return self.ctc is not None or (self.model.has_alignment_heads and gives_several_logits(self.model.step))

    @property
    def times_words(self) -> bool:
        """Whether word times can be asked for."""
        return self.ctc is not None or self.model.has_alignment_heads

    def transcribe(
        self, wave: Wave, language: str = "en", beams: int = 1, words: bool = False, vad: bool = True,
        hotwords: Hotwords | None = None, lm: LanguageModel | None = None, draft: Draft | None = None, min_logprob: float | None = None,
    ) -> Transcript:  # fmt: skip
        """Transcribe one utterance, [samples] at 16 kHz, of at most 30 s.

        Args:
            wave: the utterance.
            language: ISO 639-1 code, or `auto` to detect it.
            beams: beams of the search; 1 is greedy. With a CTC head, hotwords and a language model need beams, and 1 means 50.
            words: also compute the times and probabilities of words, which takes one more pass over the transcript.
            vad: False where speech is known to be there; the recogniser's detector is then skipped.
            hotwords: names and terms to expect, from `new_hotwords`.
            lm: a language model, from `new_language_model`.
            draft: proposes tokens, of which the decoder checks many in one pass. The text is the same, in less time if the draft is good
                (decoding/drafts.py). Ignored with beams, with hotwords, and by bundles whose decoder takes no drafts.
            min_logprob: lowest mean log-probability of the tokens; a text below it is taken for a hallucination and left out. A decoder takes
                one more pass over the transcript for it, as for `words`. The speech after a loop is a text of its own.

        Returns:
            The transcript; its text is empty if the detector finds no speech, or if it is less likely than `min_logprob`. Then it has a `logprob`.

        Raises:
            AudioError: the wave is empty, too long, or holds values that are not finite.
            BundleError: the model does not support the language, has no alignment heads for word times, gives no probabilities, or takes no
                language model.
        """
        seconds = self._checked(wave)
        self.check_options(language, words, beams, lm, min_logprob)
        clock = Clock()
        if vad and not self._spoken(wave, clock):
            return Transcript("", language, (), clock.laps, True)
        options = Options(language, beams, words, hotwords, lm, draft, min_logprob)
        return self._transcribed([wave], [seconds], options, clock)[0]

    def transcribe_batch(
        self, waves: Sequence[Wave], language: str = "en", most: int = 16, hotwords: Hotwords | None = None,
        beams: int = 1, lm: LanguageModel | None = None,
    ) -> list[Transcript]:  # fmt: skip
        """Transcribe utterances, each of at most 30 s, in batches; transcripts are returned in the order given.

        Clips of about the same length are batched together, because a batch is as long as its longest clip. That pays on a GPU, hardly on a CPU.

        Args:
            waves: the utterances, [samples] each.
            language: ISO 639-1 code, or `auto` to detect each one's.
            most: clips in a batch.
            hotwords: as for `transcribe`.
            beams: as for `transcribe`. A decoder with beams takes one clip at a time.
            lm: as for `transcribe`.

        Raises:
            AudioError, BundleError: as `transcribe`.
        """
        found: dict[int, Transcript] = {}
        seconds = [self._checked(wave) for wave in waves]
        self.check_options(language, beams=beams, lm=lm)
        most, options = 1 if beams > 1 else most, Options(language, beams, hotwords=hotwords, lm=lm)
        clock = Clock()
        unspoken = [i for i, wave in enumerate(waves) if not self._spoken(wave, clock)]
        found |= {i: Transcript("", language, (), clock.laps, True) for i in unspoken}
        for batch in self._batches(seconds, most):
            batch = [i for i in batch if i not in found]
            if not batch:
                continue
            said = self._transcribed([waves[i] for i in batch], [seconds[i] for i in batch], options, Clock())
            found |= zip(batch, said, strict=True)
        return [found[i] for i in range(len(waves))]

    def segments(
        self, wave: Wave, language: str = "en", longest: float = LONGEST, beams: int = 1, words: bool = False,
        hotwords: Hotwords | None = None, lm: LanguageModel | None = None, min_logprob: float | None = None,
    ) -> Iterator[Segment]:  # fmt: skip
        """Transcribe a recording of any length, one stretch of speech after another; silence is skipped.

        Args:
            wave: the recording, [samples] at 16 kHz.
            language: ISO 639-1 code, or `auto` to detect each stretch's.
            longest: seconds of the longest stretch, 2 to 30.
            beams: as for `transcribe`.
            words: as for `transcribe`; their times are the recording's.
            hotwords: as for `transcribe`.
            lm: as for `transcribe`.
            min_logprob: as for `transcribe`.

        Raises:
            AudioError: the recording is empty or holds values that are not finite, or `longest` is out of range.
            BundleError: the model does not support the language, or the bundle has no speech detector.
        """
        self.check_options(language, words, beams, lm, min_logprob)
        for span in self.speech_spans(wave, longest):
            yield self.transcribe_span(wave, span, language, beams, words, hotwords, lm, min_logprob)

    def speech_spans(self, wave: Wave, longest: float = LONGEST) -> list[SpeechSpan]:
        """The stretches of speech that `segments` transcribes; raises as it does."""
        if wave.ndim != 1 or not len(wave) or not np.isfinite(wave).all():
            raise AudioError(f"the wave has shape {wave.shape}; expected finite [samples], at least one")
        if not 2 <= longest <= self.window:
            raise AudioError(f"the longest stretch is {longest:g} s; expected 2 to {self.window:g} s")
        self._cutter = self._cutter or self.new_detector()
        return find_speech(wave, self._cutter, longest)

    def transcribe_span(
        self, wave: Wave, span: SpeechSpan, language: str = "en", beams: int = 1, words: bool = False,
        hotwords: Hotwords | None = None, lm: LanguageModel | None = None, min_logprob: float | None = None,
    ) -> Segment:  # fmt: skip
        """Transcribe one stretch of speech of a recording; word times are the recording's. Arguments and errors as for `segments`."""
        begin = span.start / SAMPLE_RATE
        said = self.transcribe(
            wave[span.start : span.end], language, beams, words, False, hotwords, lm, min_logprob=min_logprob
        )
        later = tuple(word.later(begin) for word in said.words)
        return Segment(begin, span.end / SAMPLE_RATE, replace(said, words=later))

    def new_detector(self) -> VoiceActivityDetector:
        """The bundle's speech detector; raises BundleError if it has none."""
        return VoiceActivityDetector(self.manifest.speech_detector())

    def new_hotwords(self, words: Sequence[str], score: float = DEFAULT_SCORE) -> Hotwords:
        """Names and terms to expect, as `transcribe` takes them; raises BundleError as `Hotwords` does."""
        if self.ctc is not None:
            return Hotwords(self.ctc.spelled(words), self.detokenize, score)
        if self._suppressed is None:
            self._suppressed = self.model.suppressed_tokens()
        return Hotwords(words, self.detokenize, score, self._suppressed)

    def new_language_model(self, path: str | Path, weights: LanguageModelWeights | None = None) -> LanguageModel:
        """An n-gram language model, as `transcribe` takes it; raises BundleError as `LanguageModel` does, and for a model without a CTC head."""
        return LanguageModel(path, self.detokenize, self._takes_language_model().lower, weights)

    def _batches(self, seconds: Sequence[float], most: int) -> Iterator[list[int]]:
        """Indices of clips that are batched together, the shortest first."""
        batch: list[int] = []
        padded = self.manifest.content["length"] == "padded"
        for i in sorted(range(len(seconds)), key=lambda i: seconds[i]):
            far = batch and not padded and seconds[i] - seconds[batch[0]] > SPREAD_SECONDS
            if len(batch) == most or far:
                yield batch
                batch = []
            batch.append(i)
        if batch:
            yield batch

    def _transcribed(
        self, waves: Sequence[Wave], seconds: Sequence[float], options: Options, clock: Clock
    ) -> list[Transcript]:
        """Transcribe clips of about one length as one batch, or one clip with beams."""
        if self.ctc is not None:
            return [self._by_ctc(self.ctc, wave, options, clock) for wave in waves]
        cross_kv = self.model.cross_kv(waves, clock)
        languages = [options.language] * len(waves)
        if options.language == AUTO:
            languages = self.model.detect_languages(cross_kv)
            clock.lap("language")
        prompts = [self.prompts[code] for code in languages]
        limits = [self.manifest.token_limit(s, code) for s, code in zip(seconds, languages, strict=True)]
        decoder = self.model.decoder(cross_kv, len(prompts[0]) + max(limits), options.beams)
        end, hotwords, lap = self.model.end_token, options.hotwords, partial(clock.lap, "first_token")
        if options.beams > 1:
            written = [beam_search(decoder, prompts[0], limits[0], end, options.beams, hotwords)]
        elif options.draft is not None and hotwords is None and self.model.takes_drafts:  # of one clip
            written = [greedy_with_draft(decoder, prompts[0], limits[0], end, options.draft, lap)]
        else:
            written = greedy(decoder, prompts, limits, end, lap, hotwords)
        clock.lap("rest")
        texts = [self.detokenize(one.tokens) for one in written]
        clock.lap("detokenize")
        timed: tuple[Word, ...] = ()
        logprob: float | None = None
        if options.read_again:  # of one clip
            timed, logprob = self._words(len(waves[0]), cross_kv, prompts[0], written[0], languages[0])
            timed = timed if options.words else ()
            clock.lap("words")
        found = [
            Transcript(text, code, tuple(one.tokens), clock.laps, one.finished, one.looped, timed, logprob)
            for text, code, one in zip(texts, languages, written, strict=True)
        ]
        return [
            self._continued(wave, said, options) if said.looped else _likely(said, options.min_logprob)
            for wave, said in zip(waves, found, strict=True)
        ]

    def _by_ctc(self, model: CtcModel, wave: Wave, options: Options, clock: Clock) -> Transcript:
        """Transcribe one clip with a CTC head, alone: what follows a clip in a batch would change what is written."""
        spoken = options.language
        if spoken == AUTO:  # which of several it was, nothing here can tell
            spoken = next(iter(self.prompts)) if len(self.prompts) == 1 else UNDETERMINED
        scores: list[TextScores] = [HotwordScores(options.hotwords)] if options.hotwords else []
        scores += [options.lm] if options.lm else []
        text, ids, timed, logprob = model.transcribe(wave, clock, spoken, options.read_again, options.beams, scores)
        words = timed if options.words else ()
        return _likely(Transcript(text, spoken, ids, clock.laps, True, False, words, logprob), options.min_logprob)

    def _continued(self, wave: Wave, said: Transcript, options: Options) -> Transcript:
        """Extend a transcript that ends in a loop by the speech after the repetition that is kept.

        This needs the alignment heads, which tell where that repetition ends, and the speech detector, which tells whether there is
        speech after it. Without them the transcript is returned unchanged.
        """
        kept = _likely(said, options.min_logprob)
        if not said.tokens or not self.model.has_alignment_heads or self.detector is None:
            return kept
        read = self.model.reread(
            self.model.cross_kv([wave]), self.prompts[said.language], said.tokens, len(wave), False
        )
        rest = rest_after(wave, read.attention, self.detector, self.window)
        if rest is None:
            return kept
        later = self.transcribe(
            rest,
            said.language,
            options.beams,
            options.words,
            hotwords=options.hotwords,
            min_logprob=options.min_logprob,
        )
        return join_transcripts(kept, later, (len(wave) - len(rest)) / SAMPLE_RATE)

    def _words(
        self, samples: int, cross_kv: Sequence[ort.OrtValue], prompt: list[int], written: Hypothesis, language: str
    ) -> tuple[tuple[Word, ...], float | None]:
        """Words of one clip with times and probabilities, and the mean log-probability: the decoder reads the transcript once more."""
        read = self.model.reread(cross_kv, prompt, written.tokens, samples)
        seconds, bytes_of = samples / SAMPLE_RATE, self.detokenize.bytes_of
        timed = tuple(timed_words(read.attention, written.tokens, bytes_of, language, seconds, read.likely))
        if read.likely is None:
            return timed, None
        return timed, float(read.likely[: len(written.tokens) + written.finished].mean())

    def _checked(self, wave: Wave) -> float:
        seconds = len(wave) / SAMPLE_RATE
        if wave.ndim != 1 or not len(wave):
            raise AudioError(f"the wave has shape {wave.shape}; expected [samples], at least one")
        if seconds > self.window:
            raise AudioError(
                f"the wave lasts {seconds:.1f} s; expected at most {self.window:.0f} s, use `segments` for longer ones"
            )
        if not np.isfinite(wave).all():
            raise AudioError("the wave holds values that are not finite")
        return seconds

    def check_options(
        self, language: str, words: bool = False, beams: int = 1, lm: LanguageModel | None = None, min_logprob: float | None = None
    ) -> None:  # fmt: skip
        """Raise BundleError for options of `transcribe` that this bundle does not take."""
        self._known(language)
        self.check_beams(beams)
        if words and not self.times_words:
            raise BundleError(f"{self.manifest.name}: has no alignment heads for word times")
        if min_logprob is not None:
            self.check_min_logprob(min_logprob)
        if lm is None:
            return
        self._takes_language_model()
        if language == AUTO and len(self.prompts) == 1:
            language = next(iter(self.prompts))
        if language in WITHOUT_SPACES:
            raise BundleError(
                f"a language model scores words between spaces, which language {language!r} does not write; leave it out"
            )

    def check_beams(self, beams: int) -> None:
        """Raise BundleError for a number of beams that this model cannot have."""
        if beams < 1:
            raise BundleError(f"beams is {beams}; expected at least 1, which is greedy")
        if self.ctc is None and beams > DECODER_BEAMS:
            raise BundleError(f"beams is {beams}; expected at most {DECODER_BEAMS} for a model with a decoder")

    def check_min_logprob(self, least: float) -> None:
        """Raise BundleError for a value that `min_logprob` cannot have, and for a bundle without probabilities."""
        if not -math.inf < least <= 0:
            raise BundleError(f"min_logprob is {least}; expected a number up to 0, such as -1.5")
        if not self.gives_probabilities:
            raise BundleError(
                f"{self.manifest.name}: gives no probabilities, which min_logprob needs; export it again, from a checkpoint with alignment heads"
            )

    def _takes_language_model(self) -> CtcModel:
        """The model with a CTC head; raises BundleError for one with a decoder."""
        if self.ctc is None:
            raise BundleError(f"{self.manifest.name}: has a decoder, which takes no language model; leave it out")
        return self.ctc

    def _spoken(self, wave: Wave, clock: Clock) -> bool:
        """Whether the detector finds speech; True where there is no detector."""
        if self.detector is None:
            return True
        found = anybody_speaks(wave, self.detector)
        clock.lap("detector")
        return found

    def _known(self, language: str) -> None:
        if language not in (AUTO, *self.prompts):
            raise BundleError(
                f"{self.manifest.name}: does not support language {language!r}; choose from {', '.join(self.prompts)}, or {AUTO}"
            )


def _likely(said: Transcript, least: float | None) -> Transcript:
    """The transcript; without its text if its tokens are less likely than that."""
    if least is None or said.logprob is None or said.logprob >= least:
        return said
    return replace(said, text="", tokens=(), words=())
