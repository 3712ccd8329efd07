"""The model: from a GGUF file into torch, its prompts as the engine renders them, and back into an F32 GGUF file.

Both ways are checked: prompts against the engine's own tokens, the export of the untrained model against the original's
weights, bit for bit.
"""

import functools
import json
import pathlib
import tempfile

from .shared import fail, step

PROMPTS_CHECKED = 6

# The pre-tokenizers of GGUF files in which every digit stands alone, which transformers passes over.
DIGITS_ALONE = ("smollm", "starcoder", "refact", "codeshell")
PLAIN_WORDS = ("gpt-2", "gpt2", "phi-2", "olmo", "mpt")
# Tokens that end a response besides the file's own, as vassal has them.
END_TEXTS = ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>")


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
