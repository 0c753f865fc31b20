"""Child processes that end with their parent, however it ends: a killed command leaves nothing running.

A program is started through this file, which asks Linux to kill it with its parent, and then becomes the program. A hook
between fork and exec would do the same, but may lock up where other threads run. Elsewhere this file stays the program's parent and checks
every second whether its own parent is alive.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence

NOT_STARTED = 127  # as shells count it


def killed_with_parent(program: Sequence[str]) -> list[str]:
    """A command line that runs a program and ends it when this process, or the thread that starts it, ends.

    Where the program cannot be started the exit status is 127, and the last line on standard error says why.
    """
    # isolated and without site-packages: this file needs none, and starts in 10 ms
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), *program]


def end_with_parent(*_: object) -> None:
    """Called in a process of `multiprocessing`: end it as soon as its parent has ended. Usable as a loader's `worker_init_fn`."""
    import multiprocessing
    import threading

    parent = multiprocessing.parent_process()

    def outlive() -> None:
        if parent is not None:
            parent.join()  # waits on a pipe, which the parent's end closes
            os._exit(1)

    threading.Thread(target=outlive, daemon=True).start()


def _become(parent: int, program: Sequence[str]) -> int:
    """Become the program, or, where the system cannot end it with its parent, run it as a child."""
    if sys.platform == "linux":
        import ctypes

        set_parent_death_signal = 1  # PR_SET_PDEATHSIG of linux/prctl.h
        if ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL) == 0:
            if os.getppid() != parent:  # it ended before the call
                return 1
            os.execvp(program[0], list(program))  # noqa: S606  a list of arguments, no shell
    child = subprocess.Popen(program)
    while True:
        try:
            return child.wait(1)
        except subprocess.TimeoutExpired:
            if os.getppid() != parent:
                child.kill()
                return 1


if __name__ == "__main__":
    try:
        sys.exit(_become(int(sys.argv[1]), sys.argv[2:]))
    except OSError as error:
        sys.stderr.write(f"{sys.argv[2]}: {error.strerror}\n")
        sys.exit(NOT_STARTED)
