"""Writes the prompts of the run in this folder: learn.jsonl and test.jsonl, into the folder at hand.

usage: python3 prompts.py HOST_DATA_PROMPTS DATA_PROMPTS

HOST_DATA_PROMPTS is host/data/prompts.jsonl, DATA_PROMPTS a folder with train.jsonl and test.jsonl. What is learned and tuned on
are the project's own prompts and the first 400 of train.jsonl; what is reported are the first 50 test prompts of the project's
own and of test.jsonl. Which prompt is a test prompt is `Split::of` of host/src/learning/prompts.rs, written again here.
"""

import hashlib
import json
import re
import sys
from pathlib import Path


def is_test(prompt):
    normal = " ".join(word for word in re.split(r"[^\w]|_", prompt.lower()) if word)
    return int.from_bytes(hashlib.sha256(normal.encode()).digest()[:4], "big") % 8 < 2


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    own = Path(sys.argv[1]).read_text().splitlines(keepends=True)
    train = (Path(sys.argv[2]) / "train.jsonl").read_text().splitlines(keepends=True)
    test = (Path(sys.argv[2]) / "test.jsonl").read_text().splitlines(keepends=True)
    Path("learn.jsonl").write_text("".join(own + train[:400]))
    reported = [[line for line in lines if is_test(json.loads(line)["prompt"])][:50] for lines in (own, test)]
    Path("test.jsonl").write_text("".join(reported[0] + reported[1]))


main()
