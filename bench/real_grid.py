"""What `make real` runs: one table, a star around the default recipe.

Every line is one command `compress SOURCE DEST --keep-blocks SHARES... OPTIONS`, which scores once and
cuts each share that it names; each share is a result, judged by itself: 35 of them. Around the default
(`llm-bip`, `--repair refine`, equal widths) one thing at a time is another: the calibration text (three
draws, and texts that need no download), the widths, the scoring method, the repair, a recovery after it;
the second model; and last methods in their papers' own form. What matters most comes first.

On two quiet cores the default is a minute of scores and selection, and 8 of repair for each share. What
the others take beyond that has not been measured; a judge takes 2 minutes, the zero-shot tasks 5.
"""

from dataclasses import dataclass
from pathlib import Path

SMOLLM2, GEMMA3 = "SmolLM2-135M", "gemma3-270m"
SHARES = (0.9, 0.8, 0.7)
# Gemma 3 270M has one KV group, which stays: 10, 20 and 30 % of the FFN channels are these of a block.
GEMMA_SHARES = (0.929, 0.859, 0.788)
ALIGN = "--align 8"
OWN = "--layout per-layer"


@dataclass(frozen=True)
class Run:
    """One command.

    shares: of the weights of the blocks' projections that stay (or, of `sparsify`, that are not zero).
    options: `{bench}` in them is the folder of this file.
    draw: 0 calibrates on the first windows of the text, 1 and 2 on as many after those.
    text: calibrated on instead: one of Python's, or `own`, which the model writes itself.
    job: `compress`, `sparsify`, or `parity`: BESA with what the published program has, from Python.
    accuracy: the shares of which the zero-shot tasks are run, too.
    """

    name: str
    options: str = ""
    shares: tuple[float, ...] = (0.8,)
    draw: int = 0
    text: str = ""
    model: str = SMOLLM2
    job: str = "compress"
    accuracy: tuple[float, ...] = ()

    def command(self, source: str, dest: str, calibration: str, length: int) -> list[str]:
        """What a user types, as words. Another process judges, so there is no `--evaluation`."""
        texts = ["--calibration", calibration, "--length", f"{length}", "--evaluation", "none"]
        texts += ["--overwrite", "--json"]
        options = self.options.format(bench=Path(__file__).parent).split()
        if self.job != "compress":
            zeros = ["--sparsity", f"{1 - self.shares[0]:g}"]
            return ["compressor", "sparsify", source, dest, *zeros, *options, *texts]
        shares = ["--keep-blocks", *(f"{share:g}" for share in self.shares)]
        return ["compress", source, dest, *shares, *ALIGN.split(), *options, *texts]


def method(name: str) -> Run:
    return Run(f"method {name}", f"--method {name}")


def calibrated(name: str) -> Run:
    return Run(f"text {name}", text=name, accuracy=(0.8,))


def recover(name: str, options: str) -> Run:
    return Run(f"recover {name}", f"--recover {options}")


GRID = (
    Run("default", shares=SHARES, accuracy=(0.8,)),
    Run("fast", "--fast"),
    *map(calibrated, ("stdlib", "stdlib-prose", "own")),
    Run("own widths", f"--allocate measured {OWN}", shares=SHARES),
    Run("default", draw=1),
    Run("default", draw=2),
    Run("default", shares=GEMMA_SHARES, model=GEMMA3),
    Run("text own", text="own", shares=GEMMA_SHARES[1:2], model=GEMMA3),
    Run("repair none", "--repair none"),
    Run("repair ridge", "--repair ridge"),
    Run("repair ridge-local", "--repair ridge-local"),
    # Of LLM-Pruner's three the best: docs/lab-book.md has `taylor-mix`, which is the same to the third
    # digit, and `taylor-vector`, which is behind both.
    *map(method, ("random", "magnitude", "wanda-sp", "taylor", "mask-fisher", "kfac", "hywia")),
    recover("lora", "lora:200"),
    recover("distill", "distill:200"),
    recover("fine-tuning", "distill:200 --recover-config {bench}/fine_tuning.yaml"),
    Run("allocate exact", f"--allocate exact {OWN}"),
    Run("allocate besa", f"--method besa {OWN}"),  # its default allocation: learned gates
    # As their papers have them: units by the method's own score, nothing repaired (and not tuned).
    Run("LLM-BIP as published", "--method llm-bip:bip --repair none"),
    Run("HyWIA as published", "--method hywia:attention --repair none"),
    # BESA zeroes single weights; beside the published program's ways, ours.
    Run("BESA as published", shares=(0.5,), job="parity"),
    Run("BESA, weights", shares=(0.5,), job="sparsify"),
)
