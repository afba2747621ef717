#!/usr/bin/env python3
"""The analysis on points whose figures are known. Last line: N passed, N failed, N skipped."""

import sys
import traceback
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parent))
import model
import publish
from contenders import CLASSES, COMMON, HERE, PEERS, TUNINGS
from figures import Case, Figures, Point, Target, count, disagreements, judge, parse, parse_yardstick, read, target_rows, targets, write

MPIS = {"fast", "slow"}


def point(round_, side, us, near=100, after=None, op="gather", cls="private", variant="one", size=8, ranks=2, mode=""):
    after = near if after is None else after
    return Point(round_, mode, side, op, cls, variant, ranks, size, us, us, us, 10, near, after)


def figures(*points):
    # Both distances of a machine that has two, so that each keeps its name.
    return Figures([*points, *(point(1, "far", 1, near) for near in (100, 100, 450, 450))], MPIS)


def case(place="near", op="gather", size=8, ranks=2, mode=""):
    return Case(op, mode, ranks, size, place)


def ratios_are_of_the_same_round():
    seen = figures(point(1, "ours", 2), point(1, "limit", 1), point(2, "ours", 30), point(2, "limit", 10), point(3, "ours", 500))
    assert seen.limit(case(), "private") == (2.5, 2, False)


def ratios_without_a_common_round_say_so():
    seen = figures(point(1, "ours", 2), point(2, "limit", 1))
    assert seen.limit(case(), "private") == (2, 0, True)


def near_is_not_divided_by_far():
    seen = figures(point(1, "ours", 2), point(1, "limit", 1, near=450))
    assert seen.limit(case(), "private") is None and seen.limit(case("far"), "private") is None


def points_that_changed_place_are_dropped():
    seen = figures(point(1, "ours", 2, 100, after=450), point(1, "ours", 2, 0, after=450))
    assert seen.places[None] == 2 and not seen.rounds(case(), "ours")


def one_distance_has_one_name():
    points = [point(round_, "ours", 1, near) for round_, near in enumerate([170, 190, 210, 220, 240, 250, 290, 301])]
    assert set(Figures(points, MPIS).places) == {"between"}


def crowded_ranks_have_no_distance():
    assert figures(point(1, "ours", 1, near=0, ranks=4)).rounds(case("crowded", ranks=4), "ours") == {1: 1}


def the_limit_is_its_best_variant_of_each_round():
    seen = figures(point(1, "ours", 4), point(1, "limit", 2, variant="a"), point(1, "limit", 4, variant="b"))
    assert seen.limit(case(), "private").value == 2


def the_limit_of_fresh_arrays_is_the_plain_one():
    seen = figures(point(1, "ours", 4, mode="fresh"), point(1, "limit", 2))
    assert seen.limit(case(mode="fresh"), "private").value == 2


def batches_are_compared_with_batches():
    seen = figures(point(1, "ours", 4), point(1, "limit", 2), point(1, "ours", 3, variant="batch20"),
                   point(1, "limit", 1, variant="inline_batch20"))
    assert (seen.limit(case(), "private").value, seen.limit(case(), "private batch20").value) == (2, 3)


def the_best_peer_is_chosen_on_odd_rounds_and_compared_on_even_ones():
    # By luck the slow one is best in the round that is compared.
    seen = figures(*(point(round_, "ours", 1) for round_ in (1, 2)), point(1, "fast", 2), point(2, "fast", 6),
                   point(1, "slow", 4), point(2, "slow", 1))
    chosen, us, found = seen.best(case(), "private")
    assert (chosen.side, us, found.value, found.apart) == ("fast", 6, 6, False)


def others_are_no_best_peer():
    assert figures(point(1, "yardstick", 1), point(1, "mpi4py", 1)).best(case()) == (None, None, None)


def targets_are_met_missed_or_not_seen():
    seen = figures(point(1, "ours", 2), point(2, "ours", 2), point(1, "limit", 1), point(1, "fast", 5), point(2, "fast", 5))
    wanted = [("limit", 2.1, 1), ("limit", 1.9, 1), ("us", 2, 1), ("us", 1.9, 1), ("best", 2.5, 1), ("best", 2.6, 1),
              ("fast one", 2.5, 1), ("fast two", 1, 1)]
    verdicts = judge(seen, [Target("gather", "", 2, 8, "private", against, near, far, None) for against, near, far in wanted])
    assert [verdict.met for verdict in verdicts if verdict.placement == "near"] == [True, False, True, False, True, False, True, None]
    assert all(verdict.met is None for verdict in verdicts if verdict.placement == "far")
    assert count(verdicts) == "4 met, 3 missed, 9 not seen"


def between_is_judged_by_the_stricter_figure():
    seen = Figures([point(1, "ours", 2, 250), point(1, "limit", 1, 250), point(1, "fast", 5, 250)], MPIS)
    wanted = [Target("gather", "", 2, 8, "private", "limit", 1.5, 2.5, None), Target("gather", "", 2, 8, "private", "fast", 2, 3, None)]
    verdicts = [verdict for verdict in judge(seen, wanted) if verdict.placement == "between"]
    assert [(verdict.wanted, verdict.met) for verdict in verdicts] == [(1.5, False), (3, False)]


def what_the_limit_would_reach_stands_beside_peers():
    seen = figures(point(1, "ours", 2), point(1, "limit", 1.6), point(1, "fast", 4))
    wanted = [Target("gather", "", 2, 8, "private", "fast", bound, None, None) for bound in (1.9, 2.1, 2.6)]
    verdicts = judge(seen, [*wanted, Target("gather", "", 2, 8, "private", "limit", 1, None, None)])
    seen = [verdict for verdict in verdicts if verdict.placement == "near"]
    assert [verdict.bound for verdict in seen] == [2.5, 2.5, 2.5, None]
    assert [row[-1] for row in target_rows(seen)] == ["met", "**missed**", "**missed**, as the limit would", "**missed**"]


def disagreements_of_the_yardstick():
    text = "shm,shm_inout.spin,2,allreduce,dirty,8,0.5,0.4,0.6,10,100/101\nshm,flags.spin,2,barrier,dirty,0,0.1,0.1,0.1,10,100/101\n"
    mine = [point(1, "limit", 0.6, op="all_reduce", cls="shared_in_out"), point(1, "limit", 0.11, op="barrier", size=0)]
    found = list(disagreements(figures(*mine, *parse_yardstick(text, 1, ""))))
    assert len(found) == 1 and found[0].startswith("all_reduce shared_in_out"), found


def points_survive_their_file():
    points = [point(1, "ours", 2.125, 100, 101, mode="fresh huge"), point(2, "limit", 0.25, variant="a_b")]
    path = HERE / "points-test.csv"
    try:
        write(path, points)
        assert read(path) == points
    finally:
        path.unlink(missing_ok=True)


def what_is_no_point_is_passed_over():
    assert parse("side,op,class,variant,ranks,bytes,median_us,p10_us,p90_us,iterations,near_ns_before,near_ns_after\nhello\n", 1, "") == []


def targets_name_what_there_is():
    labels = {peer.label for peer in PEERS} | {"mpi4py-openmpi-debian", "pool", "ray", "distwq", "loky", "iceoryx2", "limit"}
    for target in targets(HERE / "targets.csv"):
        assert target.against in ("limit", "us", "best") or target.against.split()[0] in labels, target
        assert target.cls.split()[0] in CLASSES[target.op], target
    for whose, name, ops, *_ in TUNINGS:
        assert set(ops.split()) <= set(COMMON), name
        assert not whose or whose in {word for peer in PEERS for word in (peer.label, peer.family)}, name


def targets_over_nodes_name_what_there_is():
    wanted = targets(HERE / "targets-nodes.csv")
    assert wanted and all(target.against in ("best", "han") for target in wanted)
    assert {target.mode for target in wanted} == {"3 x 4, 1gbit"} and {target.ranks for target in wanted} == {12}
    assert {target.cls for target in wanted} == {f"{cls} {way}" for cls in ("fast", "private") for way in ("crews", "processes")}


def a_model_finds_the_costs_that_made_its_points():
    costs = [10, 20, 15, 1 / 200, 1 / 5000]
    keys = [(op, cls, nodes, ranks, size) for nodes, ranks in ((2, 1), (2, 4), (4, 2), (6, 1), (3, 4))
            for op, cls in (("all_reduce", "fast"), ("all_reduce", "private"), ("gather", "private"))
            for size in (8, 4 << 10, 32 << 10, 256 << 10, 1 << 20, 8 << 20)]
    points = {key: sum(a * b for a, b in zip(costs, model.here(*key, 2))) for key in keys}
    found = model.Fit(points, 2).factors
    assert all(abs(a / b - 1) < 1e-6 for a, b in zip(found, costs)), found


def a_model_leaves_out_what_would_be_negative():
    assert [round(factor, 9) for factor in model.solve([[1, 0], [1, 1], [1, 2]], [3, 2, 1])] == [2, 0]


def what_was_written_by_hand_stays():
    old = f"old figures\n{publish.BY_HAND}\n## Method\n"
    assert publish.renewed(old, "new figures\n") == f"new figures\n{publish.BY_HAND}\n## Method\n"
    assert publish.BY_HAND in publish.PAGE.read_text(encoding="utf-8")


def main():
    tests = [f for name, f in globals().items() if callable(f) and getattr(f, "__module__", "") == "__main__"
             and name not in ("point", "figures", "case", "main")]
    failed = 0
    for test in tests:
        try:
            test()
        except Exception:
            failed += 1
            print(f"{test.__name__}:")
            traceback.print_exc(file=sys.stdout)
    print(f"{len(tests) - failed} passed, {failed} failed, 0 skipped")
    return failed > 0


if __name__ == "__main__":
    sys.exit(main())
