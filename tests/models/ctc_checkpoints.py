"""Tiny random checkpoints with a CTC head, as transformers saves them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ'"
NAMES = ["<pad>", "<s>", "</s>", "<unk>", "|", *LETTERS]
TINY = {
    "vocab_size": len(NAMES), "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48,
    "conv_dim": [16] * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2, "pad_token_id": 0,
    "initializer_range": 0.2,
}  # fmt: skip
# -layer: as the large models are, with layer norms and masked padding; mms: with an adapter of one language besides
KINDS = ("wav2vec2", "wav2vec2-layer", "hubert", "wavlm", "wavlm-layer", "mms")


def write_checkpoint(folder: Path, kind: str, seed: int = 0, **changes: object) -> Path:
    """Write a random model of a kind, with its preprocessor's settings and vocabulary."""
    import torch
    import transformers

    name = kind.split("-")[0].replace("mms", "wav2vec2")
    config_class, model_class = {
        "wav2vec2": (transformers.Wav2Vec2Config, transformers.Wav2Vec2ForCTC),
        "hubert": (transformers.HubertConfig, transformers.HubertForCTC),
        "wavlm": (transformers.WavLMConfig, transformers.WavLMForCTC),
    }[name]
    large = (
        {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
        if kind.endswith("layer") or kind == "mms"
        else {}
    )
    if kind == "mms":
        large["adapter_attn_dim"] = 8
    torch.manual_seed(seed)
    model = model_class(config_class(**{**TINY, **large, **changes})).eval()
    with torch.no_grad():
        for parameter in model.lm_head.parameters():
            parameter.mul_(3)  # sure enough for the letters to differ
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.endswith("gru_rel_pos_const"):  # one of each head, all 1 at first
                parameter.normal_(1)
    model.save_pretrained(folder)
    if kind == "mms":
        write_tokens(folder, target_lang="eng")
        other = {"<pad>": 0, "<s>": 1, "ä": 2}
        (folder / "vocab.json").write_text(json.dumps({"deu": other, "eng": {name: i for i, name in enumerate(NAMES)}}))
    else:
        write_tokens(folder)
    settings = {
        "feature_extractor_type": "Wav2Vec2FeatureExtractor", "feature_size": 1, "sampling_rate": 16000, "padding_value": 0.0,
        "do_normalize": True, "return_attention_mask": bool(large),
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def write_tokens(folder: Path, names: list[str] | None = None, **settings: object) -> None:
    """Write a vocabulary as Wav2Vec2CTCTokenizer saves it."""
    names = NAMES if names is None else names
    (folder / "vocab.json").write_text(json.dumps({name: i for i, name in enumerate(names)}))
    told = {"tokenizer_class": "Wav2Vec2CTCTokenizer", "pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>",
            "eos_token": "</s>", "word_delimiter_token": "|", "do_lower_case": False}  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps({**told, **settings}))


def over_whisper(tiny_checkpoint: Path, folder: Path, units: str = "characters") -> Path:
    """The encoder of the tiny Whisper with a random head, as a student's checkpoint."""
    import torch

    from workbench.config.sections import StudentRecipe
    from workbench.models import open_family
    from workbench.models.ctc.whisper_family import WhisperCtc

    whisper = open_family(tiny_checkpoint)
    recipe = StudentRecipe.model_validate({"encoder_layers": 2, "ctc": units})
    family = WhisperCtc.over(whisper, recipe, ["press nine, or wait", "it's three"])
    torch.manual_seed(0)
    model = family.build_student(whisper.load(), recipe)
    with torch.no_grad():
        model.lm_head.weight.mul_(30)
    folder.mkdir(parents=True)
    family.save(model, folder)
    for path in family.token_and_feature_files():
        shutil.copyfile(path, folder / path.name)
    return folder


def in_silence(folder: Path, seconds: float = 0.4) -> Path:
    """Marked as a student that was trained with silence after its clips."""
    (folder / "workbench.json").write_text(json.dumps({"schema": 1, "length": "true", "margin_seconds": seconds}))
    return folder
