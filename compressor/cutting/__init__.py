"""A plan on tensors: what stays is gathered."""
