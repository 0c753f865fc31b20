"""Run Optimum in its own environment: load a bundle, then answer each line of JSON on stdin.

    python transcribe.py GRAPHS BUNDLE THREADS [ctc]
    {"samples": base64 of float32 at 16 kHz, "most": 60, "prompt": [50258]}   ->  {"tokens": [...]}, unpadded
    {"samples": ..., "most": 60, "language": "en"}                            ->  {"tokens": [...]}, padded to 30 s as in the tutorials
    {"decode": [...]}                                                         ->  {"text": ...}
    {"samples": ...}, for a model with a CTC head                             ->  {"tokens": [...], "text": ...}

GRAPHS is a folder with one precision's graphs under the standard names, THREADS 0 leaves the number to onnxruntime. A failure is answered
with {"error": one line}. Nothing is imported from the workbench, which does not support this transformers version.
"""

from __future__ import annotations

import base64
import json
import os
import sys
from collections.abc import Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch import Tensor


def main(graphs: str, bundle: str, threads: str, kind: str = "") -> None:
    """Serve until stdin ends."""
    # library output must not be mistaken for an answer: from here on stdout is redirected to stderr
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(value: Mapping[str, object]) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    try:
        opened = CtcRecognizer if kind == "ctc" else Recognizer
        recognizer = opened(graphs, bundle, int(threads))
        say({"version": ", ".join([version("optimum"), *(f"{p} {version(p)}" for p in ("optimum-onnx", "transformers"))])})  # fmt: skip
        for line in sys.stdin:
            say(recognizer.answer(**json.loads(line)))
    except Exception as error:
        say({"error": " ".join(f"{type(error).__name__}: {error}".split())})
        raise


def session_options(threads: int) -> Any:
    """How the graphs are run; 0 threads leave the number to onnxruntime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads:
        options.intra_op_num_threads = threads
    return options


class CtcRecognizer:
    """A bundle in `ORTModelForCTC` with its own processor."""

    def __init__(self, graphs: str, bundle: str, threads: int) -> None:
        from optimum.onnxruntime import ORTModelForCTC
        from transformers import Wav2Vec2Processor

        options = session_options(threads)
        self.model: Any = ORTModelForCTC.from_pretrained(graphs, session_options=options, trust_remote_code=False)
        self.processor: Any = Wav2Vec2Processor.from_pretrained(bundle, trust_remote_code=False)
        self.blank = self.processor.tokenizer.pad_token_id

    def answer(self, samples: str) -> dict[str, object]:
        """The answer to one request."""
        wave = np.frombuffer(base64.b64decode(samples), "<f4")
        inputs = self.processor(wave, sampling_rate=16_000, return_tensors="pt")
        best = self.model(inputs.input_values).logits.argmax(-1)
        kept = [i for i in best[0].unique_consecutive().tolist() if i != self.blank]
        return {"tokens": kept, "text": self.processor.batch_decode(best)[0]}


class Recognizer:
    """A bundle in `ORTModelForSpeechSeq2Seq` with its own processor."""

    def __init__(self, graphs: str, bundle: str, threads: int) -> None:
        from optimum.onnxruntime import ORTModelForSpeechSeq2Seq
        from transformers import GenerationConfig, WhisperProcessor

        options = session_options(threads)
        # optimum-onnx 0.1.0 expects a second decoder file if one is named, so a quantized merged decoder cannot be loaded by its name. It also looks for the generation config beside the graphs, so that is passed in.
        self.model: Any = ORTModelForSpeechSeq2Seq.from_pretrained(
            graphs,
            generation_config=GenerationConfig.from_pretrained(bundle),
            session_options=options,
            trust_remote_code=False,
        )
        self.processor: Any = WhisperProcessor.from_pretrained(bundle, trust_remote_code=False)

    def answer(
        self,
        samples: str = "",
        most: int = 0,
        prompt: list[int] | None = None,
        language: str = "",
        decode: list[int] | None = None,
    ) -> dict[str, object]:
        """The answer to one request."""
        if decode is not None:
            return {"text": self.processor.tokenizer.decode(decode)}
        wave = np.frombuffer(base64.b64decode(samples), "<f4")
        ids = self._at_its_length(wave, most, prompt) if prompt else self._at_30_s(wave, most, language)
        return {"tokens": ids[0].tolist()}

    def _at_its_length(self, wave: npt.NDArray[np.float32], most: int, prompt: list[int]) -> Tensor:
        """Token ids, [1, tokens], of a wave whose length is a whole number of encoder positions."""
        from transformers import GenerationMixin

        features = self.processor(
            wave, sampling_rate=16_000, return_tensors="pt", padding="longest"
        ).input_features  # [1, mels, frames]
        given = features.new_tensor([prompt]).long()
        # Whisper's own generate always pads features to 30 s; GenerationMixin's, which it overrides, does not
        ids: Tensor = GenerationMixin.generate(self.model, features, decoder_input_ids=given, max_new_tokens=most)
        return ids

    def _at_30_s(self, wave: npt.NDArray[np.float32], most: int, language: str) -> Tensor:
        features = self.processor(wave, sampling_rate=16_000, return_tensors="pt").input_features
        multilingual = self.model.generation_config.is_multilingual
        known = {"language": language, "task": "transcribe"} if multilingual else {}
        ids: Tensor = self.model.generate(features, max_new_tokens=most, **known)
        return ids


if __name__ == "__main__":
    main(*sys.argv[1:])
