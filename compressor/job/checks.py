"""What of a job can be refused before its work begins, once its source is known."""

from compressor.config.choices import ALLOCATIONS
from compressor.config.job import JobConfig
from compressor.config.layouts import ALL, LAYOUTS, NAS, PER_LAYER, UNIFORM
from compressor.config.score import ScoreConfig
from compressor.config.target import WITHOUT_WIDTHS
from compressor.errors import InputError
from compressor.job.depth.checks import check_room
from compressor.job.forecast.room import disk
from compressor.job.hidden.checks import outlined
from compressor.job.needs import WantedResult, results_of
from compressor.job.opening import chosen_device
from compressor.job.widths import open_alignment
from compressor.kernels.rank import MOST_COLUMNS
from compressor.measuring.besa import check_activation
from compressor.measuring.landscape import check_family
from compressor.model.checkpoint import Checkpoint
from compressor.model.disk import check_space
from compressor.model.families import Family
from compressor.model.groups import are_alike, counts, unit_names
from compressor.model.heads import check_differing, choose_container, why_refused
from compressor.model.per_layer import has_uniform
from compressor.model.source import Source
from compressor.planning.allocation import protected
from compressor.planning.costs import Costs
from compressor.planning.plan import Plan
from compressor.planning.uniform import check_equal, solve
from compressor.quantization.stream import check_columns
from compressor.recovery.precision import check_memory
from compressor.repairing.streaming import check_repair
from compressor.scoring.methods import METHODS
from compressor.sparse.budget import budget
from compressor.writing.cuts import check_built, no_uniform, writer_of
from compressor.writing.packed import Packed


def check_before_starting(config: JobConfig, checkpoint: Checkpoint) -> list[WantedResult]:
    """Refuse at once what would fail hours later; the results of a cut, of other jobs none."""
    if config.quantization.wanted:
        check_packable(checkpoint)
    if config.sparse is not None:
        if checkpoint.mixed:
            raise InputError(several_kinds("sparsify prunes", checkpoint))
        if checkpoint.family.experts:
            raise InputError(no_experts("sparsify prunes", checkpoint.family))
        check_sparsity(config.sparse.sparsity, checkpoint)
        check_equal_blocks(checkpoint, "sparsify")
        check_space(config.dest.parent, checkpoint.bytes)
        if config.quantization.wanted:
            check_uncut(config, checkpoint)
        return []
    if not config.cuts:
        check_uncut(config, checkpoint)
        return []
    outline = outlined(config.plan, checkpoint, config.quantization.columns)
    if config.plan.targets:
        check_method(config.score, checkpoint)
    return check_cut(config, outline)


def check_method(score: ScoreConfig, checkpoint: Source) -> None:
    method, family = METHODS[score.method], checkpoint.family
    method.check_units(family)
    if family.experts and score.needs_text:
        raise InputError(
            "--select obs and --kv-cost measured are for channels and heads, and the units of "
            f"{family.model_type} are {unit_names(family)['ffn']}, while its heads stay; leave them out."
        )
    activation = checkpoint.config.get("hidden_act", "silu")
    method.check_activation(method.check_mode(score.mode), activation, family)


def no_experts(what: str, family: Family) -> str:
    return (
        f"{what} projections of one FFN a block, and {family.model_type} has experts; cut these "
        "(--keep, --keep-blocks)."
    )


def several_kinds(what: str, checkpoint: Source) -> str:
    return (
        f"{what} the same projections in all blocks, and those of {checkpoint.family.model_type} are of "
        "several kinds; cut them (--keep, --keep-blocks, --drop-blocks)."
    )


def check_packable(checkpoint: Checkpoint) -> None:
    family = checkpoint.family
    if checkpoint.mixed:
        raise InputError(several_kinds("--quantize packs", checkpoint))
    if family.inside:
        raise InputError(
            f"--quantize packs models of texts alone, and this is inside of a {family.inside}; leave it "
            "out."
        )
    if family.experts:
        raise InputError(no_experts("--quantize packs", family))
    if not family.stock:
        raise InputError(
            "--quantize packs weights for transformers' own classes, and it has none of "
            f"{family.model_type} with ALiBi; leave it out."
        )
    if family.unpacked:
        raise InputError(
            f"--quantize packs the weights of Linear modules, and transformers' class of "
            f"{family.model_type} has others ({family.unpacked}), which compressed-tensors does not "
            "load; leave it out."
        )


def check_sparsity(sparsity: float, checkpoint: Checkpoint) -> None:
    """Refuse weights that cannot be ranked, and a share of less than one of them."""
    names = [checkpoint.block_name(0, name) for name in checkpoint.family.projections()]
    matrices = {name: checkpoint.tensors[name] for name in names}
    for name, tensor in matrices.items():
        if tensor.shape[1] > MOST_COLUMNS:
            raise InputError(
                f"{name} has {tensor.shape[1]:,} columns; at most {MOST_COLUMNS:,} can be ranked."
            )
    weights = sum(tensor.numel for tensor in matrices.values())
    if budget(weights, sparsity) == 0:
        raise InputError(
            f"--sparsity {sparsity:g} of the {weights:,} weights of a block is less than one weight."
        )


def check_cut(config: JobConfig, checkpoint: Source) -> list[WantedResult]:
    """Solve every result's widths, and refuse what cannot be reached, written or held."""
    plan, family = config.plan, checkpoint.family
    if ALLOCATIONS[plan.allocate].measured and plan.targets:
        check_family(family)
    if plan.allocate == "besa":
        check_activation(checkpoint.config.get("hidden_act", "silu"), family)
    check_repair(config.repair.kind, config.repair.epochs, checkpoint)
    if config.write.layout == UNIFORM and plan.targets and not has_uniform(family):
        raise InputError(no_uniform(family))
    if family.experts and config.write.layout not in (UNIFORM, NAS):  # nas refuses for itself
        raise InputError(
            f"--layout {config.write.layout} is for channels and heads; a cut of {family.model_type} "
            f"has as many {unit_names(family)['ffn']} in all blocks, so leave it out."
        )
    if config.write.layout in (PER_LAYER, ALL):
        check_built(family)
        check_differing(checkpoint, config.write.container)
    wanted = solved_results(config, checkpoint)
    check_space(config.dest.parent, disk(config, checkpoint, wanted).at_most)
    return wanted


def solved_results(config: JobConfig, checkpoint: Source) -> list[WantedResult]:
    """Every result with its widths; InputError where there are none, or what is left is too large."""
    plan = config.plan
    protect = protected(plan.protect, checkpoint)
    wanted = []
    for name, target, layout in results_of(config, layouts_of(checkpoint)):
        if target.kind in WITHOUT_WIDTHS:
            # Refuses what cannot be written.
            writer_of(checkpoint, Plan.whole(checkpoint), layout, config.write.container)
            wanted.append(WantedResult(name, target, layout, checkpoint.block_units))
            check_left(config, checkpoint, checkpoint.block_units)
            continue
        check_room(target, checkpoint)
        lattice = open_alignment(config, checkpoint, target, layout).lattice
        if ALLOCATIONS[plan.allocate].equal(layout == UNIFORM):
            check_equal(target, checkpoint, lattice, protect)
        widths = solve(target, checkpoint, lattice, protect)
        wanted.append(WantedResult(name, target, layout, widths))
        if layout in (UNIFORM, NAS):
            groups = counts(widths, "attention")
            choose_container(checkpoint, groups, config.write.container, layout)
        check_left(config, checkpoint, widths)
    return wanted


def check_left(config: JobConfig, checkpoint: Source, widths: list[dict[str, int]]) -> None:
    """Refuse to train what does not fit into memory."""
    runtime = config.runtime
    if config.recovery.method != "none":
        left = Costs.of(checkpoint).size(widths, "params")
        device = chosen_device(runtime.device)
        given = (device, runtime.dtype, runtime.max_memory, config.recovery.adapts)
        check_memory(left, checkpoint.dtype, *given)


def layouts_of(checkpoint: Source) -> list[str]:
    """The layouts that some cut of the model can have."""

    def fits(layout: str) -> bool:
        if layout == NAS:
            return not why_refused(checkpoint, {checkpoint.units["attention"]}, layout=NAS)
        return layout != UNIFORM or has_uniform(checkpoint.family)

    return [layout for layout in LAYOUTS if fits(layout)]


def check_equal_blocks(checkpoint: Checkpoint, option: str) -> None:
    if not are_alike(checkpoint.block_units):
        raise InputError(
            f"{option} takes checkpoints of equal blocks, and the blocks of {checkpoint.path} have "
            "different widths; give one in the uniform or the padded layout."
        )


def check_uncut(config: JobConfig, checkpoint: Checkpoint) -> None:
    """Refuse what quantising a whole source cannot do."""
    packing = config.quantization.packing
    check_equal_blocks(checkpoint, "--quantize")
    check_columns(checkpoint, packing)
    check_space(config.dest.parent, Packed(checkpoint, packing).bytes())
