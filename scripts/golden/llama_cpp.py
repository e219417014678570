#!/usr/bin/env python3
"""The loss of texts by llama.cpp, beside that of `tributary model eval`.

usage: llama_cpp.py TRIBUTARY MODEL.gguf TEXTS.jsonl [ADAPTER_DIR ADAPTER.gguf]

MODEL.gguf, with the adapter where one is given, is loaded by llama.cpp (PyPI: xllamacpp) with its cache in float32, and told every
prefix of each line's "text": slow, for a few short texts. ADAPTER.gguf is what `tributary model export-adapter` wrote of
ADAPTER_DIR. llama.cpp rounds activations where weights are not F32.
"""
import json, math, os, subprocess, sys, urllib.request
import xllamacpp as x

program, model, texts = sys.argv[1:4]
folder, adapter = sys.argv[4:6] if len(sys.argv) > 4 else (None, None)

p = x.CommonParams()
p.model.path, p.n_ctx, p.n_parallel, p.n_gpu_layers = model, 1024, 1, 0
p.cache_type_k = p.cache_type_v = x.ggml_type.GGML_TYPE_F32
p.flash_attn_type = x.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
p.warmup, p.cache_prompt, p.cache_ram_mib, p.fit_params, p.verbosity = False, False, 0, False, 1
if adapter:
    lora = x.CommonAdapterLoraInfo()
    lora.path, lora.scale = adapter, 1.0
    p.lora_adapters = [lora]
server = x.Server(p)


def post(path, body):
    request = urllib.request.Request(server.listening_address + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
    return json.loads(urllib.request.urlopen(request).read())


def tokens(text):
    return post("/tokenize", {"content": text, "add_special": True, "parse_special": True})["tokens"]


def tributary(*arguments):
    return json.loads(subprocess.run([program, "model", *arguments, "--json"], capture_output=True, text=True, check=True).stdout)


plain = tokens("a")[-1]
about = tributary("inspect", model)
vocabulary, end = about["vocabulary"], about["tokenizer"]["end_token"]


def following(prefix):
    # The server keeps back a token that ends within a character: "a" is sampled always. Log-probabilities are those before that.
    answer = server.handle_completions({
        "prompt": prefix, "n_predict": 1, "n_probs": vocabulary, "temperature": 0.0, "logit_bias": [[plain, 1e4]],
        "post_sampling_probs": False, "cache_prompt": False})
    answer = answer if isinstance(answer, dict) else json.loads(answer)
    found = {e["id"]: e["logprob"] for e in answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]}
    # Its probabilities add up to 1 within 1e-5 only.
    rest = math.log(sum(map(math.exp, found.values())))
    return {token: value - rest for token, value in found.items()}


total, count = 0.0, 0
for line in open(texts):
    ids = tokens(json.loads(line)["text"]) + [end]
    for place in range(1, len(ids)):
        total -= following(ids[:place])[ids[place]]
        count += 1
print(f"llama.cpp  {total / count:.7f} over {count} tokens")
ours = tributary("eval", "--model", model, "--data", texts, *(["--adapter", folder] if folder else []))
print(f"tributary  {ours['loss']:.7f} over {ours['target_tokens']} tokens")
os._exit(0)
