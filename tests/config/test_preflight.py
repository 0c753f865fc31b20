"""What would stop a run later is found before it starts, with the line to correct."""

import json
from dataclasses import replace

import pytest

from tests.conftest import tone
from workbench.audio.decode import write_wav
from workbench.core.errors import UserError
from workbench.corpus.manifests import read_manifest
from workbench.models.whisper.family import Whisper
from workbench.run.preflight import check_transcripts
from workbench.training.trainer import distill


@pytest.fixture
def lines(tmp_path):
    """A manifest of six clips, two of each split; the fifth takes further fields."""
    for i in range(6):
        write_wav(tmp_path / f"{i}.wav", tone(1.0))

    def write(**fields):
        rows = [
            {"audio": f"{i}.wav", "text": "Hello.", "split": ("train", "validation", "test")[i // 2]} for i in range(6)
        ]
        rows[1] |= fields
        (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return tmp_path / "m.jsonl"

    return write


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"text": "word " * 60}, r"has 30\d tokens, more than the decoder takes \(124\)"),
        ({"language": "kab"}, "language 'kab' is not supported by this Whisper model"),
    ],
)
def test_a_transcript_that_cannot_be_trained_on_is_named_before_the_run_starts(lines, recipe, fields, said):
    with pytest.raises(UserError, match=rf"m\.jsonl:2: \S+1\.wav: .*{said}") as error:
        distill(recipe(corpus=str(lines(**fields))))
    assert "\n" not in str(error.value)


def test_every_clip_is_checked_and_short_ones_are_let_through(lines, tiny_checkpoint):
    family = Whisper(tiny_checkpoint)
    clips = read_manifest(lines())
    check_transcripts(clips, family)
    for i in range(len(clips)):
        wrong = [*clips[:i], replace(clips[i], text="é" * 200), *clips[i + 1 :]]
        with pytest.raises(UserError, match=rf"m\.jsonl:{i + 1}: "):
            check_transcripts(wrong, family)
