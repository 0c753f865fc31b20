"""Tiny random checkpoints with a CTC head, as transformers saves them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ'"
NAMES = ["<pad>", "<s>", "</s>", "<unk>", "|", *LETTERS]
TINY = {
    "vocab_size": len(NAMES), "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48,
    "conv_dim": [16] * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2, "pad_token_id": 0,
    "initializer_range": 0.2,
}  # fmt: skip
# -layer: as the large models are, with layer norms and masked padding; mms: with an adapter of one language besides
WAVES = ("wav2vec2", "wav2vec2-layer", "hubert", "wavlm", "wavlm-layer", "mms")
KINDS = (*WAVES, "parakeet")
PIECES = ["<unk>", "▁", *LETTERS.lower(), "▁t", "he", "<pad>"]  # as many as NAMES


def write_checkpoint(folder: Path, kind: str, seed: int = 0, **changes: object) -> Path:
    """Write a random model of a kind, with its preprocessor's settings and vocabulary."""
    import torch
    import transformers

    if kind == "parakeet":
        return write_parakeet(folder, seed, **changes)
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


def write_parakeet(folder: Path, seed: int = 0, vocab_size: int = len(PIECES), **changes: object) -> Path:
    """Write a random Parakeet; `changes` are the encoder's. The last token is the blank."""
    import torch
    from transformers import ParakeetCTCConfig, ParakeetEncoderConfig, ParakeetForCTC

    sizes = {
        "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48, "subsampling_conv_channels": 8,
        "initializer_range": 0.2,
    }  # fmt: skip
    encoder = ParakeetEncoderConfig(**{**sizes, **changes})
    torch.manual_seed(seed)
    model = ParakeetForCTC(
        ParakeetCTCConfig(vocab_size=vocab_size, pad_token_id=vocab_size - 1, encoder_config=encoder)
    ).eval()
    with torch.no_grad():
        for parameter in model.ctc_head.parameters():
            parameter.mul_(3)
        for name, value in model.state_dict().items():  # as if trained: batch norms have seen something
            if name.endswith("conv.norm.running_mean"):
                value.normal_(0, 0.3)
            elif name.endswith("conv.norm.running_var"):
                value.uniform_(0.5, 2)
            elif name.endswith(("conv.norm.weight", "conv.norm.bias")):
                value.add_(torch.randn(value.shape) * 0.3)
    model.save_pretrained(folder)
    settings = {
        "feature_extractor_type": "ParakeetFeatureExtractor", "feature_size": encoder.num_mel_bins, "sampling_rate": 16000, "hop_length": 160,
        "n_fft": 512, "win_length": 400, "preemphasis": 0.97, "padding_value": 0.0, "return_attention_mask": True,
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    write_sentencepiece(folder, PIECES)
    return folder


def extractor_of(folder: Path) -> Any:
    """transformers' own features of a checkpoint; skips the test where its version lacks what it needs."""
    import pytest
    from transformers import AutoFeatureExtractor

    try:
        return AutoFeatureExtractor.from_pretrained(folder)
    except ImportError:
        pytest.skip("this version of transformers needs librosa for Parakeet's features")


def write_sentencepiece(folder: Path, pieces: list[str]) -> None:
    """Write a tokenizer as transformers converts Parakeet's; the last piece is the padding."""
    from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from transformers import ParakeetTokenizer

    merges = [("▁", "t"), ("h", "e")]
    inner = Tokenizer(BPE({name: i for i, name in enumerate(pieces[:-1])}, merges, unk_token="<unk>", fuse_unk=True))  # noqa: S106
    inner.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    inner.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer = ParakeetTokenizer(tokenizer_object=inner, clean_up_tokenization_spaces=False)
    tokenizer.add_tokens([AddedToken(pieces[-1], normalized=False, special=True)])
    tokenizer.add_special_tokens({
        "pad_token": AddedToken(pieces[-1], normalized=False, special=True),
        "unk_token": AddedToken("<unk>", normalized=False, special=True),
    })  # fmt: skip
    tokenizer.save_pretrained(folder)


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
