"""One decoder for Llama, Qwen2 and Qwen3, and the files it is read from."""
