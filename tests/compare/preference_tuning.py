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
`nice`; hours on two cores. This script is not part of the test suite: read `main` first.
"""

import argparse
import functools
import hashlib
import importlib.metadata
import json
import math
import os
import pathlib
import platform
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
REQUIREMENTS = pathlib.Path(__file__).with_name("tuning-requirements.txt")
PACKAGES = ("torch", "transformers", "trl", "peft", "gguf", "tokenizers", "vaderSentiment", "pyarrow", "numpy")

# LoRA on every linear layer of the blocks; the embedding, which is the head too, stays as it is.
LORA = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.0, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
WARMUP = 0.1  # the share of the steps in which the learning rate rises; then it falls to 0 in a line
GRADIENT_NORM = 1.0
REWARDS_CHECKED, REWARD_TOLERANCE = 200, 1e-3
PROMPTS_CHECKED = 6
RESAMPLES = 10_000
JUDGED_AT_ONCE = 8

# The pre-tokenizers of GGUF files in which every digit stands alone, which transformers passes over.
DIGITS_ALONE = ("smollm", "starcoder", "refact", "codeshell")
PLAIN_WORDS = ("gpt-2", "gpt2", "phi-2", "olmo", "mpt")
# Tokens that end a response besides the file's own, as vassal has them.
END_TEXTS = ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>")


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


# --- the environment ------------------------------------------------------------------------------


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


def step(what, words, env=None):
    """Runs a command; a failure says what it was and the end of its output. Returns the seconds it took."""
    started = time.monotonic()
    done = subprocess.run(words, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        fail(f"could not {what}:\n" + "\n".join(done.stdout.splitlines()[-25:]))
    return time.monotonic() - started


# --- rewards --------------------------------------------------------------------------------------


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


# --- rollouts -------------------------------------------------------------------------------------


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


# --- the model and its files ----------------------------------------------------------------------


def load_model(path):
    """The model of a GGUF file in torch, F32."""
    import torch
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)


class Prompts:
    """Prompts as the engine renders them: chat template and tokenizer of the GGUF file."""

    def __init__(self, path):
        import gguf
        import transformers
        from tokenizers import pre_tokenizers

        self.tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        field = gguf.GGUFReader(path).get_field("tokenizer.ggml.pre")
        kind = field.contents() if field else "gpt-2"
        if kind not in DIGITS_ALONE + PLAIN_WORDS:
            fail(f"the pre-tokenizer {kind} is not known here")
        if kind in DIGITS_ALONE:
            word = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
            digit = pre_tokenizers.Digits(individual_digits=True)
            self.tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digit, word])
        vocabulary = self.tokenizer.get_vocab()
        ends = {vocabulary[text] for text in END_TEXTS if text in vocabulary}
        self.ends = sorted(ends | {self.tokenizer.eos_token_id})

    def render(self, prompt):
        """The text before the response."""
        if any(token in prompt for token in self.tokenizer.all_special_tokens):
            fail(f"a prompt spells a special token: {prompt!r}")
        messages = [{"role": "user", "content": prompt}]
        return self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)

    @functools.lru_cache(maxsize=None)
    def tokens(self, prompt):
        """Its tokens."""
        return self.tokenizer.encode(self.render(prompt), add_special_tokens=False)

    def check(self, args, prompts):
        """Refuses where the engine's own tokens of some prompts, those with digits first, are others."""
        chosen = sorted(prompts, key=lambda prompt: (-sum(c.isdigit() for c in prompt), prompt))[:PROMPTS_CHECKED]
        with tempfile.TemporaryDirectory() as folder:
            for place, prompt in enumerate(chosen):
                record = pathlib.Path(folder) / f"{place}.jsonl"
                words = ["run", prompt, "--model", args.model, "--max-tokens", "1", "--audit", record]
                step("ask the engine for a prompt's tokens", [args.vassal, *words])
                engine = json.loads(record.read_text().splitlines()[0])["request"]["prompt"]
                if engine != self.tokens(prompt):
                    fail(f"the engine cuts this prompt into other tokens: {prompt!r}")
        return {"prompts": len(chosen)}


def tensor_names(layers):
    """The name of each tensor in transformers, by its name in a GGUF file of the Llama family."""
    parts = {f"attn_{x}": f"self_attn.{x}_proj" for x in "qkv"} | {"attn_output": "self_attn.o_proj"}
    parts |= {f"ffn_{x}": f"mlp.{x}_proj" for x in ("gate", "up", "down")}
    parts |= {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
    names = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
    names |= {f"blk.{n}.{own}": f"model.layers.{n}.{its}" for n in range(layers) for own, its in parts.items()}
    return {f"{own}.weight": f"{its}.weight" for own, its in names.items()}


def export(model, source, path):
    """Writes the model as an F32 GGUF file with the metadata and the tensors' order of the file it came from."""
    import gguf

    reader = gguf.GGUFReader(source)
    names, state = tensor_names(model.config.num_hidden_layers), model.state_dict()
    heads = {"attn_q": model.config.num_attention_heads, "attn_k": model.config.num_key_value_heads}
    part = path.with_name(f"{path.name}.part")
    writer = gguf.GGUFWriter(part, reader.get_field("general.architecture").contents())
    for field in reader.fields.values():
        value, kind = field.contents(), field.types[0]
        inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        if field.name == "general.file_type":
            value = int(gguf.LlamaFileType.ALL_F32)
        if field.name != "general.architecture" and not field.name.startswith("GGUF."):
            writer.add_key_value(field.name, value, kind, sub_type=inner)
    for tensor in reader.tensors:
        if tensor.name not in names:
            fail(f"{source.name} has a tensor that is not known here: {tensor.name}")
        values = state[names[tensor.name]].detach().numpy()
        count = next((count for part_name, count in heads.items() if f".{part_name}." in tensor.name), None)
        if count:  # a head's rows in pairs as ggml rotates them: transformers has taken them apart
            shape = values.shape
            values = values.reshape(count, 2, shape[0] // count // 2, shape[1]).swapaxes(1, 2).reshape(shape)
        writer.add_tensor(tensor.name, values.copy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    part.replace(path)


def check_export(source, path):
    """Refuses an export without training whose weights are not the original's, dequantised, bit for bit."""
    import gguf
    import numpy

    ours = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    theirs, numbers = gguf.GGUFReader(source).tensors, 0
    for tensor in theirs:
        own = ours[tensor.name]
        expected = gguf.dequantize(tensor.data, tensor.tensor_type).astype(numpy.float32)
        same = own.tensor_type == gguf.GGMLQuantizationType.F32 and own.data.shape == expected.shape
        if not (same and numpy.array_equal(own.data.view(numpy.uint32), expected.view(numpy.uint32))):
            fail(f"the export of {source.name} has other values in {tensor.name}; is transformers another version?")
        numbers += expected.size
    if len(ours) != len(theirs):
        fail(f"the export of {source.name} has other tensors")
    return {"tensors": len(theirs), "numbers": numbers, "equal": "bit for bit"}


# --- training -------------------------------------------------------------------------------------


def response_logits(model, batch):
    """Of (prompt tokens, response tokens): the logits that each response token was to be drawn by, rows of all
    responses after each other, these tokens, and the place in the batch of each."""
    import torch

    longest = max(len(prompt) + len(response) for prompt, response in batch)
    ids = torch.zeros(len(batch), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    rows, columns, tokens = [], [], []
    for row, (prompt, response) in enumerate(batch):
        end = len(prompt) + len(response)
        ids[row, :end], mask[row, :end] = torch.tensor(prompt + response), 1
        rows += [row] * len(response)
        columns += range(len(prompt) - 1, end - 1)
        tokens += response
    states = model.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    rows = torch.tensor(rows)
    return model.lm_head(states[rows, torch.tensor(columns)]), torch.tensor(tokens), rows


def log_probabilities(model, batch):
    """Of each response of a batch, the sum of its tokens' log-probabilities."""
    import torch

    logits, tokens, rows = response_logits(model, batch)
    drawn = -torch.nn.functional.cross_entropy(logits, tokens, reduction="none")
    return torch.zeros(len(batch)).index_add(0, rows, drawn)


def flat(pairs):
    """A batch of pairs as one of responses: the better ones, then the worse ones."""
    return [(prompt, better) for prompt, better, _ in pairs] + [(prompt, worse) for prompt, _, worse in pairs]


def reference(model, pairs, batch, folder):
    """What the untouched model says of both responses of each pair: the sum of log-probabilities. It is kept in a file,
    whose name is of the pairs and the weights."""
    import torch

    weights = [hashlib.sha256(weight.detach().numpy()).hexdigest() for weight in model.parameters()]
    path = folder / f"reference-{hashlib.sha256(json.dumps([pairs, weights]).encode()).hexdigest()[:16]}.pt"
    if path.is_file():
        return torch.load(path)
    found, started = [], time.monotonic()
    with torch.no_grad():
        for at in range(0, len(pairs), batch):
            found.append(log_probabilities(model, flat(pairs[at : at + batch])).view(2, -1).T)
            if at // batch % 10 == 0:
                say(f"reference: {at} of {len(pairs)} pairs, {time.monotonic() - started:.0f} s")
    part = path.with_suffix(".part")
    torch.save(torch.cat(found), part)
    part.replace(path)
    return torch.cat(found)


def train_dpo(args, beta, model, pairs, known):
    """Direct Preference Optimization (Rafailov and others, 2023). `known` is what `reference` found."""
    import torch

    own = model.get_base_model()
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=args.learning_rate, weight_decay=0.0)
    steps = args.epochs * math.ceil(len(pairs) / args.batch)
    rise = max(round(WARMUP * steps), 1)
    pace = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: min((n + 1) / rise, (steps - n) / (steps - rise + 1)))
    shuffle, log, started = random.Random(args.seed), [], time.monotonic()
    for _ in range(args.epochs):
        order = shuffle.sample(range(len(pairs)), len(pairs))
        for at in range(0, len(order), args.batch):
            chosen = order[at : at + args.batch]
            total, wins, margins = 0.0, 0, 0.0
            for some in range(0, len(chosen), args.micro_batch):
                places = chosen[some : some + args.micro_batch]
                ratio = log_probabilities(own, flat([pairs[place] for place in places])).view(2, -1).T - known[places]
                margin = ratio[:, 0] - ratio[:, 1]
                loss = -torch.nn.functional.logsigmoid(beta * margin).sum() / len(chosen)
                loss.backward()
                total, wins = total + loss.item(), wins + (margin > 0).sum().item()
                margins += margin.sum().item()
            torch.nn.utils.clip_grad_norm_(weights, GRADIENT_NORM)
            optimizer.step()
            pace.step()
            optimizer.zero_grad()
            entry = {"loss": total, "accuracy": wins / len(chosen), "margin_nats": margins / len(chosen)}
            log.append(entry)
            told = ", ".join(f"{name} {value:.3f}" for name, value in entry.items())
            say(f"dpo, beta {beta}: step {len(log)} of {steps}, {told}, {time.monotonic() - started:.0f} s")
    return {"pairs": len(pairs), "steps": steps}, log


def train_ppo(args, beta, model, prompts, groups, reward):
    """GRPO (Shao and others, 2024) by trl's trainer: `beta` weighs the KL from the base, a token."""
    import datasets
    import transformers
    import trl

    steps = max(args.ppo_responses // args.ppo_batch, 1)
    texts = [prompts.render(group[0]["prompt"]) for group in groups.values()]
    if prompts.tokenizer(texts[0])["input_ids"] != prompts.tokens(next(iter(groups.values()))[0]["prompt"]):
        fail("trl would cut prompts into other tokens than the engine")
    own = model.get_base_model()
    own.generation_config.eos_token_id = prompts.ends
    with tempfile.TemporaryDirectory() as folder:
        config = trl.GRPOConfig(
            output_dir=folder, seed=args.seed, use_cpu=True, bf16=False, gradient_checkpointing=False,
            per_device_train_batch_size=args.ppo_micro_batch, generation_batch_size=args.ppo_batch,
            gradient_accumulation_steps=args.ppo_batch // args.ppo_micro_batch, num_generations=args.ppo_group,
            max_completion_length=args.token_limit, temperature=1.0, top_p=1.0, top_k=0, beta=beta,
            scale_rewards="group", mask_truncated_completions=False, max_steps=steps,
            learning_rate=args.ppo_learning_rate, lr_scheduler_type="constant_with_warmup",
            warmup_steps=max(round(WARMUP * steps), 1), max_grad_norm=GRADIENT_NORM, weight_decay=0.0,
            logging_steps=1, save_strategy="no", report_to="none", disable_tqdm=True,
        )  # fmt: skip

        def score(completions, **_):
            return [reward(text) for text in completions]

        class Told(transformers.TrainerCallback):
            def on_log(self, _args, state, _control, logs=None, **_):
                if "reward" in logs:
                    told = ", ".join(f"{name} {float(logs[name]):.3f}" for name in ("reward", "kl") if name in logs)
                    took = f"{logs['step_time']:.0f} s a step"
                    say(f"ppo, beta {beta}: step {state.global_step} of {steps}, {told}, {took}")

        data = datasets.Dataset.from_dict({"prompt": texts})
        trainer = trl.GRPOTrainer(
            model=model, reward_funcs=score, args=config, train_dataset=data, processing_class=prompts.tokenizer,
            callbacks=[Told()],
        )  # fmt: skip
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
        history = [entry for entry in trainer.state.log_history if "reward" in entry]
    kept = ("loss", "reward", "kl", "completions/mean_length")
    log = [{name: float(entry[name]) for name in kept if name in entry} for entry in history]
    return {"responses": steps * args.ppo_batch, "steps": steps}, log


def quarters(log):
    """The means of each number of a log over its first, second, third and last quarter."""
    bounds = [round(len(log) * part / 4) for part in range(5)]
    parts = [log[a:b] for a, b in zip(bounds, bounds[1:]) if b > a]
    return {name: [round(statistics.fmean(entry[name] for entry in part), 4) for part in parts] for name in log[0]}


def settings_of(args, method, beta, inputs):
    """All that decides what a tuned file holds."""
    settings = {"method": method, "beta": beta, "seed": args.seed, "reward": args.reward, "lora": LORA, **inputs}
    if method == "dpo":
        names = ("epochs", "learning_rate", "batch", "pairs_a_prompt")
    else:
        names = ("ppo_responses", "ppo_learning_rate", "ppo_batch", "ppo_group", "token_limit")
        del settings["rollouts_sha256"]  # only their number and their prompts matter
    return settings | {name: getattr(args, name) for name in names}


def tune(args, done, inputs, prompts, groups, reward):
    """Trains what is not there yet. Yields the name of each tuned file with its method and beta."""
    import peft
    import torch

    pairs, known = None, None
    for method in args.methods:
        for beta in args.betas:
            name = f"{method}-beta{beta:g}"
            path, settings = args.out / f"{name}.gguf", settings_of(args, method, beta, inputs)
            if path.is_file():
                made = done["runs"].get(name, {}).get("settings", {})
                other = [key for key in settings if made.get(key) != settings[key]]
                if other:
                    fail(f"{path} was made with another {', '.join(other)}: remove it, or give another --out")
                say(f"{name} is there already")
                yield name, method, beta
                continue
            torch.manual_seed(args.seed)
            model = load_model(args.model)
            if method == "dpo" and known is None:
                texts = preference_pairs(groups, args.pairs_a_prompt)
                pairs = [(prompts.tokens(prompt), better, worse) for prompt, better, worse in texts]
                known = reference(model, pairs, args.micro_batch, args.out)
            model = peft.get_peft_model(model, peft.LoraConfig(**LORA))
            started, busy = time.monotonic(), time.process_time()
            if method == "dpo":
                about, log = train_dpo(args, beta, model, pairs, known)
            else:
                about, log = train_ppo(args, beta, model, prompts, groups, reward)
            seconds, busy = round(time.monotonic() - started), round(time.process_time() - busy)
            export(model.merge_and_unload(), args.model, path)
            about |= {"seconds": seconds, "core_seconds": busy, "quarters": quarters(log), "log": log}
            done["runs"][name] = {"settings": settings, "threads": args.threads, **about}
            write_json(args.out / "tuning.json", done)
            say(f"{name} is written, trained for {seconds} s, {busy} s of one core")
            yield name, method, beta


# --- what the files are worth ---------------------------------------------------------------------


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


# --- the program ----------------------------------------------------------------------------------


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
