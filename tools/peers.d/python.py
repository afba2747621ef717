"""What users of Python have instead, measured like the rest: one contender a run, all that it can do.

usage: [mpirun ...] python.py mpi4py|pool|futures|mpifutures|loky|ray|actors|distwq SIDE --ranks P --bytes N[,N...] --budget-ms MS

Prints side,op,class,variant,ranks,bytes,median_us,p10_us,p90_us,iterations,0,0 (a process of Python cannot see where it is).
tasks: rate (one empty task of many), rate_batched (many in one message), round_trip (a single one); array: a task gives so many
bytes back; gather: an array from each worker, one array at the caller. Results are compared while it warms up.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time

import numpy

LEAST, MOST = 3, 5000


def empty(_):
    return None


def array(size):
    return numpy.full(size // 8, size, dtype=numpy.float64)


def expect(is_right, what):
    if not is_right:
        sys.exit(f"wrong: {what}")


def timed(budget_ms, step):
    """Times in microseconds, after a warm-up."""
    step()
    times, until = [], time.perf_counter() + budget_ms / 1e3
    while len(times) < LEAST or (time.perf_counter() < until and len(times) < MOST):
        start = time.perf_counter()
        step()
        times.append((time.perf_counter() - start) * 1e6)
    return times


def show(chosen, op, variant, size, times, share=1):
    low, middle, high = (statistics.quantiles(times, n=10, method="inclusive")[i] / share for i in (0, 4, 8))
    print(f"{chosen.side},{op},private,{variant},{chosen.ranks},{size},{middle:.3f},{low:.3f},{high:.3f},{len(times)},0,0", flush=True)


def pools(chosen, one, many, batched=None, rate=2000):
    """one(f, x): a task's result; many(f, xs): theirs, each sent alone; batched: sent together."""
    for variant, run, tasks in (("rate", many, rate), ("rate_batched", batched, 20 * rate)):
        if run:
            expect(list(run(empty, range(10))) == [None] * 10, "ten empty tasks")
            show(chosen, "tasks", variant, 8, timed(chosen.budget_ms, lambda: list(run(empty, range(tasks)))), tasks)
    show(chosen, "tasks", "round_trip", 8, timed(chosen.budget_ms, lambda: one(empty, 0)))
    for size in chosen.bytes:
        expect((one(array, size) == array(size)).all(), "an array given back")
        show(chosen, "array", "back", size, timed(chosen.budget_ms, lambda: one(array, size)))
        gather = lambda: numpy.concatenate(list(many(array, [size] * chosen.ranks)))
        expect(gather().nbytes == size * chosen.ranks, "arrays put together")
        show(chosen, "gather", "concatenate", size, timed(chosen.budget_ms, gather))


def pool(chosen):
    from multiprocessing import Pool

    with Pool(chosen.ranks) as workers:
        pools(chosen, lambda f, x: workers.apply(f, (x,)), lambda f, xs: workers.map(f, xs, chunksize=1), workers.map)


def futures(chosen):
    from concurrent.futures import ProcessPoolExecutor

    with ProcessPoolExecutor(chosen.ranks) as workers:
        batched = lambda f, xs: workers.map(f, xs, chunksize=max(1, len(xs) // (4 * chosen.ranks)))
        pools(chosen, lambda f, x: workers.submit(f, x).result(), workers.map, batched)


def mpifutures(chosen):
    """Started by mpirun with -m mpi4py.futures: the first rank is here, the others work."""
    from mpi4py.futures import MPIPoolExecutor

    with MPIPoolExecutor() as workers:
        batched = lambda f, xs: workers.map(f, xs, chunksize=max(1, len(xs) // (4 * chosen.ranks)))
        pools(chosen, lambda f, x: workers.submit(f, x).result(), workers.map, batched)


def loky(chosen):
    """Its executor; many in one message as joblib sends them."""
    from joblib import Parallel, delayed
    from joblib.externals.loky import ProcessPoolExecutor

    with ProcessPoolExecutor(chosen.ranks) as workers, \
            Parallel(n_jobs=chosen.ranks, backend="loky", batch_size="auto") as auto:
        batched = lambda f, xs: auto(delayed(f)(x) for x in xs)
        pools(chosen, lambda f, x: workers.submit(f, x).result(), workers.map, batched)


def ray(chosen):
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0"}
    import ray as it

    with tempfile.TemporaryDirectory(prefix="peers", ignore_cleanup_errors=True) as place:
        it.init(num_cpus=chosen.ranks, include_dashboard=False, logging_level="ERROR", log_to_driver=False, _temp_dir=place)
        run = it.remote(lambda f, x: f(x))
        many = lambda f, xs: it.get([run.remote(f, x) for x in xs])
        pools(chosen, lambda f, x: it.get(run.remote(f, x)), many, rate=1000)
        it.shutdown()


def actors(chosen):
    """Ray's actors as AGOX uses them: tasks of one, an array that is set on eight, and a start of eight from nothing."""
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0"}
    import ray as it

    @it.remote(num_cpus=0)
    class Actor:
        def __init__(self):
            self.count = 0

        def add(self, x):
            self.count += x
            return self.count

        def set(self, table):
            self.table = table
            return float(table[0])

    with tempfile.TemporaryDirectory(prefix="peers", ignore_cleanup_errors=True) as place:
        begun = time.perf_counter()
        it.init(num_cpus=chosen.ranks, include_dashboard=False, logging_level="ERROR", log_to_driver=False, _temp_dir=place,
                object_store_memory=2 << 30)
        eight = [Actor.remote() for _ in range(8)]
        it.get([actor.add.remote(1) for actor in eight])
        show(chosen, "actors", "start", 8, 3 * [(time.perf_counter() - begun) * 1e6])
        one, rate = Actor.remote(), 1000
        show(chosen, "actors", "rate", 8, timed(chosen.budget_ms, lambda: it.get([one.add.remote(1) for _ in range(rate)])), rate)
        show(chosen, "actors", "round_trip", 8, timed(chosen.budget_ms, lambda: it.get(one.add.remote(1))))
        table = numpy.ones(chosen.bytes[0] // 8)

        def told():
            reference = it.put(table)
            expect(it.get([actor.set.remote(reference) for actor in eight]) == [1.0] * 8, "an array told to eight")

        show(chosen, "actors", "told", chosen.bytes[0], timed(chosen.budget_ms, told))
        it.shutdown()


def distwq(chosen):
    """Rank 0 deals out, the others work: a worker less than ranks."""
    import distwq as it

    if it.is_controller:
        it.run(fun_name="control", args=(chosen,))
    else:
        it.run()


def control(controller, chosen):
    def many(f, xs):
        for x in xs:
            controller.submit_call(f.__name__, (x,))
        return [controller.get_next_result()[1] for _ in xs]

    pools(chosen, lambda f, x: many(f, [x])[0], many, rate=100)


def mpi4py(chosen):
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    rank, ranks = world.rank, world.size
    expect(ranks == chosen.ranks, f"{ranks} ranks instead of {chosen.ranks}: the wrong mpirun")

    def point(op, variant, size, step, is_right):
        """Barrier, operation, the slowest rank, as for all others."""
        send = numpy.empty(size // 8)

        def once(number):
            send[:] = rank + number
            world.Barrier()
            start = time.perf_counter()
            result = step(send)
            return (time.perf_counter() - start) * 1e6, result

        least = 1e18
        for number in range(5):
            start = time.perf_counter()
            _, result = once(number)
            least = min(least, time.perf_counter() - start)
            expect(is_right(result, number), f"{op} {variant} of {size} bytes")
        rounds = world.bcast(int(min(max(chosen.budget_ms / 1e3 / least, LEAST), MOST)))
        times = numpy.array([once(number)[0] for number in range(rounds)])
        slowest = numpy.empty_like(times)
        world.Reduce(times, slowest, MPI.MAX)
        if rank == 0:
            show(chosen, op, variant, size, list(slowest))

    for size in chosen.bytes:
        total, whole = numpy.empty(size // 8), numpy.empty(size // 8 * ranks)

        def reduced(send, into=None):
            into = numpy.empty(size // 8) if into is None else into
            world.Allreduce(send, into)
            return into

        def gathered(send):
            world.Gatherv(send, whole if rank == 0 else None)
            return whole

        def pickled(send):
            parts = world.gather(send)
            return numpy.concatenate(parts) if parts else whole

        is_sum = lambda result, number: (result == sum(range(ranks)) + ranks * number).all()
        is_whole = lambda result, number: rank > 0 or (result.reshape(ranks, -1).T == numpy.arange(ranks) + number).all()
        point("all_reduce", "buffers", size, lambda send: reduced(send, total), is_sum)
        point("all_reduce", "fresh", size, reduced, is_sum)
        point("all_reduce", "pickle", size, world.allreduce, is_sum)
        point("gather", "buffers", size, gathered, is_whole)
        point("gather", "pickle", size, pickled, is_whole)


def main():
    contenders = {f.__name__: f for f in (mpi4py, pool, futures, mpifutures, loky, ray, actors, distwq)}
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("contender", choices=contenders)
    parser.add_argument("side")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--bytes", type=lambda text: [int(word) for word in text.split(",")], default=[8 << 20])
    parser.add_argument("--budget-ms", type=int, default=300)
    chosen = parser.parse_args()
    contenders[chosen.contender](chosen)


if __name__ == "__main__":
    main()
