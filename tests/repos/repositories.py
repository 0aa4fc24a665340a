"""Makes git repositories for tests, whatever the machine's own settings of git are."""

import subprocess
from pathlib import Path

_IDENTITY = ("-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false")


def git(folder: Path, *arguments: str) -> str:
    """What a git command prints that runs in the folder."""
    command = ["git", "-C", str(folder), *_IDENTITY, "-c", "protocol.file.allow=always", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
