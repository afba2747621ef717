"""Pictures and the page."""

import datetime
import os
import shutil
import sys

import contenders
import figures
from contenders import CLASSES, ROOT, VENV, WORK

PAGE = ROOT / "docs" / "performance.md"
# What stands below this line is left as it is.
BY_HAND = "<!-- by hand from here on -->"


def matplotlib(wheels):
    """From the venv, whatever Python runs this."""
    contenders.python_package("matplotlib", wheels)
    sys.path[:0] = map(str, VENV.glob("lib/python*/site-packages"))
    try:
        import matplotlib.pyplot as pyplot
    except ImportError as error:
        raise OSError(f"matplotlib: {error}; delete {VENV} and run this again") from None
    pyplot.switch_backend("svg")
    pyplot.rcParams["svg.hashsalt"] = "peers"
    return pyplot


def lines(seen, op, ranks, place):
    """What a picture shows: name, style, sizes and times."""
    cases = [case for case in seen.cases() if (case.op, case.mode, case.ranks, case.placement) == (op, "", ranks, place)]
    for side, style in (("ours", "o-"), ("limit", "--")):
        for index, cls in enumerate(CLASSES[op]):
            yield f"{side} {cls}", style, f"C{index}", [(c.bytes, figures.median(seen.rounds(c, side, cls))) for c in cases]
    for index, peer in enumerate(contenders.PEERS):
        yield f"{peer.label}, its best", ":", f"C{5 + index}", [(c.bytes, least_form(seen, c, peer.label)) for c in cases]


def least_form(seen, case, side):
    forms = [figures.median(rounds) for contender, rounds in seen.times[case].items() if contender.side == side]
    return min(forms, default=None)


def draw(seen, where, wheels):
    """One picture an operation, a panel for each number of ranks and place."""
    names = []
    pyplot = matplotlib(wheels)
    for op in CLASSES:
        panels = sorted({(case.ranks, case.placement) for case in seen.cases() if case.op == op and not case.mode})
        if not panels or op in ("tasks", "setup"):
            continue
        figure, axes = pyplot.subplots(1, len(panels), figsize=(7 * len(panels), 5.5), squeeze=False, sharey=True)
        for axis, (ranks, place) in zip(axes[0], panels):
            for name, style, colour, points in lines(seen, op, ranks, place):
                points = [(max(size, 1), time) for size, time in points if time is not None]
                if points:
                    axis.loglog(*zip(*points), style, color=colour, label=name, linewidth=1, markersize=3)
            axis.set(title=f"{op}, {ranks} ranks, {place}", xlabel="bytes a rank", ylabel="us")
            axis.grid(True, which="major", linewidth=0.3)
            if axis.lines:
                axis.legend(fontsize=6)
        figure.tight_layout()
        figure.savefig(where / f"{op}.svg", metadata={"Date": None})
        pyplot.close(figure)
        names.append(op)
    return names


def bandwidths(memory):
    """The best copy and triad for each size and number of cores, GB/s."""
    best = {}
    for line in memory.splitlines()[1:]:
        kernel, cores, size, speed, _ = line.split(",")
        kind = "copy" if kernel.startswith(("memcpy", "copy")) else kernel.removesuffix("_nt")
        key = (int(cores), int(size))
        best.setdefault(key, {})[kind] = max(float(speed), best.get(key, {}).get(kind, 0))
    for (cores, size), kinds in sorted(best.items()):
        found = ", ".join(f"{kind} {kinds[kind]:.0f}" for kind in ("copy", "triad") if kind in kinds)
        yield f"GB/s, {cores} cores, {figures.size_name(size)}", found


def renewed(old, figures):
    """The page with new figures, and what was written by hand below them."""
    _, mark, kept = old.partition(BY_HAND)
    return figures + mark + kept


def page(seen, verdicts, points, skipped, versions, memory, command):
    """docs/performance.md, with every target beside its figure, missed ones too."""
    pictures = PAGE.with_suffix("")
    pictures.mkdir(parents=True, exist_ok=True)
    shown = []
    for op in CLASSES:
        if (WORK / f"{op}.svg").exists() and any(case.op == op for case in seen.cases()):
            shutil.copy(WORK / f"{op}.svg", pictures / f"{op}.svg")
            shown.append(f"![{op}](performance/{op}.svg)")
    facts = [("date", datetime.date.today().isoformat()), ("command", f"`{command}`"), *contenders.machine(),
             *bandwidths(memory), *versions, ("rounds", max(point.round for point in points)),
             ("load when this was written", f"{os.getloadavg()[2]:.1f} over a quarter of an hour"),
             ("placement", figures.places(seen))]
    others = list(figures.other_rows(seen))
    old = PAGE.read_text(encoding="utf-8") if PAGE.exists() else BY_HAND + "\n"
    PAGE.write_text(renewed(old, "\n".join([
        "# Performance", "",
        "Written by `tools/peers --publish`, which installs the peers and measures all of them on your machine; the method stands in",
        "its first lines. Times are medians over rounds, ratios are taken within a round; `~` marks ratios of times from different",
        "rounds. near: a cache line goes to the other rank and back in less than 200 ns; far: more than 300 ns; crowded: more ranks",
        "than processors. `between` is judged by the stricter of the two figures. Peers' default forms have their buffers on small",
        "pages, as programs get them; tuned forms, `huge` among them, on huge pages, as the engine's private arrays are.", "",
        "| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in facts), "",
        "## Targets", "", f"{figures.count(verdicts)}, which are those of other placements and of contenders that did not run. \"The limit's\" is what",
        "straight-line code of the same class reaches against that peer in the same rounds. It is the best of the forms in benches/limit,",
        "no proof that there is no better: where ours/limit is below 1 we found one.", "",
        figures.table(figures.TARGET_HEAD, figures.target_rows([verdict for verdict in verdicts if verdict.met is not None])), "",
        (contenders.HERE / "missed.md").read_text(encoding="utf-8"),
        "## Figures", "", *shown, "", figures.table(figures.HEAD, figures.rows(seen, CLASSES)), "",
        *([figures.table(figures.OTHER_HEAD, others), ""] if others else []),
        *(["## Not measured", "", *(f"- {who}: {why}" for who, why in skipped.items()), ""] if skipped else []),
    ])), encoding="utf-8")
    print(f"wrote {PAGE.relative_to(ROOT)}")
