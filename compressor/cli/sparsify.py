"""`compressor sparsify SOURCE DEST --sparsity 0.5`: zeros in the place of weights."""

from compressor.cli import flags
from compressor.cli.arguments import Panels, offers
from compressor.cli.compress import CALIBRATION, JOB, MACHINE, TEXTS, run_and_show
from compressor.config.job import sparsify_config
from compressor.config.quantization import QuantConfig
from compressor.config.runtime import Runtime
from compressor.config.sparse import SparseConfig
from compressor.config.text import TextConfig

PANELS: Panels = {
    "What becomes zero": {
        SparseConfig: ("sparsity", "method", "update"),
        QuantConfig: ("quantize",),
    },
    "Texts": {TextConfig: TEXTS},
    "Machine": {Runtime: MACHINE},
    "Job": {Runtime: JOB},
}


@offers(PANELS, calibration=CALIBRATION)
def sparsify(
    source: flags.Source, dest: flags.Dest, as_json: flags.Json = False, *, options: dict
) -> None:
    """Set single weights to zero; tensors keep their shapes, and files their size."""
    run_and_show(sparsify_config(source, dest, **options), as_json)
