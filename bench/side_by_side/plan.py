"""Which cells are measured, in which order, and how long it takes. Pure: starts nothing, reads nothing.

A *cell* is one row of the matrix: what is asked for, over how many connections, over TLS or not. Cells that share a working set
make a *group*, for which each system is started and warmed once. In a group, rounds are the outer loop and systems the inner one,
in an order that is turned round every other round, so that neither a drift of the machine nor who follows whom favours anybody.
"""

import dataclasses
import zlib

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

# As the generator and the stub write them.
SIZES = {"256KiB": 256 * KIB, "1MiB": MIB, "4MiB": 4 * MIB, "8MiB": 8 * MIB}
CONNECTIONS = (1, 16, 64, 256, 1024)
RANGE_BYTES = 64 * KIB

# What each system may use, page cache included. Small, so that six times as much fits on the disk of an ordinary machine for each
# system; large enough for 1,024 connections over TLS in each of them.
MEMORY_BYTES = 768 * MIB
# The part of it that is given to a cache in RAM where a system has one of its own. The rest is for connections and requests in flight:
# Forebay wants 256 MiB for them and refuses to start with more RAM tier than this under that limit.
RAM_TIER_BYTES = 200 * MIB
# Fits into every RAM tier; several times a processor's last cache.
RAM_SET_BYTES = 160 * MIB
DISK_SET_BYTES = 6 * MEMORY_BYTES
DISK_QUOTA_BYTES = DISK_SET_BYTES * 3 // 2
PUT_BYTES = 512 * MIB
# Answers of more bytes than this at a time are more than some systems can hold: they end, or answer nothing any more.
HEAVY_BYTES = MEMORY_BYTES // 2

WARMUP_SECONDS = 0.25
# A handshake takes most of a millisecond of a server's core, and none of them may fall into the window.
WARMUP_SECONDS_PER_CONNECTION = 0.001
# Measured at least: time for a few answers of each connection at the rate that a core has at the least, so that a window is no sample
# of beginnings and ends; but bounded, for bytes are counted as they come.
SLOWEST_BYTES_PER_SECOND = GIB
SECONDS_MAX = 2.0
# Measured here: starting the generator, connecting, asking the store for its counts.
OVERHEAD_SECONDS = 0.15
START_SECONDS = 2.0
WARM_BYTES_PER_SECOND = 450 * MIB
WARM_PASSES = 2
PUT_SECONDS = 5.0

# Of a run from which the hypervisor took more of the machine than this, the figures are another machine's: it is made again, twice at
# most, and for so long in all. What it still has then stands, with the generator's warning.
STOLEN_SHARE_MAX, STOLEN_TRIES, STOLEN_SECONDS_MAX = 0.1, 3, 60.0

READS = ("hit-ram", "hit-disk", "miss")


@dataclasses.dataclass(frozen=True)
class Cell:
    """One row of the matrix."""

    workload: str
    size: str
    connections: int
    tls: bool
    ranged: bool = False
    rounds: int = dataclasses.field(default=1, compare=False)
    seconds: float = dataclasses.field(default=1.0, compare=False)
    # Only these systems are measured; None: all.
    only: tuple = dataclasses.field(default=None, compare=False)

    @property
    def size_bytes(self):
        return SIZES[self.size]

    def warmup_seconds(self):
        return WARMUP_SECONDS + self.connections * WARMUP_SECONDS_PER_CONNECTION

    def measured_seconds(self):
        in_flight = self.connections * (RANGE_BYTES if self.ranged else self.size_bytes)
        return max(self.seconds, min(in_flight / SLOWEST_BYTES_PER_SECOND, SECONDS_MAX))

    def is_heavy(self):
        """Whether it may be more than a system can bear. Of ranges too: some read the whole object for each."""
        return self.connections * self.size_bytes > HEAVY_BYTES

    def seed(self, number):
        """Of a round's random order: the same for all systems, and another in each round. The same order again would ask for what a short
        run before has brought into memory: of a set on disk, that would be no read of the disk."""
        return zlib.crc32(f"{self} {number}".encode())

    def row(self):
        """As records name it."""
        return {"workload": self.workload, "size_bytes": self.size_bytes, "range_bytes": RANGE_BYTES if self.ranged else None,
                "connections": self.connections, "tls": self.tls}

    def words(self):
        """What `--only` may name it by, one set for each dimension."""
        return ({self.workload}, {self.size} if not self.ranged else {self.size, "range"}, {str(self.connections)},
                {"tls" if self.tls else "plain"})

    def __str__(self):
        size = f"64KiB of {self.size}" if self.ranged else self.size
        return f"{self.workload} {size} {self.connections} connections {'TLS' if self.tls else 'plain'}"


@dataclasses.dataclass
class Group:
    """Cells over one working set."""

    workload: str
    size: str
    cells: list

    def set_bytes(self):
        return {"hit-ram": RAM_SET_BYTES, "hit-disk": DISK_SET_BYTES}.get(self.workload, 0)

    def keys(self):
        return self.set_bytes() // SIZES[self.size]


def short_form():
    """What is asked first: one size over TLS and plain from everywhere, and the ends of the other dimensions."""
    shape = {"rounds": 3, "seconds": 1.2}
    cells = [Cell(workload, "1MiB", 64, tls, **shape) for workload in READS for tls in (True, False)]
    cells += [Cell("hit-ram", "1MiB", 64, True, ranged=True, **shape), Cell("hit-ram", "4MiB", 64, True, **shape)]
    cells += [Cell("hit-ram", "1MiB", connections, True, **shape) for connections in (16, 1024)]
    return cells + [Cell("put", "1MiB", 16, True, **shape)]


def long_form():
    """The whole matrix; the two sweeps through its middle in several rounds."""
    sweep = {"rounds": 3, "seconds": 1.0}
    cells = []
    for workload in READS:
        for size, ranged in [("1MiB", True)] + [(size, False) for size in SIZES]:
            for connections in CONNECTIONS:
                in_sweep = connections == 64 or (size == "1MiB" and not ranged)
                for tls in (True, False):
                    # Of misses, the store and the generator are the larger part: two rounds say what there is.
                    shape = {**sweep, "rounds": 2 if workload == "miss" else 3} if in_sweep else {"rounds": 1, "seconds": 0.7}
                    cells.append(Cell(workload, size, connections, tls, ranged=ranged, **shape))
    return cells + [Cell("put", size, 16, tls, **sweep) for size in ("1MiB", "4MiB") for tls in (True, False)]


def smoke_form():
    """One cell, to see that all of it works."""
    return [Cell("hit-ram", "1MiB", 16, True, rounds=1, seconds=0.5)]


def selected(cells, words):
    """The cells that every dimension named in `words` allows. A word that names nothing is refused."""
    known = set().union(*(dimension for cell in cells for dimension in cell.words()))
    unknown = [word for word in words if word not in known]
    if unknown:
        raise ValueError(f"{unknown[0]!r} names nothing here; there are {', '.join(sorted(known))}")
    dimensions = [set().union(*(cell.words()[index] for cell in cells)) & set(words) for index in range(4)]
    # A size and `range` are one dimension, but `range` alone means all ranges.
    return [cell for cell in cells
            if all(not wanted or cell.words()[index] & wanted for index, wanted in enumerate(dimensions))]


def groups(cells):
    """Cells by working set, in their order. On disk and over both TLS and plain, a set is read over the one and then over the other."""
    found = {}
    for cell in cells:
        found.setdefault((cell.workload, cell.size), []).append(cell)
    return [Group(workload, size, cells) for (workload, size), cells in found.items()]


def phases(group):
    """The cells of a group in those lists between which a server may be started anew."""
    if group.workload != "hit-disk":
        return [group.cells]
    by_tls = [[cell for cell in group.cells if cell.tls == tls] for tls in (True, False)]
    return [cells for cells in by_tls if cells]


def turns(cells, systems):
    """(round from 1, position, cell, system) in the order in which they are run. `systems` are names. What a system may not survive comes
    when all else has been measured."""
    for is_heavy in (False, True):
        some = [cell for cell in cells if cell.is_heavy() == is_heavy]
        for number in range(max((cell.rounds for cell in some), default=0)):
            for cell in some:
                if number >= cell.rounds:
                    continue
                here = [name for name in systems if cell.only is None or name in cell.only]
                ordered = here if number % 2 == 0 else here[::-1]
                for position, name in enumerate(ordered):
                    yield number + 1, position, cell, name


def expected_seconds(cells, systems, done=frozenset(), can=lambda name, cell: True, sets=lambda name, cells: 1):
    """How long the cells take that are not `done` ((system, row, round), as `records.key` has them). A system reads the working set as
    often as `sets` says, twice each time."""
    from . import records

    total = 0.0
    for group in groups(cells):
        here = {}
        for number, _, cell, name in turns(group.cells, systems):
            if records.key(name, cell.row(), number) in done or not can(name, cell):
                continue
            here.setdefault(name, []).append(cell)
            run = PUT_SECONDS if cell.workload == "put" else cell.warmup_seconds() + cell.measured_seconds() + OVERHEAD_SECONDS
            total += run
        for name, its_cells in here.items():
            total += sets(name, its_cells) * (START_SECONDS + WARM_PASSES * group.set_bytes() / WARM_BYTES_PER_SECOND)
    return total
