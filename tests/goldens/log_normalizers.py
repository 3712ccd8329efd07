#!/usr/bin/env python3
"""Prints LOG_NORMALIZERS of tests/golden.rs: ln of the sum of exp(logit) after each golden prompt.

    python3 tests/goldens/log_normalizers.py MODEL.gguf          # needs numpy

The golden file has the logits of 20 tokens and not this sum. So the reference's forward pass is done once more, as
the file describes it: float32, weights dequantised exactly from the GGUF file, keys and values in float32,
interleaved RoPE. Beside each number stands how far its 20 logits are from the file's, at most: the same forward pass
gives the same logits but for rounding, and anything above 1e-3 ends in an error.

It shares no code with vassal. It is not part of the tests or of CI.
"""

import json
import pathlib
import struct
import sys

import numpy

GOLDENS = pathlib.Path(__file__).with_name("smollm2_q4_1.json")

# GGUF value types: 8 is text, 9 a list, the others are numbers.
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


def read_gguf(path):
    """Metadata and tensors (name to a float32 array) of a GGUF file."""
    data = path.read_bytes()
    at = 0

    def number(code):
        nonlocal at
        (value,) = struct.unpack_from("<" + code, data, at)
        at += struct.calcsize("<" + code)
        return value

    def text():
        nonlocal at
        length = number("Q")
        at += length
        return data[at - length : at].decode()

    def value(kind):
        if kind == 8:
            return text()
        if kind == 9:
            of, count = number("I"), number("Q")
            return [value(of) for _ in range(count)]
        return number(NUMBERS[kind])

    assert number("I") == 0x46554747, "not a GGUF file"
    number("I")
    tensors, keys = number("Q"), number("Q")
    metadata = {}
    for _ in range(keys):
        key = text()
        metadata[key] = value(number("I"))
    entries = []
    for _ in range(tensors):
        name = text()
        shape = [number("Q") for _ in range(number("I"))]
        entries.append((name, shape[::-1], number("I"), number("Q")))
    alignment = metadata.get("general.alignment", 32)
    start = -(-at // alignment) * alignment
    read = {name: dequantise(data, start + offset, shape, kind) for name, shape, kind, offset in entries}
    return metadata, read


def dequantise(data, at, shape, kind):
    """A tensor as float32, exactly."""
    count = int(numpy.prod(shape))
    blocks = count // 32
    if kind == 0:
        return numpy.frombuffer(data, "<f4", count, at).reshape(shape)
    if kind == 8:
        raw = numpy.frombuffer(data, [("d", "<f2"), ("q", "i1", 32)], blocks, at)
        values = raw["q"] * raw["d"].astype("f4")[:, None]
    elif kind == 3:
        raw = numpy.frombuffer(data, [("d", "<f2"), ("m", "<f2"), ("q", "u1", 16)], blocks, at)
        nibbles = numpy.concatenate([raw["q"] & 15, raw["q"] >> 4], axis=1).astype("f4")
        values = nibbles * raw["d"].astype("f4")[:, None] + raw["m"].astype("f4")[:, None]
    else:
        raise SystemExit(f"tensor type {kind} is none of F32, Q8_0 and Q4_1")
    return values.astype("f4").reshape(shape)


def logits_after(ids, metadata, tensors):
    """The logits of all tokens after `ids`, float32."""
    number = lambda key: metadata["llama." + key]
    heads, kv_heads = number("attention.head_count"), number("attention.head_count_kv")
    epsilon = numpy.float32(number("attention.layer_norm_rms_epsilon"))
    width = number("embedding_length") // heads
    angles = numpy.outer(numpy.arange(len(ids)), number("rope.freq_base") ** (-numpy.arange(0, width, 2) / width))
    cos, sin = (f(angles).astype("f4")[:, None, :] for f in (numpy.cos, numpy.sin))

    def norm(x, weight):
        return x / numpy.sqrt((x * x).mean(-1, keepdims=True) + epsilon) * weight

    def rotated(x):
        out = numpy.empty_like(x)
        out[..., 0::2] = x[..., 0::2] * cos - x[..., 1::2] * sin
        out[..., 1::2] = x[..., 0::2] * sin + x[..., 1::2] * cos
        return out

    x = tensors["token_embd.weight"][ids]
    future = numpy.triu(numpy.full((len(ids), len(ids)), -numpy.inf, "f4"), 1)
    for layer in range(number("block_count")):
        weight = lambda part: tensors[f"blk.{layer}.{part}.weight"]
        normed = norm(x, weight("attn_norm"))
        q, k, v = (
            (normed @ weight(part).T).reshape(len(ids), count, width)
            for part, count in (("attn_q", heads), ("attn_k", kv_heads), ("attn_v", kv_heads))
        )
        k, v = (numpy.repeat(part, heads // kv_heads, axis=1) for part in (rotated(k), v))
        scores = numpy.einsum("ihd,jhd->hij", rotated(q), k) / numpy.sqrt(numpy.float32(width)) + future
        scores = numpy.exp(scores - scores.max(-1, keepdims=True))
        scores /= scores.sum(-1, keepdims=True)
        x = x + numpy.einsum("hij,jhd->ihd", scores, v).reshape(len(ids), -1) @ weight("attn_output").T
        normed = norm(x, weight("ffn_norm"))
        gate = normed @ weight("ffn_gate").T
        x = x + (gate / (1 + numpy.exp(-gate)) * (normed @ weight("ffn_up").T)) @ weight("ffn_down").T
    output = tensors.get("output.weight", tensors["token_embd.weight"])
    return norm(x[-1], tensors["output_norm.weight"]) @ output.T


def main():
    metadata, tensors = read_gguf(pathlib.Path(sys.argv[1]))
    for golden in json.loads(GOLDENS.read_text())["prompts"]:
        logits = logits_after(golden["ids"], metadata, tensors).astype("f8")
        off = numpy.abs(logits[golden["top20_ids"]] - golden["top20_logits"]).max()
        largest = logits.max()
        print(f"{largest + numpy.log(numpy.exp(logits - largest).sum()):.6f}  (logits off by {off:.1e})  {golden['prompt']}")
        if not off <= 1e-3:
            raise SystemExit("this is not the reference's forward pass or not its model")


if __name__ == "__main__":
    main()
