#!/usr/bin/env python3
"""Make a tiny random LoRA adapter for a model that make_tiny_model.py made.

    lora.py MODEL_DIR NAME [OUT_DIR]

Deterministic: the weights are seeded by NAME, and large enough to change greedy answers. Needs
only numpy and safetensors. vLLM loads it with `--enable-lora --max-lora-rank 8`.
"""
import argparse
import hashlib
import json
import pathlib

import numpy as np
from safetensors.numpy import save_file

RANK, ALPHA = 8, 16
TARGETS = ("q_proj", "v_proj")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", help="directory of the base model")
    parser.add_argument("name")
    parser.add_argument("out", nargs="?")
    arguments = parser.parse_args()
    out = pathlib.Path(arguments.out or arguments.name)
    out.mkdir(parents=True, exist_ok=True)
    config = json.loads((pathlib.Path(arguments.model) / "config.json").read_text())
    rows = {
        "q_proj": config["num_attention_heads"] * config["head_dim"],
        "v_proj": config["num_key_value_heads"] * config["head_dim"],
    }

    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(arguments.name.encode()).digest()[:8], "little"))
    weights = {}
    for layer in range(config["num_hidden_layers"]):
        for target in TARGETS:
            path = f"base_model.model.model.layers.{layer}.self_attn.{target}"
            for half, shape in (("A", (RANK, config["hidden_size"])), ("B", (rows[target], RANK))):
                weights[f"{path}.lora_{half}.weight"] = (
                    rng.standard_normal(shape, dtype=np.float32) * np.float32(0.2))
    save_file(weights, str(out / "adapter_model.safetensors"), metadata={"format": "pt"})
    (out / "adapter_config.json").write_text(json.dumps({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": arguments.model,
        "r": RANK,
        "lora_alpha": ALPHA,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": list(TARGETS),
        "inference_mode": True,
    }, indent=2, sort_keys=True) + "\n")
    print(f"{out}: {len(weights)} tensors of rank {RANK}")


if __name__ == "__main__":
    main()
