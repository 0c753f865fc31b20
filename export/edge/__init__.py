"""Speech recognition from an exported bundle with numpy and onnxruntime alone: no torch, no transformers.

A copy of this package is inside every bundle, and is importable from the workbench as `export.edge`:

    from edge import Recognizer, read_wav
    recognizer = Recognizer("path/of/bundle")
    print(recognizer.transcribe(read_wav("speech.wav")).text)      # one utterance, up to 30 s
    for segment in recognizer.segments(read_wav("meeting.wav")):   # a recording of any length
        print(segment.start, segment.end, segment.transcript.text)
"""

from . import no_telemetry  # isort: skip  # noqa: F401  before anything that imports onnxruntime
from .audio.resample import AudioError, read_wav
from .bundle.manifest import BundleError, Manifest, read_manifest
from .decoding.drafts import Draft, EarlierText, PromptLookup
from .decoding.hotwords import Hotwords, read_hotwords
from .decoding.language_model import LanguageModel, LanguageModelWeights
from .formats import FORMATS, format_segments
from .recognizer import Recognizer
from .stream import PartialTranscript, Stream
from .transcript import Segment, Transcript
from .words import Word

__all__ = [
    "FORMATS",
    "AudioError",
    "BundleError",
    "Draft",
    "EarlierText",
    "Hotwords",
    "LanguageModel",
    "LanguageModelWeights",
    "Manifest",
    "PartialTranscript",
    "PromptLookup",
    "Recognizer",
    "Segment",
    "Stream",
    "Transcript",
    "Word",
    "format_segments",
    "read_hotwords",
    "read_manifest",
    "read_wav",
]
