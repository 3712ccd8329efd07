#!/usr/bin/env python3
"""Tunes the base model's weights on the rollouts that value heads are learned from, to compare with vassal.

    python3 tests/compare/preference_tuning.py --rollouts learn.parquet --prompts learn.jsonl \\
        --reward sentiment --test-prompts test.jsonl --out tuning

For each method and beta it trains a LoRA adapter, merges it and writes the model as an F32 GGUF file into --out
(`dpo-beta0.1.gguf`), beside `base-f32.gguf`, the same export without training. With --test-prompts, vassal itself then
samples each file, and what came of it is printed as a table and written to `points.json`, in the shape of `points` of
an evaluation's report.json. So one engine, one arithmetic and one reward judge all.

  dpo  Direct Preference Optimization on each learn prompt's best response against its worst, the tokens as sampled.
       The loss is written out here: trl's trainer takes text and would cut it into tokens anew.
  ppo  PPO's current form, GRPO, by trl's own trainer: it samples from the model that is tuned, as many responses as
       the rollouts have of learn prompts, and scores them by the same reward.

Only prompts of the split `learn` are trained on. Before anything is trained it is checked, and refused otherwise, that
the rollouts are this model's and these prompts', that prompts become the engine's own tokens, that the reward computed
here is the rollouts' own, and that the export without training has every weight of the original, bit for bit.

A file that is there is not trained again: `tuning.json` says what each was made with, how long it took and how the loss
went. Versions and hashes are in tuning-requirements.txt, the environment lies under target/tuning-venv. Run it under
`nice`; hours on two cores. Not part of the test suite: read `main` first, then `tuning/`.
"""

import argparse
import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
import sys
import time

# The environment's Python is started with -P, which leaves this folder out.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

from tuning.judging import keep, point, table  # noqa: E402
from tuning.model import Prompts, check_export, export, load_model  # noqa: E402
from tuning.rollouts import by_prompt, check_rewards, read_rollouts, reward_function  # noqa: E402
from tuning.shared import fail, machine, say, sha256, step, write_json  # noqa: E402
from tuning.training import tune  # noqa: E402

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
REQUIREMENTS = pathlib.Path(__file__).with_name("tuning-requirements.txt")
PACKAGES = ("torch", "transformers", "trl", "peft", "gguf", "tokenizers", "vaderSentiment", "pyarrow", "numpy")


def environment(home):
    """The Python of the virtual environment; builds it unless it is complete."""
    python, record = home / "bin" / "python", home / "built.json"  # the record is written last
    fingerprint = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()
    if record.is_file() and json.loads(record.read_text())["fingerprint"] == fingerprint:
        return python
    if sys.version_info[:2] != (3, 11):
        fail(f"Python 3.11 is needed for the pinned packages, this is {sys.version.split()[0]}")
    say(f"installing torch, transformers, trl and peft under {home}: some minutes and 6 GB, once")
    started = time.monotonic()
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--require-hashes"]
    packages = [*pip, "--no-deps", "--only-binary", ":all:", "-r", REQUIREMENTS]
    step("make a virtual environment", [sys.executable, "-m", "venv", "--clear", home], clean)
    step("fetch the packages (is a package index within reach?)", packages, clean)
    record.write_text(json.dumps({"fingerprint": fingerprint, "seconds": round(time.monotonic() - started)}))
    return python


def listed(kind):
    """A type of options: several, with commas between."""
    return lambda text: [kind(part) for part in text.split(",")]


def arguments():
    """The command line."""
    target = REPOSITORY / "target"
    parser = argparse.ArgumentParser(description="Tunes the base model's weights, to compare with vassal.")
    option = parser.add_argument
    option("--rollouts", type=pathlib.Path, required=True, help="a Parquet file of `vassal rollout`, scored")
    option("--prompts", type=pathlib.Path, required=True, help="the prompts file that it was made from")
    option("--reward", default="sentiment", help="sentiment, simplicity, one-question or length=WORDS")
    option("--out", type=pathlib.Path, required=True, help="the folder for everything made")
    option("--test-prompts", type=pathlib.Path, help="judge the files on these prompts of the split test")
    option("--methods", type=listed(str), default=["dpo", "ppo"], help="some of dpo,ppo (default: both)")
    option("--betas", type=listed(float), default=[0.05, 0.1, 0.3], help="default: 0.05,0.1,0.3")
    option("--seed", type=int, default=1, help="of the adapter and of the order (default: 1)")
    option("--threads", type=int, default=2, help="default: 2")
    option("--epochs", type=int, default=1, help="dpo: times through all pairs (default: 1)")
    option("--learning-rate", type=float, default=5e-4, help="dpo: default 5e-4")
    option("--batch", type=int, default=8, help="dpo: pairs a step (default: 8)")
    option("--micro-batch", type=int, default=4, help="dpo: pairs at once, for memory (default: 4)")
    option("--pairs-a-prompt", type=int, default=1, help="dpo: 2 for the second best against the second worst too")
    option("--ppo-responses", type=int, default=0, help="ppo: default as many as the rollouts have")
    option("--ppo-learning-rate", type=float, default=1e-4, help="ppo: default 1e-4")
    option("--ppo-batch", type=int, default=64, help="ppo: responses a step (default: 64)")
    option("--ppo-micro-batch", type=int, default=16, help="ppo: responses at once, for memory (default: 16)")
    option("--ppo-group", type=int, default=8, help="ppo: responses a prompt and step (default: 8)")
    option("--test-samples", type=int, default=1, help="responses a test prompt (default: 1)")
    option("--test-seed", type=int, default=11, help="of the judged responses (default: 11)")
    option("--model", type=pathlib.Path, help="a GGUF file (default: the one that `vassal pull` fetches)")
    option("--vassal", type=pathlib.Path, default=target / "release" / "vassal", help="the vassal binary")
    option("--folder", type=pathlib.Path, default=target / "tuning-venv", help="for the environment")
    args = parser.parse_args()
    if not set(args.methods) <= {"dpo", "ppo"}:
        parser.error(f"--methods: of dpo and ppo, not {','.join(args.methods)}")
    return args


def inside(args):
    """Checks the inputs, then trains, then judges each file as it comes."""
    import torch
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    header, rows = read_rollouts(args.rollouts, args.reward)
    inputs = {"model_sha256": sha256(args.model), "prompts_sha256": sha256(args.prompts)}
    for name, value in inputs.items():
        if header[name] != value:
            fail(f"{args.rollouts} was made with another {name.removesuffix('_sha256')}")
    inputs["rollouts_sha256"] = sha256(args.rollouts)
    groups, args.token_limit = by_prompt(rows), header["token_limit"]
    args.ppo_responses = args.ppo_responses or sum(map(len, groups.values()))
    prompts, reward = Prompts(args.model), reward_function(args.reward)
    checks = {"reward": check_rewards(reward, [row for row in rows if row["reward"] is not None], args.rollouts.name)}
    checks["prompt_tokens"] = prompts.check(args, {group[0]["prompt"] for group in groups.values()})
    base_path, base = args.out / "base-f32.gguf", load_model(args.model)
    export(base, args.model, base_path)
    checks["export"] = check_export(args.model, base_path)
    for name, found in checks.items():
        say(f"checked {name}: " + ", ".join(f"{key} {value}" for key, value in found.items()))
    record = args.out / "tuning.json"
    done = json.loads(record.read_text()) if record.is_file() else {"runs": {}}
    done["versions"] = {name: importlib.metadata.version(name) for name in PACKAGES}
    done |= {"python": platform.python_version(), "machine": machine(), "checks": checks, "inputs": inputs}
    done["learn"] = {"prompts": len(groups), "responses": sum(map(len, groups.values()))}
    write_json(record, done)
    points, of_base = [], None
    if args.test_prompts:
        done.setdefault("judged", {})
        found, of_base = point(args, "base-f32", "base", 0.0, prompts, reward, base, None)
        points, done["judged"]["base-f32"] = keep(args, [], found), of_base
    for name, method, beta in tune(args, done, inputs, prompts, groups, reward):
        if args.test_prompts:
            found, done["judged"][name] = point(args, name, method, beta, prompts, reward, base, of_base)
            points = keep(args, points, found)
            write_json(record, done)
            say("so far:\n" + table(points))
    if points:
        print(table(points))


def main():
    """Outside the environment: settle the model, build, start again inside. Inside: the work."""
    args = arguments()
    if not args.model:
        asked = subprocess.run([args.vassal, "pull", "--json"], capture_output=True, text=True)
        if asked.returncode != 0:
            fail(f"`vassal pull` ended with {asked.returncode}:\n{asked.stderr.strip()}")
        args.model = pathlib.Path(json.loads(asked.stdout)["path"])
    for path in (args.model, args.rollouts, args.prompts, args.test_prompts):
        if path and not path.is_file():
            fail(f"no file at {path}")
    python = environment(args.folder.absolute())
    if pathlib.Path(sys.prefix).resolve() != python.parents[1].resolve():
        os.environ |= {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "TOKENIZERS_PARALLELISM": "false"}
        os.environ["PYTHONWARNINGS"] = "ignore::FutureWarning"
        # Where others use the cores too, threads that wait spinning cost more than they save.
        os.environ |= {"OMP_NUM_THREADS": str(args.threads), "OMP_WAIT_POLICY": "passive"}
        os.execv(python, [python, "-P", __file__, *sys.argv[1:], "--model", args.model])
    inside(args)


if __name__ == "__main__":
    main()
