"""Operators on tensors: statistics of weights and activations. Import them by module."""
