#!/usr/bin/env python3
"""Compares the decoding speed of vassal with llama.cpp's, on the same files, threads and instruction set.

    python3 tests/compare/llama_cpp.py                  # a table; builds llama.cpp on the first run
    python3 tests/compare/llama_cpp.py --json           # one object on stdout, nothing else
    python3 tests/compare/llama_cpp.py --llama-only     # llama.cpp's own medians

Three things are measured, each as the median over short rounds in which the two programs take turns:
  plain       one token after a prefix of 128, one row of logits;
  rows20      20 tokens in one batch after that prefix, logits for one row;
  prefill512  512 tokens into an empty cache, logits for the last.
llama.cpp's figure is its fastest variant: with flash attention or without, and for rows20 as 20
successive tokens of one sequence or as 20 sequences that share the prefix and have one token each.
vassal measures itself (`vassal bench decode --json`); llama.cpp is driven here through its C interface,
so no Python runs inside a measured step. A speedup (plain_speedup, rows20_speedup,
prefill512_speedup) is llama.cpp's median over vassal's.

llama.cpp is compiled with the flags of one instruction set, never for the machine it is built on, in a
virtual environment of its own for each: versions and hashes are in requirements.txt, everything made
lies under target/compare-venv. This script is not part of the test suite: read `main` first.
"""

import argparse
import ctypes
import hashlib
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import time

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
REQUIREMENTS = pathlib.Path(__file__).with_name("requirements.txt")
BUILD_REQUIREMENTS = pathlib.Path(__file__).with_name("build-requirements.txt")

PREFIX_TOKENS = 128
ROWS = 20
PREFILL_TOKENS = 512
MEASURES = ("plain", "rows20", "prefill512")

# An instruction set: the CPU flags it needs and the switches that llama.cpp is built with. GGML_NATIVE
# is off, so AVX2, FMA, F16C and BMI2 are on in all of them and nothing else is.
AVX2_FLAGS = {"avx2", "fma", "f16c", "bmi2"}
AVX512_FLAGS = AVX2_FLAGS | {"avx512f", "avx512cd", "avx512vl", "avx512dq", "avx512bw", "avx512_vnni"}
ISAS = {
    "avx512-vnni": (AVX512_FLAGS, ["GGML_AVX512", "GGML_AVX512_VNNI"]),
    "avx-vnni": (AVX2_FLAGS | {"avx_vnni"}, ["GGML_AVX_VNNI"]),
    "avx2": (AVX2_FLAGS, []),
}
OPTIONAL_SWITCHES = {switch for _, switches in ISAS.values() for switch in switches}
COMMON_SWITCHES = ["GGML_NATIVE=OFF", "GGML_OPENMP=ON", "GGML_LLAMAFILE=ON", "GGML_CPU_REPACK=ON", "LLAVA_BUILD=OFF"]
COMMON_SWITCHES += [f"GGML_{name}=ON" for name in ("SSE42", "AVX", "AVX2", "FMA", "F16C", "BMI2")]


def fail(message):
    """Ends the program with one line on stderr and exit code 1."""
    sys.exit(f"llama_cpp.py: {message}")


# --- the environment ------------------------------------------------------------------------------


def cpu_flags():
    """The flags of the first CPU, as Linux names them."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError as error:
        fail(f"cannot read the CPU's flags, which needs Linux: {error}")
    return set(next((line.split(":")[1].split() for line in lines if line.startswith("flags")), []))


def choose_isa(args):
    """The instruction set to compare on: the one asked for, else the one vassal takes by itself."""
    flags = cpu_flags()
    usable = [isa for isa, (needed, _) in ISAS.items() if needed <= flags]
    if args.isa == "auto" and not args.llama_only:
        args.isa = run_vassal(args, args.model)["isa"]
    elif args.isa == "auto":
        args.isa = usable[0] if usable else "avx2"
    if args.isa not in ISAS:
        fail(f"no build of llama.cpp matches the instruction set {args.isa!r}; known: {', '.join(ISAS)}")
    missing = ISAS[args.isa][0] - flags
    if missing:
        lacking, others = ", ".join(sorted(missing)), ", ".join(usable) or "none"
        fail(f"this CPU lacks {lacking}, which {args.isa} needs; instruction sets it has: {others}")
    return args.isa


def environment(folder, isa):
    """The Python of the virtual environment for `isa`; builds the environment unless it is complete."""
    chosen = ISAS[isa][1]
    switches = COMMON_SWITCHES + [f"{name}={'ON' if name in chosen else 'OFF'}" for name in sorted(OPTIONAL_SWITCHES)]
    pins = REQUIREMENTS.read_bytes() + BUILD_REQUIREMENTS.read_bytes()
    fingerprint = hashlib.sha256(pins + " ".join(switches).encode()).hexdigest()
    home, python = folder / isa, folder / isa / "bin" / "python"
    record = home / "built.json"  # written last, so an interrupted build starts again
    if record.is_file() and json.loads(record.read_text())["fingerprint"] == fingerprint:
        return python
    if sys.version_info < (3, 11):
        fail(f"Python 3.11 or later is needed for the pinned packages, this is {sys.version.split()[0]}")
    if not any(shutil.which(compiler) for compiler in (os.environ.get("CXX", "c++"), "g++", "clang++")):
        fail("no C++ compiler found (c++, g++, clang++ or $CXX); llama.cpp is compiled from source")
    print(f"building llama.cpp for {isa} under {home}: some minutes, once", file=sys.stderr)
    started = time.monotonic()
    # Flags from outside could turn on other instructions than the switches say.
    clean = dict(os.environ)
    for name in ("CFLAGS", "CXXFLAGS", "CMAKE_ARGS", "PYTHONPATH"):
        clean.pop(name, None)
    clean["PATH"] = f"{python.parent}{os.pathsep}{clean['PATH']}"
    clean["CMAKE_ARGS"] = " ".join(f"-D{switch}" for switch in switches)
    clean["CMAKE_BUILD_PARALLEL_LEVEL"] = str(len(os.sched_getaffinity(0)))
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--require-hashes"]
    # pip's cache would hand the build for one instruction set to the environment of another.
    source = ["--no-cache-dir", "--no-deps", "--no-build-isolation", "--no-binary", ":all:", "-r", REQUIREMENTS]
    venv = [sys.executable, "-m", "venv", "--clear", home]
    tools = [*pip, "--only-binary", ":all:", "-r", BUILD_REQUIREMENTS]
    step("make a virtual environment (is Python's venv module there, with pip?)", venv, clean)
    step("fetch the build tools (is a package index within reach?)", tools, clean)
    step("fetch and compile llama.cpp", [*pip, *source], clean)
    record.write_text(json.dumps({"fingerprint": fingerprint, "build_seconds": round(time.monotonic() - started)}))
    return python


def step(what, words, env):
    """Runs one step of the build at low priority; a failure says what it was and the end of its output."""
    words = ["nice", *words]
    done = subprocess.run(words, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        fail(f"could not {what}:\n" + "\n".join(done.stdout.splitlines()[-25:]))


# --- vassal ---------------------------------------------------------------------------------------


def vassal_json(args, fields, *words):
    """What a vassal command prints with --json; it must have `fields`."""
    spelled = f"vassal {' '.join(map(str, words))} --json"
    try:
        done = subprocess.run([args.vassal, *words, "--json"], capture_output=True, text=True)
    except OSError as error:
        hint = "build it with `cargo build --release`, or name it with --vassal"
        fail(f"cannot run {args.vassal}: {error.strerror}; {hint}")
    if done.returncode != 0:
        fail(f"`{spelled}` ended with {done.returncode}:\n{done.stderr.strip()}")
    try:
        result = json.loads(done.stdout)
    except ValueError as error:
        fail(f"`{spelled}` did not print JSON: {error}")
    missing = [field for field in fields if field not in result]
    if missing:
        fail(f"`{spelled}` printed no {', '.join(missing)}")
    return result


def run_vassal(args, model):
    """One run of vassal's own benchmark, milliseconds by name; it is short and warms itself up."""
    fields = ["isa", *(f"{measure}_ms" for measure in MEASURES)]
    options = ["--model", model, "--threads", str(args.threads), "--rounds", "2"]
    options += [] if args.isa == "auto" else ["--isa", args.isa]
    return vassal_json(args, fields, "bench", "decode", *options)


# --- llama.cpp, inside its environment ------------------------------------------------------------


class Llama:
    """One model in llama.cpp, with its contexts and batches made once; `round` times every variant."""

    def __init__(self, library, path, threads):
        self.library, self.threads = library, threads
        self.model = library.llama_model_load_from_file(os.fsencode(path), library.llama_model_default_params())
        if not self.model:
            fail(f"llama.cpp cannot load {path}")
        self.vocabulary = library.llama_vocab_n_tokens(library.llama_model_get_vocab(self.model))
        prompt = self.batch([(0, position) for position in range(PREFILL_TOKENS)])
        step = self.batch([(0, PREFIX_TOKENS)])
        successive = self.batch([(0, PREFIX_TOKENS + row) for row in range(ROWS)])
        shared = self.batch([(row, PREFIX_TOKENS) for row in range(ROWS)])
        self.contexts, self.variants = [], {}
        for attention, flash in (("plain attention", 0), ("flash attention", 1)):
            prefixed, empty = self.prefixed_context(flash), self.context(flash)
            self.variants |= {
                ("plain", attention): (prefixed, step, PREFIX_TOKENS, 15),
                ("rows20", f"successive tokens, {attention}"): (prefixed, successive, PREFIX_TOKENS, 5),
                ("rows20", f"sequences sharing the prefix, {attention}"): (prefixed, shared, PREFIX_TOKENS, 5),
                ("prefill512", attention): (empty, prompt, 0, 1),
            }

    def context(self, flash):
        """An empty context. Its sequences share one cache (`kv_unified`), as a shared prefix needs."""
        params = self.library.llama_context_default_params()
        params.n_ctx = 2 * PREFILL_TOKENS
        params.n_batch = params.n_ubatch = PREFILL_TOKENS
        params.n_threads = params.n_threads_batch = self.threads
        params.n_seq_max, params.kv_unified, params.flash_attn_type = ROWS, True, flash
        context = self.library.llama_init_from_model(self.model, params)
        if not context:
            fail("llama.cpp cannot make a context")
        self.contexts.append(context)
        return context

    def prefixed_context(self, flash):
        """A context in which every sequence has the same prefix, held once."""
        context = self.context(flash)
        self.decode(context, self.batch([(0, position) for position in range(PREFIX_TOKENS)]))
        for sequence in range(1, ROWS):
            self.library.llama_memory_seq_cp(self.library.llama_get_memory(context), 0, sequence, -1, -1)
        return context

    def batch(self, rows):
        """A batch of (sequence, position) rows with made-up tokens; only the last row wants logits."""
        batch = self.library.llama_batch_init(len(rows), 0, 1)
        batch.n_tokens = len(rows)
        for index, (sequence, position) in enumerate(rows):
            batch.token[index] = (1000 + 7919 * index) % self.vocabulary
            batch.pos[index], batch.n_seq_id[index], batch.seq_id[index][0] = position, 1, sequence
            batch.logits[index] = index == len(rows) - 1
        return batch

    def decode(self, context, batch):
        """Runs the batch and waits for its logits. Returns milliseconds."""
        started = time.perf_counter()
        status = self.library.llama_decode(context, batch)
        logits = self.library.llama_get_logits_ith(context, batch.n_tokens - 1)
        elapsed = (time.perf_counter() - started) * 1e3
        if status != 0 or not logits:
            fail(f"llama_decode of {batch.n_tokens} tokens answered {status}")
        return elapsed

    def timed(self, context, batch, kept, repeats):
        """The median of `repeats` runs, each after rewinding every sequence to its first `kept` tokens."""
        times = []
        for _ in range(repeats):
            self.library.llama_memory_seq_rm(self.library.llama_get_memory(context), -1, kept, -1)
            times.append(self.decode(context, batch))
        return statistics.median(times)

    def round(self):
        """Milliseconds by (measure, variant)."""
        return {variant: self.timed(*work) for variant, work in self.variants.items()}

    def close(self):
        """Frees the contexts and the model, so that the next file does not compete for memory."""
        for context in self.contexts:
            self.library.llama_free(context)
        self.library.llama_model_free(self.model)


def load_library(isa):
    """The llama_cpp package, quiet, after a check that it was built with this instruction set."""
    import llama_cpp  # the package: `-P` keeps this script's own folder off the path

    quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(quiet, None)
    llama_cpp.quiet_callback = quiet  # ctypes does not keep it alive
    llama_cpp.llama_backend_init()
    # Of the form "CPU : SSE3 = 1 | AVX = 1 | …".
    features = llama_cpp.llama_print_system_info().decode().split(":", 1)[-1].split("|")
    on = {feature.split("=")[0].strip() for feature in features if feature.strip().endswith("= 1")}
    wanted = {"AVX2", "FMA", "F16C"} | {switch.removeprefix("GGML_") for switch in ISAS[isa][1]}
    unwanted = {switch.removeprefix("GGML_") for switch in OPTIONAL_SWITCHES} - wanted
    if not wanted <= on or on & unwanted:
        fail(f"this build of llama.cpp does not match {isa}: it has {', '.join(sorted(on))}; delete its environment")
    return llama_cpp


def in_format(library, source, name, folder):
    """The model in a format: the file itself where that is its format, else llama.cpp's quantisation of it."""
    file_type = getattr(library, f"LLAMA_FTYPE_MOSTLY_{name.upper()}")
    params = library.llama_model_default_params()
    params.vocab_only = True
    model = library.llama_model_load_from_file(os.fsencode(source), params)
    if not model:
        fail(f"llama.cpp cannot read {source}")
    own = ctypes.create_string_buffer(16)
    library.llama_model_meta_val_str(model, b"general.file_type", own, len(own))
    library.llama_model_free(model)
    if own.value == str(file_type).encode():
        return source
    digest = hashlib.sha256(source.read_bytes()).hexdigest()[:16]
    target = folder / "models" / f"{source.stem}.{digest}.{name}.gguf"
    if not target.is_file():
        print(f"quantising {source.name} to {name}", file=sys.stderr)
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_suffix(".part")
        options = library.llama_model_quantize_default_params()
        options.ftype, options.allow_requantize = file_type, True
        # The embedding, which is the head too, stays as the default model has it.
        options.token_embedding_type = options.output_tensor_type = 8  # GGML_TYPE_Q8_0
        if library.llama_model_quantize(os.fsencode(source), os.fsencode(part), ctypes.byref(options)) != 0:
            fail(f"llama.cpp cannot quantise {source} to {name}")
        part.rename(target)
    return target


# --- the comparison -------------------------------------------------------------------------------


def compare(args, library, path):
    """Measures one file in rounds of both programs; which of them goes first changes every round."""
    llama = Llama(library, path, args.threads)
    llama.round()  # the first touch of every page and buffer
    sides = {"llama_cpp": llama.round}
    if not args.llama_only:
        sides["vassal"] = lambda: run_vassal(args, path)
    rounds = {side: [] for side in sides}
    for index in range(args.rounds):
        for side in sorted(sides, reverse=index % 2 == 1):
            rounds[side].append(sides[side]())
    llama.close()
    theirs = fastest(rounds["llama_cpp"])
    if args.llama_only:
        return {"llama_cpp": theirs}
    names = [name for name in rounds["vassal"][0] if name.endswith("_ms")]
    ours = {name: median(rounds["vassal"], name) for name in names}
    ratios = {f"{measure}_speedup": round(theirs[f"{measure}_ms"] / ours[f"{measure}_ms"], 3) for measure in MEASURES}
    return {**ratios, "vassal": ours, "llama_cpp": theirs}


def median(rounds, name):
    """The median of one number over the rounds, in milliseconds."""
    return round(statistics.median(one[name] for one in rounds), 3)


def fastest(rounds):
    """llama.cpp's medians: the best variant of each measure, and all of them."""
    result = {"variants": {}}
    for measure in MEASURES:
        variants = {key[1]: median(rounds, key) for key in rounds[0] if key[0] == measure}
        best = min(variants, key=variants.get)
        result |= {f"{measure}_ms": variants[best], f"{measure}_variant": best}
        result["variants"][measure] = variants
    return result


def table(result):
    """The result as text: a row a format and measure."""
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    lines = [f"{result['model']}, {result['isa']}, threads: {result['threads']}; {versions}"]
    lines.append(f"Milliseconds, medians of {result['rounds']} rounds; speedup: llama.cpp's over vassal's.")
    lines.append(f"{'format':8}{'measure':14}{'llama.cpp':>12}{'vassal':>12}{'speedup':>10}")
    for name, one in result["formats"].items():
        for measure in MEASURES:
            theirs, ours = (one.get(side, {}).get(f"{measure}_ms", "-") for side in ("llama_cpp", "vassal"))
            lines.append(f"{name:8}{measure:14}{theirs:>12}{ours:>12}{one.get(f'{measure}_speedup', '-'):>10}")
    if "worst" in result:
        lines.append("worst: " + ", ".join(f"{name} {ratio}" for name, ratio in result["worst"].items()))
    return "\n".join(lines)


def arguments():
    """The command line."""
    target = REPOSITORY / "target"
    parser = argparse.ArgumentParser(description="Compares vassal's decoding speed with llama.cpp's.")
    option = parser.add_argument
    option("--json", action="store_true", help="print one JSON object")
    option("--llama-only", action="store_true", help="measure llama.cpp alone")
    option("--model", type=pathlib.Path, help="a GGUF file (default: the one that `vassal pull` fetches)")
    option("--formats", default="q4_1,q4_0,q8_0", help="columns: some of q4_1,q4_0,q8_0 (default: all)")
    option("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of both (default: this process's CPUs)")
    option("--isa", choices=["auto", *ISAS], default="auto", help="of both (default: what vassal takes by itself)")
    option("--rounds", type=int, default=7, help="rounds a format (default: 7)")
    option("--vassal", type=pathlib.Path, default=target / "release" / "vassal", help="the vassal binary")
    option("--folder", type=pathlib.Path, default=target / "compare-venv", help="for environments and files made")
    args = parser.parse_args()
    args.formats = args.formats.split(",")
    if not set(args.formats) <= {"q4_1", "q4_0", "q8_0"}:
        parser.error(f"--formats: of q4_1, q4_0 and q8_0, not {','.join(args.formats)}")
    if not (args.threads >= 1 and args.rounds >= 1):
        parser.error("--threads and --rounds must be at least 1")
    return args


def main():
    """Outside the environment: settle the model and instruction set, build, start again inside. Inside: measure."""
    args = arguments()
    args.model = args.model or pathlib.Path(vassal_json(args, ["path"], "pull")["path"])
    if not args.model.is_file():
        fail(f"no model at {args.model}")
    args.isa = choose_isa(args)
    python = environment(args.folder.absolute(), args.isa)
    if pathlib.Path(sys.prefix).resolve() != python.parents[1].resolve():
        os.execv(python, [python, "-P", __file__, *sys.argv[1:], "--isa", args.isa, "--model", args.model])
    library = load_library(args.isa)
    versions = {"llama_cpp_python": library.__version__}
    result = {"versions": versions, "isa": args.isa, "threads": args.threads, "rounds": args.rounds}
    result |= {"model": args.model.name, "formats": {}}
    for name in args.formats:
        result["formats"][name] = compare(args, library, in_format(library, args.model, name, args.folder))
    if not args.llama_only:
        version = subprocess.run([args.vassal, "--version"], capture_output=True, text=True).stdout
        versions["vassal"] = version.strip().removeprefix("vassal ")
        names = [f"{measure}_speedup" for measure in MEASURES]
        result["worst"] = {name: min(one[name] for one in result["formats"].values()) for name in names}
        result = {name: result["formats"][args.formats[0]][name] for name in names} | result
    print(json.dumps(result, indent=1) if args.json else table(result))


if __name__ == "__main__":
    main()
