"""What all parts of the preference tuning use: how it fails, what it says, how it runs commands and writes files.

A failure is one line on stderr, a file stands under its name only once it is whole, and a command that fails says so
with the end of its output.
"""

import hashlib
import json
import os
import pathlib
import platform
import subprocess
import sys
import time


def fail(message):
    """Ends the program with one line on stderr and exit code 1."""
    sys.exit(f"preference_tuning.py: {message}")


def say(message):
    """One line of progress on stderr, with the time."""
    print(f"{time.strftime('%H:%M:%S')} {message}", file=sys.stderr, flush=True)


def sha256(path):
    """The hash of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def machine():
    """The processor's name and number of cores."""
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{name}, {len(os.sched_getaffinity(0))} cores"


def write_json(path, value):
    """Writes a file under its name only once it is whole."""
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps(value, indent=1) + "\n")
    part.replace(path)


def step(what, words, env=None):
    """Runs a command; a failure says what it was and the end of its output. Returns the seconds it took."""
    started = time.monotonic()
    done = subprocess.run(words, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        fail(f"could not {what}:\n" + "\n".join(done.stdout.splitlines()[-25:]))
    return time.monotonic() - started
