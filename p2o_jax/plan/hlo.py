"""Parses XLA's HLO text: computations, their instructions, and the groups of collectives."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import NamedTuple

HOST_SPACE = "S(5)"  # arrays in the host's memory
BYTES = {
    "pred": 1,
    "s4": 1,
    "u4": 1,
    "s8": 1,
    "u8": 1,
    "f8e4m3fn": 1,
    "f8e5m2": 1,
    "s16": 2,
    "u16": 2,
    "bf16": 2,
    "f16": 2,
    "s32": 4,
    "u32": 4,
    "f32": 4,
    "s64": 8,
    "u64": 8,
    "f64": 8,
    "c64": 8,
    "c128": 16,
}
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")
_NAME = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(
    r"\b(?:calls|to_apply|true_computation|false_computation|condition|body)=%?([\w.\-]+)"
)
_TRIP_COUNT = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")
_END_ELSEWHERE = "}, execution_thread="  # of computations that run on a SparseCore
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")


class Array(NamedTuple):
    """An array's element type and shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """The size in bytes; 0 for tokens and opaque handles."""
        return prod(self.shape) * BYTES.get(self.dtype, 0)


@dataclass(frozen=True)
class Instruction:
    """A line of the form `name = result opcode(operands), attributes`."""

    name: str
    result: tuple[Array, ...]
    opcode: str
    operands: tuple[str, ...]
    inside: str  # the text in parentheses: operands, a constant's value, or a parameter's number
    attributes: str
    on_host: bool
    trip_count: float | None = None  # the iterations of a loop, where the compiler notes them

    def attribute(self, key: str) -> str:
        """The word or braced list after `key=`, or ""."""
        match = re.search(rf"(?:^|[\s,]){key}=(\{{[^}}]*\}}|[^\s,]+)", self.attributes)
        return match.group(1).lstrip("%") if match else ""

    @property
    def called(self) -> list[str]:
        """The names of the computations that it calls."""
        branches = _BRANCHES.search(self.attributes)
        return _CALLED.findall(self.attributes) + (
            _NAME.findall(branches.group(1)) if branches else []
        )


@dataclass(frozen=True)
class Computation:
    """A computation: its instructions by name, and the one that it returns."""

    name: str
    instructions: Mapping[str, Instruction]
    root: Instruction


@dataclass(frozen=True)
class Module:
    """An HLO module: its computations by name, and the one that is run."""

    computations: Mapping[str, Computation]
    entry: Computation
    num_partitions: int


def parse(text: str) -> Module:
    """Parses an HLO module.

    Raises:
        ValueError: it has no entry computation.
    """
    computations: dict[str, Computation] = {}
    entry: Computation | None = None
    header: re.Match[str] | None = None
    lines: dict[str, Instruction] = {}
    root = ""
    for line in text.splitlines():
        if header is None:
            header = _HEADER.match(line)
            lines, root = {}, ""
        elif line == "}" or line.startswith(_END_ELSEWHERE):
            computation = Computation(header.group(2), lines, lines[root])
            computations[computation.name] = computation
            entry = computation if header.group(1) else entry
            header = None
        elif " = " in line:
            instruction = parse_instruction(line)
            lines[instruction.name] = instruction
            if not root or line.lstrip().startswith("ROOT "):
                root = instruction.name
    if entry is None:
        raise ValueError("no ENTRY computation in this HLO text")
    partitions = re.search(r"\bnum_partitions=(\d+)", text)
    return Module(computations, entry, int(partitions.group(1)) if partitions else 1)


def parse_instruction(line: str) -> Instruction:
    """Parses the line of an instruction."""
    left, right = line.split(" = ", 1)
    end = _closing(right, 0) if right.startswith("(") else right.index(" ")
    result, rest = right[:end], right[end:].lstrip()
    opcode, _, _ = rest.partition("(")
    close = _closing(rest, len(opcode))
    inside, attributes = rest[len(opcode) + 1 : close - 1], rest[close:].lstrip(", ")
    trip_count = _TRIP_COUNT.search(attributes)
    attributes = re.split(r", (?:metadata|backend_config)=", attributes, maxsplit=1)[0]
    name = left.strip().removeprefix("ROOT ").lstrip("%")
    return Instruction(
        name,
        arrays(result),
        opcode,
        tuple(_NAME.findall(inside)),
        inside,
        attributes,
        HOST_SPACE in result,
        float(trip_count.group(1)) if trip_count else None,
    )


def arrays(text: str) -> tuple[Array, ...]:
    """The arrays of a result type; those of a tuple in order."""
    return tuple(
        Array(dtype, tuple(int(n) for n in dims.split(",") if n))
        for dtype, dims in _ARRAY.findall(re.sub(r"\{[^}]*\}", "", text))
    )


def _closing(text: str, start: int) -> int:
    """The position after the parenthesis that closes the one at `start`."""
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] == "(") - (text[i] == ")")
        if depth == 0:
            return i + 1
    raise ValueError(f"no closing parenthesis in {text[start : start + 80]!r}")


def groups(attributes: str, num_partitions: int) -> tuple[tuple[int, ...], ...]:
    """The groups of chips that exchange data; pairs for a permutation. Reads all XLA notations."""
    listed = re.search(
        r"(?:replica_groups|source_target_pairs)=\{((?:\{[\d,]*\},?)+)\}", attributes
    )
    if listed:
        return tuple(
            tuple(int(n) for n in group.split(",") if n)
            for group in re.findall(r"\{([\d,]*)\}", listed.group(1))
        )
    counted = re.search(
        r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes
    )
    if counted:
        shape = [int(n) for n in counted.group(3).split(",")]
        order = (
            [int(n) for n in counted.group(4).split(",")]
            if counted.group(4)
            else list(range(len(shape)))
        )
        return _chunks(_transposed(shape, order), int(counted.group(2)))
    meshed = re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", attributes)
    if meshed:
        axes = {name: int(n) for name, n in re.findall(r"'(\w+)'=(\d+)", meshed.group(1))}
        names, over = list(axes), re.findall(r"'(\w+)'", meshed.group(2))
        order = [names.index(name) for name in (*(n for n in names if n not in over), *over)]
        return _chunks(_transposed(list(axes.values()), order), prod(axes[name] for name in over))
    return (tuple(range(num_partitions)),)


def _transposed(shape: Sequence[int], order: Sequence[int]) -> list[int]:
    """The numbers 0, 1, 2 … of an array of this shape after a transposition, as a flat list."""
    strides = [prod(shape[axis + 1 :]) for axis in range(len(shape))]
    return [
        sum(i * strides[axis] for i, axis in zip(index, order, strict=True))
        for index in product(*(range(shape[a]) for a in order))
    ]


def _chunks(items: Sequence[int], size: int) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(items[i : i + size]) for i in range(0, len(items), size))
