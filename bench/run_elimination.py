"""Seconds and peak memory of ordering the channels of one FFN by greedy elimination.

python bench/run_elimination.py --width 11008 --outputs 4096
"""

import resource
import time

import torch
import typer

from compressor.solvers.elimination import eliminate


def main(width: int = 11008, outputs: int = 4096, tokens: int = 16384, device: str = "cpu") -> None:
    torch.manual_seed(0)
    gram = torch.zeros(width, width, device=device)
    spectrum = torch.linspace(0, -3, width, device=device).exp()
    for part in range(0, tokens, 1024):
        inputs = spectrum * torch.randn(min(1024, tokens - part), width, device=device)
        gram.addmm_(inputs.T, inputs)
    gram /= tokens
    handed_over = [gram]
    del gram
    weight = torch.randn(outputs, width, device=device)
    begin, used = time.perf_counter(), time.process_time()
    found = eliminate(handed_over.pop(), weight, torch.ones(width, device=device))
    assert len(found.unique()) == width
    seconds, cores = time.perf_counter() - begin, torch.get_num_threads()
    used = time.process_time() - used
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{width} channels, {outputs} outputs, float32 on {device} ({cores} threads): {seconds:.1f} s, "
        f"{used:.1f} s of processor time; peak resident memory of the process {peak:.2f} GiB"
    )


if __name__ == "__main__":
    typer.run(main)
