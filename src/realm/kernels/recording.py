"""Records a decoder's calls as a graph and fuses what a device can do at once. Knows no device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from realm.core.types import Float32Array
from realm.kernels.ops import Activation, AttentionSpec, Linear, QuantTensor


@dataclass(eq=False, slots=True)
class Embed:
    """Rows of a table."""

    table: QuantTensor
    scale: float

    @property
    def width(self) -> int:
        """Columns of the value."""
        return self.table.num_cols

    @property
    def inputs(self) -> tuple[Node, ...]:
        """Values read."""
        return ()


@dataclass(eq=False, slots=True)
class Norm:
    """RMS norm; fused: added to `residual`."""

    x: Node
    weight: Float32Array
    eps: float
    residual: Node | None = None

    @property
    def width(self) -> int:
        """Columns of the value."""
        return self.x.width

    @property
    def inputs(self) -> tuple[Node, ...]:
        """Values read."""
        return (self.x,) if self.residual is None else (self.x, self.residual)


@dataclass(eq=False, slots=True)
class Project:
    """x W^T + b; fused: added to `residual`."""

    x: Node
    weight: Linear
    residual: Node | None = None

    @property
    def width(self) -> int:
        """Columns of the value."""
        return self.weight.num_rows

    @property
    def inputs(self) -> tuple[Node, ...]:
        """Values read."""
        return (self.x,) if self.residual is None else (self.x, self.residual)


@dataclass(eq=False, slots=True)
class Attend:
    """Attention over the cache; fused: `keep_judged`, so that only those rows attend."""

    qkv: Node
    spec: AttentionSpec
    keep_judged: bool = False

    @property
    def width(self) -> int:
        """Columns of the value."""
        return self.spec.num_heads * self.spec.head_dim

    @property
    def inputs(self) -> tuple[Node, ...]:
        """Values read."""
        return (self.qkv,)


@dataclass(eq=False, slots=True)
class Judged:
    """The rows in `logit_rows` only."""

    x: Node

    @property
    def width(self) -> int:
        """Columns of the value."""
        return self.x.width

    @property
    def inputs(self) -> tuple[Node, ...]:
        """Values read."""
        return (self.x,)


@dataclass(eq=False, slots=True)
class Gate:
    """activation(gate) * up; fused: with the projection that makes both from x."""

    x: Node
    activation: Activation
    weight: Linear | None = None

    @property
    def width(self) -> int:
        """Columns of the value."""
        return (self.x.width if self.weight is None else self.weight.num_rows) // 2

    @property
    def inputs(self) -> tuple[Node, ...]:
        """Values read."""
        return (self.x,)


@dataclass(eq=False, slots=True)
class Add:
    """x + y."""

    x: Node
    y: Node

    @property
    def width(self) -> int:
        """Columns of the value."""
        return self.x.width

    @property
    def inputs(self) -> tuple[Node, ...]:
        """Values read."""
        return (self.x, self.y)


@dataclass(eq=False, slots=True)
class Head:
    """The output head over the judged rows."""

    x: Node
    weight: Linear

    @property
    def width(self) -> int:
        """Columns of the value."""
        return self.weight.num_rows

    @property
    def inputs(self) -> tuple[Node, ...]:
        """Values read."""
        return (self.x,)


Node = Embed | Norm | Project | Attend | Judged | Gate | Add | Head


@dataclass(slots=True)
class RecordingOps:
    """`Ops[Node]`: remembers the calls of one decoder, in order."""

    nodes: list[Node] = field(default_factory=list)

    def embed(self, table: QuantTensor, scale: float) -> Node:
        """[T, C]."""
        return self._record(Embed(table, scale))

    def rms_norm(self, x: Node, weight: Float32Array, eps: float) -> Node:
        """[T, C]."""
        return self._record(Norm(x, weight, eps))

    def linear(self, x: Node, weight: Linear) -> Node:
        """[T, N]."""
        return self._record(Project(x, weight))

    def attention(self, qkv: Node, spec: AttentionSpec) -> Node:
        """[T, H*D]."""
        return self._record(Attend(qkv, spec))

    def keep_judged(self, x: Node, attended: Node) -> tuple[Node, Node]:
        """[S, C] and [S, H*D]."""
        return self._record(Judged(x)), self._record(Judged(attended))

    def gated(self, gate_up: Node, activation: Activation) -> Node:
        """[T, F]."""
        return self._record(Gate(gate_up, activation))

    def add(self, x: Node, y: Node) -> Node:
        """[T, C]."""
        return self._record(Add(x, y))

    def logits(self, x: Node, norm_weight: Float32Array, eps: float, head: Linear) -> Node:
        """[S, V]."""
        return self._record(Head(self._record(Norm(x, norm_weight, eps)), head))

    def _record(self, node: Node) -> Node:
        self.nodes.append(node)
        return node


def fuse(nodes: list[Node]) -> list[Node]:
    """The same computation in fewer steps.

    A gate takes in the projection that feeds it; an add takes the place of the projection or norm that feeds it, which
    then adds to the other operand; attention leaves out rows that nobody wants. Only where nobody else reads the value
    in between.
    """
    num_uses = Counter(id(read) for node in nodes for read in node.inputs)
    replaced: dict[int, Node] = {}
    absorbed: set[int] = set()
    fused: list[Node] = []
    for node in nodes:
        result = node
        if isinstance(node, Gate) and isinstance(node.x, Project) and num_uses[id(node.x)] == 1:
            result = _fuse_gate(node, node.x)
        elif isinstance(node, Add) and isinstance(node.y, Project | Norm) and num_uses[id(node.y)] == 1:
            result = _fuse_add(node, node.y)
        elif isinstance(node, Judged) and isinstance(node.x, Attend) and num_uses[id(node.x)] == 1:
            result = Attend(node.x.qkv, node.x.spec, keep_judged=True)
        if result is not node:
            absorbed.add(id(node.inputs[-1]))
            replaced[id(node)] = result
        fused.append(result)
    kept = [node for node in fused if id(node) not in absorbed]
    for node in kept:
        _rewire(node, replaced)
    return kept


def _fuse_gate(gate: Gate, project: Project) -> Node:
    rows = [part.num_rows for part in project.weight.parts]
    if len(rows) != 2 or rows[0] != rows[1] or rows[0] % 32:
        return gate
    return Gate(project.x, gate.activation, project.weight)


def _fuse_add(add: Add, feeding: Project | Norm) -> Node:
    if feeding.residual is not None:
        return add
    if isinstance(feeding, Norm):
        return Norm(feeding.x, feeding.weight, feeding.eps, residual=add.x)
    return Project(feeding.x, feeding.weight, residual=add.x)


def _rewire(node: Node, replaced: dict[int, Node]) -> None:
    """Point the node's inputs to what took their place."""

    def now(read: Node) -> Node:
        return replaced.get(id(read), read)

    match node:
        case Embed():
            pass
        case Attend():
            node.qkv = now(node.qkv)
        case Add():
            node.x, node.y = now(node.x), now(node.y)
        case Norm() | Project():
            node.x = now(node.x)
            node.residual = None if node.residual is None else now(node.residual)
        case Judged() | Gate() | Head():
            node.x = now(node.x)


def matrices(nodes: list[Node]) -> Iterator[QuantTensor]:
    """Every matrix that the nodes read, each tensor once, in order of first use."""
    seen: set[str] = set()
    for node in nodes:
        for tensor in _matrices_of(node):
            if tensor.name not in seen:
                seen.add(tensor.name)
                yield tensor


def _matrices_of(node: Node) -> tuple[QuantTensor, ...]:
    if isinstance(node, Embed):
        return (node.table,)
    if isinstance(node, Project | Gate | Head) and node.weight is not None:
        return node.weight.parts
    return ()


def last_reads(nodes: list[Node]) -> dict[int, int]:
    """For each value (by id of its node) the index of the last node that reads it."""
    return {id(read): index for index, node in enumerate(nodes) for read in node.inputs}


def judged_nodes(nodes: list[Node]) -> set[int]:
    """Ids of the nodes whose values have only the judged rows."""
    judged: set[int] = set()
    for node in nodes:
        keeps = isinstance(node, Judged) or (isinstance(node, Attend) and node.keep_judged)
        if keeps or any(id(read) in judged for read in node.inputs):
            judged.add(id(node))
    return judged


Recorder = Callable[[RecordingOps], Node]
"""A decoder, ready to be given its ops."""
