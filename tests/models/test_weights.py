"""A checkpoint's weights decide what is computed with it: every file counts, and a checkpoint that lacks tensors is refused."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from workbench.core.errors import UserError
from workbench.models import open_family
from workbench.models.resolve import fingerprint
from workbench.training.trainer import distill


@pytest.fixture
def checkpoint(tiny_checkpoint, tmp_path):
    folder = tmp_path / "copied"
    shutil.copytree(tiny_checkpoint, folder)
    return folder


def changed(path, change):
    tensors = load_file(path)
    save_file(change(tensors), path, metadata={"format": "pt"})


def pickled(folder):
    tensors = load_file(folder / "model.safetensors")
    torch.save(tensors, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def sharded(folder, under=""):
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    (folder / under).mkdir(exist_ok=True)
    files = [f"{under}model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for file, part in zip(files, (names[::2], names[1::2]), strict=True):
        save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
    places = {name: files[i % 2] for i, name in enumerate(names)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    (folder / "model.safetensors").unlink()
    return [folder / file for file in files]


def test_pickled_weights_are_refused_with_the_way_to_convert_them(checkpoint, recipe):
    pickled(checkpoint)
    for use in (fingerprint, lambda f: open_family(f).load(), lambda f: distill(recipe(teacher=str(f)))):
        with pytest.raises(UserError, match=r"pytorch_model\.bin.*save_pretrained") as error:
            use(checkpoint)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("under", ["", "parts/"])
def test_every_shard_is_part_of_the_fingerprint(checkpoint, under):
    whole = open_family(checkpoint).load().state_dict()
    shards = sharded(checkpoint, under)
    before = fingerprint(checkpoint)
    for name, value in open_family(checkpoint).load().state_dict().items():
        assert torch.equal(value, whole[name])
    for shard in shards:
        changed(shard, lambda tensors: {name: value + 1 for name, value in tensors.items()})
        assert fingerprint(checkpoint) != before
        before = fingerprint(checkpoint)
    shards[0].unlink()
    with pytest.raises(UserError, match=r"model-00001-of-00002\.safetensors: missing"):
        fingerprint(checkpoint)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer.json", "model.safetensors"])
def test_every_file_that_decides_what_a_teacher_says_is_part_of_the_fingerprint(checkpoint, name):
    before = fingerprint(checkpoint)
    path = checkpoint / name
    if name == "model.safetensors":
        changed(path, lambda tensors: {k: v + 1 for k, v in tensors.items()})
    else:
        path.write_text(path.read_text() + "\n")
    assert fingerprint(checkpoint) != before


def test_without_tokenizer_json_the_merges_are_part_of_the_fingerprint(checkpoint):
    (checkpoint / "merges.txt").write_text("#version: 0.2\n")
    with_tokenizer = fingerprint(checkpoint)
    (checkpoint / "tokenizer.json").unlink()
    before = fingerprint(checkpoint)
    (checkpoint / "merges.txt").write_text("#version: 0.2\na b\n")
    assert len({with_tokenizer, before, fingerprint(checkpoint)}) == 3


def test_a_checkpoint_that_lacks_tensors_is_refused_by_their_names(checkpoint):
    gone = {"model.encoder.layers.1.fc1.weight", "model.decoder.layers.2.fc2.bias"}
    changed(checkpoint / "model.safetensors", lambda tensors: {k: v for k, v in tensors.items() if k not in gone})
    with pytest.raises(UserError, match=r"2 tensors missing") as error:
        open_family(checkpoint).load()
    assert all(name in str(error.value) for name in gone)


def test_the_tied_projection_may_be_missing(checkpoint):
    assert "proj_out.weight" not in load_file(checkpoint / "model.safetensors")
    model = open_family(checkpoint).load()
    assert model.proj_out.weight is model.model.decoder.embed_tokens.weight


def test_tensors_beyond_the_configuration_or_of_another_shape_are_refused(checkpoint, tiny_checkpoint):
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "decoder_layers": 2}))
    with pytest.raises(UserError, match=r"beyond config.json's layers: model\.decoder\.layers\.2"):
        open_family(checkpoint).load()
    (checkpoint / "config.json").write_text(json.dumps({**config, "encoder_ffn_dim": 96}))
    with pytest.raises(UserError, match=r"of another shape: model\.encoder\.layers\.0\.fc1"):
        open_family(checkpoint).load()


def test_damaged_weights_are_one_line(checkpoint):
    (checkpoint / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(UserError, match="cannot be loaded"):
        open_family(checkpoint).load()


def test_tensors_of_others_are_ignored_and_named(checkpoint, caplog):
    changed(checkpoint / "model.safetensors", lambda tensors: {**tensors, "head.weight": torch.ones(2)})
    open_family(checkpoint).load()
    assert "head.weight" in caplog.text


def test_a_shard_may_hold_the_projection_alone(checkpoint):
    tensors = load_file(checkpoint / "model.safetensors")
    parts = {"a.safetensors": tensors, "b.safetensors": {"proj_out.weight": tensors["model.decoder.embed_tokens.weight"].clone()}}  # fmt: skip
    for name, part in parts.items():
        save_file(part, checkpoint / name)
    (checkpoint / "model.safetensors").unlink()
    places = {key: name for name, part in parts.items() for key in part}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    open_family(checkpoint).load()
