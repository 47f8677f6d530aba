"""Count what a compiled program does, from its text: XLA's own analysis counts the body of a loop once, however often it runs.

In:    the text of a compiled program, of one device
Out:   `Counts`: arithmetic of matrix products, bytes of memory read and written, collectives, calls of kernels
Holds: a loop runs as often as the constant that its counter is compared with; where the bound is known at run time only, as
       often as the caller says. Of a choice between computations each is counted
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

_COMPUTATION = re.compile(r"^(?:ENTRY )?%([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%([\w.\-]+) = (.*?) ([a-z][a-z0-9\-]*)\((.*)$")
_SHAPE = re.compile(r"\b(pred|bf16|[a-z]+\d+)\[([\d,]*)\](\{[^}]*\})?")
_CALLED = re.compile(r"(?:calls|body|to_apply)=%([\w.\-]+)")
_BRANCHES = re.compile(r"(?:true_computation|false_computation)=%([\w.\-]+)|branch_computations=\{([^}]*)\}")
_LOOP = re.compile(r"condition=%([\w.\-]+), body=%([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_KERNEL = 'custom_call_target="tpu_custom_call"'
_COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "copy-done", "iota", "call"}
_CUTS = {"dynamic-slice", "gather"}
_WRITES = {"dynamic-update-slice": 1, "scatter": 2}  # into the first operand, and which operand is written


@dataclass(frozen=True, slots=True)
class Shape:
    """One array: its dtype, sizes, and whether it lies in the device's main memory."""

    dtype: str
    sizes: tuple[int, ...]
    main: bool

    @property
    def bytes(self) -> float:
        """How large it is."""
        bits = int(found.group()) if (found := re.search(r"\d+", self.dtype)) else 8  # pred
        return math.prod(self.sizes) * bits / 8


@dataclass(frozen=True)
class Instruction:
    """One line of a program."""

    name: str
    op: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    text: str
    root: bool


@dataclass(frozen=True, slots=True)
class Kernel:
    """A hand-written kernel: its name, the shapes that it returns, and how often it is called."""

    name: str
    shapes: tuple[tuple[int, ...], ...]
    calls: int


@dataclass(slots=True)
class Collective:
    """Calls of one kind of collective, and the bytes that leave a device for them when they go round a ring."""

    calls: int = 0
    bytes: float = 0.0


@dataclass(slots=True)
class Counts:
    """What one device does.

    Args:
        flops: of matrix products; a multiplication and an addition are two.
        flops_once: the same, with each loop's body once.
        bytes: of main memory, read and written; kernels are not looked into.
        bytes_once: the same, with each loop's body once.
        collectives: by kind.
        kernels: in the order of the program.
        loops: how often each loop runs that does so a known number of times.
        unbound: loops whose bound is known at run time only.
    """

    flops: float = 0.0
    flops_once: float = 0.0
    bytes: float = 0.0
    bytes_once: float = 0.0
    collectives: dict[str, Collective] = field(default_factory=dict)
    kernels: list[Kernel] = field(default_factory=list)
    loops: list[int] = field(default_factory=list)
    unbound: int = 0

    @property
    def sent(self) -> float:
        """Bytes that leave a device."""
        return sum(one.bytes for one in self.collectives.values())


def counted(text: str, *, unbound: int = 1) -> Counts:
    """Count.

    Args:
        text: of the compiled program.
        unbound: how often a loop runs whose bound is not in the program.
    """
    program = _Program(text)
    counts = Counts()
    program.visit(program.entry, 1, counts, unbound)
    return counts


class _Program:
    def __init__(self, text: str) -> None:
        self.computations: dict[str, _Computation] = {}
        self.entry = ""
        lines: list[str] = []
        for line in text.splitlines():
            if found := _COMPUTATION.match(line):
                lines = []
                self.computations[found.group(1)] = _Computation(lines)
                self.entry = found.group(1) if line.startswith("ENTRY") else self.entry
            else:
                lines.append(line)

    def visit(self, name: str, times: int, counts: Counts, unbound: int) -> None:
        """Count a computation that runs so many times, and what it calls."""
        here = self.computations[name]
        for one in here.instructions:
            if found := _LOOP.search(one.text):
                said = _TRIPS.search(one.text)  # some backends do
                bound = int(said.group(1)) if said else self._bound(found.group(1), found.group(2))
                counts.unbound += bound is None
                counts.loops += [bound] if bound is not None else []
                self.visit(found.group(2), times * (bound or unbound), counts, unbound)
            elif one.op in ("call", "conditional") or one.op.startswith("async"):
                for called in _called(one):
                    self.visit(called, times, counts, unbound)
            self._add(here, one, times, counts)

    def _add(self, here: _Computation, one: Instruction, times: int, counts: Counts) -> None:
        flops = self._flops(here, one)
        counts.flops, counts.flops_once = counts.flops + times * flops, counts.flops_once + flops
        if one.op not in _FREE and not one.op.startswith("async"):
            moved = self._moved(here, one)
            counts.bytes, counts.bytes_once = counts.bytes + times * moved, counts.bytes_once + moved
        for kind, sent in self._sent(here, one):
            so_far = counts.collectives.setdefault(kind, Collective())
            so_far.calls, so_far.bytes = so_far.calls + times, so_far.bytes + times * sent
        if _KERNEL in one.text:
            name = re.sub(r"[.\d]+$", "", one.name)
            counts.kernels.append(Kernel(name, tuple(shape.sizes for shape in one.shapes), times))

    def _bound(self, condition: str, body: str) -> int | None:
        """Read how often a loop runs that counts from 0: the constant that ends it over the constant that it adds."""
        here, root = self.computations[condition], self.computations[condition].instructions[-1]
        if root.op != "compare" or "direction=LT" not in root.text:
            return None
        end = here.constant(root.operands[1])
        counter = re.search(r"index=(\d+)", here.named[root.operands[0]].text)
        if end is None or counter is None:
            return None
        inside = self.computations[body]
        ends = inside.instructions[-1].operands
        added = inside.named[ends[int(counter.group(1))]] if len(ends) > int(counter.group(1)) else None
        steps = [inside.constant(name) for name in added.operands] if added is not None and added.op == "add" else []
        return -(-end // next((step for step in steps if step), 1))

    def _flops(self, here: _Computation, one: Instruction) -> float:
        if one.op == "fusion":
            inner = self.computations[_called(one)[0]]
            return sum(self._flops(inner, each) for each in inner.instructions)
        if one.op == "convolution":
            return _convolution(one, *(here.sizes(name) for name in one.operands[:2]))
        if one.op == "dot":
            told = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", one.text)
            sizes = here.sizes(one.operands[0])
            summed = math.prod(sizes[int(axis)] for axis in told.group(1).split(",") if axis) if told else 1
            return 2.0 * math.prod(one.shapes[0].sizes) * summed
        return 0.0

    def _moved(self, here: _Computation, one: Instruction) -> float:
        """Count what an instruction reads and writes: of what it cuts out or writes into, only that part."""
        read = [here.bytes(name) for name in one.operands]
        written = sum(shape.bytes for shape in one.shapes if shape.main)
        if one.op == "copy-start":
            return read[0] + (one.shapes[0].bytes if one.shapes[0].main else 0.0)
        if one.op in _CUTS:
            return 2 * written
        if one.op in _WRITES:
            return 2 * here.bytes(one.operands[_WRITES[one.op]])
        if one.op == "fusion":
            return self._moved_by_fusion(self.computations[_called(one)[0]], read, written)
        return 0.0 if _KERNEL in one.text else sum(read) + written

    def _moved_by_fusion(self, inner: _Computation, read: list[float], written: float) -> float:
        for number, name in enumerate(inner.parameters):
            uses = list(self._uses(inner, name))
            if uses and all(each.op in _CUTS for _, each in uses):
                read[number] = min(read[number], sum(each.shapes[0].bytes for _, each in uses))
            elif uses and all(each.op in _WRITES for _, each in uses):
                part = sum(where.bytes(each.operands[_WRITES[each.op]], anywhere=True) for where, each in uses)
                written = max(0.0, written - read[number]) + part
                read[number] = 0.0
        return sum(read) + written

    def _uses(self, here: _Computation, name: str) -> Iterator[tuple[_Computation, Instruction]]:
        """Find what reads an array, in whatever shape, in fusions within a fusion too."""
        for one in here.instructions:
            if name not in one.operands:
                continue
            if one.op == "bitcast":
                yield from self._uses(here, one.name)
            elif one.op == "fusion":
                inner = self.computations[_called(one)[0]]
                yield from self._uses(inner, inner.parameters[one.operands.index(name)])
            else:
                yield here, one

    def _sent(self, here: _Computation, one: Instruction) -> Iterator[tuple[str, float]]:
        if one.op == "fusion":  # a sum of which each device keeps a part is one of these
            inner = self.computations[_called(one)[0]]
            scattered = any(each.op == "dynamic-slice" for each in inner.instructions)
            for each in inner.instructions:
                for kind, sent in self._sent(inner, each):
                    yield ("reduce-scatter", sent / 2) if kind == "all-reduce" and scattered else (kind, sent)
            return
        kind = one.op.removesuffix("-start")
        if kind not in _COLLECTIVES:
            return
        given = sum(here.bytes(name, anywhere=True) for name in one.operands)
        size = _group(one.text)
        share = (size - 1) / size
        match kind:
            case "all-gather":
                yield kind, given * (size - 1)
            case "all-reduce":
                yield kind, 2 * given * share
            case "collective-permute":
                yield kind, given
            case _:
                yield kind, given * share


class _Computation:
    def __init__(self, lines: list[str]) -> None:
        self._lines = lines

    @cached_property
    def instructions(self) -> list[Instruction]:
        return [one for line in self._lines if (one := _instruction(line)) is not None]

    @cached_property
    def named(self) -> Mapping[str, Instruction]:
        return {one.name: one for one in self.instructions}

    @cached_property
    def parameters(self) -> Sequence[str]:
        found = {
            int(one.text.split("parameter(")[1].split(")")[0]): one.name for one in self.instructions if one.op == "parameter"
        }
        return [found[number] for number in sorted(found)]

    def constant(self, name: str) -> int | None:
        one = self.named.get(name)
        found = re.search(r" constant\((\d+)\)", one.text) if one is not None else None
        return int(found.group(1)) if found else None

    def sizes(self, name: str) -> tuple[int, ...]:
        return self.named[name].shapes[0].sizes

    def bytes(self, name: str, *, anywhere: bool = False) -> float:
        one = self.named.get(name)
        return sum(shape.bytes for shape in one.shapes if shape.main or anywhere) if one is not None else 0.0


def _instruction(line: str) -> Instruction | None:
    found = _INSTRUCTION.match(line)
    if found is None:
        return None
    root, name, shapes, op, rest = found.groups()
    depth, end = 1, 0
    while depth and end < len(rest):
        depth += {"(": 1, ")": -1}.get(rest[end], 0)
        end += 1
    operands = tuple(re.findall(r"%([\w.\-]+)", rest[:end]))
    sizes = tuple(
        Shape(dtype, tuple(map(int, filter(None, told.split(",")))), "S(" not in (layout or ""))
        for dtype, told, layout in _SHAPE.findall(shapes)
    )
    return Instruction(name, op, sizes, operands, line, bool(root))


def _called(one: Instruction) -> list[str]:
    found = _CALLED.findall(one.text)
    for single, several in _BRANCHES.findall(one.text):
        found += [single] if single else re.findall(r"%([\w.\-]+)", several)
    return found


def _convolution(one: Instruction, left: tuple[int, ...], right: tuple[int, ...]) -> float:
    """Count a product of matrices that is written as a convolution, as TPUs do: places of a window are an axis of it."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", one.text)
    if labels is None:
        return 0.0
    lefts, rights, outs = (
        dict(zip(told, sizes, strict=False))
        for told, sizes in zip(labels.groups(), (left, right, one.shapes[0].sizes), strict=True)
    )
    places = math.prod(max(lefts[axis], rights[axis], outs[axis]) for axis in lefts if axis.isdigit())
    return 2.0 * outs["b"] * outs["f"] * rights["i"] * places


def _group(text: str) -> int:
    """Read how many devices take part together."""
    if found := re.search(r"replica_groups=\[\d+,(\d+)\]", text):
        return int(found.group(1))
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", text):
        return len(found.group(1).split(","))
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", text):
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", found.group(1))}
        return math.prod(sizes[name] for name in re.findall(r"'(\w+)'", found.group(2)))
    return 2
