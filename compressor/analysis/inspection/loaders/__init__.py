"""What loads a folder: an answer for each loader, with what decides it and how that is known.

The installed transformers is asked: it loads the folder here, on the meta device, which reads no weight.
The others are not at hand: their answers are their rules, a file each, and say whether the rules were
compared with what the loader did.
"""

from compressor.analysis.inspection.folder import Folder
from compressor.analysis.inspection.loaders.answer import Answer, Facts, filled
from compressor.analysis.inspection.loaders.exported import exported
from compressor.analysis.inspection.loaders.gguf import k_quants
from compressor.analysis.inspection.loaders.installed import by_loading, load_here, with_its_code
from compressor.analysis.inspection.loaders.kernels import kernels
from compressor.analysis.inspection.loaders.older import older
from compressor.analysis.inspection.loaders.vllm import TENSOR_PARALLEL, tensor_parallel
from compressor.model.per_layer import ships_own_code
from compressor.model.widths import BlockWidths


def answers(
    folder: Folder,
    widths: list[BlockWidths] | None,
    wrong: list[str],
    differing_head: bool = False,
) -> list[Answer]:
    """The matrix, of what `Facts` says."""
    widths = widths and filled(widths)
    coded = load_here(folder, code=True) if ships_own_code(folder.path) else None
    facts = Facts(folder, widths, wrong, load_here(folder), coded, differing_head)
    with_code = [with_its_code(facts)] if folder.written.get("auto_map") else []
    return [
        by_loading(facts, "installed", facts.here),
        *with_code,
        older(facts),
        *(tensor_parallel(facts, devices) for devices in TENSOR_PARALLEL),
        kernels(widths, folder.packing),
        exported(facts),
        k_quants(facts),
    ]
