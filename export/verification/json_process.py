"""A child process that answers each line of JSON with another; drives runtimes outside our environment."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from typing import TypedDict

from workbench.core.machine.children import killed_with_parent


class Answer(TypedDict, total=False):
    """An answer from a program; each answer has only some of these fields."""

    version: str  # the runtime's version, in the first answer
    tokens: list[int]
    text: str
    error: str  # in place of an answer


class JsonProcess:
    """A running child process; it ends with ours.

    Args:
        name: how error messages refer to the program.
        command: its command line. It prints one line on start-up, which is stored as `ready`.
        variables: its environment variables; ours by default.
    """

    def __init__(self, name: str, command: Sequence[str], variables: Mapping[str, str] | None = None) -> None:
        self.name = name
        self.process = subprocess.Popen(
            killed_with_parent(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env=variables,
        )
        self.ready = self._answer()

    def ask(self, **what: object) -> Answer:
        """Send a request and wait for the answer. Raises RuntimeError with the program's own error message."""
        assert self.process.stdin is not None  # noqa: S101  it is a pipe
        self.process.stdin.write(json.dumps(what) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> Answer:
        assert self.process.stdout is not None  # noqa: S101  it is a pipe
        if not (line := self.process.stdout.readline()):
            raise RuntimeError(f"{self.name} ended with exit status {self.process.wait()}")
        answer: Answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer
