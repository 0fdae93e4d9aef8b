"""Takes away what Windows lacks, to try code and tests on another system: `python -m pytest -p tests.without_posix`."""

import multiprocessing
import os
import re
import sys
from pathlib import Path

import anomalib.engine
import anomalib.models  # noqa: F401  # other libraries decide at their import which system this is
import openvino  # noqa: F401

from anomalib_aprilgan.files import whole_files

FORBIDDEN = re.compile(r'[<>:"|?*\\\x00-\x1f]|(?<=[^.])[. ]$|^(con|prn|aux|nul|com\d|lpt\d)(\.|$)', flags=re.IGNORECASE)
"""Matches what no file of Windows may be called."""

CALLS = {"open", "os.mkdir", "os.rename", "os.symlink"}


def refuse(event: str, arguments: tuple[object, ...]) -> None:
    """Refuse names that are forbidden, and links, which need a privilege. anomalib makes no links on Windows."""
    if event not in CALLS:
        return
    paths = [os.fsdecode(path) for path in arguments[:2] if isinstance(path, str | bytes | os.PathLike)]
    if event == "open":
        paths = paths[:1]
    if any(FORBIDDEN.search(part) for path in paths for part in Path(path).parts):
        raise OSError(22, "The filename, directory name, or volume label syntax is incorrect", paths[0])
    if event == "os.symlink" and not paths[1].endswith(("latest", "current")):
        raise OSError(22, "A required privilege is not held by the client", paths[1])


for module in ("fcntl", "resource", "pwd", "grp", "termios", "pty"):
    sys.modules[module] = None  # its import then fails
for name in ("fork", "mkfifo"):  # Lightning and pytest need the other ones
    delattr(os, name)
setattr(whole_files, "fcntl", None)  # noqa: B010  # the module does not export it
multiprocessing.set_start_method("spawn", force=True)
sys.addaudithook(refuse)
