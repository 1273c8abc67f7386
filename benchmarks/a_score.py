"""The cosine A score of one image beside the broadcast form, in one run on one thread.

    python benchmarks/a_score.py

576 target and 576 reference tokens of width 4096. The broadcast form as published,
cosine_similarity(target[:, None], reference[None]), holds 15 GB there in float32, so it is timed on
16 of the 576 target tokens and multiplied by 36; at 256 x 256 x 1024 both run whole. The memory is
the growth of the process' peak, after torch has warmed up and before the broadcast form has run.
"""

import argparse
import resource
import time
from collections.abc import Callable

import torch
from torch.nn.functional import cosine_similarity

from A_score.cosine import ARITHMETICS

TARGET, REFERENCE, WIDTH, PART = 576, 576, 4096, 16


def broadcast(target_TC: torch.Tensor, reference_RC: torch.Tensor) -> torch.Tensor:
    """[T]: the largest cosine of each target token, the published way."""
    target_TC = target_TC / (target_TC.norm(dim=1, keepdim=True) + 1e-10)
    reference_RC = reference_RC / (reference_RC.norm(dim=1, keepdim=True) + 1e-10)
    return cosine_similarity(target_TC[:, None], reference_RC[None], dim=-1).amax(1)


def best_of(function: Callable, times: int) -> tuple[float, object]:
    """(seconds of the quickest run, what it returned)."""
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        result = function()
        seconds.append(time.perf_counter() - start)
    return min(seconds), result


def ours(arithmetic: str, target_TC: torch.Tensor, reference_RC: torch.Tensor) -> float:
    """The score from raw tokens, preparation of both sides included."""
    way = ARITHMETICS[arithmetic]
    return way.compare(way.prepare(target_TC), way.prepare(reference_RC))


def peak_mb() -> float:
    """Peak resident memory of this process so far, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def tokens(n: int, width: int, seed: int) -> torch.Tensor:
    """Random tokens with a few large channels, as a projector's output has."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, width, generator=generator) * (
        1 + 9 * torch.rand(width, generator=generator) ** 8
    )


def main() -> None:
    """Prints times, ratios, agreement and extra memory."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=3, help="runs, of which the quickest counts")
    times = parser.parse_args().times
    torch.set_num_threads(1)
    ours("float32", tokens(8, 8, 0), tokens(8, 8, 1))
    ours("bfloat16", tokens(8, 8, 0), tokens(8, 8, 1))

    target, reference = tokens(TARGET, WIDTH, 0), tokens(REFERENCE, WIDTH, 1)
    before = peak_mb()
    quick, value = best_of(lambda: ours("float32", target, reference), times)
    extra = peak_mb() - before
    part, largest = best_of(lambda: broadcast(target[:PART], reference), times)
    slow = part * TARGET / PART
    agree = abs(ours("float32", target[:PART], reference) - largest.double().mean().item())
    print(f"{TARGET} x {REFERENCE} x {WIDTH}, float32, one image")
    print(f"  ours       {quick:.3f} s, {extra:.0f} MB beyond the two inputs, A = {value:.8f}")
    print(f"  broadcast  {slow:.1f} s, from {part:.2f} s for {PART} target tokens")
    print(f"  ratio {slow / quick:.0f}; on those {PART} tokens the scores differ by {agree:.1e}")

    emulated, _ = best_of(lambda: ours("bfloat16", target, reference), 1)
    part, _ = best_of(lambda: broadcast(target[:PART].bfloat16(), reference.bfloat16()), times)
    same = ours("bfloat16", target[:PART], reference)
    published = broadcast(target[:PART].bfloat16(), reference.bfloat16()).mean().item()
    print(f"{TARGET} x {REFERENCE} x {WIDTH}, bfloat16 emulated")
    print(f"  ours {emulated:.2f} s, broadcast {part * TARGET / PART:.1f} s (scaled likewise)")
    print(f"  on {PART} tokens both give {same:.7f}: {same == published}")

    target, reference = tokens(256, 1024, 2), tokens(256, 1024, 3)
    quick, value = best_of(lambda: ours("float32", target, reference), 5 * times)
    slow, largest = best_of(lambda: broadcast(target, reference), times)
    print("256 x 256 x 1024, float32, both whole")
    print(f"  ours {1000 * quick:.2f} ms, broadcast {1000 * slow:.0f} ms, ratio {slow / quick:.0f}")
    print(f"  the scores differ by {abs(value - largest.double().mean().item()):.1e}")


if __name__ == "__main__":
    main()
