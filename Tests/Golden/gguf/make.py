"""Writes the GGUF golden cases: files by the `gguf` package, logits by transformers, which reads GGUF files itself.

usage: python make.py OUTPUT_FOLDER   (torch, transformers, gguf, safetensors, numpy)

blocks.safetensors   blocks of each type and the numbers that gguf.quants says they stand for
llama-mixed.gguf     a tied llama in Q4_K, Q6_K, Q8_0, Q4_0, F16, BF16 and F32, with a SentencePiece-like tokenizer
qwen2-blocks.gguf    a qwen2 with biases in Q8_0 and Q4_0, with a byte-level tokenizer
*.safetensors        input_ids and logits of each file
"""

import os
import sys

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind
from safetensors.numpy import save_file

out = sys.argv[1]
os.makedirs(out, exist_ok=True)
rng = np.random.default_rng(20)


def f16(values):
    return np.asarray(values, dtype=np.float16).view(np.uint8)


def quantize(weight, kind):
    """The bytes of a matrix. gguf quantizes to blocks of 32; K-blocks get random codes and scales of about the same size."""
    rows, columns = weight.shape
    if kind in (Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1, Kind.Q8_0, Kind.BF16):
        return gguf.quants.quantize(weight, kind)
    if kind in (Kind.F32, Kind.F16):
        return weight.astype(np.float32 if kind == Kind.F32 else np.float16)
    size = float(np.abs(weight).std())
    blocks = []
    for _ in range(rows * columns // 256):
        if kind in (Kind.Q4_K, Kind.Q5_K):
            d = f16([size / 32 / (8 if kind == Kind.Q4_K else 16) * rng.uniform(0.5, 1.5)])
            m = f16([size / 32 * rng.uniform(0.5, 1.5)])
            blocks.append(np.concatenate([d, m, rng.integers(0, 256, 140 if kind == Kind.Q4_K else 172, dtype=np.uint8)]))
        else:
            scales = rng.integers(-128, 128, 16, dtype=np.int8).view(np.uint8)
            d = f16([size / 64 / 16 * rng.uniform(0.5, 1.5)])
            blocks.append(np.concatenate([rng.integers(0, 256, 192, dtype=np.uint8), scales, d]))
    return np.concatenate(blocks).reshape(rows, -1)


def make_blocks(kinds):
    tensors = {}
    for kind, columns in kinds:
        values = rng.standard_normal((3, columns)).astype(np.float32)
        values[1] *= 1e-6  # subnormal scales
        packed = quantize(values, kind)
        tensors[f"{kind.name}.packed"] = packed
        tensors[f"{kind.name}.values"] = gguf.quants.dequantize(packed, kind).astype(np.float32)
    return tensors


def add_tensor(writer, name, weight, kind):
    data = quantize(weight, kind) if weight.ndim == 2 else weight.astype(np.float32)
    writer.add_tensor(name, data, raw_dtype=kind if weight.ndim == 2 else Kind.F32)


def write_model(name, architecture, kinds, tokenizer, hidden, intermediate, heads, kv_heads, head_size, layers, vocabulary, tied,
                biased):
    writer = gguf.GGUFWriter(f"{out}/{name}.gguf", architecture)
    writer.add_name(name)
    writer.add_block_count(layers)
    writer.add_context_length(96)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(intermediate)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(head_size)
    writer.add_value_length(head_size)
    writer.add_rope_dimension_count(head_size)
    writer.add_rope_freq_base(5000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    tokenizer(writer, vocabulary)

    def matrix(rows, columns):
        return (rng.standard_normal((rows, columns)) * 1.5 / np.sqrt(columns)).astype(np.float32)

    def norm(size):
        return (1 + 0.2 * rng.standard_normal(size)).astype(np.float32)

    add_tensor(writer, "token_embd.weight", matrix(vocabulary, hidden) * 4, kinds["embedding"])
    for layer in range(layers):
        block = f"blk.{layer}."
        shapes = [("attn_q", heads * head_size, hidden), ("attn_k", kv_heads * head_size, hidden),
                  ("attn_v", kv_heads * head_size, hidden), ("attn_output", hidden, heads * head_size),
                  ("ffn_gate", intermediate, hidden), ("ffn_up", intermediate, hidden), ("ffn_down", hidden, intermediate)]
        for key, rows, columns in shapes:
            # Random weights are their own permutation: what counts is that both readers undo the same one.
            add_tensor(writer, block + key + ".weight", matrix(rows, columns), kinds[key])
            if biased and key in ("attn_q", "attn_k", "attn_v"):
                add_tensor(writer, block + key + ".bias", matrix(1, rows)[0], Kind.F32)
        add_tensor(writer, block + "attn_norm.weight", norm(hidden), Kind.F32)
        add_tensor(writer, block + "ffn_norm.weight", norm(hidden), Kind.F32)
    add_tensor(writer, "output_norm.weight", norm(hidden), Kind.F32)
    if not tied:
        add_tensor(writer, "output.weight", matrix(vocabulary, hidden), kinds["embedding"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    from transformers import AutoConfig, AutoModelForCausalLM
    model = AutoModelForCausalLM.from_pretrained(out, gguf_file=f"{name}.gguf", dtype=torch.float32,
                                                 attn_implementation="eager")
    assert model.config.rms_norm_eps and abs(model.config.rms_norm_eps - 1e-5) < 1e-9, model.config
    ids = rng.integers(0, vocabulary, (2, 10))
    with torch.no_grad():
        logits = model(torch.tensor(ids)).logits.numpy()
    save_file({"input_ids": ids.astype(np.int64), "logits": logits.astype(np.float32)}, f"{out}/{name}.safetensors")


def sentence_piece(writer, vocabulary):
    tokens, scores, types = ["<unk>", "<s>", "</s>"], [0.0] * 3, [2, 3, 3]
    tokens += [f"<0x{byte:02X}>" for byte in range(256)]
    scores += [0.0] * 256
    types += [6] * 256
    pieces = ["▁t", "he", "▁the", "in", "▁a", "er", "on", "re", "an", "▁s", "at", "en", "▁b", "▁o", "the"]
    for index, piece in enumerate(pieces):
        tokens.append(piece), scores.append(-float(index)), types.append(1)
    for letter in "▁etaoinshrdlucmfwygpb":
        tokens.append(letter), scores.append(-float(len(tokens))), types.append(1)
    tokens.append("<|user|>"), scores.append(0.0), types.append(4)
    while len(tokens) < vocabulary:
        tokens.append(f"[PAD{len(tokens)}]"), scores.append(-1000.0), types.append(5)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_chat_template("{% for message in messages %}{{ message['content'] }}{% endfor %}")


def byte_level(writer, vocabulary):
    from transformers.convert_slow_tokenizer import bytes_to_unicode
    tokens = list(bytes_to_unicode().values())
    merges = ["Ġ t", "h e", "Ġt he", "i n", "Ġ a", "e r", "o n", "r e", "a n", "Ġ s"]
    tokens += [merge.replace(" ", "") for merge in merges]
    types = [1] * len(tokens)
    for special in ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]:
        tokens.append(special), types.append(3)
    while len(tokens) < vocabulary:
        tokens.append(f"[PAD{len(tokens)}]"), types.append(5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(266)
    writer.add_eos_token_id(268)
    writer.add_add_bos_token(False)
    writer.add_chat_template(
        "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}")


if __name__ == "__main__":
    blocks = make_blocks([(Kind.Q8_0, 96), (Kind.Q4_0, 96), (Kind.Q4_K, 512), (Kind.Q6_K, 512)])
    write_model("llama-mixed", "llama", {
        "embedding": Kind.Q6_K, "attn_q": Kind.Q4_K, "attn_k": Kind.Q6_K, "attn_v": Kind.F16, "attn_output": Kind.Q8_0,
        "ffn_gate": Kind.Q4_K, "ffn_up": Kind.Q4_0, "ffn_down": Kind.BF16,
    }, sentence_piece, hidden=256, intermediate=32, heads=4, kv_heads=2, head_size=8, layers=1, vocabulary=300, tied=True,
        biased=False)
    write_model("qwen2-blocks", "qwen2", {
        "embedding": Kind.Q8_0, "attn_q": Kind.Q8_0, "attn_k": Kind.Q4_0, "attn_v": Kind.Q8_0, "attn_output": Kind.Q4_0,
        "ffn_gate": Kind.Q4_0, "ffn_up": Kind.Q8_0, "ffn_down": Kind.Q4_0,
    }, byte_level, hidden=64, intermediate=96, heads=4, kv_heads=2, head_size=16, layers=2, vocabulary=272, tied=False,
        biased=True)
    # After the models, whose weights come from the same generator.
    blocks |= make_blocks([(Kind.Q4_1, 96), (Kind.Q5_0, 96), (Kind.Q5_1, 96), (Kind.Q5_K, 512)])
    save_file(blocks, f"{out}/blocks.safetensors")
