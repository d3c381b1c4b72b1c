"""What a run leaves behind that was killed and could not clean up after itself: processes, their memory limits, folders, fences.

Each run holds a lock in its work folder for as long as it lives. Whoever finds such a folder without its lock held ends what is there.
"""

import fcntl
import os
import pathlib
import shutil
import signal
import subprocess
import time

PREFIX = "forebay-side-by-side."
LOCK, STARTED, FENCES = "running", "started", "fences"
CGROUP_ROOTS = ("/sys/fs/cgroup/memory", "/sys/fs/cgroup")


def hold(folder):
    """Marks a folder as in use until this process ends; the file is to be kept."""
    file = open(folder / LOCK, "w")
    fcntl.flock(file, fcntl.LOCK_EX)
    return file


def fence(folder, rule):
    """Notes the command that takes a fence away."""
    with open(folder / FENCES, "a") as file:
        file.write(" ".join(rule) + "\n")


def started(folder, pid):
    """Notes a process that leads a session of its own."""
    with open(folder / STARTED, "a") as file:
        file.write(f"{pid} {_started(pid)}\n")


def clean(work):
    """Ends and removes everything of runs that are no more."""
    for folder in pathlib.Path(work).glob(PREFIX + "*"):
        if folder.lstat().st_uid != os.getuid() or folder.is_symlink():
            continue  # Anybody may make a folder of that name there, with commands in it.
        try:
            with open(folder / LOCK) as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _clean_one(folder)
        except OSError:
            continue  # It is in use, or somebody else's.


def _clean_one(folder):
    print(f"removing what a killed run left: {folder}", flush=True)
    for line in _lines(folder / STARTED):
        _end(*line.split())
    for root in CGROUP_ROOTS:
        made = pathlib.Path(root) / folder.name
        for limit in [*made.glob("*/"), made] if made.is_dir() else ():
            remove_cgroup(limit)
    for line in _lines(folder / FENCES):
        subprocess.run(line.split(), stderr=subprocess.DEVNULL)
    shutil.rmtree(folder, ignore_errors=True)


def _lines(path):
    return path.read_text().splitlines() if path.exists() else []


def _end(pid, started):
    """Ends the session of a process that was started here, whether or not it still leads it. A number that is another's by now is let alone."""
    if _started(pid) in (started, None):
        try:
            os.killpg(int(pid), signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass  # All of it has ended.


def _started(pid):
    """When a process started, as the kernel counts; None for one that is no more."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return None


def remove_cgroup(folder):
    """Processes end a moment after they were waited for, as the kernel counts. True when it is gone."""
    for _ in range(50):
        try:
            if (folder / "memory.force_empty").exists():
                (folder / "memory.force_empty").write_text("0")
            folder.rmdir()
            return True
        except OSError:
            time.sleep(0.05)
    return False
