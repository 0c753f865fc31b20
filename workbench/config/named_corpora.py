"""Public corpora by name (`librispeech`, `fleurs:hi_in`): which dataset of the Hugging Face hub each is, and which of its parts are train, validation and test.

The hub changes. What stands here was looked up in public code of 2025 and 2026, which opens these datasets this way without running a
script of theirs (`datasets` runs none since its version 4).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from workbench.core.errors import UserError, did_you_mean

LIST_COMMAND = "`workbench corpus names` lists them"
CONVERTED = "refs/convert/parquet"  # the hub's own branch of Parquet files, for datasets that are made by a script


@dataclass(frozen=True)
class HubDataset:
    """A dataset as it is opened."""

    source: str  # what the user calls it: `librispeech:other`, or `hf:ID:CONFIG`
    id: str  # OWNER/NAME on the hub, or a local folder
    config: str = ""
    # our split -> the dataset's names of it, which are read one after the other; None: it has ours
    splits: Mapping[str, tuple[str, ...]] | None = None
    folder: str = ""  # of the dataset, in place of a configuration
    revision: str = ""
    language: str = ""  # of all clips; by default what the rows say
    text: str = ""  # column of the transcript; by default the first that is known
    speech: str = ""  # which speech it is, if other configurations or datasets hold the same recordings
    cut: bool = (
        False  # clips beyond Whisper's 30 s are cut there, as the leaderboard's Whisper runs do; others leave them out
    )

    @property
    def recordings(self) -> str:
        """Name of the speech that it holds, the same for all datasets that hold it."""
        return (
            self.speech or SAME_SPEECH.get(self.id.casefold()) or f"{self.id}:{self.config or self.folder}".rstrip(":")
        )


@dataclass(frozen=True)
class NamedCorpus:
    """A name, what follows it after a colon, and what they stand for."""

    what: str
    variants: Mapping[str, HubDataset]  # by what follows the colon; "" if nothing has to
    example: str = ""  # a variant, where there are too many to list


# Datasets whose configurations share their speakers, or that are one corpus under several ids.
SAME_SPEECH = {
    "openslr/librispeech_asr": "LibriSpeech",
    "edinburghcstr/ami": "AMI",
    "distil-whisper/earnings22": "Earnings-22",
    "speechcolab/gigaspeech": "GigaSpeech",
    "kensho/spgispeech": "SPGISpeech",
    "distil-whisper/tedlium": "TED-LIUM",
    "lium/tedlium": "TED-LIUM",
}
USUAL = {"train": ("train",), "validation": ("validation",), "test": ("test",)}
TEST_ONLY = {"test": ("test",)}
LEADERBOARD = "hf-audio/open-asr-leaderboard"  # what was hf-audio/esb-datasets-test-only-sorted, which leads to it
FLEURS = [
    "af_za",
    "am_et",
    "ar_eg",
    "as_in",
    "ast_es",
    "az_az",
    "be_by",
    "bg_bg",
    "bn_in",
    "bs_ba",
    "ca_es",
    "ceb_ph",
    "ckb_iq",
    "cmn_hans_cn",
    "cs_cz",
    "cy_gb",
    "da_dk",
    "de_de",
    "el_gr",
    "en_us",
    "es_419",
    "et_ee",
    "fa_ir",
    "ff_sn",
    "fi_fi",
    "fil_ph",
    "fr_fr",
    "ga_ie",
    "gl_es",
    "gu_in",
    "ha_ng",
    "he_il",
    "hi_in",
    "hr_hr",
    "hu_hu",
    "hy_am",
    "id_id",
    "ig_ng",
    "is_is",
    "it_it",
    "ja_jp",
    "jv_id",
    "ka_ge",
    "kam_ke",
    "kea_cv",
    "kk_kz",
    "km_kh",
    "kn_in",
    "ko_kr",
    "ky_kg",
    "lb_lu",
    "lg_ug",
    "ln_cd",
    "lo_la",
    "lt_lt",
    "luo_ke",
    "lv_lv",
    "mi_nz",
    "mk_mk",
    "ml_in",
    "mn_mn",
    "mr_in",
    "ms_my",
    "mt_mt",
    "my_mm",
    "nb_no",
    "ne_np",
    "nl_nl",
    "nso_za",
    "ny_mw",
    "oc_fr",
    "om_et",
    "or_in",
    "pa_in",
    "pl_pl",
    "ps_af",
    "pt_br",
    "ro_ro",
    "ru_ru",
    "sd_in",
    "sk_sk",
    "sl_si",
    "sn_zw",
    "so_so",
    "sr_rs",
    "sv_se",
    "sw_ke",
    "ta_in",
    "te_in",
    "tg_tj",
    "th_th",
    "tr_tr",
    "uk_ua",
    "umb_ao",
    "ur_pk",
    "uz_uz",
    "vi_vn",
    "wo_sn",
    "xh_za",
    "yo_ng",
    "yue_hant_hk",
    "zu_za",
]
VOXPOPULI = "cs de en es et fi fr hr hu it lt nl pl ro sk sl".split()  # noqa: SIM905
MLS = "dutch french german italian polish portuguese spanish".split()  # noqa: SIM905
LIBRISPEECH = ("train.clean.100", "train.clean.360", "train.other.500")


def _librispeech(variant: str, train: tuple[str, ...], other: bool = False) -> HubDataset:
    part = "other" if other else "clean"
    splits = {"train": train, "validation": (f"validation.{part}",), "test": (f"test.{part}",)}
    source = f"librispeech:{variant}".rstrip(":")
    return HubDataset(source, "openslr/librispeech_asr", "all", splits, language="en", text="text")


def _leaderboard(variant: str, config: str, speech: str, split: str = "test") -> HubDataset:
    source = f"open-asr-leaderboard:{variant}"
    splits = {"test": (split,)}
    return HubDataset(source, LEADERBOARD, config, splits, language="en", text="text", speech=speech, cut=True)


TEDLIUM = HubDataset(
    "tedlium", "distil-whisper/tedlium", "default", {"validation": ("validation",), "test": ("test",)},
    revision=CONVERTED, language="en", text="text",
)  # fmt: skip


def _test_set(name: str, speech: str) -> HubDataset:
    return HubDataset(name, LEADERBOARD, name, TEST_ONLY, language="en", text="text", speech=speech)


def _ami(variant: str, config: str) -> HubDataset:
    return HubDataset(f"ami:{variant}".rstrip(":"), "edinburghcstr/ami", config, USUAL, language="en", text="text")


def _voxpopuli(code: str) -> HubDataset:
    accented = code == "en_accented"
    return HubDataset(
        f"voxpopuli:{code}", "facebook/voxpopuli", code, TEST_ONLY if accented else USUAL,
        language="en" if accented else code, text="normalized_text", speech=f"VoxPopuli {code}",
    )  # fmt: skip


def _fleurs(code: str) -> HubDataset:
    return HubDataset(
        f"fleurs:{code}", "google/fleurs", "", USUAL, folder=code, revision=CONVERTED, language=code,
        text="raw_transcription", speech=f"FLEURS {code}",
    )  # fmt: skip


def _mls(language: str) -> HubDataset:
    splits = {**USUAL, "validation": ("dev",)}
    return HubDataset(
        f"mls:{language}", "facebook/multilingual_librispeech", language, splits, language=language, text="transcript"
    )


EARNINGS22 = HubDataset(
    "earnings22", "distil-whisper/earnings22", "chunked", TEST_ONLY, language="en", text="transcription"
)
NAMED: dict[str, NamedCorpus] = {
    "librispeech": NamedCorpus(
        "read English books, 960 h; tested on test.clean, or with :other on test.other; :100 trains on train.clean.100",
        {
            "": _librispeech("", LIBRISPEECH),
            "clean": _librispeech("clean", LIBRISPEECH[:2]),
            "other": _librispeech("other", LIBRISPEECH[2:], other=True),
            "100": _librispeech("100", LIBRISPEECH[:1]),
        },
    ),
    "mls": NamedCorpus("Multilingual LibriSpeech: read books in 7 languages", {code: _mls(code) for code in MLS}),
    "fleurs": NamedCorpus(
        "read sentences in 102 languages, about 10 h each", {code: _fleurs(code) for code in FLEURS}, "hi_in"
    ),
    "voxpopuli": NamedCorpus(
        "European Parliament in 16 languages", {code: _voxpopuli(code) for code in (*VOXPOPULI, "en_accented")}
    ),
    "ami": NamedCorpus(
        "English meetings, 100 h: headset microphones, or with :sdm one distant microphone",
        {"": _ami("", "ihm"), "ihm": _ami("ihm", "ihm"), "sdm": _ami("sdm", "sdm")},
    ),
    "earnings22": NamedCorpus(
        "English earnings calls with accents from all over the world, in short chunks",
        {"": EARNINGS22},
    ),
    "gigaspeech": NamedCorpus(
        "English audiobooks, podcasts and YouTube: the test set", {"": _test_set("gigaspeech", "GigaSpeech")}
    ),
    "spgispeech": NamedCorpus("English financial calls: the test set", {"": _test_set("spgispeech", "SPGISpeech")}),
    "tedlium": NamedCorpus("English TED talks: validation and test sets", {"": TEDLIUM}),
    "open-asr-leaderboard": NamedCorpus(
        "the Open ASR Leaderboard's English short-form test sets; `workbench measure --preset open-asr-leaderboard` takes those that it counts",
        {
            "ami": _leaderboard("ami", "ami", "AMI"),
            "ami-cleaned": _leaderboard("ami-cleaned", "ami_cleaned", "AMI"),
            "earnings22": _leaderboard("earnings22", "earnings22", "Earnings-22"),
            "gigaspeech": _leaderboard("gigaspeech", "gigaspeech", "GigaSpeech"),
            "gigaspeech-cleaned": _leaderboard("gigaspeech-cleaned", "gigaspeech_cleaned", "GigaSpeech"),
            "librispeech-clean": _leaderboard("librispeech-clean", "librispeech", "LibriSpeech", "test.clean"),
            "librispeech-other": _leaderboard("librispeech-other", "librispeech", "LibriSpeech", "test.other"),
            "spgispeech": _leaderboard("spgispeech", "spgispeech", "SPGISpeech"),
            "tedlium": replace(TEDLIUM, source="open-asr-leaderboard:tedlium", splits=TEST_ONLY, cut=True),
            "voxpopuli": _leaderboard("voxpopuli", "voxpopuli", "VoxPopuli en"),
            "voxpopuli-cleaned": _leaderboard("voxpopuli-cleaned", "voxpopuli_cleaned_aa", "VoxPopuli en"),
        },
    ),
}

# Names that people try and that the hub does not hold, with what to do.
NOT_ON_THE_HUB = {
    "common_voice": (
        "Common Voice left the Hugging Face hub in October 2025, and its terms allow no copies there; download the language from "
        "https://mozilladatacollective.com (an account is needed), unpack it, and give the folder that holds validated.tsv and clips/ as the corpus"
    ),
}


def is_dataset(source: str) -> bool:
    """Whether a corpus is a dataset of the hub (or in its format): `hf:ID`, or a public corpus's name. Its clips are not files of a manifest."""
    return source.startswith("hf:") or source.partition(":")[0] in (*NAMED, *NOT_ON_THE_HUB)


def hub_dataset(source: str) -> HubDataset:
    """The dataset that a source names; `is_dataset` says whether it names one.

    Raises:
        UserError: no such name or variant, a corpus that the hub does not hold, or a folder here has the name, too.
    """
    if source.startswith("hf:"):
        name, _, config = source.removeprefix("hf:").partition(":")
        return HubDataset(source, name, config)
    name, _, variant = source.partition(":")
    if Path(source).is_dir():
        raise UserError(f"corpus {source!r}: is a public corpus's name and a folder here; write ./{source} for the folder, or work in another one for the public corpus")  # fmt: skip
    if name in NOT_ON_THE_HUB:
        raise UserError(f"corpus {source!r}: {NOT_ON_THE_HUB[name]}")
    if name not in NAMED:
        raise UserError(f"corpus {source!r}: no public corpus has this name{did_you_mean(name, NAMED)}")
    variants = NAMED[name].variants
    if variant in variants:
        return variants[variant]
    known = [found for found in variants if found]
    if not variant:
        raise UserError(f"corpus {source!r}: say which, such as {name}:{NAMED[name].example or known[0]}; known: {', '.join(known)}")  # fmt: skip
    if not known:
        raise UserError(f"corpus {source!r}: has no parts; its name is {name!r}")
    raise UserError(f"corpus {source!r}: no part {variant!r}{did_you_mean(variant, known)}")
