"""What a tuned file is worth: vassal's own responses to test prompts, scored, and what they cost against the base.

Divergence is exact over the vocabulary, with both models in torch, F32, along the sampled tokens. Rows have the shape of
`points` of an evaluation's report.json. Start at `point`.
"""

import json
import statistics

from .model import load_model
from .rollouts import check_rewards, read_rollouts
from .shared import say, sha256, step, write_json
from .training import response_logits

RESAMPLES = 10_000
JUDGED_AT_ONCE = 8


def sample(args, path):
    """vassal's responses of a model to the test prompts, and the seconds they took."""
    out = args.out / "samples" / f"{path.stem}.parquet"
    took = out.with_suffix(".json")
    wanted = {"model_sha256": sha256(path), "prompts_sha256": sha256(args.test_prompts), "samples": args.test_samples}
    wanted |= {"seed": args.test_seed, "token_limit": args.token_limit, "splits": ["test"]}
    if out.is_file() and took.is_file():
        header, rows = read_rollouts(out, args.reward)
        if {name: header[name] for name in wanted} == wanted:
            return rows, json.loads(took.read_text())["seconds"]
    out.parent.mkdir(exist_ok=True)
    out.unlink(missing_ok=True)
    out.with_name(f"{out.name}.part").unlink(missing_ok=True)
    words = ["rollout", "--model", path, "--prompts", args.test_prompts, "--splits", "test", "--out", out]
    words += ["--samples", str(args.test_samples), "--seed", str(args.test_seed), "--reward", args.reward]
    words += ["--max-tokens", str(args.token_limit), "--threads", str(args.threads)]
    seconds = step(f"sample {path.name}", [args.vassal, *words])
    took.write_text(json.dumps({"seconds": round(seconds, 1)}))
    say(f"{path.name}: sampled in {seconds:.0f} s")
    return read_rollouts(out, args.reward)[1], seconds


def divergence(own, base, prompts, rows):
    """Sums over all response tokens: nats from the base, exact over the vocabulary, and -ln base probability."""
    import torch

    nats = cross = 0.0
    batch = [(prompts.tokens(row["prompt"]), row["tokens"]) for row in rows]
    with torch.no_grad():
        for at in range(0, len(batch), JUDGED_AT_ONCE):
            some = batch[at : at + JUDGED_AT_ONCE]
            logits, tokens, _ = response_logits(base, some)
            q = logits.log_softmax(-1)
            cross -= q.gather(1, tokens[:, None]).double().sum().item()
            if own is not None:
                p = response_logits(own, some)[0].log_softmax(-1)
                nats += (p.exp() * (p - q)).sum(-1).double().sum().item()
    return nats, cross


def distinct_2(texts):
    """Different pairs of neighbouring tokens as a share of all."""
    pairs = [pair for text in texts for pair in zip(text, text[1:])]
    return len(set(pairs)) / len(pairs)


def repeated_4(texts):
    """The share of runs of four tokens that occurred before in the same text."""
    runs = [list(zip(text, text[1:], text[2:], text[3:])) for text in texts]
    return sum(len(own) - len(set(own)) for own in runs) / max(sum(map(len, runs)), 1)


def interval(rewards, seed):
    """The 95 % percentile bootstrap interval of a mean over prompts."""
    import numpy

    drawn = numpy.random.default_rng(seed).integers(len(rewards), size=(RESAMPLES, len(rewards)))
    return [float(x) for x in numpy.quantile(numpy.array(rewards)[drawn].mean(axis=1), [0.025, 0.975])]


def point(args, name, method, beta, prompts, reward, base, of_base):
    """One row of points.json, and the sums that the base's row is the measure of."""
    path = args.out / f"{name}.gguf"
    rows, seconds = sample(args, path)
    checked = check_rewards(reward, rows, path.name)
    groups = {}
    for row in rows:
        groups.setdefault(row["id"], []).append(row["reward"])
    rewards = [statistics.fmean(scores) for scores in groups.values()]
    texts = [row["tokens"] for row in rows]
    tokens = sum(map(len, texts))
    nats, cross = divergence(None if of_base is None else load_model(path), base, prompts, rows)
    own = {"cross_entropy": cross / tokens, "distinct2": distinct_2(texts), "repeated4": repeated_4(texts)}
    measure = of_base or own
    low, high = interval(rewards, args.test_seed)
    found = {"method": method, "variant": "", "reward": args.reward.partition("=")[0], "dial": beta, "n": 1, "seeds": 1}
    found |= {"prompts": len(groups), "mean": statistics.fmean(rewards), "ci_low": low, "ci_high": high}
    found |= {"kl_per_token": nats / tokens, "cross_entropy_ratio": own["cross_entropy"] / measure["cross_entropy"]}
    found["distinct2_ratio"] = own["distinct2"] / measure["distinct2"]
    found["repeated4_ratio"] = own["repeated4"] / measure["repeated4"] if measure["repeated4"] else None
    # A response's first token is drawn by the prompt's last row.
    found["forwards_per_token"] = (tokens - len(rows)) / tokens
    found["ms_per_token"] = 1e3 * seconds / tokens
    return found, own | {"tokens": tokens, "rollouts": len(rows), "reward_check": checked["largest_difference"]}


def keep(args, points, found):
    """Puts a row among those of points.json, in place of the one of its method and beta. Rows that an earlier run left
    there stay where they were judged alike."""
    path = args.out / "points.json"
    about = {"test_prompts_sha256": sha256(args.test_prompts), "reward": args.reward, "seed": args.test_seed}
    about |= {"samples": args.test_samples, "token_limit": args.token_limit}
    if not points and path.is_file() and (there := json.loads(path.read_text()))["judged"] == about:
        points = there["points"]
    order = {"base": 0, "dpo": 1, "ppo": 2}
    others = [one for one in points if (one["method"], one["dial"]) != (found["method"], found["dial"])]
    points = sorted([*others, found], key=lambda one: (order[one["method"]], one["dial"]))
    write_json(path, {"points": points, "judged": about})
    return points


def table(points):
    """The points as text."""
    lines = [f"{'method':8}{'beta':>7}{'mean':>8}{'95 % interval':>17}{'KL':>8}{'CE':>7}{'dist-2':>8}{'rep-4':>7}"]
    for one in points:
        between = f"[{one['ci_low']:.3f}, {one['ci_high']:.3f}]"
        repeated = "-" if one["repeated4_ratio"] is None else f"{one['repeated4_ratio']:.2f}"
        lines.append(
            f"{one['method']:8}{one['dial']:>7g}{one['mean']:>8.3f}{between:>17}{one['kl_per_token']:>8.3f}"
            f"{one['cross_entropy_ratio']:>7.2f}{one['distinct2_ratio']:>8.2f}{repeated:>7}"
        )
    return "\n".join([*lines, "KL: nats a token; CE, dist-2, rep-4: ratios to the base's row."])
