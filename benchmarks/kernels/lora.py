"""Cost of the adapters' side path in one step, all layers of a model, with adapters that come from memory.

Example: python benchmarks/kernels/lora.py --model smollm2 --adapters 0 1 8 --rows 8 --rank 16
"""

import argparse
import statistics

import numpy as np

from realm import _cpu

STORES = {"int8": 0, "f32": 1}
# num_layers, then (num_inputs, num_outputs of each matrix) of each linear layer
MODELS = {
    "smollm2": (30, [(576, [576, 192, 192]), (576, [576]), (576, [1536, 1536]), (1536, [576])]),
    "gemma3-270m": (18, [(640, [1024, 256, 256]), (1024, [640]), (640, [2048, 2048]), (2048, [640])]),
}


def adapter_layers(model: str, rank: int, store: int, rng: np.random.Generator) -> list:
    """One adapter: a module for each linear layer."""
    num_layers, linears = MODELS[model]
    num_params = num_layers * sum(rank * (k * len(n) + sum(n)) for k, n in linears)
    arena = _cpu.LoraArena(num_params * (2 if store == STORES["int8"] else 4))
    modules = []
    for _ in range(num_layers):
        for num_inputs, num_outputs in linears:
            a = rng.normal(0, 0.05, (rank, num_inputs)).astype(np.float32)
            parts = [(a, rng.normal(0, 0.02, (n, rank)).astype(np.float32), 2.0) for n in num_outputs]
            modules.append(_cpu.LoraModule(store, parts, num_outputs, arena))
    return modules


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=MODELS, default="smollm2")
    parser.add_argument("--store", choices=STORES, default="int8")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--adapters", type=int, nargs="+", default=[1, 8], help="how many are in the step")
    parser.add_argument("--rows", type=int, nargs="+", default=[8, 32], help="rows of the step, shared out evenly")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--isa", default=_cpu.available_isas()[-1])
    parser.add_argument("--repeats", type=int, default=60)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    most = max(args.adapters)
    adapters = [adapter_layers(args.model, args.rank, STORES[args.store], rng) for _ in range(most)]
    num_bytes = sum(module.num_bytes for module in adapters[0])
    print(f"{args.model} rank {args.rank} {args.store}: {num_bytes / 1e6:.2f} MB per adapter")
    linears = MODELS[args.model][1] * MODELS[args.model][0]
    for num_rows in args.rows:
        for count in args.adapters:
            edges = [num_rows * i // count for i in range(count + 1)]
            layers = [
                ([(edges[i], edges[i + 1], adapters[i][index]) for i in range(count)], num_inputs, num_outputs)
                for index, (num_inputs, num_outputs) in enumerate(linears)
            ]
            for threads in args.threads:
                median = statistics.median(_cpu.time_lora(layers, num_rows, args.isa, threads, args.repeats))
                rate = count * num_bytes / median / 1e9
                print(f"rows {num_rows} adapters {count} threads {threads}: {median * 1e3:.3f} ms, {rate:.1f} GB/s")


if __name__ == "__main__":
    main()
