#!/usr/bin/env python3
"""Compiles the CUDA kernels ahead, so that nothing else needs a CUDA toolkit.

    kernels/cuda/build.py            writes prebuilt/: PTX, cubins and the manifest of their hashes
    kernels/cuda/build.py --check    builds again and compares byte for byte
    kernels/cuda/build.py --wheel X  takes NVRTC from a wheel (or folder of wheels) already here

The compiler is NVRTC from the wheel that requirements.txt pins by version and hash, installed below target/. It
runs in this process: no GPU, no driver, no host compiler. The same sources give the same bytes on every machine.

PTX is made for compute_80. NVRTC stamps it with its own ISA version, which only drivers of its own age would
take; no kernel uses anything newer than what PTX_VERSION has, so the stamp is set back to that.
"""

import argparse
import ctypes
import hashlib
import pathlib
import re
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
PREBUILT = HERE / "prebuilt"
NVRTC = HERE.parent.parent / "target" / "nvrtc-12.9.86"
# The first PTX ISA that has all that the kernels use (eviction hints of loads are the newest): drivers from CUDA 11.4 on.
PTX_VERSION = "7.4"
# Products and sums are rounded one by one unless a kernel asks for a fused one: the sampler's bits depend on it.
OPTIONS = ["--std=c++17", "--fmad=false", "--device-as-default-execution-space", "--dopt=on"]
TARGETS = {"ptx": "compute_80", "cubin": "sm_90a"}


def libraries(wheel):
    """The compiler's folder of shared libraries, installed first where it is not there."""
    folder = NVRTC / "nvidia" / "cuda_nvrtc" / "lib"
    if not folder.is_dir():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--require-hashes", "--target", NVRTC]
        if wheel is not None:
            pip += ["--no-index", "--find-links", wheel]
        subprocess.run([*map(str, pip), "-r", str(HERE / "requirements.txt")], check=True)
    return folder


class Compiler:
    """NVRTC through its C interface."""

    def __init__(self, folder):
        ctypes.CDLL(str(folder / "libnvrtc-builtins.so.12.9"), mode=ctypes.RTLD_GLOBAL)
        self.nvrtc = ctypes.CDLL(str(folder / "libnvrtc.so.12"))

    def call(self, name, *arguments):
        code = getattr(self.nvrtc, name)(*arguments)
        if code != 0:
            raise RuntimeError(f"{name} gave {code}")

    def text(self, program, what):
        """One of the outputs of a program, as bytes."""
        size = ctypes.c_size_t()
        self.call(f"nvrtcGet{what}Size", program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        self.call(f"nvrtcGet{what}", program, buffer)
        return buffer.raw

    def compile(self, name, source, headers, architecture):
        """PTX for `compute_*`, a cubin for `sm_*`."""
        program = ctypes.c_void_p()
        names = (ctypes.c_char_p * len(headers))(*[name.encode() for name in headers])
        texts = (ctypes.c_char_p * len(headers))(*headers.values())
        self.call("nvrtcCreateProgram", ctypes.byref(program), source, name.encode(), len(headers), texts, names)
        options = [*OPTIONS, f"--gpu-architecture={architecture}"]
        options = (ctypes.c_char_p * len(options))(*[option.encode() for option in options])
        code = self.nvrtc.nvrtcCompileProgram(program, len(options), options)
        log = self.text(program, "ProgramLog").rstrip(b"\0\n").decode()
        if log or code != 0:
            raise RuntimeError(f"{name} for {architecture}:\n{log}")
        output = self.text(program, "PTX" if architecture.startswith("compute") else "CUBIN")
        self.call("nvrtcDestroyProgram", ctypes.byref(program))
        return output


def plain_ptx(ptx):
    """PTX without comments and hints of newer versions, stamped with the oldest ISA version that has all of it."""
    hints = ("//", '.pragma "used_bytes_mask')
    lines = [line for line in ptx.rstrip(b"\0").decode().split("\n") if line and not line.lstrip().startswith(hints)]
    text = "\n".join(lines) + "\n"
    stamped = re.sub(r"^\.version .*$", f".version {PTX_VERSION}", text, count=1, flags=re.M)
    return stamped.encode()


def build(compiler):
    """Every output by its name, and the manifest."""
    headers = {path.name: path.read_bytes() for path in sorted(HERE.glob("*.cuh"))}
    sources = {path.name: path.read_bytes() for path in sorted(HERE.glob("*.cu"))}
    outputs = {}
    for name, source in sources.items():
        for ending, architecture in TARGETS.items():
            output = compiler.compile(name, source, headers, architecture)
            stem = name.removesuffix(".cu")
            outputs[f"prebuilt/{stem}.{ending}"] = plain_ptx(output) if ending == "ptx" else output
    hashed = {**headers, **sources, "build.py": (HERE / "build.py").read_bytes(), **outputs}
    lines = [f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in sorted(hashed.items())]
    outputs["prebuilt/manifest.txt"] = "".join(lines).encode()
    return outputs


def compare(outputs):
    """Names of outputs that differ from what lies here, and of files that nothing makes."""
    differ = [name for name, data in outputs.items() if not (HERE / name).is_file() or (HERE / name).read_bytes() != data]
    here = {f"prebuilt/{path.name}" for path in PREBUILT.glob("*")}
    return sorted(differ + list(here - outputs.keys()))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    parser.add_argument("--wheel", help="a wheel of NVRTC, or a folder that has it")
    arguments = parser.parse_args()
    outputs = build(Compiler(libraries(arguments.wheel)))
    if arguments.check:
        differ = compare(outputs)
        if differ:
            sys.exit("not what the sources make: " + ", ".join(differ))
        print(f"{len(outputs)} files are what the sources make")
        return
    PREBUILT.mkdir(exist_ok=True)
    for stale in {f"prebuilt/{path.name}" for path in PREBUILT.glob("*")} - outputs.keys():
        (HERE / stale).unlink()
    for name, data in outputs.items():
        (HERE / name).write_bytes(data)
        print(f"{len(data):9} bytes  {name}")


if __name__ == "__main__":
    main()
