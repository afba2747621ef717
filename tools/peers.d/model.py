"""What a call over nodes costs: a linear model of what it does, fitted to what was measured."""

import math
import statistics

import contenders
import figures
from figures import number, size_name

# As in src/comm/hybrid: bytes of a record, up to which operands travel in it, are told by all to all, sizes of chunks.
RECORD, CARRIED, WHOLE, AT_ONCE, CHUNK, LEAST = 192, 128, 64 << 10, 16 << 20, 256 << 10, 32 << 10
INLINE = 72
# What a shaped cable of tools/cluster lets through at once.
BURST = 128 << 10

NAMES = ["a call", "a message's way", "an exchange, each rank of a processor", "a byte on a cable", "a byte through memory"]


def steps(nodes):
    return math.ceil(math.log2(nodes)) if nodes > 1 else 0


def work(op, cls, size, nodes, ranks, processors):
    """How often each of NAMES happens, one after the other, for `ranks` a node; less than one processor: nodes share it."""
    # Leaders that share a processor look for messages in turn.
    share, waits = max(1, ranks / processors), max(1, 1 / processors)
    # Meeting: an exchange of the node, records around, a broadcast of them in the node.
    ways, exchanges, cable, memory = waits * steps(nodes), 3, RECORD * (nodes - 1), RECORD * nodes
    if op == "gather":
        if size <= INLINE and size * ranks <= CARRIED:
            return [1, ways, exchanges * share, cable, memory]
        # Root's cable; a rank stages what it sends, root takes all.
        cable += (nodes - 1) * ranks * size
        memory += 2 * size * share + nodes * ranks * size
        return [1, ways + waits, (exchanges + 2 * math.ceil(size / (256 << 10))) * share, cable, memory]
    fast = cls == "fast"
    parts = nodes if fast else nodes * ranks
    if size <= INLINE and size * (1 if fast else ranks) <= CARRIED:
        return [1, ways, exchanges * share, cable, memory]
    if size * parts <= WHOLE:
        return [1, 2 * ways, (exchanges + 2) * share, cable + size * parts * (nodes - 1) / nodes, memory + size * (parts + 2)]
    if fast and size < 2 * nodes * LEAST and size <= AT_ONCE:
        # Folded in the node, a slice to each, told to all, to the node's ranks.
        return [1, waits + 2 * ways, (exchanges + 4) * share, cable + 2 * (nodes - 1) / nodes * size, memory + 4 * size * share]
    chunk = min(max(min(math.isqrt(size << 10), size // (2 * nodes)), LEAST), CHUNK)
    chunks = math.ceil(size / chunk)
    if fast:
        carried = 2 * (nodes - 1) / nodes * max(size, nodes * chunk)
        rounds = math.ceil(chunks / (2 * nodes)) * 2 * nodes + 2 * (nodes - 1)
    else:
        # The middle of a chain sends both ways; the first chunk goes there and back.
        carried = (2 if nodes > 2 else 1) * size + 2 * (nodes - 1) * chunk
        rounds = chunks + 4 * (nodes - 1)
    # A rank stages its operand, folds its slice of all of them, takes the total.
    memory += 4 * size
    return [1, ways + 2 * waits * (nodes - 1), (exchanges + rounds) * share, cable + carried, memory * share]


def here(op, cls, nodes, ranks, size, processors):
    """The same where all hosts share one machine's processors; the cables of tools/cluster let some bytes through at once."""
    *rest, cable, memory = work(op, cls, size, nodes, ranks, processors / nodes)
    return [*rest, max(0, cable - BURST), memory]


def solve(rows, wanted):
    """Least squares with factors that are not negative: those that would be are left out, the worst first."""
    used = list(range(len(rows[0])))
    while used:
        # Normal equations, columns scaled to 1, by elimination.
        scale = {i: math.sqrt(sum(row[i] ** 2 for row in rows)) or 1.0 for i in used}
        matrix = [[sum(row[i] * row[j] for row in rows) / scale[i] / scale[j] for j in used]
                  + [sum(row[i] * y for row, y in zip(rows, wanted)) / scale[i]] for i in used]
        for column in range(len(used)):
            pivot = max(range(column, len(used)), key=lambda row: abs(matrix[row][column]))
            matrix[column], matrix[pivot] = matrix[pivot], matrix[column]
            for row in range(len(used)):
                if row != column:
                    part = matrix[row][column] / matrix[column][column]
                    matrix[row] = [x - part * y for x, y in zip(matrix[row], matrix[column])]
        found = {i: matrix[k][-1] / matrix[k][k] / scale[i] for k, i in enumerate(used)}
        worst = min(used, key=lambda i: found[i] * scale[i])
        if found[worst] >= 0:
            return [found.get(i, 0.0) for i in range(len(rows[0]))]
        used.remove(worst)
    return [0.0] * len(rows[0])


class Fit:
    def __init__(self, points, processors):
        self.points, self.processors = points, processors
        features = [here(*key, processors) for key in points]
        times = list(points.values())
        # Relative deviations count.
        self.factors = solve([[x / t for x in row] for row, t in zip(features, times)], [1.0] * len(times))

    def time(self, key):
        return sum(factor * count for factor, count in zip(self.factors, here(*key, self.processors)))

    def table(self):
        call, way, exchange, cable, memory = self.factors
        speed = lambda factor: f"{1 / factor / 1e3:.3g} GB/s" if factor else "not seen"
        found = [f"{call:.3g} us", f"{way:.3g} us", f"{exchange:.3g} us", speed(cable), speed(memory)]
        return figures.table(["each", "costs"], zip(NAMES, found))

    def deviations(self):
        """The model beside what was measured, in the order of its mistakes."""
        rows = [[op, cls, f"{nodes} x {ranks}", size_name(size), number(time), number(self.time((op, cls, nodes, ranks, size))),
                 f"{self.time((op, cls, nodes, ranks, size)) / time:.2f}"] for (op, cls, nodes, ranks, size), time in self.points.items()]
        off = [abs(math.log(float(row[-1]))) for row in rows]
        says = f"{len(rows)} points, half of them within a factor of {math.exp(statistics.median(off)):.2f}, all within {math.exp(max(off)):.2f}."
        order = sorted(zip(off, rows), key=lambda pair: -pair[0])[:12]
        return "\n".join([says, "", "Those where it is furthest off:", "", figures.table(
            ["op", "class", "nodes x ranks", "bytes", "measured us", "model us", "model/measured"], (row for _, row in order))])

    def predictions(self):
        """A cluster that is not here: constants as its parts are sold, counts from the model."""
        call, way, exchange, cable, memory = 1.0, 3.0, 6.0, 1 / 12.5e3, 1 / 3e3
        body = []
        for nodes in (2, 16, 128, 1024, 10_000):
            for size in (8, 1 << 20, 256 << 20):
                times = [sum(a * b for a, b in zip((call, way, exchange, cable, memory), work("all_reduce", cls, size, nodes, 64, 64)))
                         for cls in ("fast", "private")]
                meeting = call + way * steps(nodes) + 3 * exchange + (RECORD * nodes) * (cable + memory)
                body.append([nodes, size_name(size), number(times[0]), number(times[1]), number(meeting), f"{100 * meeting / times[0]:.0f} %"])
        return figures.table(["nodes of 64 ranks", "bytes", "fast us", "in order us", "of it the meeting us", "of fast"], body)


def fit(points):
    """From points of `peers ours`: the way in that forks, or the only one where there is a rank a host."""
    times = {}
    for point in points:
        layout, rate = point.mode.split(", ")
        nodes, ranks = map(int, layout.split(" x "))
        cls, _, way = point.cls.partition(" ")
        if point.side == "ours" and rate != "unshaped" and point.op in ("all_reduce", "gather") and cls != "exact" and (way == "crews" or ranks == 1):
            times.setdefault((point.op, cls, nodes, ranks, point.bytes), []).append(point.median_us)
    return Fit({key: statistics.median(found) for key, found in times.items()}, len(contenders.processors()))
