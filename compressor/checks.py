"""What of a job can be refused before its work begins."""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from compressor.allocation import ALLOCATIONS, check_allocation, protected
from compressor.allocation.besa import check_activation
from compressor.allocation.landscape import check_family
from compressor.allocation.uniform import check_equal, solve
from compressor.checkpoint import Checkpoint
from compressor.containers import choose_container
from compressor.errors import InputError
from compressor.methods import METHODS
from compressor.opening import check_counts
from compressor.per_layer import has_uniform
from compressor.plan import Costs
from compressor.recovery.precision import check_memory
from compressor.repair import check_repair
from compressor.selection import check_selection
from compressor.settings import (
    DEFAULT_METHOD,
    Settings,
    chosen_grains,
    open_alignment,
    target_name,
    wanted_results,
)
from compressor.shards import check_space
from compressor.sparse.settings import channel_options, check_weights
from compressor.writing import check_built, check_layout_name, no_uniform


def check_before_starting(settings: Settings, checkpoint: Checkpoint) -> None:
    """Refuse at once what would fail hours later."""
    settings.weights.check(settings.method)
    check_method(settings, checkpoint)
    check_dest(settings)
    settings.quantization.check()
    check_parents(settings)
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
    settings.recovery.check()
    if len({target_name(t) for t in settings.targets}) < len(settings.targets):
        raise InputError("The same target is given twice.")
    if settings.statistics not in ("dense", "pruned"):
        raise InputError(f"--statistics is dense or pruned, not {settings.statistics!r}.")
    if settings.statistics == "pruned" and METHODS[settings.method].observe is not None:
        raise InputError(
            f"--statistics pruned needs a forward pass; {settings.method} runs backward."
        )
    if settings.statistics == "pruned" and len(settings.targets) > 1:
        raise InputError("--statistics pruned scores for one target; give one ratio.")
    check_selection(settings.select, settings.kv_cost)
    check_allocation(settings.allocate)
    if ALLOCATIONS[settings.allocate].measured:
        check_family(checkpoint.family)
    if settings.allocate == "besa":
        check_activation(checkpoint.config.get("hidden_act", "silu"), checkpoint.family)
    elif settings.weights.sampling is not None:
        raise InputError(
            "--besa-sampling is for what learns; add --allocate besa, or leave it out."
        )
    if settings.statistics == "pruned" and settings.allocate != "uniform":
        raise InputError(
            "--statistics pruned cuts each block as it is scored, and --allocate "
            f"{settings.allocate} finds the widths when all are; leave one of them out."
        )
    check_repair(settings.repair, settings.refine_epochs, checkpoint)
    if settings.layout != "all":
        check_layout_name(settings.layout)
    if settings.layout == "uniform" and not has_uniform(checkpoint.family):
        raise InputError(no_uniform(checkpoint.family))
    check_own_widths(settings, checkpoint)
    if settings.layout == "uniform" and not ALLOCATIONS[settings.allocate].alike:
        raise InputError(
            f"--allocate {settings.allocate} gives every block its own widths, and in the uniform "
            "layout all are equal; add --layout per-layer (loads with code of its own) or padded "
            "(zeros, to evaluate it), or leave --allocate out."
        )
    protect = protected(settings.protect, checkpoint)
    check_protect(protect, settings.layout)
    if settings.quantization.wanted and settings.layout != "uniform":
        raise InputError(
            f"--layout {settings.layout} is not for the kernels that --quantize packs weights for: they "
            "expect equal blocks, and no zeros between; leave one out."
        )
    needed = largest = 0
    for _, target, own in wanted_results(settings, checkpoint.family):
        if settings.quantization.wanted and target.kind == "bytes":
            raise InputError(
                "--target-bytes counts unquantised bytes, and --quantize leaves fewer; give --keep, "
                "--keep-blocks or --target-params."
            )
        widths = open_alignment(settings, checkpoint, target).lattice
        if ALLOCATIONS[settings.allocate].equal(own.layout == "uniform"):
            check_equal(target, checkpoint, widths, protect)
        chosen = solve(target, checkpoint, widths, protect)
        if own.layout == "uniform":
            choose_container(checkpoint, {chosen[0]["attention"]}, settings.container)
        size = Costs.of(checkpoint).size(chosen, "bytes")
        size = checkpoint.bytes if own.layout == "padded" else size
        needed, largest = needed + size, max(largest, size)
        if settings.recovery.method != "none":
            left = Costs.of(checkpoint).size(chosen, "params")
            check_memory(
                left, checkpoint.dtype, settings.on_device, settings.dtype, settings.max_memory
            )
    if (
        settings.repair != "none"
        or settings.recovery.method != "none"
        or settings.quantization.wanted
    ):
        needed += largest  # repaired blocks until the cut is complete; this until it is changed
    check_space(settings.dest.parent, needed)


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
            f"blocks. --layout per-layer writes {family.container} in its place, which has no biases: "
            "leave --container out, or, for a model with biases, use --layout uniform or padded."
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
    from compressor.quantization.writing import quantized_bytes

    others = channel_options(settings)
    if settings.method != DEFAULT_METHOD and not settings.weights.single:
        others.insert(0, "--method")
    if others:
        raise InputError(
            f"{others[0]} is for cuts, and nothing is cut; leave it out, or give --keep below 1."
        )
    check_equal_blocks(checkpoint, "--quantize")
    check_columns(checkpoint, settings.quantization.group)
    check_space(settings.dest.parent, quantized_bytes(checkpoint, settings.quantization.group))


def check_method(settings: Settings, checkpoint: Checkpoint) -> None:
    check_counts(settings)
    if settings.weights.single:
        return
    if settings.method not in METHODS:
        raise InputError(f"The method {settings.method!r} is not one of {', '.join(METHODS)}.")
    method = METHODS[settings.method]
    mode = method.check_mode(settings.mode)
    chosen_grains(settings)
    activation = checkpoint.config.get("hidden_act", "silu")
    method.check_activation(mode, activation, checkpoint.family)


def check_protect(protect: Sequence[int], layout: str) -> None:
    if protect and layout == "uniform":
        raise InputError(
            "--protect leaves some blocks wider than others, and in the uniform layout all are "
            "equal; add --layout per-layer (loads with code of its own) or padded (for evaluation), "
            "or leave --protect out."
        )


def check_parents(settings: Settings) -> None:
    """Refuse an option without the one that it belongs to."""
    for group, parent, wanted in (
        (settings.quantization, "--quantize", settings.quantization.wanted),
        (settings.recovery, "--recover", settings.recovery.method != "none"),
    ):
        for each in fields(group):
            flag = each.metadata["flag"]
            if not wanted and flag != parent and getattr(group, each.name) != each.default:
                raise InputError(
                    f"{flag} goes with a {parent} that is not none; add that, or leave {flag} out."
                )
    if settings.evaluation is None and settings.evaluation_range is not None:
        raise InputError("--evaluation-range goes with --evaluation; add that, or leave it out.")


def check_dest(settings: Settings) -> None:
    """DEST can be made, and replacing it would touch neither the source nor what no run has written."""
    dest, source = settings.dest, settings.source.resolve()
    if dest.name in ("", ".."):
        raise InputError(
            f"DEST is {str(dest)!r}, which names no new folder; give one, such as ./small."
        )
    for path in (dest, dest.with_name(dest.name + ".rejected")):
        if path.exists() and not settings.overwrite:
            raise InputError(f"{path} exists; choose another DEST or pass --overwrite.")
        if path.is_symlink() or (path.exists() and not path.is_dir()):
            raise InputError(f"{path} is not a folder and is not replaced; choose another DEST.")
        if path.resolve() == source or path.resolve() in source.parents:
            raise InputError(f"{path} holds the source {source}; choose another DEST.")
        if path.exists() and not is_result(path):
            raise InputError(
                f"{path} holds no compression.json, so it is not the result of a former run and is not "
                "replaced; choose another DEST, or remove it."
            )


def is_result(folder: Path) -> bool:
    """What a run has written, or several results of one, or nothing."""
    results = (*folder.glob("compression.json"), *folder.glob("*/compression.json"))
    return bool(results) or not any(folder.iterdir())
