"""Speech that a study also tests on, and who speaks: compared by content, and taken from the corpora as they are now."""

import json
import logging

import pytest

from workbench.core.errors import UserError
from workbench.core.files import write_json
from workbench.corpus import open_corpus
from workbench.study import current
from workbench.study.current import read_result, result_inputs
from workbench.study.overlap import check_strangers
from workbench.study.plan import Study, Trial, arm_recipe

ARMS = {"fixed": {"stages.s.weighting": {"name": "fixed"}}}


@pytest.fixture
def corpora(tmp_path):
    """Writes a manifest of the built-in speech: clips by number of a split, and whose voice they are."""
    everything = open_corpus("prompts-en", "train")[:8]

    def write(name, clips):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        rows = [
            {
                "audio": str(everything[number].audio),
                "text": everything[number].text,
                "split": split,
                "speaker": speaker,
                "id": f"{name}-{number}",
            }
            for number, split, speaker in clips
        ]
        (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        current._clips_of.cache_clear()
        return str(folder / "manifest.jsonl")

    return write


def a_study(tmp_path, corpus, other, **changes):
    return Study.model_validate(
        {
            "output": tmp_path / "study",
            "recipe": {},
            "corpora": [corpus],
            "test_also": [other],
            "seeds": [1],
            "baseline": "fixed",
            "arms": ARMS,
            **changes,
        }
    )


def test_a_clip_that_is_trained_on_is_refused_whatever_it_is_called(corpora, tmp_path):
    own = corpora("own", [(0, "train", "a"), (1, "test", "a"), (2, "meta", "a")])
    clean = corpora("clean", [(3, "test", "b"), (1, "train", "b")])  # its own training clips are nobody's concern
    check_strangers(a_study(tmp_path, own, clean))
    for number in (0, 2):
        copied = corpora("copied", [(number, "test", "b"), (4, "test", "b")])
        with pytest.raises(
            UserError,
            match=r"test_also names '.*copied.*', of which 1 clips are in the training speech of '.*own.*jsonl:",
        ):
            check_strangers(a_study(tmp_path, own, copied))
    more = corpora("more", [(5, "train", "c")])
    copied = corpora("copied", [(5, "test", "b")])
    with pytest.raises(UserError, match=r"in the training speech of '.*more"):
        check_strangers(a_study(tmp_path, own, copied, recipe={"more_corpora": [more]}))


def test_speakers_of_one_name_are_a_warning(corpora, tmp_path, caplog):
    own = corpora("own", [(0, "train", "ann"), (1, "train", "bob"), (2, "test", "cyd")])
    with caplog.at_level(logging.WARNING, "workbench"):
        check_strangers(a_study(tmp_path, own, corpora("strangers", [(3, "test", "cyd"), (4, "test", "")])))
        assert not caplog.records
        check_strangers(a_study(tmp_path, own, corpora("known", [(3, "test", "ann"), (4, "test", "dan")])))
    assert "1 of its speakers are called as speakers in the training speech" in caplog.text
    assert "(ann)" in caplog.text


def test_a_result_has_the_speakers_that_its_corpus_names_now_and_is_not_stale_for_them(
    corpora, tmp_path, cache, tiny_checkpoint
):
    def written(speaker):
        return corpora(
            "own", [(0, "train", speaker), (1, "validation", speaker), (2, "test", speaker), (3, "test", speaker)]
        )

    own, other = written(""), corpora("other", [(4, "test", "")])
    teacher = {
        "teacher": str(tiny_checkpoint),
        "stages": {"s": {"trainable": "all", "epochs": 1, "learning_rate": 1e-4}},
    }
    study = a_study(tmp_path, own, other, recipe=teacher)
    trial = Trial("student", own, "fixed", 1)
    recipe = arm_recipe(study, trial)
    said = {"references": ["x", "y"], "speakers": ["", ""]}
    result = {
        "recipe": recipe.model_dump(mode="json", exclude={"output"}), "inputs": result_inputs(study, recipe), "split": "test",
        "test": said, "test_also": {other: {"references": ["z"], "speakers": [""]}},
    }  # fmt: skip
    write_json(study.output / trial.name / "result.json", result)
    assert read_result(study, trial) == result
    written("ann")
    corpora("other", [(4, "test", "bob")])
    current._inputs.cache_clear()
    found = read_result(study, trial)
    assert found["test"]["speakers"] == ["ann", "ann"]
    assert found["test_also"][other]["speakers"] == ["bob"]
    corpora("own", [(0, "train", "ann"), (1, "validation", "ann"), (2, "test", "ann"), (3, "train", "ann")])
    current._inputs.cache_clear()
    assert read_result(study, trial) is None  # another split is other speech
