"""Writes small classifiers that transformers quantized with bitsandbytes, each with the logits of a float32 model that holds
the decoded weights.

transformers 5.23 packs pooler and head, too; in the folders in -kept the head stays as it is, as other versions may leave
it. Rows hold whole blocks, so that bitsandbytes' CPU kernels decode rightly. Made with transformers 5.23 and bitsandbytes 0.50;
Tests/Golden/quant keeps two of them.
Use: python scripts/golden/bitsandbytes_classifiers.py DIR [NAME...]
"""
import os, shutil, sys, tempfile
import torch, bitsandbytes.functional as F
from safetensors.torch import save_file
from transformers import (BertConfig, BertForSequenceClassification, BitsAndBytesConfig, RobertaConfig,
                          RobertaForSequenceClassification)

out, chosen = sys.argv[1], sys.argv[2:]
sizes = dict(vocab_size=40, hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=2,
             max_position_embeddings=20, initializer_range=0.3, bos_token_id=0, eos_token_id=2,
             id2label={0: "negative", 1: "neutral", 2: "positive"}, label2id={"negative": 0, "neutral": 1, "positive": 2})
families = {
    "bert": (BertForSequenceClassification, BertConfig(**sizes, pad_token_id=0)),
    "roberta": (RobertaForSequenceClassification, RobertaConfig(**sizes, type_vocab_size=1, pad_token_id=1)),
}
forms = {
    "nf4": dict(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True),
    "fp4-kept": dict(load_in_4bit=True, bnb_4bit_quant_type="fp4", llm_int8_skip_modules=["classifier"]),
    "int8": dict(load_in_8bit=True),
}
for family, (kind, config) in families.items():
    torch.manual_seed(7)
    source = tempfile.mkdtemp()
    kind(config).to(torch.bfloat16).save_pretrained(source)
    ids = torch.randint(3, 40, (4, 9))
    for form, settings in forms.items():
        folder = os.path.join(out, f"bnb-{family}-{form}")
        if chosen and os.path.basename(folder) not in chosen:
            continue
        shutil.rmtree(folder, ignore_errors=True)
        model = kind.from_pretrained(source, quantization_config=BitsAndBytesConfig(**settings), dtype=torch.bfloat16).eval()
        model.save_pretrained(folder)
        reference = kind.from_pretrained(source, dtype=torch.float32).eval()
        packed = []
        for (path, module), (_, plain) in zip(model.named_modules(), reference.named_modules()):
            if not isinstance(plain, torch.nn.Linear):
                continue
            weight = module.weight
            if getattr(weight, "quant_state", None) is not None:
                weight.quant_state.dtype = torch.float32
                decoded = F.dequantize_4bit(weight.data, weight.quant_state)
            elif weight.dtype == torch.int8:
                scale = weight.SCB if weight.SCB is not None else module.state.SCB
                decoded = weight.data.float() * scale.view(-1, 1) / 127
            else:
                continue
            packed.append(path)
            plain.weight.data = decoded.reshape(plain.weight.shape).float()
        with torch.no_grad():
            logits = reference(input_ids=ids).logits.contiguous()
        save_file({"input_ids": ids, "logits": logits}, os.path.join(folder, "expected.safetensors"))
        outside = [path for path in packed if "encoder.layer" not in path]
        print(folder, "packed beside the blocks:", outside, "logits", logits[0].tolist(), flush=True)
    shutil.rmtree(source)
