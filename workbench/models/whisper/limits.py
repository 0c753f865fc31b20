"""How long a Whisper transcript may be: beyond that, the decoder is repeating itself."""

from __future__ import annotations

# Tokens per second of speech that a transcript may have. A decoder that writes more is looping: in these languages real speech of Common
# Voice, prompts and read passages needs at most nine tenths of TOKENS_AT_LEAST + 8 a second.
MAX_TOKENS_PER_SECOND = 8.0
LANGUAGES_OF_WHOLE_WORDS = frozenset(
    "br ca cs cy de el en es et eu fa fi fr hu id it ja lt lv mt nl pl pt ro ru sk sl sv tr vi yue zh".split()  # noqa: SIM905
)
# Scripts that Whisper's tokenizer spells in bytes need up to 43 (Georgian, Malayalam, Assamese, Panjabi, Hindi, Mongolian, ...).
MAX_BYTE_TOKENS_PER_SECOND = 48.0
TOKENS_AT_LEAST = 12
PROMPT_TOKENS = 4  # <|startoftranscript|>, language, task, <|notimestamps|>


def max_tokens_per_second(language: str) -> float:
    """Most tokens that a second of speech needs in a language; one that was not measured gets the larger number."""
    return MAX_TOKENS_PER_SECOND if language in LANGUAGES_OF_WHOLE_WORDS else MAX_BYTE_TOKENS_PER_SECOND
