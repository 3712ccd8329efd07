"""Rollouts and rewards: what vassal sampled and scored, read again, and the same rewards computed here.

A reward that is computed here is compared with the rollouts' own column before anything is trained by it. Pairs for DPO
come of each prompt's best and worst response.
"""

import json
import re

from .shared import fail

REWARDS_CHECKED, REWARD_TOLERANCE = 200, 1e-3


def words(text):
    """Runs of letters, digits and apostrophes with at least one letter or digit, as the number of those in each."""
    runs = "".join(c if c.isalnum() or c in "'’" else " " for c in text).split()
    return [letters for run in runs if (letters := sum(c.isalnum() for c in run))]


def simplicity(text):
    """7 minus the mean letters of a word, over 4, within 0 and 1."""
    letters = words(text)
    return min(max((7 - sum(letters) / len(letters)) / 4, 0.0), 1.0) if letters else 0.0


def reward_function(spec):
    """The reward of text that vassal calls so."""
    name, _, argument = spec.partition("=")
    if spec == "sentiment":
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

        analyzer = SentimentIntensityAnalyzer()
        return lambda text: (analyzer.polarity_scores(text)["compound"] + 1) / 2
    if spec == "simplicity":
        return simplicity
    if spec == "one-question":
        return lambda text: float(sum("?" in run for run in re.findall(r"[?!]+", text)) == 1)
    if name == "length" and argument.isdigit() and int(argument) > 0:
        return lambda text: max(1 - abs(len(words(text)) - int(argument)) / int(argument), 0.0)
    return fail(f"--reward {spec}: known here are sentiment, simplicity, one-question and length=WORDS")


def read_rollouts(path, reward):
    """The header of a file of rollouts, and its rows with what the reward's column says as `reward`."""
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(path)
    name = f"reward.{reward.partition('=')[0]}"
    if name not in table.schema.names:
        fail(f"{path} has no column {name}; `vassal reward` makes it")
    header = json.loads(table.schema.metadata[b"vassal"])["rollouts"]
    rows = table.to_pylist()
    for row in rows:
        row["reward"] = row.pop(name)
    return header, rows


def check_rewards(function, rows, what):
    """Refuses a reward that differs from what the rollouts say, on rows from all over the file."""
    chosen = rows[:: max(len(rows) // REWARDS_CHECKED, 1)][:REWARDS_CHECKED]
    worst = max(abs(function(row["text"]) - row["reward"]) for row in chosen)
    if worst > REWARD_TOLERANCE:
        fail(f"the reward computed here differs by up to {worst:.4f} from {what}'s own")
    return {"rollouts": len(chosen), "largest_difference": worst}


def by_prompt(rows):
    """Scored rows of the split `learn`, by prompt id."""
    groups = {}
    for row in rows:
        if row["split"] == "learn" and row["reward"] is not None:
            groups.setdefault(row["id"], []).append(row)
    return groups or fail("the rollouts have no scored response to a prompt of the split learn")


def preference_pairs(groups, each):
    """(prompt, better tokens, worse tokens): of each prompt the best against the worst, the second against, …"""
    pairs = []
    for group in groups.values():
        ranked = sorted(group, key=lambda row: (-row["reward"], row["sample"]))
        for place in range(min(each, len(ranked) // 2)):
            better, worse = ranked[place], ranked[-1 - place]
            if better["reward"] > worse["reward"]:
                pairs.append((better["prompt"], better["tokens"], worse["tokens"]))
    return pairs
