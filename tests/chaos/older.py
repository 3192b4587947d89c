"""Workers of an older commit on the same database, as there are for a moment in every deployment."""

from __future__ import annotations

import contextlib
import io
import shutil
import subprocess
import tarfile

from tests.chaos.scene import OLDER, Scene
from tests.support import ROOT


def git(*arguments: str) -> bytes:
    """What git says; raises CalledProcessError if it refuses."""
    return subprocess.run(["git", "-C", ROOT, *arguments], check=True, capture_output=True).stdout


def commit() -> str | None:
    """The newest commit with other code for workers and the same tables; None if there is none here."""
    with contextlib.suppress(subprocess.CalledProcessError, FileNotFoundError):
        schema = git("rev-parse", "HEAD:migrations")
        for one in git("log", "--format=%H", "HEAD~1", "--", "workers").decode().split():
            if git("rev-parse", f"{one}:migrations") != schema:
                return None
            return one
    return None


def is_at_hand() -> bool:
    """Whether there is such a commit."""
    return commit() is not None


def start(scene: Scene) -> None:
    """Have its workers work beside ours."""
    code = scene.folder / "older"
    found = commit()
    assert found is not None
    with tarfile.open(fileobj=io.BytesIO(git("archive", found))) as archive:
        archive.extractall(code, filter="data")
    scene.start(OLDER, code=code)


def stop(scene: Scene) -> None:
    """End them as a deployment does."""
    scene.drain(OLDER)
    shutil.rmtree(scene.folder / "older")
