"""A smaller vocabulary: tokens that a language or a domain never uses are removed from the model and every client's token list.

The tied embedding is a third of Whisper base and is read whole for each token written. The result is a checkpoint of its own, its tokens
renumbered in their old order: text, then <|endoftext|> and the other specials, then timestamps, as
Whisper's clients expect. Bytes always stay, so that any text can still be written, only in more tokens.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.edge.bundle.content import Lost
from workbench.core.disk import disk_errors
from workbench.core.errors import UserError, did_you_mean
from workbench.core.files import read_json
from workbench.models.vocabulary import Vocabulary
from workbench.models.whisper.family import Whisper
from workbench.models.whisper.loading.tokens import label_ids, save_tokenizer
from workbench.models.whisper.low_rank import merged_state_dict
from workbench.models.whisper.narrowing import narrow_model

if TYPE_CHECKING:
    from transformers import GenerationConfig, WhisperConfig

WORDS = 50_000  # of a language, the most frequent
FORMS_OF_A_WORD = {" {0}": 1.0, " {1}": 0.1, "{0}": 0.01, " {2}": 0.001}  # and about how often the word has that form
LONGEST_SIGN = 5  # bytes of a number or punctuation mark; longer ones are runs of dashes and the like
COPIED = ("preprocessor_config.json", "normalizer.json", "workbench.json")
FORMS = "trained, a language such as 'en' or 'en:16000', 'corpus:FILE', a number of tokens, or several joined by +"


def choose_tokens(choice: str, family: Whisper) -> list[int]:
    """Ids of the tokens to keep, closed under the merges that make them.

    Args:
        choice: `trained`: those that the student was trained with, where it knows only some; a language code, the tokens of
            its most frequent words, with `:N` at most N of them; `corpus:FILE`, those of a corpus's or a text file's
            transcripts; a number N, the first N text tokens of Whisper's tokenizer; several of these joined by `+`, as in
            `en:12000+corpus:FILE`, what any of them keeps.
        family: the checkpoint's tokenizer.

    Raises:
        UserError: the choice is none of these, or its source cannot be read.
    """
    if "+" in choice and not Path(choice.removeprefix("corpus:")).exists():
        return sorted({token for part in choice.split("+") for token in choose_tokens(part, family)})
    first, _, rest = choice.partition(":")
    if choice == "trained":
        return _closed(family, _trained(family))
    if first == "corpus" and rest:
        return _closed(family, _counted(family, corpus_texts(rest)))
    if choice.isdigit():
        return _closed(family, range(int(choice)))
    if rest and not rest.isdigit():
        raise UserError(f"--vocabulary {choice!r}: {rest!r} is not a number; expected {FORMS}")
    counted = _counted_words(family, choice, first)
    ranked = [token for token, _ in counted.most_common()]
    return _closed(family, ranked, int(rest) if rest else None)


def corpus_texts(name: str) -> list[str]:
    """Texts of a text file, one per line, or of a corpus without its test split; raises UserError if it cannot be read."""
    from workbench.corpus import open_corpus
    from workbench.corpus.sources import meta_split

    path = Path(name)
    if path.suffix == ".txt":
        try:
            return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--vocabulary corpus:{name}: cannot be read ({error}); expected UTF-8 text") from None
    return [u.text for split in ("train", "validation") for u in open_corpus(name, split)] + [
        u.text for u in meta_split(name)
    ]


def prune(checkpoint: Path, kept: Sequence[int], folder: Path) -> Path:
    """Write a checkpoint with a pruned vocabulary.

    Args:
        checkpoint: a transformers Whisper folder.
        kept: ids, as `choose_tokens` gives them.
        folder: an empty folder for the new checkpoint.
    """
    family = Whisper(checkpoint)
    model = family.load()
    vocabulary = Vocabulary(kept, model.config.vocab_size)
    narrow_model(model, vocabulary)
    for settings in (model.config, model.generation_config):
        _renumber(settings, vocabulary)
    with disk_errors(folder), tempfile.TemporaryDirectory() as temporary:
        tokenizer = Path(temporary) / "tokenizer.json"
        content = pruned_tokenizer(read_json(checkpoint / "tokenizer.json", "a tokenizer"), vocabulary)
        tokenizer.write_text(json.dumps(content), encoding="utf-8")
        save_tokenizer(tokenizer, model, folder)
        model.save_pretrained(folder, state_dict=merged_state_dict(model))
    for name in COPIED:
        if (checkpoint / name).is_file():
            shutil.copyfile(checkpoint / name, folder / name)
    return folder


def prune_like(checkpoint: Path, bundle: Path, folder: Path) -> Path:
    """Prune a checkpoint to a bundle's vocabulary."""
    family = Whisper(checkpoint)
    whole = family.tokenizer.get_vocab()
    known = read_json(bundle / "tokenizer.json", "a tokenizer")["model"]["vocab"]
    return prune(checkpoint, sorted({*(whole[token] for token in known), *_always(family)}), folder)


def vocabulary_coverage(kept: Sequence[int], family: Whisper, texts: Sequence[str]) -> Lost:
    """What a smaller vocabulary costs some texts: how many need a removed token, and which share of their tokens stays."""
    known = set(kept)
    tokens = [label_ids(family.tokenizer, text) for text in texts]
    missing = Counter(i for row in tokens for i in row if i not in known)
    total = sum(map(len, tokens))
    return {
        "texts": len(texts),
        "texts_changed": sum(any(i not in known for i in row) for row in tokens),
        "tokens_kept_percent": round(100 * (1 - missing.total() / max(total, 1)), 3),
        "most_missed": [family.tokenizer.decode([i]) for i, _ in missing.most_common(10)],
    }


def pruned_tokenizer(content: dict[str, Any], vocabulary: Vocabulary) -> dict[str, Any]:
    """A tokenizer.json with some of its tokens, renumbered, without the merges that make others."""
    model = content["model"]
    kept = {token: place for token, i in model["vocab"].items() if (place := _place(vocabulary, i)) is not None}
    merges = [merge for merge in map(_pair, model["merges"]) if "".join(merge) in kept]
    added = [
        {**token, "id": place}
        for token in content["added_tokens"]
        if (place := _place(vocabulary, token["id"])) is not None
    ]
    processor = json.loads(json.dumps(content.get("post_processor")))
    for special in ((processor or {}).get("special_tokens") or {}).values():
        special["ids"] = [vocabulary.index_of(i) for i in special["ids"]]
    return {
        **content,
        "model": {**model, "vocab": kept, "merges": [list(merge) for merge in merges]},
        "added_tokens": added,
        "post_processor": processor,
    }


def _place(vocabulary: Vocabulary, token: int) -> int | None:
    place = vocabulary.index_of(token)
    return None if place < 0 else place


def _pair(merge: str | list[str]) -> tuple[str, str]:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def _renumber(settings: WhisperConfig | GenerationConfig, vocabulary: Vocabulary) -> None:
    """Renumber every token id in a model or generation configuration."""
    for name in [n for n in vars(settings) if n.endswith("token_id")]:
        value = getattr(settings, name)
        if isinstance(value, int):
            setattr(settings, name, vocabulary.index_of(value))
    for name in ("suppress_tokens", "begin_suppress_tokens"):
        if getattr(settings, name, None):
            setattr(settings, name, vocabulary.indices_of(getattr(settings, name)))
    name = "forced_decoder_ids"  # which GenerationConfig does not declare
    if forced := getattr(settings, name, None):
        setattr(settings, name, [[at, None if i is None else vocabulary.index_of(i)] for at, i in forced])
    for name in ("lang_to_id", "task_to_id"):
        if getattr(settings, name, None):
            setattr(settings, name, {key: vocabulary.index_of(i) for key, i in getattr(settings, name).items()})


def _always(family: Whisper) -> list[int]:
    """Bytes, and everything from <|endoftext|> on."""
    return [*family.special_tokens(), *range(int(family.config.eos_token_id), int(family.config.vocab_size))]


def _trained(family: Whisper) -> list[int]:
    """Text tokens that the generation config does not suppress."""
    end = int(family.config.eos_token_id)
    suppressed = {i for i in family.suppress_tokens if i < end}
    kept = [i for i in range(end) if i not in suppressed]
    if len(suppressed) < len(kept) / 100:
        raise UserError(
            "--vocabulary trained: this checkpoint was trained with its whole vocabulary; "
            "train it with student.vocabulary=corpus, or choose a language, corpus or number"
        )
    return kept


def _counted(family: Whisper, texts: Iterable[str]) -> Counter[int]:
    return Counter(i for text in texts for i in label_ids(family.tokenizer, text))


def _counted_words(family: Whisper, choice: str, language: str) -> Counter[int]:
    """How often tokens are needed for a language's words, within and at the start of sentences."""
    try:
        from wordfreq import available_languages, top_n_list, word_frequency
    except ImportError:
        raise UserError(
            f"--vocabulary {choice!r}: word frequencies are not installed; pip install 'distill-workbench[vocabulary]'"
        ) from None
    if language not in (known := available_languages("best")):
        raise UserError(
            f"--vocabulary {choice!r}{did_you_mean(language, [*known, 'trained', 'corpus'])}; expected {FORMS}"
        )
    counted: Counter[int] = Counter()
    words = top_n_list(language, WORDS)
    frequencies = [1e12 * word_frequency(word, language) for word in words]
    for form, share in FORMS_OF_A_WORD.items():
        said = [form.format(word, word.capitalize(), word.upper()) for word in words]
        for found, frequency in zip(
            family.tokenizer.backend_tokenizer.encode_batch(said, add_special_tokens=False), frequencies, strict=True
        ):
            for i in found.ids:
                counted[i] += int(share * frequency)
    # numbers and punctuation are not in the list of words, but in every text
    for token, i in family.tokenizer.get_vocab().items():
        if i < family.config.eos_token_id and len(token) <= LONGEST_SIGN and _is_sign(family.tokenizer.decode([i])):
            counted[i] += int(1e9)
    return counted


def _is_sign(text: str) -> bool:
    """Whether a text has no letters and no partial characters."""
    return all(unicodedata.category(c)[0] in "PNSZ" and c != "\ufffd" for c in text)


def _closed(family: Whisper, wanted: Iterable[int], most: int | None = None) -> list[int]:
    """Each token with all that it is merged from, up to `most` in the order given; bytes and special tokens always."""
    content = json.loads(family.tokenizer.backend_tokenizer.to_str())["model"]
    ids: dict[str, int] = content["vocab"]
    parts = {"".join(pair): pair for pair in map(_pair, content["merges"])}
    name = {i: token for token, i in ids.items()}
    kept = set(_always(family))
    if most is not None and most < len(kept):
        raise UserError(f"--vocabulary: {most} tokens are fewer than the {len(kept)} that every model needs")
    for token in wanted:
        if token not in name:
            continue
        chain, todo = {token}, [name[token]]
        while todo:
            for part in parts.get(todo.pop(), ()):
                if ids[part] not in chain:
                    chain.add(ids[part])
                    todo.append(part)
        if most is not None and len(kept | chain) > most:
            break
        kept |= chain
    return sorted(kept)
