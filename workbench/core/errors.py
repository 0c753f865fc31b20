"""Errors for users: one line, and a non-zero exit status."""

from __future__ import annotations

import difflib
import errno
import os
import re
import socket
import sys
import traceback
from argparse import ArgumentTypeError
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType


class UserError(Exception):
    """Input that a person can correct.

    The message is one line that names the file, the field and the value, says what was expected and what to do.
    The command line prints it without a traceback and exits with status 2.
    """

    def __str__(self) -> str:
        return in_one_line(super().__str__())


def in_one_line(text: str) -> str:
    """The text with unprintable characters escaped: a file name may hold line breaks and terminal control codes."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `"; did you mean 'x'?"` for the known name most like `name`, or the list of known names."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(names)}"


DISK_FULL_REMEDY = "free some space or choose another place, and run the same command again"
REMEDIES = {
    errno.ENOSPC: DISK_FULL_REMEDY,
    errno.EDQUOT: DISK_FULL_REMEDY,
    errno.EFBIG: DISK_FULL_REMEDY,
    errno.EACCES: "choose another place, or change its permissions",
    errno.EPERM: "choose another place, or change its permissions",
    errno.EROFS: "choose another place",
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "expected a folder",
    errno.EISDIR: "expected a file",
    errno.EEXIST: "choose another place",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "its symbolic links lead back to themselves",
    errno.EIO: "the disk or network drive cannot be read or written",
    errno.ENODEV: "check that the device is there",
    errno.ENXIO: "check that the device is there",
    errno.EMFILE: "raise the limit on open files (`ulimit -n`)",
    errno.ECONNREFUSED: "check the network, or use what is on this machine",
    errno.ECONNRESET: "check the network, or use what is on this machine",
    errno.ETIMEDOUT: "check the network, or use what is on this machine",
    errno.EHOSTUNREACH: "check the network, or use what is on this machine",
    errno.ENETUNREACH: "check the network, or use what is on this machine",
    errno.EADDRINUSE: "choose another port",
    errno.EADDRNOTAVAIL: "choose another address",
}


def first_line(error: BaseException, most: int = 200) -> str:
    """The first line of a library's message, truncated to a maximum length; the error's class if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:most]


def last_line(said: str) -> str:
    """The last line that a program wrote, which usually states what went wrong."""
    return (said.strip().splitlines() or ["no message"])[-1]


def system_error(error: Exception) -> int | None:
    """The errno of an error; libraries written in Rust (safetensors, tokenizers) have it only in their message."""
    number = error.errno if isinstance(error, OSError) else None
    if number is None and (found := re.search(r"\(os error (\d+)\)", str(error))):
        number = int(found.group(1))
    return number


def system_error_message(error: Exception) -> str | None:
    """The message for an error of the user's disk, files or network; None for any other, which is a bug.

    An HTTP client's own error is the network's, whatever it was raised for.
    """
    if type(error).__module__.startswith("http"):
        cause = error.__cause__ or error.__context__
        known = system_error_message(cause) if isinstance(cause, Exception) else None
        return known or f"{first_line(error)}; check the network, or try again later"
    if isinstance(error, socket.gaierror):
        return f"{error.strerror}; check the host's name and the network"
    number = system_error(error)
    if number not in REMEDIES:
        return None
    names = [
        in_one_line(str(name)) for name in (getattr(error, "filename", None), getattr(error, "filename2", None)) if name
    ]
    what = f"{' -> '.join(names)}: " if names else ""
    return f"{what}{os.strerror(number)}; {REMEDIES[number]}"


def install_one_line_excepthook() -> None:
    """For scripts without a typer command line: an error that a user can correct ends them with one line and status 1."""

    def show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        said = str(error) if isinstance(error, UserError) else None
        if isinstance(error, KeyboardInterrupt):
            said = "interrupted"
        elif said is None and isinstance(error, Exception):
            said = system_error_message(error)
        if said is None:
            traceback.print_exception(kind, error, trace)
        else:
            sys.stderr.write(f"error: {said}\n")

    sys.excepthook = show


def output_file(text: str) -> Path:
    """An argparse type: a file that can be written, checked before the work starts."""
    path = Path(text)
    if not text.strip() or path.is_dir() or any(p.exists() and not p.is_dir() for p in path.parents):
        raise ArgumentTypeError(f"{text!r}: expected a file in a folder")
    return path
