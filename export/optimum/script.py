"""A script that runs in Optimum's environment and answers a line of JSON with another."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from export.optimum.environment import Environment
from workbench.children import ending_with_us

HERE = Path(__file__).parent


class Script:
    """A running script; it ends with this object's process, or when it is closed."""

    def __init__(self, environment: Environment, name: str, *arguments: str) -> None:
        """Start `name`, a file of this folder, and wait for its first line, which is kept as `ready`."""
        self.process = subprocess.Popen(
            ending_with_us(environment.command(HERE / name, *arguments)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env=environment.variables(),
        )
        self.ready = self._answer()

    def ask(self, **what: Any) -> dict[str, Any]:
        """Send a request and wait for the answer. Raises RuntimeError with what the script says went wrong."""
        assert self.process.stdin is not None  # noqa: S101  it is a pipe
        self.process.stdin.write(json.dumps(what) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """End it."""
        assert self.process.stdin is not None  # noqa: S101  it is a pipe
        self.process.stdin.close()
        self.process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None  # noqa: S101  it is a pipe
        if not (line := self.process.stdout.readline()):
            raise RuntimeError(f"Optimum's process ended with exit status {self.process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer
