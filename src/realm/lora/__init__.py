"""LoRA adapters: file formats, checks against a base model, merging."""
