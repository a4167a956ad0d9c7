"""Light training of what a cut left: LoRA on the language-model loss or on the source's logits."""
