"""The jobs that are killed: every stage, method, layout, repair, recovery and scheme on tiny models."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from conftest import build_checkpoint, make_family

from compressor.scoring.methods import METHODS

TEXT = "The quick brown fox jumps over the lazy dog; 12 boxes, 3 jugs.\n" * 30
DETAILS = "batch: 4\naccumulate: 2\nsave_every: 2\nlearning_rate: 0.01\n"  # of a training
ENDS = {"plan": ".json", "text": ".txt", "details": ".yaml"}
SOURCE, DEST = "{source}", "{dest}"
ALONE = ["--repair", "none"]  # nothing but the method


@dataclass(frozen=True)
class Case:
    """One job: the command's arguments, and which source it reads.

    former: whether another result stands at DEST, which the job is to replace. drawn: whether the
    picture is drawn, which takes as long as all the rest. jobs: of it, in a row.
    """

    name: str
    arguments: list[str]
    source: str = "llama"
    former: bool = False
    drawn: bool = False
    jobs: int = 4

    @property
    def uses(self) -> set[str]:
        """The names of what it reads."""
        return {self.source, *(a[1:-1] for a in self.arguments if a.startswith("{"))}

    def filled(self, places: dict[str, Path], dest: Path) -> list[str]:
        """The arguments with the folders of a run in them."""
        known = {name: str(path) for name, path in places.items()}
        known |= {"source": known[self.source], "dest": str(dest)}
        return [argument.format(**known) for argument in self.arguments]


def job(*options: str, command: str = "compress") -> list[str]:
    """A job without a verification, which takes a process of its own."""
    text = ["--calibration", "{text}", "--length", "32", "--samples", "6"]
    return [command, SOURCE, DEST, *text, "--no-verify", *options]


def cut(name: str, *options: str, **given) -> Case:
    return Case(name, job("--keep", "0.7", *options), **given)


def of_channels() -> list[str]:
    return [name for name, method in METHODS.items() if "channels" in method.units]


def of_experts() -> list[str]:
    return [name for name, method in METHODS.items() if "whole experts" in method.units]


def cases() -> list[Case]:
    """All of them, in the order they are taken."""
    trained = ["--recover-config", "{details}", "--repair", "none"]
    sparse = ["--sparsity", "0.5"]
    return [
        *(
            cut(f"method {name}", "--method", name, "--allocate", "uniform", *ALONE)
            for name in of_channels()
        ),
        *(
            cut(f"experts {name}", "--method", name, *ALONE, source="mixture")
            for name in of_experts()
        ),
        cut("experts channels", "--experts", "channels", "--repair", "ridge", source="mixture"),
        cut("experts refitted", "--repair", "ridge", source="mixture"),
        *(cut(f"repair {kind}", "--repair", kind) for kind in ("none", "ridge", "refine:2")),
        *(
            cut(f"allocate {how}", "--allocate", how, "--repair", "ridge")
            for how in ("exact", "measured")
        ),
        cut("layout per-layer", "--layout", "per-layer", "--allocate", "global", "--repair", "ridge"),
        cut("layout nas", "--layout", "nas", "--allocate", "global", "--repair", "ridge"),
        *(cut(f"recover {how}", "--recover", f"{how}:6", *trained) for how in ("lora", "distill")),
        *(
            Case(f"quantize {scheme}", job("--quantize", scheme), source="even")
            for scheme in ("w4a16:32", "fp8", "nvfp4a16")
        ),
        cut("all of it", "--repair", "ridge", "--recover", "lora:4", *trained[:2], "--quantize",
            "w4a16:16", "--align", "16", source="even"),
        *(
            Case(f"sparsify {method}", job(*sparse, "--method", method, command="sparsify"))
            for method in ("besa", "sparsegpt", "wanda", "magnitude")
        ),
        Case("sparsify in 4 bits",
             job(*sparse, "--quantize", "w4a16:32", command="sparsify"), source="even"),
        Case("several ratios", job("--keep", "0.8", "--keep", "0.6", "--repair", "ridge")),
        Case("drop blocks", job("--drop-blocks", "1")),
        cut("drop blocks auto", "--drop-blocks", "auto", "--repair", "ridge"),
        Case("keep hidden", job("--keep-hidden", "0.75")),
        Case("calibration own", ["compress", SOURCE, DEST, "--keep", "0.7", "--samples", "6",
                                 "--length", "32", "--repair", "ridge", "--no-verify"]),
        cut("overwrite", "--repair", "ridge", "--overwrite", former=True),
        cut("drawn", "--repair", "ridge", drawn=True),
        Case("stage score", ["score", SOURCE, "--out", DEST, "--calibration", "{text}", "--length",
                             "32", "--samples", "6", "--select", "obs"]),
        Case("stage cut", ["cut", SOURCE, DEST, "--plan", "{plan}", "--calibration", "{text}",
                           "--length", "32", "--samples", "6", "--repair", "ridge", "--no-verify"]),
        Case("verified", [a for a in job("--keep", "0.7", "--repair", "ridge") if a != "--no-verify"],
             jobs=2),
        cut("allocate besa", "--allocate", "besa", *ALONE, jobs=1),
    ]  # fmt: skip


def make_places(root: Path, used: set[str], finish: Callable[[list[str]], None]) -> dict[str, Path]:
    """The folders and files of these names, made in `root`; finish: runs a command to its end."""
    places = {name: root / name for name in ("llama", "even", "mixture", "plan", "text", "details")}
    places = {name: path.with_suffix(ENDS.get(name, "")) for name, path in places.items()}
    places["text"].write_text(TEXT)
    places["details"].write_text(DETAILS)
    build_checkpoint(places["llama"])
    if "even" in used:
        build_checkpoint(places["even"], intermediate_size=64)
    if "mixture" in used:
        make_family("qwen3_moe", places["mixture"])
    if "plan" in used:
        scores, text = str(root / "scores.safetensors"), ["--calibration", str(places["text"])]
        text += ["--length", "32", "--samples", "6"]
        finish(["score", str(places["llama"]), "--out", scores, *text])
        finish(["plan", scores, "--keep", "0.7", "--out", str(places["plan"])])
    return places
