"""How good a model is: perplexity, and the distance from another one."""
