"""Rates of the matrix kernels, with weights that come from memory.

Each call takes the next of many copies of the weights, together larger than any cache, so that the figures are those of
a model's step. Example: python benchmarks/kernels/matmul.py --shapes smollm2 --rows 1 8 32
"""

import argparse
import json
import statistics

import numpy as np

from realm import _cpu
from realm.core.quant import QuantType
from realm.testing.quants import random_blocks

COLD_BYTES = 160 << 20

# (name, type, N, K)
SHAPES = {
    "smollm2": [
        ("qkv", QuantType.Q4_1, 960, 576),
        ("o", QuantType.Q4_1, 576, 576),
        ("gate_up", QuantType.Q4_1, 3072, 576),
        ("down", QuantType.Q4_1, 576, 1536),
        ("head", QuantType.Q8_0, 49152, 576),
    ],
    "gemma3-270m": [
        ("q", QuantType.Q5_0, 1024, 640),
        ("k", QuantType.Q5_0, 256, 640),
        ("v", QuantType.Q8_0, 256, 640),
        ("gate_up", QuantType.Q5_0, 4096, 640),
        ("o", QuantType.Q4_K, 640, 1024),
        ("down", QuantType.Q6_K, 640, 2048),
        ("down", QuantType.Q4_K, 640, 2048),
        ("head", QuantType.Q8_0, 262144, 640),
    ],
    "8b": [
        ("o", QuantType.Q4_1, 4096, 4096),
        ("gate", QuantType.Q4_1, 14336, 4096),
        ("down", QuantType.Q4_1, 4096, 14336),
    ],
    "types": [("square", quant_type, 4096, 4096) for quant_type in QuantType],
}


def cold_copies(quant_type: QuantType, num_outputs: int, num_inputs: int, cold_bytes: int) -> list[np.ndarray]:
    data = random_blocks(quant_type, num_outputs, num_inputs, np.random.default_rng(0)).ravel()
    packed = _cpu.pack(quant_type, data, num_outputs, num_inputs)
    return [packed, *(packed.copy() for _ in range(cold_bytes // packed.size))]


def measure(weights: list[np.ndarray], shape: tuple, num_rows: int, isa: str, num_threads: int, seconds: float) -> dict:
    name, quant_type, num_outputs, num_inputs = shape
    x = np.random.default_rng(1).normal(size=(num_rows, num_inputs)).astype(np.float32)
    args = (quant_type, weights, x, num_outputs, isa, num_threads)
    once = statistics.median(_cpu.time_matmul(*args, 3))
    median = statistics.median(_cpu.time_matmul(*args, max(3, int(seconds / once))))
    return {
        "shape": f"{name} {num_outputs}x{num_inputs}",
        "type": quant_type.name,
        "isa": isa,
        "threads": num_threads,
        "rows": num_rows,
        "us": round(median * 1e6, 1),
        "gflops": round(2e-9 * num_rows * num_outputs * num_inputs / median),
        "gbytes": round(1e-9 * weights[0].size / median, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["smollm2"])
    parser.add_argument("--only", nargs="+", default=[], help="type or shape names to keep")
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 2, 4, 8, 16, 32, 64, 128, 512])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--isa", nargs="+", default=[_cpu.available_isas()[-1]])
    parser.add_argument("--seconds", type=float, default=0.15, help="per measurement")
    parser.add_argument("--json", action="store_true", help="one JSON row per measurement")
    args = parser.parse_args()
    for model in args.shapes:
        for shape in SHAPES[model]:
            if args.only and not {shape[0], shape[1].name} & set(args.only):
                continue
            weights = cold_copies(*shape[1:], COLD_BYTES)
            for isa in args.isa:
                for num_threads in args.threads:
                    rows = [measure(weights, shape, n, isa, num_threads, args.seconds) for n in args.rows]
                    if args.json:
                        print(*map(json.dumps, rows), sep="\n")
                        continue
                    cells = "  ".join(f"M={r['rows']} {r['us']}us {r['gflops']}GF" for r in rows)
                    print(
                        f"{rows[0]['shape']} {rows[0]['type']} {isa} {num_threads}t  {rows[0]['gbytes']}GB/s  {cells}"
                    )


if __name__ == "__main__":
    main()
