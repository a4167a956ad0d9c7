"""What cuts do to a model, measured: the errors of all widths, their loss, splits that are learned."""
