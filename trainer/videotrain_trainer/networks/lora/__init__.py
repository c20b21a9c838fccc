"""LoRA adapters: layers with an addition of low rank, and the files that hold it."""
