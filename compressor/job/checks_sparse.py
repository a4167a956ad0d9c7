"""What of `--granularity weight` can be refused before its work begins."""

from dataclasses import MISSING, Field, fields

from compressor.errors import InputError

# Options of a job that only a cut of channels has.
CHANNEL_OPTIONS = {
    "mode", "coarse", "fine", "reduce", "allocate", "layout", "container", "statistics", "repair",
    "refine_epochs", "select", "kv_cost", "align", "protect", "tp", "recovery",
}  # fmt: skip


def check_alone(settings) -> None:
    """Refuse options that do not go with pruning single weights; `settings` is the job's."""
    if settings.targets:
        raise InputError(
            "--granularity weight makes zeros and no tensor smaller, so no share or size can be "
            "asked of the result; give --sparsity alone, or leave --granularity out."
        )
    others = channel_options(settings)
    if others:
        raise InputError(f"{others[0]} is for channels; leave it out with --granularity weight.")


def check_weights(settings, checkpoint) -> None:
    """Refuse weights that cannot be pruned."""
    # Torch takes seconds to import, and the command line reads this module for its options.
    from compressor.kernels.rank import MOST_COLUMNS
    from compressor.sparse.budget import budget

    names = [checkpoint.block_name(0, name) for name in checkpoint.family.projections()]
    matrices = {name: checkpoint.tensors[name] for name in names}
    for name, tensor in matrices.items():
        if tensor.shape[1] > MOST_COLUMNS:
            raise InputError(
                f"{name} has {tensor.shape[1]:,} columns; at most {MOST_COLUMNS:,} can be ranked."
            )
    weights = sum(tensor.numel for tensor in matrices.values())
    if budget(weights, settings.weights.sparsity) == 0:
        raise InputError(
            f"--sparsity {settings.weights.sparsity:g} of the {weights:,} weights of a block is "
            "less than one weight."
        )


def channel_options(settings) -> list[str]:
    """The flags of what was given and only a cut of channels has."""
    return [
        f"--{'recover' if each.name == 'recovery' else each.name.replace('_', '-')}"
        for each in fields(settings)
        if each.name in CHANNEL_OPTIONS and getattr(settings, each.name) != default_of(each)
    ]


def default_of(described: Field):
    made = described.default_factory
    return described.default if made is MISSING else made()
