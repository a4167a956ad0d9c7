"""The front door: what `import compressor` offers, for a checkpoint folder or a model in memory.

A model is the path of a folder, or a causal language model of transformers; it is never changed. What
makes a model writes it as the new folder `out`, or, without `out`, returns it as a model in memory.
Every function raises `InputError`, a sentence, for what cannot be, before any work.
"""
