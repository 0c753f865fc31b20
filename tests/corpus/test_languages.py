"""Languages as data names them become Whisper's codes, or are refused; none becomes English in silence."""

import pytest

from workbench.core.errors import UserError
from workbench.text.languages import did_you_mean_language, language_code


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ("en", "en"), ("EN", "en"), ("en_us", "en"), ("English", "en"), ("hindi", "hi"), ("eng", "en"), ("hin", "hi"),
        ("deu", "de"), ("ger", "de"), ("pt-BR", "pt"), ("zh-TW", "zh"), ("cmn_hans_cn", "zh"), ("mandarin", "zh"), ("yue", "yue"),
        ("Castilian", "es"), ("iw", "he"), ("jv", "jw"), ("jav", "jw"), ("nb-NO", "no"), ("nn-NO", "nn"), ("fil", "tl"), ("arb", "ar"),
        ("swh", "sw"), ("haw", "haw"),
    ],
)  # fmt: skip
def test_codes_and_names_become_whispers_code(given, code):
    assert language_code(given) == code


# Common Voice's languages, a selection; those that Whisper knows and those that it does not.
@pytest.mark.parametrize(
    "code",
    [
        "ka",
        "as",
        "br",
        "mt",
        "tt",
        "ml",
        "ab",
        "ckb",
        "cnh",
        "dv",
        "eo",
        "fy",
        "ga",
        "hsb",
        "ia",
        "kab",
        "kmr",
        "ky",
        "lg",
        "nan",
        "or",
        "rm",
        "rw",
        "sah",
        "tok",
        "tw",
        "ug",
        "vot",
        "zgh",
    ],
)
def test_common_voices_languages_stay_what_they_are(code):
    assert language_code(code) == code
    assert language_code(f"{code}-XX") == code


@pytest.mark.parametrize(
    "given", ["", " ", "3", "englich", "cn", "jp", "und", "mul", "nan value", "None", "true", "xx", "multilingual"]
)
def test_what_is_no_language_is_refused(given):
    with pytest.raises(UserError, match=r"which is not a language.*expected an ISO 639 code"):
        language_code(given)


def test_a_misspelt_name_is_met_with_the_nearest():
    with pytest.raises(UserError, match="did you mean 'english'"):
        language_code("englich")


def test_a_language_by_its_name_is_told_its_code():
    assert did_you_mean_language("english", ["en", "de"]) == "; its code is 'en'"
    assert did_you_mean_language("deu", ["en", "de"]) == "; its code is 'de'"
    assert did_you_mean_language("french", ["en", "de"]) == "; the model knows de, en"
    assert did_you_mean_language("qqqq", ["en", "de"]) == "; known: de, en"
