"""Seconds and peak memory of the closed-form repair of one block, by its parts, and of the whole model.

python bench/run_repair.py --hidden 4096 --width 11008 --blocks 32 --tokens 65536

Random activations and weights, and one input that all targets follow, so that a lambda is taken; widths
as they are before the cut, which bounds those after it. A block has four regressions: what attention and
FFN read (hidden x hidden each), o_proj and down_proj. Sums are accumulated over `--sample` tokens and
extrapolated to `--tokens`, of which every 16th is held back; each regression is factorised once for
every lambda, and once more for the one taken. Forward passes are not in it.
"""

import resource
import time
from dataclasses import dataclass

import torch
import typer

from compressor.solvers.ridge import GRID, Moments, ridge


@dataclass(frozen=True)
class Regression:
    name: str
    outputs: int
    channels: int
    times: int  # in a block


def timed(device: str, run) -> tuple[float, object]:
    begin = time.perf_counter()
    found = run()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - begin, found


def activations(tokens: int, channels: int, seed: int, device: str) -> torch.Tensor:
    """Random rows [tokens, channels] whose channels differ 20 times in scale."""
    generator = torch.Generator(device).manual_seed(seed)
    scale = torch.linspace(0, -3, channels, device=device).exp()
    return scale * torch.randn(tokens, channels, generator=generator, device=device)


def main(
    hidden: int = 4096,
    width: int = 11008,
    blocks: int = 32,
    tokens: int = 65536,
    sample: int = 2048,
    device: str = "cpu",
    half: bool = False,
) -> None:
    dtype = torch.bfloat16 if half else torch.float32
    regressions = [
        Regression("inputs", hidden, hidden, 2),
        Regression("o_proj", hidden, hidden, 1),
        Regression("down_proj", hidden, width, 1),
    ]
    whole = 0.0
    for r in regressions:
        fit, held = (
            Moments.empty(r.channels, r.outputs, torch.device(device), dtype) for _ in range(2)
        )
        spent = 0.0
        for seed, sums in enumerate((fit, held)):
            inputs = activations(sample, r.channels, seed, device)
            targets = activations(sample, r.outputs, seed + 2, device) + 4 * inputs[:, :1]
            seconds, _ = timed(device, lambda s=sums, x=inputs, t=targets: s.add(x, t))
            spent += seconds / 2
        del inputs, targets
        sums_take = spent * tokens / sample
        present = torch.zeros(r.outputs, r.channels, device=device)
        solve_takes, (_, _, errors) = timed(
            device,
            lambda f=fit, h=held, p=present: ridge(
                f.gram, f.cross, p, h.gram, h.cross, h.energy, GRID
            ),
        )
        tried = len(errors) - 1
        del fit, held, present
        whole += r.times * (sums_take + solve_takes)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(
            f"{r.name} ({r.outputs} x {r.channels}, {r.times} a block): sums of {tokens} tokens "
            f"{sums_take:.1f} s (from {sample}), {tried} factorisations and refits {solve_takes:.1f} s, "
            f"peak resident memory so far {peak:.2f} GiB"
        )
    print(
        f"a block {whole:.0f} s, {blocks} blocks {whole * blocks / 3600:.2f} h on {device} "
        f"({torch.get_num_threads()} threads), sums of {str(dtype).removeprefix('torch.')} numbers"
    )
    if device != "cpu":
        print(f"peak device memory {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB")


if __name__ == "__main__":
    typer.run(main)
