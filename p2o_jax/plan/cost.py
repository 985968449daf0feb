"""The cost of a compiled program, from its HLO text.

Counts the operations of matrix products, collectives, kernels and host transfers. XLA's own cost
analysis counts the body of a loop once. Here it is multiplied by the number of iterations if the
text shows it: a counter starts at a constant, grows by a constant, and is compared with a constant.
Loops whose number of iterations depends on the data (decoding steps, micro-batches) are kept
separately in `loops`, and the caller provides the number.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from math import prod
from typing import NamedTuple

from p2o_jax.plan import hlo
from p2o_jax.plan.hlo import Array, Computation, Instruction

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
HOST_OPS = ("infeed", "outfeed", "send", "recv")
# Prefix of the kind of a collective between TPU slices. Each chip sends its part through its host.
BETWEEN_SLICES = "between-slices-"
KERNEL_TARGETS = ("tpu_custom_call", "__gpu$xla.gpu.triton")


class Collective(NamedTuple):
    """A collective operation."""

    kind: str
    bytes: int  # of the whole array on one chip, after a gather or before a scatter
    groups: tuple[tuple[int, ...], ...]  # the chips of each group

    @property
    def wire_bytes(self) -> float:
        """The bytes that a chip sends with the best algorithm."""
        if self.kind.startswith(BETWEEN_SLICES):
            return self.bytes
        n = max((len(g) for g in self.groups), default=1)
        return self.bytes * {"all-reduce": 2 * (n - 1) / n, "collective-permute": 1.0}.get(
            self.kind, (n - 1) / n
        )

    def crosses(self, part_of: Sequence[int]) -> bool:
        """Whether it joins chips of different parts, where `part_of[chip]` is the chip's part."""
        return self.kind.startswith(BETWEEN_SLICES) or any(
            len({part_of[chip] for chip in group}) > 1 for group in self.groups
        )


class Kernel(NamedTuple):
    """A call of a hand-written kernel, whose operations are not visible in the text."""

    name: str
    operands: tuple[Array, ...]


@dataclass(frozen=True)
class Cost:
    """The cost on one chip of a program, or of one iteration of a loop."""

    flops: float = 0.0
    collectives: Mapping[Collective, float] = field(default_factory=dict)
    kernels: Mapping[Kernel, float] = field(default_factory=dict)
    host_transfers: float = 0.0
    # Loops of unknown length: the number of times each is entered, and the cost per iteration.
    loops: tuple[tuple[float, "Cost"], ...] = ()

    def total(self, turns: Sequence[float]) -> "Cost":
        """The cost with `turns[0]` iterations of the outermost loops, `turns[1]` of the next, etc.

        Raises:
            ValueError: loops are nested deeper than the length of `turns`.
        """
        if self.loops and not turns:
            raise ValueError(
                "loops of unknown length are nested deeper than the given numbers of iterations"
            )
        once = Cost(self.flops, self.collectives, self.kernels, self.host_transfers)
        return _sum(
            [(1.0, once)]
            + [(begun * turns[0], loop.total(turns[1:])) for begun, loop in self.loops]
        )


def cost(text: str) -> Cost:
    """The cost of an HLO module's entry computation."""
    module = hlo.parse(text)
    return _Reader(module).of(module.entry, {})


def extrapolated(a: Cost, b: Cost, times: float) -> Cost:
    """Extrapolates a linear cost: `a + times * (b - a)`.

    Loops are matched by position if they are entered equally often.
    """
    weights = (1 - times, times)
    plain = _sum([(w, replace(c, loops=())) for w, c in zip(weights, (a, b), strict=True)])
    if [begun for begun, _ in a.loops] == [begun for begun, _ in b.loops]:
        pairs = zip(a.loops, b.loops, strict=True)
        return replace(
            plain, loops=tuple((begun, extrapolated(x, y, times)) for (begun, x), (_, y) in pairs)
        )
    return replace(
        plain,
        loops=tuple(
            (w * begun, loop)
            for w, c in zip(weights, (a, b), strict=True)
            for begun, loop in c.loops
        ),
    )


# (None, n) is the number n; (i, n) is element i of the loop's state plus n.
Value = tuple[int | None, int]

# Collectives by channel, each with a count. A collective that is split into pieces appears in
# several fusions, some of which may be inside loops.
Pieces = dict[str, tuple[Collective, float]]


class _Reader:
    """Adds up the costs of computations.

    `known` holds the constant elements of the state of the loop whose body is being read.
    """

    def __init__(self, module: hlo.Module):
        self.module = module

    def of(self, computation: Computation, known: Mapping[int, int]) -> Cost:
        """The cost of a computation."""
        whole, pieces = self._read(computation, known)
        return _sum(
            [(1.0, whole), *((times, Cost(collectives={c: 1.0})) for c, times in pieces.values())]
        )

    def _read(self, computation: Computation, known: Mapping[int, int]) -> tuple[Cost, Pieces]:
        parts: list[tuple[float, Cost]] = []
        pieces: Pieces = {}
        self._walk(computation, known, parts, pieces, fused=False)
        return _sum(parts), pieces

    def _walk(
        self,
        computation: Computation,
        known: Mapping[int, int],
        parts: list[tuple[float, Cost]],
        pieces: Pieces,
        fused: bool,
    ) -> None:
        """Collects the costs of a computation's instructions.

        Args:
            computation: the computation to read.
            known: constant elements of the loop's state, by index.
            parts: receives (count, cost) of the instructions.
            pieces: receives the collectives that are split into pieces.
            fused: whether the computation is called by a fusion.
        """
        for line in computation.instructions.values():
            kind = line.opcode.removesuffix("-start")
            if line.opcode == "while":
                parts.append(self._loop(line, computation, known, pieces))
            elif line.opcode == "conditional":
                branches = (self.of(self._at(name), {}) for name in line.called)
                parts.append((1.0, max(branches, key=lambda c: c.flops)))
            elif line.opcode in ("fusion", "call", "async-start"):
                for name in line.called:
                    self._walk(self._at(name), {}, parts, pieces, fused or line.opcode != "call")
            elif kind in COLLECTIVES:
                scatters = computation.name.startswith("all-reduce-scatter")
                name = "reduce-scatter" if scatters else kind
                collective = self._collective(line, name, computation)
                if fused and not scatters:  # reduce-scatters are not split, and may share a channel
                    pieces[line.attribute("channel_id") or line.name] = collective, 1.0
                else:
                    parts.append((1.0, Cost(collectives={collective: 1.0})))
            else:
                parts.append((1.0, self._simple(line, computation)))

    def _simple(self, line: Instruction, computation: Computation) -> Cost:
        if line.opcode in ("dot", "convolution"):
            operands = [self._shape(name, computation) for name in line.operands[:2]]
            return Cost(
                flops=_dot_flops(line, operands[0])
                if line.opcode == "dot"
                else _convolution_flops(line, *operands)
            )
        if line.opcode == "custom-call" and "callback" in line.attribute("custom_call_target"):
            return Cost(host_transfers=1.0)
        if (
            line.opcode == "custom-call"
            and line.attribute("custom_call_target").strip('"') in KERNEL_TARGETS
        ):
            operands = tuple(
                array for name in line.operands for array in computation.instructions[name].result
            )
            return Cost(kernels={Kernel(re.sub(r"[.\d]+$", "", line.name), operands): 1.0})
        between = re.search(r'_xla_megascale_transfer_type="(\w+)"', line.attributes)
        if between and line.opcode == "send":
            kind = BETWEEN_SLICES + between.group(1).lower().replace("_", "-")
            size = sum(array.bytes for array in computation.instructions[line.operands[0]].result)
            return Cost(collectives={Collective(kind, size, ()): 1.0})
        if between:
            return Cost()
        moves = line.opcode in HOST_OPS or (line.on_host and line.opcode in ("copy-start", "copy"))
        return Cost(host_transfers=float(moves))

    def _loop(
        self, line: Instruction, computation: Computation, known: Mapping[int, int], pieces: Pieces
    ) -> tuple[float, Cost]:
        condition, body = self._at(line.attribute("condition")), self._at(line.attribute("body"))
        start = self._elements(line.operands[0], computation, known)
        after = self._elements(body.root.name, body, {})
        fixed = {
            i: v[1]
            for i, v in enumerate(start)
            if v and v[0] is None and i < len(after) and after[i] == (i, 0)
        }
        turns = line.trip_count
        if turns is None:
            turns = self._turns(condition, fixed, start, after)
        if turns is None:
            return 1.0, Cost(loops=((1.0, self.of(body, fixed)),))
        inner, inside = self._read(body, fixed)
        for channel, (collective, times) in inside.items():
            pieces[channel] = (
                (collective, 1.0) if channel in pieces else (collective, times * turns)
            )
        return turns, inner

    def _turns(
        self,
        condition: Computation,
        fixed: Mapping[int, int],
        start: Sequence[Value | None],
        after: Sequence[Value | None],
    ) -> float | None:
        """The iterations of a loop that counts between constants; None for other loops."""
        test = self._test(condition.root, condition, fixed, None)
        if test is None:
            return None
        direction, (counter, ahead), (other, limit) = test
        if counter is None or other is not None or direction not in ("LT", "LE", "NE"):
            return None
        first, step = start[counter], after[counter]
        if not first or first[0] is not None or not step or step[0] != counter or step[1] <= 0:
            return None
        return float(max(0, -(-(limit + (direction == "LE") - ahead - first[1]) // step[1])))

    def _test(
        self,
        line: Instruction,
        where: Computation,
        known: Mapping[int, int],
        bound: Sequence[Value | None] | None,
    ) -> tuple[str, Value, Value] | None:
        """The direction and the two sides of the comparison at the end of a condition."""
        if line.opcode == "fusion":
            inner = self._at(line.called[0])
            return self._test(
                inner.root,
                inner,
                {},
                [self._value(name, where, known, bound) for name in line.operands],
            )
        sides = [self._value(name, where, known, bound) for name in line.operands]
        if line.opcode != "compare" or len(sides) != 2 or sides[0] is None or sides[1] is None:
            return None
        return line.attribute("direction"), sides[0], sides[1]

    def _elements(
        self, name: str, where: Computation, known: Mapping[int, int]
    ) -> list[Value | None]:
        """The elements of a tuple; None for those that are not a `Value`."""
        line = where.instructions[name]
        if line.opcode != "tuple":
            return [None] * len(line.result)
        return [self._value(operand, where, known, None) for operand in line.operands]

    def _value(
        self,
        name: str,
        where: Computation,
        known: Mapping[int, int],
        bound: Sequence[Value | None] | None,
    ) -> Value | None:
        """An instruction's value. In a fusion, `bound` holds the values of its parameters."""
        line = where.instructions[name]
        if line.opcode == "constant":
            return (None, int(line.inside)) if re.fullmatch(r"-?\d+", line.inside) else None
        if line.opcode == "parameter":
            return bound[int(line.inside)] if bound is not None else None
        if line.opcode == "get-tuple-element":
            index, source = int(line.attribute("index")), where.instructions[line.operands[0]]
            if source.opcode == "tuple":
                return self._value(source.operands[index], where, known, bound)
            if source.opcode != "parameter" or bound is not None:
                return None
            return (None, known[index]) if index in known else (index, 0)
        if line.opcode in ("copy", "copy-start", "copy-done", "bitcast", "convert", "reshape"):
            return self._value(line.operands[0], where, known, bound)
        if line.opcode == "fusion":
            inner = self._at(line.called[0])
            return self._value(
                inner.root.name,
                inner,
                {},
                [self._value(operand, where, known, bound) for operand in line.operands],
            )
        if line.opcode in ("add", "subtract"):
            a, b = (self._value(operand, where, known, bound) for operand in line.operands)
            if a and b and b[0] is None:
                return a[0], a[1] + (b[1] if line.opcode == "add" else -b[1])
            if a and b and a[0] is None and line.opcode == "add":
                return b[0], a[1] + b[1]
        return None

    def _collective(self, line: Instruction, kind: str, where: Computation) -> Collective:
        operands = [array for name in line.operands for array in where.instructions[name].result]
        result = line.result
        if line.opcode.endswith("-start") and line.opcode != "all-reduce-start":
            result = result[len(operands) : 2 * len(operands)]  # (operands, results, contexts)
        size = max(sum(a.bytes for a in operands), sum(a.bytes for a in result))
        return Collective(kind, size, hlo.groups(line.attributes, self.module.num_partitions))

    def _shape(self, name: str, where: Computation) -> tuple[int, ...]:
        return where.instructions[name].result[0].shape

    def _at(self, name: str) -> Computation:
        return self.module.computations[name]


def _dot_flops(line: Instruction, left: tuple[int, ...]) -> float:
    contracted = [
        int(n) for n in line.attribute("lhs_contracting_dims").strip("{}").split(",") if n
    ]
    return 2.0 * prod(line.result[0].shape) * prod(left[d] for d in contracted)


def _convolution_flops(line: Instruction, left: tuple[int, ...], right: tuple[int, ...]) -> float:
    """Twice the number of multiplications, without padding and the holes of a dilation.

    XLA writes matrix products as convolutions on TPUs.
    """
    labels = re.split(r"_|->", line.attribute("dim_labels"))
    window = dict(part.split("=", 1) for part in line.attribute("window").strip("{}").split())
    sizes = [int(n) for n in window.get("size", "").split("x") if n]

    def numbers(key: str, default: str) -> list[str]:
        return window[key].split("x") if key in window else [default] * len(sizes)

    pairs = 1
    settings = zip(
        sizes,
        *(
            numbers(*kv)
            for kv in (("stride", "1"), ("pad", "0_0"), ("lhs_dilate", "1"), ("rhs_dilate", "1"))
        ),
        strict=True,
    )
    for axis, (size, stride, pad, left_dilate, right_dilate) in enumerate(settings):
        length, steps = (
            left[labels[0].index(str(axis))],
            line.result[0].shape[labels[2].index(str(axis))],
        )
        hole, low = int(left_dilate), int(pad.split("_")[0])
        places = (
            o * int(stride) + k * int(right_dilate) - low
            for o, k in product(range(steps), range(size))
        )
        pairs *= sum(p % hole == 0 and 0 <= p // hole < length for p in places)
    batch, features = (
        line.result[0].shape[labels[2].index("b")],
        line.result[0].shape[labels[2].index("f")],
    )
    return 2.0 * batch * features * right[labels[1].index("i")] * pairs


def _sum(parts: Sequence[tuple[float, Cost]]) -> Cost:
    """The sum of (count, cost) pairs."""
    collectives: dict[Collective, float] = defaultdict(float)
    kernels: dict[Kernel, float] = defaultdict(float)
    for times, part in parts:
        for collective, count in part.collectives.items():
            collectives[collective] += times * count
        for kernel, count in part.kernels.items():
            kernels[kernel] += times * count
    loops = tuple((times * begun, loop) for times, part in parts for begun, loop in part.loops)
    return Cost(
        sum(times * part.flops for times, part in parts),
        dict(collectives),
        dict(kernels),
        sum(times * part.host_transfers for times, part in parts),
        loops,
    )
