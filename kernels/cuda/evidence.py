#!/usr/bin/env python3
"""What can be known of the kernels without a GPU, from the committed binaries: prints a table, fails where it must hold.

    kernels/cuda/evidence.py               checks and prints
    kernels/cuda/evidence.py --wheels DIR  takes the tools from a folder of wheels already here

For each kernel: registers, spilled bytes and shared memory as ptxas says for sm_90a; blocks that fit a multiprocessor
of an H100; and from the cubin's own machine code the loads of 128 bits, all loads, and tensor-core instructions.
The PTX must also assemble for sm_80 under the version that it is stamped with. ptxas and nvdisasm come from wheels
that requirements-evidence.txt pins by version and hash, installed below target/.
"""

import argparse
import pathlib
import re
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
PREBUILT = HERE / "prebuilt"
TOOLS = HERE.parent.parent / "target" / "cuda-tools"
# Of one multiprocessor of compute capability 9.0: threads, registers, shared memory (a block takes 1 KiB more), blocks.
THREADS, REGISTERS, SHARED, BLOCKS = 2048, 65536, 227 * 1024, 32
# Kernels that a decoding step spends its time in: they may not spill.
HOT = re.compile(r"linear_|attend_|merge_splits|prepare")
# Kernels bound by what they read in rows of 16 bytes, and those that multiply on tensor cores.
WIDE = TENSOR = re.compile(r"linear_|attend_")


def tools(wheels):
    """Paths of ptxas and nvdisasm, installed first where they are not there."""
    found = {name: next(TOOLS.rglob(name), None) for name in ("ptxas", "nvdisasm")}
    if None in found.values():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--require-hashes", "--target", TOOLS]
        if wheels is not None:
            pip += ["--no-index", "--find-links", wheels]
        subprocess.run([*map(str, pip), "-r", str(HERE / "requirements-evidence.txt")], check=True)
        found = {name: next(TOOLS.rglob(name)) for name in found}
        for path in found.values():
            path.chmod(0o755)
    return found["ptxas"], found["nvdisasm"]


def output(*command):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{command[0].name} refuses {command[-1]}:\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def resources(ptxas, ptx):
    """(registers, spilled bytes, shared bytes) by kernel, for sm_90a; and the PTX assembles for sm_80."""
    output(ptxas, "--gpu-name", "sm_80", "--output-file", TOOLS / "sm_80.cubin", ptx)
    text = output(ptxas, "-v", "--gpu-name", "sm_90a", "--output-file", TOOLS / "sm_90a.cubin", ptx)
    found = {}
    for part in text.split("Compiling entry function '")[1:]:
        number = lambda pattern: sum(map(int, re.findall(pattern, part)))
        shared = number(r"(\d+) bytes smem")
        found[part.split("'")[0]] = number(r"Used (\d+) registers"), number(r"(\d+) bytes spill"), shared
    return found


def instructions(nvdisasm, cubin):
    """(loads of 128 bits, loads of global memory, tensor-core instructions) by kernel."""
    parts = re.split(r"\.section\s+\.text\.(\w+)", output(nvdisasm, "--print-code", cubin))
    count = lambda text, pattern: len(re.findall(pattern, text))
    counts = (r"LDG\.\S*\b128\b", r"LDG\.|LDG ", r"HMMA\.")
    return {name: [count(text, pattern) for pattern in counts] for name, text in zip(parts[1::2], parts[2::2])}


def blocks(threads, registers, shared):
    """Blocks that fit a multiprocessor: registers go by warp in units of 256, shared memory in units of 1 KiB."""
    warps = threads // 32
    by_registers = REGISTERS // (warps * -(-registers * 32 // 256) * 256)
    by_shared = SHARED // (-(-shared // 1024) * 1024 + 1024)
    return min(THREADS // threads, by_registers, by_shared, BLOCKS)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheels", help="a folder that has the tools' wheels")
    ptxas, nvdisasm = tools(parser.parse_args().wheels)
    complaints = []
    print(f"{'kernel':14} {'threads':>7} {'registers':>9} {'spilled':>7} {'shared':>7} {'blocks':>6} {'occupancy':>9}"
          f" {'128-bit loads':>13} {'loads':>5} {'mma':>4}")
    for ptx in sorted(PREBUILT.glob("*.ptx")):
        text = ptx.read_text()
        code = instructions(nvdisasm, ptx.with_suffix(".cubin"))
        for name, (registers, spilled, shared) in resources(ptxas, ptx).items():
            threads = int(re.search(rf"\.entry {name}\(.*?\.maxntid (\d+)", text, re.S)[1])
            wide, loads, mma = code[name]
            fit = blocks(threads, registers, shared)
            print(f"{name:14} {threads:7} {registers:9} {spilled:7} {shared:7} {fit:6} {fit * threads / THREADS:9.0%}"
                  f" {wide:13} {loads:5} {mma:4}")
            for wanted, held, what in [
                (HOT.match(name), spilled == 0, "spills"),
                (WIDE.match(name), wide > 0, "has no load of 128 bits"),
                (TENSOR.match(name), mma > 0, "has no tensor-core instruction"),
            ]:
                if wanted and not held:
                    complaints.append(f"{name} {what}")
    if complaints:
        sys.exit("\n".join(complaints))


if __name__ == "__main__":
    main()
