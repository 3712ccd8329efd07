"""Training: a LoRA adapter by DPO or by GRPO, merged and written as a GGUF file, unless that is there already.

DPO's loss is written out here, over the tokens as they were sampled: trl's trainer takes text and would cut it into
tokens anew. GRPO is trl's own trainer. Start at `tune`.
"""

import hashlib
import json
import math
import random
import statistics
import tempfile
import time

from .model import export, load_model
from .rollouts import preference_pairs
from .shared import fail, say, write_json

# LoRA on every linear layer of the blocks; the embedding, which is the head too, stays as it is.
LORA = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.0, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
WARMUP = 0.1  # the share of the steps in which the learning rate rises; then it falls to 0 in a line
GRADIENT_NORM = 1.0


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
