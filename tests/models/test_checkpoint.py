"""A checkpoint that comes from strangers: damaged, absurd or hostile, it is refused in one line before any of it is used."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from export.assembly.build import export_bundle
from export.edge import Recognizer
from export.verification.clients import known_clients, unavailable_reason
from export.verification.verify import verify_bundle
from tests.conftest import tone
from tests.fuzzing import fuzz, json_mutations
from workbench.config.sections import StudentRecipe
from workbench.core.errors import UserError
from workbench.corpus import open_corpus
from workbench.models import open_family
from workbench.models.resolve import resolve_teacher
from workbench.models.whisper.family import Whisper
from workbench.models.whisper.loading.checkpoint import check_checkpoint, check_settings
from workbench.models.whisper.loading.tokens import label_ids
from workbench.models.whisper.students import build_student
from workbench.planning.models import meta_model

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 290403936\n"


@pytest.fixture
def folder(tiny_checkpoint, tmp_path):
    return shutil.copytree(tiny_checkpoint, tmp_path / "stranger")


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def refused(folder):
    with pytest.raises(UserError) as error:
        open_family(folder).load()
    assert "\n" not in str(error.value)
    assert str(folder) in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "preprocessor_config.json", "tokenizer.json"]
)
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    assert name in refused(folder)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer.json", "model.safetensors"])
def test_a_git_lfs_pointer_is_named_with_the_command(folder, name):
    (folder / name).write_text(POINTER)
    assert f"{name}: is a Git LFS pointer" in refused(folder)


def test_half_a_file_is_refused_before_it_is_read(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=r"model\.safetensors: its weights cannot be loaded .*cut off or damaged"):
        check_checkpoint(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_named(folder, value):
    tensors = load_file(folder / "model.safetensors")
    tensors["model.encoder.layers.1.fc1.weight"][3, 4] = value
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert "model.encoder.layers.1.fc1.weight holds NaN or infinity" in refused(folder)


def test_an_adapter_is_refused_with_or_without_a_model_beside_it(folder):
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "someone/else"}))
    for path in (None, folder / "model.safetensors", folder / "config.json"):
        if path is not None:
            path.unlink()
        for opened in (open_family, lambda folder: resolve_teacher(str(folder))):
            with pytest.raises(UserError, match=r"is an adapter .* merge it into its base"):
                opened(folder)


def test_weights_of_another_type_are_named(folder):
    tensors = load_file(folder / "model.safetensors")
    name = "model.decoder.layers.0.fc1.weight"
    save_file({**tensors, name: tensors[name].to(torch.int8)}, folder / "model.safetensors")
    assert f"tensor {name} is of type I8" in refused(folder)


@pytest.mark.parametrize(
    ("index", "said"),
    [
        ({"weight_map": {"a": "../other.safetensors"}}, "points outside"),
        ({"weight_map": {"a": "/etc/passwd"}}, "points outside"),
        ({"weight_map": {"a": "gone.safetensors"}}, "gone.safetensors: missing"),
        ({"weight_map": ["a"]}, "weight_map is not an object"),
        ({"weight_map": {"a": 3}}, "weight_map is not an object"),
        ([], "expected a JSON object"),
    ],
)
def test_an_index_of_shards_is_checked(folder, index, said):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert said in refused(folder)


def test_a_bare_whisper_model_and_half_precision_are_loaded(folder, tiny_checkpoint):
    tensors = load_file(folder / "model.safetensors")
    bare = {name.removeprefix("model."): value.half() for name, value in tensors.items() if name.startswith("model.")}
    save_file(bare, folder / "model.safetensors")
    for (name, found), expected in zip(
        open_family(folder).load().state_dict().items(),
        Whisper(tiny_checkpoint).load().state_dict().values(),
        strict=True,
    ):
        assert torch.equal(found, expected.half().float()), name


def test_what_is_loaded_is_what_transformers_loads(tiny_checkpoint):
    from transformers import WhisperForConditionalGeneration

    ours, theirs = Whisper(tiny_checkpoint).load(), WhisperForConditionalGeneration.from_pretrained(tiny_checkpoint)
    for (name, found), expected in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        assert torch.equal(found, expected), name
    # from_pretrained of transformers 5 forgets that the encoder's positions are not trained
    assert [name for name, p in ours.named_parameters() if not p.requires_grad] == [
        "model.encoder.embed_positions.weight"
    ]
    assert ours.proj_out.weight is ours.model.decoder.embed_tokens.weight
    different = {"_name_or_path", "dtype"}
    ours_says, theirs_says = ours.config.to_dict(), theirs.config.to_dict()
    assert {k: v for k, v in ours_says.items() if k not in different} == {
        k: v for k, v in theirs_says.items() if k not in different
    }
    assert ours.generation_config.to_dict() == theirs.generation_config.to_dict()


# code


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("config.json", {"_attn_implementation_internal": "someone/kernel"}),
        ("config.json", {"_attn_implementation": "someone/kernel:forward"}),
        ("config.json", {"attn_implementation": {"": "someone/kernel"}}),
        ("config.json", {"experts_implementation": "someone/kernel"}),
        ("config.json", {"auto_map": {"AutoModel": "code.Model"}}),
        ("config.json", {"quantization_config": {"quant_method": "someones"}}),
        ("config.json", {"encoder": {"deep": [{"_attn_implementation_internal": "someone/kernel"}]}}),
        ("generation_config.json", {"custom_generate": "someone/code"}),
        ("preprocessor_config.json", {"auto_map": {"AutoFeatureExtractor": "code.Features"}}),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["code.Tokenizer", None]}}),
    ],
)  # fmt: skip
def test_a_file_that_names_code_is_refused_with_its_key(folder, monkeypatch, name, changes):
    from transformers.integrations import hub_kernels

    loaders = [
        name
        for name in vars(hub_kernels)
        if name in ("get_kernel", "lazy_load_kernel") or name.startswith("load_and_register")
    ]
    assert len(loaders) >= 2  # whatever they are called in this version
    for loader in loaders:
        monkeypatch.setattr(hub_kernels, loader, lambda *_, **__: pytest.fail("a kernel was loaded"))
    edit(folder / name, **changes)
    said = refused(folder)
    assert name in said
    assert "names code to load" in said
    for use in (lambda: meta_model(str(folder)), lambda: resolve_teacher(str(folder))):
        with pytest.raises(UserError, match="names code to load"):
            use()


def test_a_kernel_in_a_loaded_configuration_would_not_be_used(tiny_checkpoint):
    model = Whisper(tiny_checkpoint).load()
    assert model.config._attn_implementation == "sdpa"
    assert build_student(model, StudentRecipe()).config._attn_implementation in ("sdpa", "eager")


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("config.json", {"_attn_implementation_autoset": True}),  # of older versions
        ("config.json", {"attn_implementation": "sdpa"}),
        ("config.json", {"_attn_implementation": "flash_attention_2"}),
        ("training_args.json", {"attn_implementation": "eager"}),
        ("added_tokens.json", {"kernel": 3}),  # a word
    ],
)
def test_what_only_sounds_like_code_is_accepted(folder, name, changes):
    if not (folder / name).exists():
        (folder / name).write_text("{}")
    edit(folder / name, **changes)
    if name == "added_tokens.json":
        check_settings(folder)
    else:
        open_family(folder).load()


def test_a_file_of_others_may_hold_a_list(folder):
    (folder / "vocabulary.json").write_text('["a", "b"]')
    open_family(folder)
    (folder / "vocabulary.json").write_text('[{"auto_map": "code.Model"}]')
    assert "names code to load" in refused(folder)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("tokenizer_config.json", {"tokenizer_class": "SomeTokenizer"}),
        ("preprocessor_config.json", {"feature_extractor_type": "SomeFeatures"}),
        ("preprocessor_config.json", {"processor_class": "SomeProcessor"}),
        ("tokenizer_config.json", {"tokenizer_file": "/etc/passwd"}),
    ],
)
def test_other_classes_and_files_are_refused(folder, name, changes):
    edit(folder / name, **changes)
    assert f"{name}: {next(iter(changes))} is" in refused(folder)


# sizes


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"d_model": 10**9}, "d_model is 1000000000; expected a whole number from 1 to 8,192"),
        ({"decoder_layers": 10**6}, "expected a whole number from 1 to 128"),
        ({"encoder_layers": -1}, "expected a whole number from 1 to 128"),
        ({"vocab_size": "many"}, "vocab_size is 'many'"),
        ({"vocab_size": 10**400}, "more than 30 digits"),
        ({"num_mel_bins": 1 << 31}, "from 1 to 256"),
        ({"max_source_positions": 3000}, "Whisper's window of 30 s has 1500"),
        ({"dropout": float("nan")}, "dropout is nan; expected a number from 0 to 1"),
        ({"eos_token_id": 10**6}, "a token below vocab_size"),
        ({"encoder_attention_heads": 7}, "which is not divisible by encoder_attention_heads, 7"),
        ({"activation_function": "someones"}, "expected gelu"),
        ({"d_model": 8192, "encoder_layers": 128, "encoder_ffn_dim": 65536}, "expected at most 5,000,000,000"),
        ({"encoder_ranks": {"0.fc1": 10**9}}, "expected a whole number from 1 to 32"),
        ({"encoder_ranks": {"9.fc1": 8}}, "not a linear layer of the encoder's 3 layers"),
        ({"encoder_ranks": {"__class__": 8}}, "not a linear layer"),
        ({"pool_after": 10**9}, "a layer from 1 to 3"),
    ],
)
def test_absurd_values_of_the_configuration_are_refused_with_the_bound(folder, changes, said):
    edit(folder / "config.json", **changes)
    assert said in refused(folder)


def test_keys_that_are_not_whispers_are_left_out(folder):
    edit(folder / "config.json", num_labels=10**9, use_return_dict=3, pruned_heads={"0": [0]}, to_dict="x")
    model = open_family(folder).load()
    assert model.config.num_labels == 2
    assert model.config.to_dict()["d_model"] == 32


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("generation_config.json", {"suppress_tokens": [10**9]}, "a list of tokens below 263"),
        ("generation_config.json", {"lang_to_id": {"<|en|>": "x"}}, "names with tokens"),
        ("generation_config.json", {"alignment_heads": [[0]]}, "pairs of layer and head"),
        ("generation_config.json", {"to_dict": 3}, "is not a setting"),
        ("preprocessor_config.json", {"feature_size": 10**9}, "feature_size is 1000000000; Whisper's features have 80"),
        ("preprocessor_config.json", {"sampling_rate": 8000}, "Whisper's features have 16000"),
        ("workbench.json", {"length": "true", "margin_seconds": 1e30}, "expected seconds from 0 to 30"),
        ("workbench.json", {"length": "true", "margin_seconds": "x"}, "expected seconds from 0 to 30"),
    ],
)
def test_absurd_values_of_the_other_files_are_refused(folder, name, changes, said):
    if not (folder / name).exists():
        (folder / name).write_text("{}")
    edit(folder / name, **changes)
    assert said in refused(folder)


@pytest.mark.parametrize("text", ["[]", "3", "", "{", "nul", "[" * 100_000, '{"a": ' + "9" * 5000 + "}", "\xff\xfe"])
@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "preprocessor_config.json", "tokenizer_config.json"])  # fmt: skip
def test_what_is_no_json_object_is_named(folder, name, text):
    (folder / name).write_text(text, encoding="latin1")
    assert name in refused(folder)


@pytest.mark.parametrize("text", ["[]", "{}", "", "[" * 100_000, '{"model": {"type": "BPE", "vocab": 3}}'])
def test_a_broken_tokenizer_is_named(folder, text):
    (folder / "tokenizer.json").write_text(text)
    assert "tokenizer" in refused(folder)


def test_the_tokenizer_of_another_model_is_refused(folder):
    content = json.loads((folder / "tokenizer.json").read_text())
    content["added_tokens"].append({**content["added_tokens"][0], "content": "<|more|>", "id": 263})
    (folder / "tokenizer.json").write_text(json.dumps(content))
    assert "ids up to 263, the model only 263 tokens" in refused(folder)
    edit(folder / "config.json", eos_token_id=5)
    assert "its tokenizer is not the model's: <|endoftext|> is 256" in refused(folder)


@pytest.mark.parametrize("name", ["init_std", "dropout", "mask_time_prob"])
def test_a_whole_number_stands_for_a_float(folder, name):
    edit(folder / "config.json", **{name: 0})
    assert getattr(open_family(folder).config, name) == 0.0


@pytest.mark.parametrize("dtype", ["gelu", ["float32"], 5, "x" * 5000])
def test_the_data_type_that_a_configuration_names_is_not_used(folder, dtype):
    edit(folder / "config.json", dtype=dtype, torch_dtype=dtype)
    assert next(open_family(folder).load().parameters()).dtype == torch.float32


@pytest.mark.parametrize(
    "name",
    ["config.json", "generation_config.json", "preprocessor_config.json", "tokenizer_config.json", "tokenizer.json", "special_tokens_map.json"],
)  # fmt: skip
def test_fuzzed_files_of_a_checkpoint_are_used_or_refused(folder, name):
    path = folder / name
    if name == "special_tokens_map.json":  # transformers 4 saved one
        path.write_text(
            json.dumps({"eos_token": "<|endoftext|>", "pad_token": {"content": "<|endoftext|>", "lstrip": False}})
        )
    original = json.loads(path.read_text())

    def check(content):
        path.write_text(json.dumps(content), encoding="utf-8", errors="surrogatepass")
        family = open_family(folder)
        family.load()
        family.tokens(["a b"], ["en"])

    fuzz(json_mutations(original), check, refusals=(UserError,))


@pytest.fixture
def saved_by_transformers(student, tmp_path):
    """A checkpoint as the installed transformers saves it: no vocab.json, no preprocessor_config.json."""
    from transformers import WhisperForConditionalGeneration, WhisperProcessor

    folder = tmp_path / "saved"
    WhisperForConditionalGeneration.from_pretrained(student).save_pretrained(folder)
    original = shutil.copytree(
        student, tmp_path / "original"
    )  # with special tokens listed, as the hub's Whispers have them
    edit(original / "tokenizer_config.json", additional_special_tokens=["<|startoftranscript|>", "<|en|>", "<|es|>"])
    WhisperProcessor.from_pretrained(original).save_pretrained(folder)
    assert isinstance(json.loads((folder / "tokenizer_config.json").read_text())["extra_special_tokens"], list)
    shutil.copyfile(student / "workbench.json", folder / "workbench.json")
    assert not (folder / "vocab.json").exists()
    assert not (folder / "preprocessor_config.json").exists()
    return folder


def test_what_transformers_5_saves_is_read_and_exported_for_every_client(
    saved_by_transformers, student, exported, tmp_path
):
    family, before = Whisper(saved_by_transformers), Whisper(student)
    assert family.prompt("es") == before.prompt("es")
    assert family.suppress_tokens == before.suppress_tokens
    assert label_ids(family.tokenizer, "Él dijo: 3 años.") == label_ids(before.tokenizer, "Él dijo: 3 años.")
    bundle = export_bundle(saved_by_transformers, tmp_path / "bundle", ["fp32"])
    for name in ("vocab.json", "merges.txt", "added_tokens.json"):
        assert (bundle / name).read_text() == (exported / name).read_text()
    features = json.loads((bundle / "preprocessor_config.json").read_text())
    assert features["feature_size"] == 80
    clients = [name for name in known_clients() if name != "onnx_asr" and not unavailable_reason(name)]
    clips = [u for u in open_corpus("prompts-en", "validation") if u.seconds < 3][:1]
    found = verify_bundle(bundle, saved_by_transformers, clips, "prompts-en", clients, 1)
    assert [client["error"] for client in found["clients"]] == [None] * len(clients)
    assert Recognizer(bundle, "fp32", vad=False).transcribe(tone(1.0), "es").tokens == Recognizer(exported, "fp32", vad=False).transcribe(tone(1.0), "es").tokens  # fmt: skip


def test_a_processors_file_without_features_is_named(saved_by_transformers):
    path = saved_by_transformers / "processor_config.json"
    path.write_text(json.dumps({"processor_class": "WhisperProcessor"}))
    assert "processor_config.json: feature_extractor is None" in refused(saved_by_transformers)
    content = {"feature_extractor": {"feature_size": 128}}
    path.write_text(json.dumps(content))
    assert "processor_config.json: feature_size is 128; Whisper's features have 80" in refused(saved_by_transformers)


def test_a_run_is_not_its_student(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "run" / "student")
    for use in (
        open_family,
        lambda run: resolve_teacher(str(run)),
        lambda run: export_bundle(run, tmp_path / "bundle", ["fp32"]),
    ):
        with pytest.raises(UserError, match=r"run: is a run; name its student: .*student$"):
            use(tmp_path / "run")
    assert not (tmp_path / "bundle").exists()
