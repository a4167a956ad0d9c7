"""What of a job can be refused before its work begins."""

from compressor.config.choices import ALLOCATIONS
from compressor.errors import InputError
from compressor.job.asked import check_asked
from compressor.job.checks_sparse import check_weights
from compressor.job.forecast.room import disk
from compressor.job.settings import Settings, wanted_results
from compressor.job.widths import open_alignment
from compressor.measuring.besa import check_activation
from compressor.measuring.landscape import check_family
from compressor.model.checkpoint import Checkpoint
from compressor.model.heads import choose_container
from compressor.model.per_layer import has_uniform
from compressor.planning.allocation import protected
from compressor.planning.costs import Costs
from compressor.planning.uniform import check_equal, solve
from compressor.recovery.precision import check_memory
from compressor.repair.checks import check_repair
from compressor.scoring.methods import METHODS
from compressor.writing.layouts import check_built, no_uniform
from compressor.writing.shards import check_space


def check_before_starting(settings: Settings, checkpoint: Checkpoint) -> None:
    """Refuse at once what would fail hours later."""
    check_asked(settings)
    check_method(settings, checkpoint)
    if settings.quantization.wanted and not checkpoint.family.stock:
        raise InputError(
            "--quantize packs weights for transformers' own classes, and it has none of "
            f"{checkpoint.family.model_type} with ALiBi; leave it out."
        )
    if settings.quantization.wanted and checkpoint.family.transposed:
        raise InputError(
            f"--quantize packs the weights of Linear modules, and transformers' class of "
            f"{checkpoint.family.model_type} has others (Conv1D), which compressed-tensors does not "
            "load; leave it out."
        )
    if settings.weights.single:
        check_weights(settings, checkpoint)
        check_equal_blocks(checkpoint, "--granularity weight")
        check_space(settings.dest.parent, checkpoint.bytes)
        if settings.quantization.wanted:
            check_uncut(settings, checkpoint)
        return
    if not settings.cuts:
        check_uncut(settings, checkpoint)
        return
    if ALLOCATIONS[settings.allocate].measured:
        check_family(checkpoint.family)
    if settings.allocate == "besa":
        check_activation(checkpoint.config.get("hidden_act", "silu"), checkpoint.family)
    check_repair(settings.repair, settings.refine_epochs, checkpoint)
    if settings.layout == "uniform" and not has_uniform(checkpoint.family):
        raise InputError(no_uniform(checkpoint.family))
    check_own_widths(settings, checkpoint)
    protect = protected(settings.protect, checkpoint)
    wanted = []
    for name, target, own in wanted_results(settings, checkpoint.family):
        widths = open_alignment(own, checkpoint, target).lattice
        if ALLOCATIONS[settings.allocate].equal(own.layout == "uniform"):
            check_equal(target, checkpoint, widths, protect)
        chosen = solve(target, checkpoint, widths, protect)
        wanted.append((name, target, own, chosen))
        if own.layout == "uniform":
            choose_container(checkpoint, {chosen[0]["attention"]}, settings.container)
        if settings.recovery.method != "none":
            left = Costs.of(checkpoint).size(chosen, "params")
            check_memory(
                left, checkpoint.dtype, settings.on_device, settings.dtype, settings.max_memory
            )
    check_space(settings.dest.parent, disk(settings, checkpoint, wanted).at_most)


def check_own_widths(settings: Settings, checkpoint: Checkpoint) -> None:
    """Refuse `per-layer` where every number of heads must divide the hidden size."""
    family = checkpoint.family
    if settings.layout not in ("per-layer", "all"):
        return
    check_built(checkpoint, "per-layer")
    if not family.heads_divide_hidden:
        return
    if family.per_layer_settings:
        return
    if settings.container == family.model_type or any(
        "bias" in name for name in checkpoint.block_tensors(0)
    ):
        raise InputError(
            f"The config class of {family.model_type} refuses numbers of heads that differ between "
            f"blocks. --layout per-layer writes {family.container.model_type} in its place, which has "
            "no biases: leave --container out, or, for a model with biases, use --layout uniform or "
            "padded."
        )


def check_equal_blocks(checkpoint: Checkpoint, option: str) -> None:
    if any(units != checkpoint.units for units in checkpoint.block_units):
        raise InputError(
            f"{option} takes checkpoints of equal blocks, and the blocks of {checkpoint.path} have "
            "different widths; give one in the uniform or the padded layout."
        )


def check_uncut(settings: Settings, checkpoint: Checkpoint) -> None:
    """Refuse what quantising a whole source cannot do."""
    from compressor.quantization.stream import check_columns
    from compressor.writing.packed import quantized_bytes

    check_equal_blocks(checkpoint, "--quantize")
    check_columns(checkpoint, settings.quantization.group)
    check_space(settings.dest.parent, quantized_bytes(checkpoint, settings.quantization.group))


def check_method(settings: Settings, checkpoint: Checkpoint) -> None:
    if settings.weights.single:
        return
    method = METHODS[settings.method]
    activation = checkpoint.config.get("hidden_act", "silu")
    method.check_activation(method.check_mode(settings.mode), activation, checkpoint.family)
