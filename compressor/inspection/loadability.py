"""What loads a folder: every answer with the number that decides it.

The installed transformers is asked: its own loader runs on the meta device, which reads no weight.
The others are rules, as they stand in the sources of the versions named; they are applied to the
widths of the tensors.
"""

import io
from collections.abc import Iterable
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten

from compressor.inspection.folder import Folder
from compressor.per_layer import CODE, KEY, ships_own_code
from compressor.widths import BlockWidths

OLDER = "transformers 4.57"
DEFAULT_THETA = 10_000  # of the rotary embedding, in every family here
TENSOR_PARALLEL = (1, 2, 4, 8)
GROUP, MARLIN_GROUPS = 128, (32, 64, 128)  # weights of one scale
MARLIN_IN, MARLIN_OUT = 128, 64  # channels of one of Marlin's tiles
SUPER_BLOCK = 256  # weights of one block of GGUF's k-quants
# Activations that vLLM's classes take, where that is not silu.
TAKEN_ACTIVATIONS = {"gemma2": "gelu_pytorch_tanh", "gemma3_text": "gelu_pytorch_tanh"}
UNKNOWN = "the widths are not known"


@dataclass(frozen=True)
class Answer:
    """Does `target` take the folder: yes, no, or not known here (None); and what decides."""

    target: str
    loads: bool | None
    because: str


def answers(folder: Folder, widths: list[BlockWidths] | None, wrong: list[str]) -> list[Answer]:
    """The matrix. `wrong`: where config and tensors disagree."""
    stock, own = installed(folder.path), folder.config.get("auto_map")
    found = [stock, *([with_its_code(folder)] if own else []), older(folder, widths, wrong)]
    for devices in TENSOR_PARALLEL:
        found.append(tensor_parallel(folder, widths, stock, devices))
    return [*found, four_bits(widths, folder.group or GROUP), k_quants(widths, folder.group)]


def with_its_code(folder: Folder) -> Answer:
    """The same with the folder's own code, which is run only where it is this package's."""
    if ships_own_code(folder.path):
        return installed(folder.path, code=True)
    return Answer(
        "transformers, trust_remote_code", None, "the folder has code of its own, which is not run"
    )


def installed(path: Path, code: bool = False) -> Answer:
    """transformers' own loader, on the meta device, and only if asked to with code from the folder."""
    import transformers

    how = "trust_remote_code" if code else "installed"
    target = f"transformers {transformers.__version__} ({how})"
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        with redirect_stderr(io.StringIO()):  # progress bars of compressed-tensors
            _, found = transformers.AutoModelForCausalLM.from_pretrained(
                path,
                device_map="meta",
                use_safetensors=True,
                trust_remote_code=code,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except Exception as error:  # whatever it raises, it does not load
        return Answer(target, False, in_a_line(error))
    if mismatched := sorted(found["mismatched_keys"]):
        name, stored, made = mismatched[0]
        shapes = f"{name} is {list(stored)}, its config makes {list(made)}"
        return Answer(target, False, f"{len(mismatched)} tensor(s) do not fit: {shapes}")
    if missing := sorted(found["missing_keys"]):
        return Answer(target, False, f"{len(missing)} tensor(s) would be random: {missing[0]}")
    if unexpected := sorted(found["unexpected_keys"]):
        return Answer(target, False, f"{len(unexpected)} tensor(s) are left out: {unexpected[0]}")
    return Answer(target, True, "no tensor is missing, left over or of another shape")


def in_a_line(error: Exception) -> str:
    return shorten(f"{type(error).__name__}: {error}", 240, placeholder=" ...")


def older(folder: Folder, widths: list[BlockWidths] | None, wrong: list[str]) -> Answer:
    """4.57 reads `rope_theta` and `rope_scaling` at the top of the config and nowhere else."""
    config = folder.config
    if widths is None:
        return Answer(OLDER, None, UNKNOWN)
    if folder.group:
        return Answer(OLDER, None, "it has compressed-tensors' loader, which was not tried")
    if wrong:
        return Answer(OLDER, False, wrong[0])
    if len(set(widths)) > 1 and not (config.get(KEY) and ships_own_code(folder.path)):
        return Answer(OLDER, False, different(widths))
    if folder.family.alibi:
        if config.get("auto_map"):
            return Answer(f"{OLDER}, trust_remote_code", None, "its code was not tried with it")
        return Answer(OLDER, True, "the widths that its class has, and no positions to read")
    rope = config.get("rope_parameters") or {}
    rope = rope.get("full_attention", rope)
    theta, read = rope.get("rope_theta"), config.get("rope_theta", DEFAULT_THETA)
    if theta is not None and theta != read:
        return Answer(OLDER, False, f"it would read rope_theta {read:g}, the model's is {theta:g}")
    if rope.get("rope_type", "default") != "default" and not config.get("rope_scaling"):
        scaling = f"rope_type {rope['rope_type']}"
        return Answer(OLDER, False, f"the config has {scaling} but no rope_scaling")
    if len(set(widths)) > 1:
        return Answer(f"{OLDER}, trust_remote_code", True, f"by {CODE.name}, rope_theta {read:g}")
    return Answer(OLDER, True, f"equal widths in all blocks, rope_theta {read:g}")


def different(widths: list[BlockWidths]) -> str:
    return f"the blocks have {len(set(widths))} different widths, and one config says one"


def tensor_parallel(
    folder: Folder, widths: list[BlockWidths] | None, stock: Answer, devices: int
) -> Answer:
    """vLLM reads the config by transformers' class and shares heads and channels among devices.

    KV heads are shared or, where they are fewer than the devices, repeated a whole number of times.
    """
    target = f"vLLM, tensor parallel {devices}"
    if widths is None:
        return Answer(target, None, UNKNOWN)
    if len(set(widths)) > 1:
        return Answer(target, False, different(widths))
    if not stock.loads:
        return Answer(target, False, "it reads the config as transformers does, which refuses")
    config = folder.config
    activation = config.get("hidden_act", "silu")
    taken = TAKEN_ACTIVATIONS.get(config.get("model_type"), "silu")
    if widths[0].ffn_inputs > 1 and activation != taken:
        return Answer(target, False, f"hidden_act is {activation}, and its classes take {taken}")
    block = widths[0]
    counts = {"heads": block.heads, "KV heads": block.kv_heads, "FFN channels": block.ffn}
    for name, count in counts.items():
        if count % devices and not (name == "KV heads" and devices % count == 0):
            return Answer(target, False, f"{count} {name} mod {devices} is {count % devices}")
    if folder.group:
        for name, channels in {"o_proj": block.query, "down_proj": block.ffn}.items():
            if channels // devices % folder.group:
                part = f"{channels // devices} of {name}'s input channels"
                return Answer(target, False, f"{part} are not whole groups of {folder.group}")
    shown = ", ".join(f"{count} {name}" for name, count in counts.items())
    return Answer(target, True, shown)


def four_bits(widths: list[BlockWidths] | None, group: int = GROUP) -> Answer:
    """Marlin, as vLLM calls it: q, k and v are one matrix, and so are the FFN's inputs."""
    merged = [
        (w.hidden, w.query + 2 * w.key_value, w.ffn_inputs * w.ffn) for w in set(widths or [])
    ]
    outputs = {channels for block in merged for channels in block}
    target = f"4-bit kernels, group {group}"
    if group not in MARLIN_GROUPS:
        return Answer(target, False, f"they have groups of {', '.join(map(str, MARLIN_GROUPS))}")
    checks = (
        ("input", input_channels(widths), max(group, MARLIN_IN)),
        ("output", outputs, MARLIN_OUT),
    )
    return by_multiples(target, widths, checks)


def k_quants(widths: list[BlockWidths] | None, group: int | None = None) -> Answer:
    """llama.cpp quantises rows in blocks of 256; other rows fall back to larger types."""
    if group:
        return Answer(
            "GGUF k-quants", None, "made from the dense checkpoint, not from packed weights"
        )
    checks = (("input", input_channels(widths), SUPER_BLOCK),)
    return by_multiples("GGUF k-quants", widths, checks)


def input_channels(widths: list[BlockWidths] | None) -> set[int]:
    return {channels for block in set(widths or []) for _, channels in block.matrices}


def by_multiples(
    target: str, widths: list[BlockWidths] | None, checks: Iterable[tuple[str, set[int], int]]
) -> Answer:
    """Equal blocks, and channels that are multiples: `checks` are (side, channels, of how many)."""
    if not widths or not all(counts for _, counts, _ in checks):
        return Answer(target, None, UNKNOWN)
    if len(set(widths)) > 1:
        return Answer(target, False, different(widths))
    shown = []
    for side, counts, multiple in checks:
        for channels in sorted(counts):
            if channels % multiple:
                rest = f"{channels} mod {multiple} is {channels % multiple}"
                return Answer(target, False, f"{side} channels: {rest}")
        shown.append(
            f"{side} channels {', '.join(map(str, sorted(counts)))}: multiples of {multiple}"
        )
    return Answer(target, True, "; ".join(shown))
