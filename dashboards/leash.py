"""Runs one command and ends it when whoever started this process is gone: `python -m sparselens.dashboards.leash ARGV`.

Standard input is the leash: when it closes, because the server let go or died, the command is interrupted, and killed
if it does not leave.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

LEAVES = 5.0  # seconds that an interrupted command has to leave


def main(argv: list[str]) -> int:
    """Run the command; returns its exit status."""
    child = subprocess.Popen(argv, stdin=subprocess.DEVNULL)

    def hold() -> None:
        while os.read(sys.stdin.fileno(), 1024):
            pass
        if child.poll() is None:
            child.send_signal(signal.SIGINT)
            try:
                child.wait(LEAVES)
            except subprocess.TimeoutExpired:
                child.kill()

    threading.Thread(target=hold, daemon=True).start()
    return child.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
