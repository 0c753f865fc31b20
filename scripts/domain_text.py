"""Write text of the built-in corpus's domain, telephone prompts, for `workbench synthesize`.

    python scripts/domain_text.py --lines 3000 --output domain.txt

Half of the lines come from a small grammar of what telephone systems say, half are prompts of the training split one
after another, as a telephone system plays them. No line is a sentence of the validation or test split. The grammar was
written without looking at those two.
"""

from __future__ import annotations

import argparse
import random
import re

from workbench.core.errors import install_one_line_excepthook, output_file
from workbench.core.files import write_text
from workbench.corpus import open_corpus
from workbench.corpus.split import split_key

DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
TEENS = ["ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"]
TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
ORDINALS = ["first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth", "eleventh",
            "twelfth", "thirteenth", "fourteenth", "fifteenth", "sixteenth", "seventeenth", "eighteenth", "nineteenth",
            "twentieth", "thirtieth"]  # fmt: skip
# A word in braces is replaced by one of the choices; sentences are the roots.
GRAMMAR: dict[str, list[str]] = {
    "key": ["pound", "star", "hash", "the pound key", "the star key", *map(str, range(10))],
    "digit": DIGITS,
    "number": [*DIGITS[1:], *TEENS, *TENS, *(f"{t} {d}" for t in TENS for d in DIGITS[1:])],
    "digits": ["{digit} {digit} {digit}", "{digit} {digit} {digit} {digit}", "{digit} {digit} {digit} {digit} {digit} {digit} {digit}"],
    "month": ["January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December"],
    "day": ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"],
    "ordinal": ORDINALS,
    "time": ["{number} A.M.", "{number} P.M.", "noon", "midnight", "{number} o'clock", "{number} thirty"],
    "thing": ["message", "mailbox", "extension", "conference", "call", "greeting", "password", "voicemail", "account",
              "recording", "line", "queue", "directory", "caller", "operator", "agent", "number", "menu", "folder",
              "transfer", "channel", "system", "user", "party", "name", "pin", "code", "area code", "volume", "participant"],
    "state": ["busy", "unavailable", "locked", "unlocked", "full", "empty", "active", "invalid", "disconnected", "enabled",
              "disabled", "on hold", "ringing", "muted", "not answering", "temporarily out of service", "deleted", "saved",
              "urgent", "complete", "cancelled", "activated", "de-activated", "not available", "incorrect", "connected"],
    "act": ["delete", "save", "repeat", "forward", "replay", "record", "skip", "erase", "hear", "change", "transfer",
            "cancel", "confirm", "enter", "leave", "lock", "mute", "return to", "listen to", "reply to", "extend", "mark"],
    "who": ["the person at extension {digits}", "the caller", "the operator", "an agent", "the conference leader", "your party",
            "another participant", "someone", "the next available representative", "an administrator", "an unknown caller"],
    "please": ["Please", "Please", "Now", "You may now", "To continue, please", "Sorry. Please"],
    "instruction": ["press {key} to {act} the {thing}", "press {key} to {act} this {thing}, or {key} to {act} it",
                    "enter your {thing} followed by {key}", "dial {digits} for {who}", "hold while I connect you to {who}",
                    "say your name after the tone, then press {key}", "wait for the tone and leave a {thing}",
                    "try your {thing} again later", "enter the {thing} you wish to {act}", "hang up and dial {digits}"],
    "sentence": [
        "{please} {instruction}.", "{please} {instruction}. {please} {instruction}.",
        "You have {number} new messages and {number} old messages.", "You have {number} {thing}s in your {thing}.",
        "The {thing} is {state}.", "The {thing} is now {state}. {please} {instruction}.", "Your {thing} has been {state}.",
        "Your {thing} is {state}, and the {thing} is {state}.", "That is not a valid {thing}. {please} {instruction}.",
        "Message {number}, received {day}, {month} {ordinal}, at {time}.", "{day}, {month} {ordinal}.", "{month} {ordinal}, {time}.",
        "There are {number} callers ahead of you in the {thing}.", "Your estimated hold time is {number} minutes.",
        "The {thing} you have entered is {state}.", "We are sorry. The {thing} you have dialed is {state}.",
        "For {thing}, press {key}. For {thing}, press {key}. To {act} a {thing}, press {key}.",
        "To {act} the {thing}, press {key}.", "To {act} your {thing} press {key}, or to {act} it press {key}.",
        "There {thing} is held by {who}.", "I have a call from {who}.", "This call may be monitored or recorded.",
        "Call {state}.", "{thing} {state}", "{thing} {number}", "extension {digits}", "{digits}", "{number}", "{digit}",
        "at {time}", "{number} hundred {number}", "{number} thousand {number} hundred", "{number} seconds", "{number} minutes and {number} seconds",
        "Welcome to the {thing}. {please} {instruction}.", "{who} has joined the conference.", "{who} has left the {thing}.",
        "If this is {who}, press {key} now, otherwise press {key}.", "Thank you for calling. Goodbye.", "Thank you. Your {thing} was {state}.",
        "You are currently the only person in this {thing}.", "You cannot {act} the {thing} while it is {state}.",
        "{number} percent", "The temperature is {number} degrees.", "The time is {time}.", "Attempt number {number} failed.",
    ],
}  # fmt: skip


def main() -> None:
    """Parse arguments and write the lines."""
    install_one_line_excepthook()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--lines", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=output_file, required=True)
    args = parser.parse_args()
    write_text(args.output, "".join(line + "\n" for line in lines(args.lines, args.seed)))
    print(f"wrote {args.output}")


def lines(wanted: int, seed: int) -> list[str]:
    """So many different lines, in an order that a longer list begins with."""
    draw = random.Random(seed)
    prompts = [u.text for u in open_corpus("prompts-en", "train")]
    held_out = {split_key(u.text) for split in ("validation", "test") for u in open_corpus("prompts-en", split)}
    found: dict[str, str] = {}
    while len(found) < wanted:
        line = expand("{sentence}", draw) if draw.random() < 0.5 else sequence(prompts, draw)
        key = split_key(line)
        if key and key not in held_out:
            found.setdefault(key, line[0].upper() + line[1:])
    return list(found.values())


def expand(text: str, draw: random.Random) -> str:
    """Replace the words in braces until there are none."""
    while match := re.search(r"\{(\w+)\}", text):
        text = text[: match.start()] + draw.choice(GRAMMAR[match.group(1)]) + text[match.end() :]
    return text


def sequence(prompts: list[str], draw: random.Random) -> str:
    """One to four prompts one after another, at most 30 words."""
    chosen = [
        re.sub(r"\s*\([^)]*\)|\.\.\.|\[[^]]*\]", " ", p) for p in draw.sample(prompts, draw.choice([1, 2, 2, 3, 3, 4]))
    ]
    words = " ".join(chosen).split()
    return " ".join(words[:30])


if __name__ == "__main__":
    main()
