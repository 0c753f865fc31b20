"""Students: the layers named, the teacher's weights, a checkpoint that any Whisper code loads."""

import pytest
import torch
from transformers import WhisperForConditionalGeneration

from workbench.config.sections import StudentRecipe
from workbench.core.errors import UserError
from workbench.models.students import choose_layers, parameters
from workbench.models.whisper.family import Whisper
from workbench.models.whisper.students import build_student


@pytest.mark.parametrize(
    ("wanted", "kept"), [("all", [0, 1, 2, 3, 4, 5]), (2, [0, 5]), (1, [5]), (3, [0, 2, 5]), ([5, 0, 3], [0, 3, 5])]
)
def test_layers_are_spread_with_first_and_last_kept(wanted, kept):
    assert choose_layers(wanted, 6, "decoder_layers") == kept


@pytest.mark.parametrize("wanted", [0, 7, [6], [-1], [1, 1], []])
def test_layers_that_the_teacher_lacks_are_refused(wanted):
    with pytest.raises(UserError, match=r"student\.decoder_layers is .*0 to 5|student\.decoder_layers is .*1 to 6"):
        choose_layers(wanted, 6, "decoder_layers")


def test_a_student_has_the_teachers_weights_and_loads_in_transformers(tiny_checkpoint, tmp_path):
    teacher = Whisper(tiny_checkpoint).load()
    student = build_student(teacher, StudentRecipe(encoder_layers=[0, 2], decoder_layers=[2]))
    student.save_pretrained(tmp_path)
    loaded = WhisperForConditionalGeneration.from_pretrained(tmp_path)
    assert (loaded.config.encoder_layers, loaded.config.decoder_layers) == (2, 1)
    torch.testing.assert_close(loaded.model.encoder.layers[1].fc1.weight, teacher.model.encoder.layers[2].fc1.weight)
    torch.testing.assert_close(loaded.model.decoder.layers[0].fc1.weight, teacher.model.decoder.layers[2].fc1.weight)
    assert loaded.proj_out.weight.data_ptr() == loaded.model.decoder.embed_tokens.weight.data_ptr()
    assert parameters(loaded) < parameters(teacher)
    assert loaded(torch.zeros(1, 80, 3000), decoder_input_ids=torch.tensor([[1]])).logits.isfinite().all()


def test_alignment_heads_follow_their_layers_or_go(tiny_checkpoint):
    teacher = Whisper(tiny_checkpoint).load()  # heads [[0, 1], [2, 0]]
    assert build_student(teacher, StudentRecipe(decoder_layers=[1, 2])).generation_config.alignment_heads == [[1, 0]]
    assert build_student(teacher, StudentRecipe(decoder_layers=[1])).generation_config.alignment_heads is None
    assert teacher.generation_config.alignment_heads == [[0, 1], [2, 0]]
