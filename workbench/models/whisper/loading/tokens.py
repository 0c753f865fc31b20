"""Whisper's tokens: the prompt that starts a transcript, labels, and a tokenizer folder that every client reads."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, cast

from workbench.core.errors import UserError, first_line
from workbench.core.files import read_object

if TYPE_CHECKING:
    from transformers import WhisperConfig, WhisperForConditionalGeneration, WhisperTokenizer

START, END, NO_TIMES = "<|startoftranscript|>", "<|endoftext|>", "<|notimestamps|>"
MAX_TOKENS = 1_000_000
ENGLISH_ONLY_TOKENS = 51_864  # one fewer than a multilingual model's


class BytePairs(TypedDict):
    """The model in a tokenizer.json."""

    vocab: dict[str, int]  # id of each token
    merges: list[str | list[str]]  # two tokens each, in older files with a space between them


class AddedToken(TypedDict):
    """One of a tokenizer.json's control tokens or added words."""

    content: str  # as it stands in a text
    id: int


class TokenizerFile(TypedDict):
    """What is read of a tokenizer.json; other keys stay as they are."""

    model: BytePairs
    added_tokens: list[AddedToken]


def save_tokenizer(tokenizer_json: Path, model: WhisperForConditionalGeneration, folder: Path) -> None:
    """Write the tokenizer and feature-extractor files of a checkpoint folder from a bare tokenizer.json.

    Also completes the model's generation config with the language, task and <|notimestamps|> ids found among the tokens.
    """
    from transformers import WhisperFeatureExtractor, WhisperTokenizer

    from workbench.text.normalizers import spelling_table

    with tempfile.TemporaryDirectory() as temporary:
        whole = Path(temporary) / "tokenizer.json"
        whole.write_text(
            json.dumps(complete_merges(read_tokenizer(tokenizer_json), str(tokenizer_json))), encoding="utf-8"
        )
        try:
            tokenizer = WhisperTokenizer(tokenizer_file=str(whole), model_max_length=1024)
        except Exception as error:  # noqa: BLE001  # the tokenizers library raises nothing narrower
            raise UserError(
                f"{tokenizer_json}: cannot be loaded ({first_line(error)}); copy the original checkpoint's"
            ) from None
    tokenizer.save_pretrained(folder)
    # the slow tokenizer's files (vocab.json, merges.txt), which JavaScript and numpy clients read
    tokenizer.backend_tokenizer.model.save(str(folder))
    shutil.copyfile(spelling_table(), folder / "normalizer.json")
    WhisperTokenizer.from_pretrained(folder).save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=model.config.num_mel_bins).save_pretrained(folder)
    vocabulary = tokenizer.get_vocab()
    # OpenAI's own rule: the English tokenizer carries the language tokens, too, but its model never saw them
    multilingual = "<|en|>" in vocabulary and model.config.vocab_size != ENGLISH_ONLY_TOKENS
    for key, value in prompt_settings(vocabulary, multilingual).items():
        setattr(model.generation_config, key, value)


def prompt_settings(vocabulary: Mapping[str, int], multilingual: bool) -> dict[str, object]:
    """What a generation config says about the tokens that begin a transcript; checkpoints from before 2023 lack it.

    Args:
        vocabulary: id of each control token; other tokens may be among them.
        multilingual: whether the model is prompted with a language and a task.
    """
    settings: dict[str, object] = {"is_multilingual": multilingual, "no_timestamps_token_id": vocabulary[NO_TIMES]}
    if multilingual:
        settings["lang_to_id"] = language_tokens(vocabulary)
        tasks = {task: vocabulary.get(f"<|{task}|>") for task in ("transcribe", "translate")}
        settings["task_to_id"] = {task: i for task, i in tasks.items() if i is not None}
    return settings


def language_tokens(vocabulary: Mapping[str, int]) -> dict[str, int]:
    """The tokens of languages among control tokens: those between <|startoftranscript|> and <|translate|>, if any."""
    first, last = vocabulary[START] + 1, vocabulary.get("<|translate|>", 0)
    return {token: i for token, i in vocabulary.items() if first <= i < last}


def read_tokenizer(path: Path) -> TokenizerFile:
    """A tokenizer.json with a well-formed byte-pair model and added tokens; raises UserError for any other."""
    if not path.is_file():
        raise UserError(f"{path.parent}: no tokenizer.json; copy the one of the original checkpoint there")
    content = read_object(path, "a tokenizer")
    model, added = content.get("model"), content.get("added_tokens")
    if (
        not isinstance(model, dict)
        or not isinstance(model.get("vocab"), dict)
        or not isinstance(model.get("merges"), list)
    ):
        raise UserError(f"{path}: holds no byte-pair model with vocab and merges; copy the original checkpoint's")
    if not isinstance(added, list) or not all(isinstance(t, dict) and isinstance(t.get("content"), str) for t in added):
        raise UserError(f"{path}: added_tokens is not a list of tokens; copy the original checkpoint's")
    for token, i in [*model["vocab"].items(), *((t["content"], t.get("id")) for t in added)]:
        if not isinstance(i, int) or isinstance(i, bool) or not 0 <= i < MAX_TOKENS:
            raise UserError(f"{path}: token {token[:60]!r} has the id {repr(i)[:60]}; expected 0 to {MAX_TOKENS - 1:,}")
    for merge in model["merges"]:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(part, str) for part in pair):
            raise UserError(f"{path}: {str(merge)[:60]!r} is not a merge of two tokens; copy the original checkpoint's")
    return cast("TokenizerFile", content)


def special_ids(content: TokenizerFile, path: Path) -> dict[str, int]:
    """Ids of the added tokens of a `read_tokenizer`; raises UserError where one that every Whisper has is missing."""
    found = {token["content"]: int(token["id"]) for token in content["added_tokens"]}
    if missing := [token for token in (START, END, NO_TIMES) if token not in found]:
        raise UserError(
            f"{path}: lacks the token {missing[0]}, which every Whisper has; copy the original checkpoint's"
        )
    if "<|en|>" in found and not {"<|translate|>", "<|transcribe|>"} <= set(found):
        raise UserError(
            f"{path}: has tokens of languages, but lacks those of the tasks; copy the original checkpoint's"
        )
    return found


def open_tokenizer(folder: Path, config: WhisperConfig) -> WhisperTokenizer:
    """Tokenizer of a checkpoint folder.

    Args:
        folder: a folder that `check_settings` has accepted.
        config: the model's configuration.

    Raises:
        UserError: its files cannot be used, or its tokens are not those of the model.
    """
    from transformers import WhisperTokenizer

    special_ids(read_tokenizer(folder / "tokenizer.json"), folder / "tokenizer.json")
    try:
        tokenizer: WhisperTokenizer = WhisperTokenizer.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True, model_max_length=1024
        )
        known = tokenizer.get_vocab()
    except Exception as error:  # noqa: BLE001  # the tokenizers library raises nothing narrower
        raise UserError(
            f"{folder}: its tokenizer cannot be loaded ({first_line(error)}); copy the original checkpoint's tokenizer files"
        ) from None
    wanted = {START: config.decoder_start_token_id, END: config.eos_token_id, NO_TIMES: known.get(NO_TIMES, -1)}
    if different := [token for token, i in wanted.items() if known.get(token) != i]:
        raise UserError(
            f"{folder}: its tokenizer is not the model's: {different[0]} is {known.get(different[0])}; copy the original checkpoint's "
            f"tokenizer files (config.json: eos_token_id {config.eos_token_id}, decoder_start_token_id {config.decoder_start_token_id})"
        )
    if (most := max(known.values())) >= config.vocab_size:
        raise UserError(
            f"{folder}: its tokenizer has ids up to {most:,}, the model only {config.vocab_size:,} tokens; copy the original checkpoint's "
            "tokenizer files, or resize the model with resize_token_embeddings()"
        )
    return tokenizer


def complete_merges(content: TokenizerFile, where: str) -> TokenizerFile:
    """Put back merges that a tokenizer.json has lost; the content is otherwise unchanged.

    Whisper's byte-pair vocabulary numbers its tokens in the order of the merges that make them, after the 256 bytes. The
    tokenizer.json in circulation with CTranslate2 conversions lacks the very first merge, taken for a version header
    when it was converted; without it " the" becomes two tokens, and a student learns labels no Whisper model writes
    (docs/decisions/0004). A lost merge of two bytes can be recovered from its token; a longer one cannot.

    Raises:
        UserError: more is lost than that.
    """
    model = content["model"]
    merges = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in model["merges"]]
    made = {"".join(merge) for merge in merges}
    tokens = sorted((i, token) for token, i in model["vocab"].items() if len(token) > 1 and not token.startswith("<|"))
    for rank, (_, token) in enumerate(tokens):
        if token not in made:
            if len(token) != 2:
                raise UserError(
                    f"{where}: no merge makes the token {token!r}; the file is damaged, copy the original checkpoint's"
                )
            merges.insert(rank, (token[0], token[1]))
    return {**content, "model": {**model, "merges": [list(merge) for merge in merges]}}


def prompt_ids(tokenizer: WhisperTokenizer, language: str, multilingual: bool) -> list[int]:
    """Forced first tokens: <|startoftranscript|>, for multilingual models language and task, <|notimestamps|>.

    The tokenizer alone is not enough: OpenAI's English-only models have the tokens of all languages.

    Raises:
        UserError: the model does not support the language.
    """
    token_id = tokenizer.backend_tokenizer.token_to_id  # get_vocab() would build a dictionary of 51,865 each time
    names = ["<|startoftranscript|>", "<|notimestamps|>"]
    if multilingual:
        if token_id(f"<|{language}|>") is None:
            raise UserError(
                f"language {language!r} is not supported by this Whisper model; exclude its clips, or choose a model that supports it"
            )
        names[1:1] = [f"<|{language}|>", "<|transcribe|>"]
    elif language != "en":
        raise UserError(f"this Whisper model is English only; the corpus is in {language!r}")
    ids = [known for name in names if (known := token_id(name)) is not None]
    if len(ids) < len(names):
        raise UserError(
            f"the tokenizer lacks {', '.join(n for n in names if token_id(n) is None)}; copy the original checkpoint's"
        )
    return ids


def added_words(tokenizer: WhisperTokenizer) -> dict[int, str]:
    """Words that were added to a tokenizer, by id, as they stand in a text, without control tokens and time stamps."""
    added = tokenizer.added_tokens_decoder.items()
    return {i: t.content for i, t in added if not t.special and not re.fullmatch(r"<\|.*\|>", t.content)}


def text_of(tokenizer: WhisperTokenizer, ids: Sequence[int]) -> str:
    """Text of a transcript's tokens, without control tokens and without spaces around it.

    The tokenizer reads an added word as if its letters stood for bytes, which turns an umlaut into U+FFFD: here it is kept as it is.
    """
    added = added_words(tokenizer)
    pieces: list[str] = []
    for is_added, group in groupby(ids, lambda i: i in added):
        run = list(group)
        pieces += [added[i] for i in run] if is_added else [tokenizer.decode(run, skip_special_tokens=True)]
    return "".join(pieces).strip()


def label_ids(tokenizer: WhisperTokenizer, text: str) -> list[int]:
    """Tokens of a transcript, with the space that Whisper writes before its first word, without the final <|endoftext|>."""
    ids: list[int] = tokenizer(" " + text.strip(), add_special_tokens=False).input_ids
    return ids
