"""From points to figures: near and far apart, ratios within a round, the best peer chosen on rounds that it is not compared on."""

import csv
import statistics
from collections import Counter, defaultdict, namedtuple

PRINTED = "side op class variant ranks bytes median_us p10_us p90_us iterations near_ns_before near_ns_after".split()
Point = namedtuple("Point", ["round", "mode", *(name if name != "class" else "cls" for name in PRINTED)])
COLUMNS = ["round", "mode", *PRINTED]

# A cache line that comes back sooner is near, later far (ns).
NEAR, FAR = 200, 300
# Machines with two distances have them further apart; less than that comes and goes by itself.
ALIKE = 1.8
PLACES = ["near", "between", "far", "crowded"]


def parse(text, round_, mode):
    """The points among what a contender printed."""
    points = []
    for line in text.splitlines():
        words = line.strip().split(",")
        if len(words) != len(PRINTED) or words[:2] == PRINTED[:2]:
            continue
        numbers = [int(words[4]), int(words[5]), *map(float, words[6:9]), int(words[9]), float(words[10]), float(words[11])]
        points.append(Point(round_, mode, *words[:4], *numbers))
    return points


def write(path, points):
    with open(path, "w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(COLUMNS)
        out.writerows(points)


def read(path):
    with open(path, newline="", encoding="utf-8") as file:
        return [point for round_, mode, *rest in list(csv.reader(file))[1:] for point in parse(",".join(rest), int(round_), mode)]


def distance(point):
    """What a cache line took during a point; 0 if nobody had a processor of its own, None if that changed."""
    low, high = sorted((point.near_ns_before, point.near_ns_after))
    if high == 0:
        return 0
    return None if low == 0 or high / low > ALIKE else (low * high) ** 0.5


def naming(points):
    """Names a distance. Where nine tenths of all are alike the machine has one, and all bear its name."""
    name = lambda mean: "near" if mean < NEAR else "far" if mean > FAR else "between"
    all_ = sorted(filter(None, map(distance, points)))
    if all_ and all_[len(all_) * 19 // 20] < ALIKE * all_[len(all_) // 20]:
        one = name(statistics.median(all_))
        name = lambda mean: one
    return lambda mean: None if mean is None else name(mean) if mean else "crowded"


# Variants that are rungs of their own: other work, not another way to do it.
APART = {"rate", "round_trip", "asleep", "sweep_of_one", "publish_reopen", "ended", "pages_4k"}


def rung(point):
    """The class that a point is compared in: batches of calls with batches (a barrier always is one)."""
    if point.variant in APART:
        return f"{point.cls} {point.variant}"
    if point.variant.endswith("batch20") and point.op != "barrier":
        return f"{point.cls} batch20"
    return point.cls


# A case is what is compared at one place; a contender of it has a time for each round.
Case = namedtuple("Case", "op mode ranks bytes placement")
Contender = namedtuple("Contender", "side cls variant")
Ratio = namedtuple("Ratio", "value rounds apart")  # apart: not from rounds of its own or the same ones


class Figures:
    def __init__(self, points, mpis):
        self.mpis = mpis
        self.times = defaultdict(lambda: defaultdict(dict))
        name = naming(points)
        self.places = Counter(name(distance(point)) for point in points)
        for point in points:
            where = name(distance(point))
            if where is None:
                continue
            case = Case(point.op, point.mode, point.ranks, point.bytes, where)
            self.times[case][Contender(point.side, rung(point), point.variant)][point.round] = point.median_us

    def rounds(self, case, side, cls=None, variant=None):
        """The least time of each round over the contenders that are meant."""
        # What is attainable does not depend on how a contender keeps its buffers.
        case = case._replace(mode="") if side == "limit" else case
        least = {}
        for contender, rounds in self.times.get(case, {}).items():
            if contender.side == side and cls in (None, contender.cls) and variant in (None, contender.variant):
                for round_, time in rounds.items():
                    least[round_] = min(time, least.get(round_, time))
        return least

    def limit(self, case, cls):
        """Our time over the limit's."""
        return ratio(self.rounds(case, "ours", cls), self.rounds(case, "limit", cls))

    def against(self, case, cls, side, variant, ours="ours"):
        """A peer's time over ours."""
        return ratio(self.rounds(case, side, None, variant), self.rounds(case, ours, cls))

    def best(self, case, cls=None, ours="ours"):
        """The fastest form of any MPI in the odd rounds, its time in the even ones, and that over ours."""
        forms = {contender: rounds for contender, rounds in self.times.get(case, {}).items() if contender.side in self.mpis}
        odd = {contender: median({r: t for r, t in rounds.items() if r % 2}) for contender, rounds in forms.items()}
        odd = {contender: time for contender, time in odd.items() if time is not None}
        if not forms:
            return None, None, None
        chosen = min(odd or forms, key=lambda contender: odd.get(contender) or median(forms[contender]))
        even = {r: t for r, t in forms[chosen].items() if r % 2 == 0}
        found = cls and ratio(even or forms[chosen], self.rounds(case, ours, cls))
        return chosen, median(even or forms[chosen]), found and found._replace(apart=found.apart or not (odd and even))

    def cases(self):
        return sorted(self.times)


def median(rounds):
    return statistics.median(rounds.values()) if rounds else None


def ratio(over, under):
    """The median over common rounds of one time over another; if there is none, of the medians."""
    if not over or not under:
        return None
    common = over.keys() & under.keys()
    if common:
        return Ratio(statistics.median(over[r] / under[r] for r in common), len(common), False)
    return Ratio(median(over) / median(under), 0, True)


# --- Targets

Target = namedtuple("Target", "op mode ranks bytes cls against near far crowded")
# bound: what the limit's code reaches against that peer.
Verdict = namedtuple("Verdict", "target placement wanted figure rounds apart met bound")


def targets(path):
    with open(path, newline="", encoding="utf-8") as file:
        rows = [row for row in csv.reader(file) if row and not row[0].startswith("#")]
    return [Target(op, mode, int(ranks), int(size), cls, against, *(float(x) if x else None for x in figures))
            for op, mode, ranks, size, cls, against, *figures in rows[1:]]


def judge(figures, wanted):
    """Every target at every placement it names; also between near and far, by the stricter figure, where that was seen."""
    verdicts = []
    for target in wanted:
        bounds = {name: getattr(target, name) for name in ("near", "far", "crowded") if getattr(target, name) is not None}
        sides = [bounds[name] for name in ("near", "far") if name in bounds]
        if sides:
            bounds["between"] = min(sides) if at_most(target) else max(sides)
        for name, bound in bounds.items():
            figure, rounds, apart = figure_of(figures, target, name)
            if figure is None and name == "between":
                continue
            met = None if figure is None else figure <= bound if at_most(target) else figure >= bound
            attainable = None if at_most(target) or figure is None else figure_of(figures, target, name, "limit")[0]
            verdicts.append(Verdict(target, name, bound, figure, rounds, apart, met, attainable))
    return verdicts


def at_most(target):
    return target.against in ("limit", "us")


def figure_of(figures, target, where, ours="ours"):
    case = Case(target.op, target.mode, target.ranks, target.bytes, where)
    if target.against == "us":
        rounds = figures.rounds(case, "ours", target.cls)
        return median(rounds), len(rounds), False
    if target.against == "limit":
        found = figures.limit(case, target.cls)
    elif target.against == "best":
        found = figures.best(case, target.cls, ours)[2]
    else:
        side, _, variant = target.against.partition(" ")
        found = figures.against(case, target.cls, side, variant or None, ours)
    return found or (None, 0, False)


# --- The yardstick

# Its operations and the beginnings of its variants' names; the longest that fits.
YARDSTICK = {
    "barrier": ("barrier", {"": "private"}),
    "allreduce": ("all_reduce", {"": "private", "small_b2b": "private batch20", "shm_in": "shared_in", "shm_inout": "shared_in_out",
                                 "shared_result": "shared_result", "shared_inplace": "in_place"}),
    "gatherv": ("gather", {"": "private", "shm_in": "shared_in", "shm_out": "shared_out", "view": "views"}),
    "bcast": ("broadcast", {"": "private", "shm_in": "shared_in"}),
}


def parse_yardstick(text, round_, mode):
    """Its columns: shm,variant.waiting,ranks,op,mode,bytes,median,p10,p90,iterations,before/after."""
    points = []
    for words in (line.split(",") for line in text.splitlines() if line.startswith("shm,")):
        op, classes = YARDSTICK[words[3]]
        variant = words[1].partition(".")[0]
        cls = classes[max((start for start in classes if variant.startswith(start)), key=len)]
        before, after = map(float, words[10].split("/"))
        size = 0 if op == "barrier" else int(words[5])
        times = map(float, words[6:9])
        points.append(Point(round_, mode, "yardstick", op, cls, variant, int(words[2]), size, *times, int(words[9]), before, after))
    return points


def disagreements(figures, tolerance=1.15):
    """Where our limit and the yardstick's are further apart than that, with the fastest variant of each."""
    for case in figures.cases():
        for cls in sorted({contender.cls for contender in figures.times[case] if contender.side == "yardstick"}):
            limit, its = (median(figures.rounds(case, side, cls)) for side in ("limit", "yardstick"))
            if limit and its and max(limit / its, its / limit) > tolerance:
                names = [min((median(rounds), contender.variant) for contender, rounds in figures.times[case].items()
                             if (contender.side, contender.cls) == (side, cls))[1] for side in ("limit", "yardstick")]
                yield (f"{title(case)} {cls}, {case.ranks} ranks, {case.placement}, {size_name(case.bytes)}: "
                       f"limit {number(limit)} us ({names[0]}), yardstick {number(its)} us ({names[1]})")


# --- Text

def size_name(size):
    for unit, name in ((1 << 20, "MiB"), (1 << 10, "KiB")):
        if size >= unit and size % unit == 0:
            return f"{size // unit} {name}"
    return f"{size} B" if size else "-"


def number(x, unit=""):
    if x is None:
        return "-"
    return (f"{x:,.0f}" if x >= 1000 else f"{x:.3g}") + unit


def shown(found, sign="x"):
    """A ratio; ~ if its two times are not from the same rounds."""
    return "-" if not found else ("~" if found.apart else "") + number(found.value) + sign


HEAD = ["op", "ranks", "where", "bytes", "class", "ours us", "limit us", "ours/limit", "best peer us", "best peer/ours", "best peer"]


def rows(figures, order):
    """One row for each case and rung."""
    for case in figures.cases():
        chosen, best_us, _ = figures.best(case)
        best = [number(best_us), f"{chosen.side} {chosen.variant}" if chosen else "-"]
        found = {contender.cls for contender in figures.times[case] if contender.side in ("ours", "limit")}
        found = found or ({"-"} if chosen else set())
        rank = lambda cls: (order.get(case.op, []) + [cls.split()[0]]).index(cls.split()[0])
        for cls in sorted(found, key=lambda cls: (rank(cls), cls)):
            ours, limit = (number(median(figures.rounds(case, side, cls))) for side in ("ours", "limit"))
            yield [*place(case), cls, ours, limit, shown(figures.limit(case, cls)), best[0], shown(figures.best(case, cls)[2]), best[1]]


OTHER_HEAD = ["op", "ranks", "where", "bytes", "who", "how", "us", "over ours"]


def other_rows(figures):
    """Whoever is neither we, the limit nor an MPI: over our private class, or that of its own."""
    for case in figures.cases():
        for side, cls, variant in sorted(figures.times[case]):
            if side in ("ours", "limit", "yardstick") or side in figures.mpis:
                continue
            name = cls if figures.rounds(case, "ours", cls) else f"private {variant.removesuffix('_batched')}"
            its = figures.rounds(case, side, cls, variant)
            yield [*place(case), side, variant, number(median(its)), shown(ratio(its, figures.rounds(case, "ours", name)))]


def place(case):
    return [title(case), case.ranks, case.placement, size_name(case.bytes)]


def title(case):
    return case.op + (f" ({case.mode})" if case.mode else "")


TARGET_HEAD = ["op", "ranks", "bytes", "class", "against", "where", "wanted", "figure", "the limit's", "rounds", ""]


def target_rows(verdicts):
    for target, where, wanted, figure, rounds, apart, met, bound in verdicts:
        sign = {"us": " us"}.get(target.against, "x")
        word = {True: "met", False: "**missed**", None: "not seen"}[met]
        if met is False and bound is not None and bound < wanted:
            word += ", as the limit would"
        yield [title(target), target.ranks, size_name(target.bytes), target.cls, target.against,
               where, ("<= " if at_most(target) else ">= ") + number(wanted) + sign,
               ("~" if apart else "") + number(figure, sign if figure is not None else ""),
               number(bound, sign if bound is not None else ""), rounds or "-", word]


def table(head, body):
    """A table that reads well as text and as Markdown."""
    body = [[str(word) for word in row] for row in body]
    wide = [max(len(row[i]) for row in [head, *body]) for i in range(len(head))]
    line = lambda row: "| " + " | ".join(word.ljust(width) for word, width in zip(row, wide)) + " |"
    return "\n".join([line(head), "|" + "|".join("-" * (width + 2) for width in wide) + "|", *map(line, body)])


def places(figures):
    named = ", ".join(f"{figures.places[place]} points {place}" for place in PLACES if figures.places[place])
    return f"{named}; {figures.places[None]} dropped because their placement changed"


def count(verdicts):
    met = [verdict.met for verdict in verdicts]
    return f"{met.count(True)} met, {met.count(False)} missed, {met.count(None)} not seen"
