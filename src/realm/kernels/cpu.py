"""The native CPU device: a decoder recorded once as a `Program` of fused ops, replayed by one native call per step."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from realm import _cpu
from realm.core.config import KVType
from realm.core.errors import ModelFileError
from realm.core.quant import QuantType
from realm.core.types import Batch, Float32Array, Int32Array
from realm.kernels.drafting import SURENESS_BOUNDS, DraftPlan, DraftRound
from realm.kernels.ops import Linear, LoRALayer, QuantTensor, Rope
from realm.kernels.recording import (
    Add,
    Attend,
    Embed,
    Gate,
    Head,
    Judged,
    Node,
    Norm,
    Project,
    Recorder,
    RecordingOps,
    fuse,
    judged_nodes,
    last_reads,
    matrices,
)
from realm.kernels.sampling_reference import SampleInputs, SampleOutputs

NONE = -1  # no bias, no residual, no norm
_FLOAT_TYPES = frozenset({QuantType.F32, QuantType.F16, QuantType.BF16})
Progress = Callable[[int, int], None]


class NativeSampler:
    """Sampling as `kernels.sampling_reference` defines it, in native code.

    Args:
        program: works on this program's threads; alone if None.
        isa: instruction set, where there is no program.
    """

    def __init__(self, program: _cpu.Program | None = None, isa: str | None = None) -> None:
        self._native = _cpu.Sampler(isa or _cpu.default_isa()) if program is None else _cpu.Sampler(program)

    def sample_rows(self, logits: Float32Array, inputs: SampleInputs) -> SampleOutputs:
        """Draw one token for each row of `logits` [S, V], which is left as it is."""
        outputs = SampleOutputs.empty(len(logits))
        self._native.sample(
            logits,
            inputs.temperature,
            inputs.top_k,
            inputs.top_p,
            inputs.min_p,
            inputs.repetition_penalty,
            inputs.presence_penalty,
            inputs.frequency_penalty,
            inputs.seeds,
            inputs.positions,
            inputs.num_logprobs,
            inputs.bias_starts,
            inputs.bias_ids,
            inputs.bias_values,
            inputs.history_starts,
            inputs.history_ids,
            inputs.history_counts,
            outputs.token_ids,
            outputs.logprobs,
            outputs.top_ids,
            outputs.top_logprobs,
        )
        return outputs

    def argmax_rows(self, logits: Float32Array) -> Int32Array:
        """Largest logit of each row [S], lowest id among equals; -1 where it isn't finite or the row holds a NaN."""
        token_ids = np.empty(len(logits), np.int32)
        self._native.argmax(logits, token_ids)
        return token_ids


class NativeExecutor:
    """`Executor` over the native kernels.

    Args:
        decoder: the decoder, given the ops to record with.
        vocab_size: V.
        num_kv_blocks: blocks in the KV pool.
        block_tokens: tokens in one block, a multiple of 16.
        kv_type: f16 (default), int8 (half the memory and traffic, slightly less exact) or f32.
        max_batch_tokens: T at most.
        max_positions: tokens of the longest request, prompt and output.
        num_threads: threads of a step; the calling thread is one of them.
        isa: instruction set; the fastest that the CPU has, or `REALM_CPU_ISA`, if None. All give the same bits.
        pin_threads: bind each thread to a CPU.
        beside: an executor that steps at other times, whose threads this one uses and whose matrices it may share.
        shared: names of the matrices to take from `beside`, without a copy.
        progress: called with (tensors packed, tensors in all).

    Raises:
        ModelFileError: a matrix has a width that the kernels do not handle.
    """

    def __init__(
        self,
        decoder: Recorder,
        *,
        vocab_size: int,
        num_kv_blocks: int,
        block_tokens: int,
        max_batch_tokens: int,
        max_positions: int,
        num_threads: int,
        kv_type: KVType = KVType.F16,
        isa: str | None = None,
        pin_threads: bool = False,
        beside: NativeExecutor | None = None,
        shared: frozenset[str] = frozenset(),
        progress: Progress | None = None,
    ) -> None:
        self.vocab_size = vocab_size
        self.num_kv_blocks = num_kv_blocks
        self._program: _cpu.Program = _cpu.Program(
            num_threads=num_threads,
            max_tokens=max_batch_tokens,
            max_logit_rows=max_batch_tokens,
            max_positions=max_positions,
            vocab_size=vocab_size,
            num_blocks=num_kv_blocks,
            block_tokens=block_tokens,
            kv_type=kv_type.value,
            isa=isa if beside is None else beside.isa,
            pin_threads=pin_threads,
            beside=None if beside is None else beside._program,
        )
        ops = RecordingOps()
        decoder(ops)
        builder = _Builder(self._program, fuse(ops.nodes), progress, is_draft=beside is not None)
        if beside is not None:
            for name in shared:
                builder.matrices[name] = self._program.share_matrix(beside._program, beside._matrices[name])
        builder.build()
        self._matrices: dict[str, int] = builder.matrices
        self._lora_sites = builder.lora_sites
        self._logits: Float32Array = self._program.logits_buffer()
        self.sampler = NativeSampler(self._program)
        self.weights_bytes = self._program.weights_bytes
        self.kv_bytes = self._program.kv_bytes

    @property
    def isa(self) -> str:
        """The instruction set in use."""
        return self._program.isa

    def step(self, batch: Batch) -> Float32Array:
        """Run one step, writing KV, and give logits [S, V]: a view, valid until the next step."""
        self._program.step(
            batch.token_ids,
            batch.query_starts,
            batch.context_lens,
            batch.block_tables,
            batch.logit_rows,
            batch.adapter_slots,
            batch.likeliest_only,
        )
        return self._logits[: len(batch.logit_rows)]

    def draft(self, plan: DraftPlan, token_ids: Int32Array | None) -> DraftRound:
        """A round of drafting as `kernels.drafting` defines it, in one native call."""
        first = plan.first
        done = DraftRound.empty(len(first.logit_rows), plan.max_steps)
        done.num_steps = self._program.draft(
            first.token_ids,
            first.query_starts,
            first.context_lens,
            first.block_tables,
            first.logit_rows,
            first.adapter_slots,
            plan.limits,
            plan.rates,
            plan.means,
            SURENESS_BOUNDS,
            plan.worth_verifying,
            plan.worth_drafting,
            token_ids,
            done.tokens,
            done.classes,
            done.num_guesses,
            done.num_drafts,
            done.step_rows,
            done.step_seconds,
        )
        return done

    def adapter_bytes(self, layers: Mapping[str, LoRALayer]) -> int:
        """Memory that `pack_adapter` would take."""
        return self._program.adapter_bytes(self._changes(layers))

    def pack_adapter(self, layers: Mapping[str, LoRALayer]) -> _cpu.PackedAdapter:
        """An adapter with its matrices as int8, or as float32 where the model's own are floats. From any thread."""
        return self._program.pack_adapter(self._changes(layers))

    def set_adapter(self, slot: int, packed: _cpu.PackedAdapter | None) -> None:
        """What rows with this slot compute with from the next step on; None: the slot is empty."""
        self._program.set_adapter(slot, packed)

    def _changes(self, layers: Mapping[str, LoRALayer]) -> list[_cpu.LoRAChange]:
        return [(*self._lora_sites[module], layer.a, layer.b, layer.scale) for module, layer in layers.items()]

    @property
    def skipped_bytes(self) -> int:
        """Of the weights, what all steps so far together had no need to read."""
        return self._program.skipped_bytes

    def start_profile(self) -> None:
        """Time each op from now on."""
        self._program.set_profiling(True)

    def profile(self) -> dict[str, float]:
        """Microseconds in each kind of op, all steps since `start_profile` together, longest first."""
        return dict(self._program.profile())


@dataclass(frozen=True, slots=True)
class _Form:
    """What a native value holds."""

    width: int
    rows: bool  # as float32
    panels: bool  # as int8
    judged: bool  # those judged only


class _Builder:
    """Turns recorded nodes into native ops: packs weights, gives values memory, adds what quantising is missing."""

    def __init__(self, program: _cpu.Program, nodes: list[Node], progress: Progress | None, is_draft: bool) -> None:
        self._program = program
        self._nodes = nodes
        self._progress = progress
        self._is_draft = is_draft
        self.matrices: dict[str, int] = {}
        self.lora_sites: dict[str, tuple[int, int]] = {}  # module -> native site, part of it
        self._ropes: dict[Rope, int] = {}
        self._values: dict[int, int] = {}  # node id -> native value
        self._panels: dict[int, int] = {}  # node id -> native value that holds its panels
        self._forms: dict[int, _Form] = {}  # of native values
        self._free: dict[_Form, list[int]] = {}
        self._last_reads = last_reads(nodes)
        self._judged = judged_nodes(nodes)
        self._read_as_rows, self._read_as_panels = _forms(nodes)

    def build(self) -> None:
        """Pack all weights and add all ops."""
        self._pack()
        for index, node in enumerate(self._nodes):
            self._add_op(index, node)
            for read in node.inputs:
                if self._last_reads[id(read)] == index:
                    self._release(read)

    def _pack(self) -> None:
        tensors = [tensor for tensor in matrices(self._nodes) if tensor.name not in self.matrices]
        for tensor in tensors:
            if not _cpu.can_pack(tensor.quant_type, tensor.num_cols):
                raise ModelFileError(
                    f"tensor {tensor.name}: rows of {tensor.num_cols} {tensor.quant_type.name} values are not supported"
                )
        types: list[int] = [tensor.quant_type for tensor in tensors]
        if (index := self._screened_head(tensors)) is not None:
            types[index] = _cpu.Q8_0_PLANES
        sizes = (_cpu.packed_bytes(kind, t.num_rows, t.num_cols) for t, kind in zip(tensors, types, strict=True))
        self._program.reserve_weights(sum(-(-size // 64) * 64 for size in sizes))
        for done, (tensor, kind) in enumerate(zip(tensors, types, strict=True), start=1):
            self.matrices[tensor.name] = self._program.add_matrix(
                kind, tensor.data.reshape(-1), tensor.num_rows, tensor.num_cols
            )
            _drop_pages(tensor.data)
            if self._progress is not None:
                self._progress(done, len(tensors))

    def _screened_head(self, tensors: list[QuantTensor]) -> int | None:
        """Which tensor is packed so that a greedy request reads part of it: a Q8_0 head that is most of the model.

        See csrc/screen.h. Others have less to gain, and more of their tokens come close to the likeliest one. Drafts
        want probabilities.
        """
        if self._is_draft:
            return None
        heads = {part.name for node in self._nodes if isinstance(node, Head) for part in node.weight.parts}
        total = sum(tensor.data.nbytes for tensor in tensors)
        for index, tensor in enumerate(tensors):
            if heads == {tensor.name} and tensor.quant_type is QuantType.Q8_0 and 2 * tensor.data.nbytes > total:
                return index
        return None

    def _add_op(self, index: int, node: Node) -> None:
        program = self._program
        match node:
            case Embed():
                site = program.embed(self.matrices[node.table.name], node.scale, self._new(node))
                self.lora_sites["token_embd"] = (site, 0)
            case Norm():
                out, residual = self._output(index, node, node.residual)
                program.rms_norm(self._values[id(node.x)], self._vector(node.weight), node.eps, residual, out)
            case Project():
                out, residual = self._output(index, node, node.residual)
                if residual not in (NONE, out):
                    raise AssertionError("a projection adds in place only")
                weights, biases = self._linear(node.weight)
                x = self._input(node.x, node.weight)
                self._add_site(node.weight, program.matmul(x, weights, biases, out, residual != NONE))
            case Attend():
                self._attend(node)
            case Judged():
                self._keep_judged(index, node)
            case Gate(weight=None):
                program.gated(self._values[id(node.x)], node.activation, self._new(node))
            case Gate(weight=Linear() as weight):
                (gate, up), (gate_bias, up_bias) = self._linear(weight)
                x = self._input(node.x, weight)
                out = self._new(node)
                self._add_site(weight, program.gated_matmul(x, gate, up, gate_bias, up_bias, node.activation, out))
            case Add():
                program.add(self._values[id(node.x)], self._values[id(node.y)], self._new(node))
            case Head():
                site = program.logits(self._input(node.x, node.weight), *self._linear(node.weight))
                self.lora_sites["output"] = (site, 0)  # also where it shares the embedding's tensor

    def _attend(self, node: Attend) -> None:
        spec = node.spec
        if spec.rope not in self._ropes:
            rope = spec.rope
            self._ropes[rope] = self._program.add_rope(list(rope.inv_freq), rope.interleaved, rope.mscale)
        self._program.attention(
            self._values[id(node.qkv)],
            num_heads=spec.num_heads,
            num_kv_heads=spec.num_kv_heads,
            head_dim=spec.head_dim,
            window=spec.window or 0,
            scale=spec.scale,
            norm_eps=spec.norm_eps,
            q_norm=self._vector(spec.q_norm),
            k_norm=self._vector(spec.k_norm),
            rope=self._ropes[spec.rope],
            out=self._new(node, panels_too=spec.head_dim % 32 == 0),
        )

    def _keep_judged(self, index: int, node: Judged) -> None:
        """In place: nobody reads the other rows any more."""
        if self._last_reads[id(node.x)] != index:
            raise AssertionError("a value whose judged rows are kept is not read again")
        value = self._values.pop(id(node.x))
        self._values[id(node)] = self._program.keep_judged(value)
        self._forms[self._values[id(node)]] = replace(self._forms[value], judged=True)

    def _output(self, index: int, node: Node, residual: Node | None) -> tuple[int, int]:
        """(value for the result, value of the residual): the same one where the residual isn't read again."""
        if residual is None:
            return self._new(node), NONE
        value = self._values[id(residual)]
        if self._last_reads[id(residual)] == index and id(node) not in self._read_as_panels:
            self._values[id(node)] = self._values.pop(id(residual))
            return value, value
        if isinstance(node, Project):
            value = self._copy(residual, node)
            return value, value
        return self._new(node), value

    def _copy(self, source: Node, node: Node) -> int:
        value = self._allocate(node, rows=True, panels=False)
        self._values[id(node)] = value
        self._program.cast(self._values[id(source)], value)
        return value

    def _input(self, x: Node, weight: Linear) -> int:
        """The value to multiply by `weight`: with panels, with rows, or with both, as its types ask for."""
        value = self._values[id(x)]
        if self._forms[value].panels or not _wants_panels(weight):
            return value
        if id(x) not in self._panels:
            self._panels[id(x)] = self._allocate(x, _wants_rows(weight), panels=True)
            self._program.cast(value, self._panels[id(x)])
        return self._panels[id(x)]

    def _linear(self, weight: Linear) -> tuple[list[int], list[int]]:
        return [self.matrices[p.name] for p in weight.parts], [self._vector(b) for b in weight.biases]

    def _add_site(self, weight: Linear, site: int) -> None:
        for index, part in enumerate(weight.parts):
            self.lora_sites[part.name.removesuffix(".weight")] = (site, index)

    def _vector(self, values: Float32Array | None) -> int:
        return NONE if values is None else self._program.add_vector(np.ascontiguousarray(values, np.float32))

    def _new(self, node: Node, panels_too: bool = True) -> int:
        """Memory for what `node` gives, in the forms that its readers want and its op can write."""
        can_write_panels = panels_too and isinstance(node, Norm | Gate | Attend)
        panels = can_write_panels and id(node) in self._read_as_panels
        rows = not panels or id(node) in self._read_as_rows
        self._values[id(node)] = self._allocate(node, rows, panels)
        return self._values[id(node)]

    def _allocate(self, node: Node, rows: bool, panels: bool) -> int:
        form = _Form(node.width, rows, panels, id(node) in self._judged)
        if self._free.get(form):
            return self._free[form].pop()
        value = self._program.add_value(form.width, rows, panels, form.judged)
        self._forms[value] = form
        return value

    def _release(self, node: Node) -> None:
        for values in (self._values, self._panels):
            value = values.pop(id(node), None)
            if value is not None:
                self._free.setdefault(self._forms[value], []).append(value)


def _forms(nodes: list[Node]) -> tuple[set[int], set[int]]:
    """Ids of the values that some reader wants as float rows, and as int8 panels."""
    rows: set[int] = set()
    panels: set[int] = set()
    for node in nodes:
        weight = node.weight if isinstance(node, Project | Gate | Head) else None
        if isinstance(weight, Linear):
            if _wants_rows(weight):
                rows.add(id(node.inputs[0]))
            if _wants_panels(weight):
                panels.add(id(node.inputs[0]))
            rows.update(id(read) for read in node.inputs[1:])
        else:
            rows.update(id(read) for read in node.inputs)
    return rows, panels


def _wants_rows(weight: Linear) -> bool:
    return any(part.quant_type in _FLOAT_TYPES for part in weight.parts)


def _wants_panels(weight: Linear) -> bool:
    return any(part.quant_type not in _FLOAT_TYPES for part in weight.parts)


def _drop_pages(data: NDArray[np.uint8]) -> None:
    """Give back the memory of a file's pages that have been packed; they stay in the system's page cache."""
    owner = data
    while isinstance(owner.base, np.ndarray):
        owner = owner.base
    base = owner.base.obj if isinstance(owner.base, memoryview) else owner.base
    if not isinstance(base, mmap.mmap) or not hasattr(base, "madvise"):
        return
    offset = data.ctypes.data - owner.ctypes.data
    start = -(-offset // mmap.PAGESIZE) * mmap.PAGESIZE
    num_bytes = (offset + data.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE - start
    if num_bytes > 0:
        base.madvise(mmap.MADV_DONTNEED, start, num_bytes)
