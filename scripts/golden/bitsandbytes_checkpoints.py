"""Writes the small checkpoints of Tests/Golden/quant that bitsandbytes quantized: FP4 with plain scales, NF4 stored as bfloat16,
and LLM.int8, each with the logits of a float32 model that holds the decoded weights.

Rows hold whole blocks, so that bitsandbytes' CPU kernels decode rightly. Made with transformers 5.23 and bitsandbytes 0.50.
Use: python scripts/golden/bitsandbytes_checkpoints.py Tests/Golden/quant
"""
import os, shutil, sys, tempfile
import torch, bitsandbytes.functional as F
from safetensors.torch import save_file
from transformers import BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

out = sys.argv[1]
torch.manual_seed(7)
config = LlamaConfig(vocab_size=96, hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=4,
                     num_key_value_heads=2, head_dim=16, max_position_embeddings=64, tie_word_embeddings=True)
source = tempfile.mkdtemp()
LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(source)
ids = torch.randint(0, 96, (2, 12))
cases = {
    "bnb-fp4-plain": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="fp4", bnb_4bit_use_double_quant=False),
    "bnb-nf4-bf16-storage": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                                               bnb_4bit_quant_storage=torch.bfloat16),
    "bnb-int8": BitsAndBytesConfig(load_in_8bit=True),
}
for name, quantization in cases.items():
    model = LlamaForCausalLM.from_pretrained(source, quantization_config=quantization, dtype=torch.bfloat16).eval()
    folder = os.path.join(out, name)
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    reference = LlamaForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    tensors = {"input_ids": ids}
    for (path, module), (_, plain) in zip(model.named_modules(), reference.named_modules()):
        if not isinstance(plain, torch.nn.Linear) or path == "lm_head":
            continue
        weight = module.weight
        if hasattr(weight, "quant_state") and weight.quant_state is not None:
            decoded = F.dequantize_4bit(weight.data, weight.quant_state).float()
        else:
            scale = weight.SCB if weight.SCB is not None else module.state.SCB
            decoded = weight.data.float() * scale.view(-1, 1) * 7.874015718698502e-3
        plain.weight.data = decoded.reshape(plain.weight.shape).float()
        if path.endswith("k_proj"):
            tensors[path + ".weight"] = plain.weight.data.contiguous()
    with torch.no_grad():
        tensors["logits"] = reference(input_ids=ids).logits.contiguous()
    save_file(tensors, os.path.join(folder, "expected.safetensors"))
    print(name, sorted(os.listdir(folder)))
shutil.rmtree(source)
