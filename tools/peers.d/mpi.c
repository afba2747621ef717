// One rank of an MPI, measured as the engine is: in every iteration the send buffer is rewritten, then barriers; t0; the
// operation; t1. A time is the largest over the ranks, the figure their median. Results are compared in every iteration of the
// warm-up and in the last one; ranks that share a processor are refused unless told that they must.
//
// usage: mpirun ... mpi SIDE VARIANT --op barrier|broadcast|all_reduce|gather|pingpong --bytes N[,N...] --budget-ms MS
//                       [--fresh] [--huge] [--crowded] [--hosts]
//   --fresh    the result goes into a new buffer every time       --huge   huge pages instead of small ones
//   --crowded  more ranks than processors: none is bound, and no placement is measured
//   --hosts    the same for ranks on several hosts of one machine; barriers are not watched, and a time lasts from an appointed
//              moment, for which all sleep, to the end of the last
// Prints side,op,class,variant,ranks,bytes,median_us,p10_us,p90_us,iterations,near_ns_before,near_ns_after. A barrier is a
// twentieth of twenty, a pingpong half a round trip.
#define _GNU_SOURCE
#include <fcntl.h>
#include <mpi.h>
#include <sched.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>
#ifdef __x86_64__
#include <cpuid.h>
#include <x86intrin.h>
#endif

enum { MOST = 10000, LEAST = 5, WARM = 50, MAX_RANKS = 1024 };
#define WORLD MPI_COMM_WORLD
#define HUGE_PAGE ((size_t)2 << 20)

static int rank, ranks, fresh, huge, crowded, hosts;

// Two lines that rank 0 and one other bounce, and a word a rank for what a barrier promises.
static struct Shared {
    _Alignas(128) _Atomic uint32_t ping;
    _Alignas(128) _Atomic uint32_t pong;
    _Alignas(128) _Atomic long arrived[MAX_RANKS];
} *shared;

static _Noreturn void fail(const char *format, ...)
{
    va_list words;
    va_start(words, format);
    vfprintf(stderr, format, words);
    va_end(words);
    fputc('\n', stderr);
    MPI_Abort(WORLD, 1);
    exit(1);
}

static double kernel_us(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1e6 + time.tv_nsec * 1e-3;
}

// The engine is timed with the processor's counter where that is steady, so the others are, too: it costs half as much to read.
static double us_per_tick;
#ifdef __x86_64__
static double ticks(void)
{
    unsigned processor;
    return (double)__rdtscp(&processor);
}

static void set_clock(void)
{
    unsigned a, b, c, steady = 0, rdtscp = 0;
    __get_cpuid(0x80000007, &a, &b, &c, &steady);
    __get_cpuid(0x80000001, &a, &b, &c, &rdtscp);
    if (!(steady & 1 << 8) || !(rdtscp & 1 << 27))
        return;
    double start = kernel_us(), first = ticks();
    while (kernel_us() - start < 20e3)
        ;
    us_per_tick = (kernel_us() - start) / (ticks() - first);
}
#define pause_cpu() __builtin_ia32_pause()
#else
static double ticks(void) { return 0; }
static void set_clock(void) {}
#define pause_cpu() ((void)0)
#endif

static double now_us(void) { return us_per_tick > 0 ? ticks() * us_per_tick : kernel_us(); }

// Pages that all ranks map, nameless once they do.
static void share(void)
{
    char name[64] = "";
    if (rank == 0)
        snprintf(name, sizeof name, "/dev/shm/peers.%d", getpid());
    MPI_Bcast(name, sizeof name, MPI_CHAR, 0, WORLD);
    int file = -1;
    for (int turn = 0; turn < 2; turn++) {
        if ((turn == 0) == (rank == 0))
            file = open(name, rank == 0 ? O_CREAT | O_EXCL | O_RDWR : O_RDWR, 0600);
        if (rank == 0 && turn == 0 && ftruncate(file, sizeof *shared))
            fail("%s: no room in /dev/shm: make some", name);
        MPI_Barrier(WORLD);
    }
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (rank == 0)
        unlink(name);
    if (shared == MAP_FAILED)
        fail("rank %d cannot map %s: are all ranks on one host?", rank, name);
    close(file);
}

static void refuse_shared_processors(void)
{
    cpu_set_t mine, both, *sets = malloc(ranks * sizeof *sets);
    sched_getaffinity(0, sizeof mine, &mine);
    MPI_Allgather(&mine, sizeof mine, MPI_BYTE, sets, sizeof mine, MPI_BYTE, WORLD);
    for (int other = 0; other < rank; other++) {
        CPU_AND(&both, &mine, &sets[other]);
        if (CPU_COUNT(&both))
            fail("ranks %d and %d may run on the same processor: bind each to a core of its own, or say --crowded", other, rank);
    }
    free(sets);
}

// Nanoseconds that a cache line takes from rank 0 to rank 1 and back, the best of five tries.
static double placement(void)
{
    enum { TRIES = 5, TRIPS = 400 };
    static uint32_t trip;
    double best = 1e9;
    if (crowded)
        return 0;
    for (int try = 0; try < TRIES; try++) {
        MPI_Barrier(WORLD);
        double start = now_us();
        for (int i = 0; i < TRIPS && rank < 2; i++) {
            trip++;
            if (rank == 0) {
                atomic_store_explicit(&shared->ping, trip, memory_order_release);
                while (atomic_load_explicit(&shared->pong, memory_order_acquire) != trip)
                    pause_cpu();
            } else {
                while (atomic_load_explicit(&shared->ping, memory_order_acquire) != trip)
                    pause_cpu();
                atomic_store_explicit(&shared->pong, trip, memory_order_release);
            }
        }
        double each = (now_us() - start) * 1e3 / TRIPS;
        best = each < best ? each : best;
    }
    MPI_Barrier(WORLD);
    return best;
}

typedef struct {
    void *map;
    size_t len;
    double *at;
} Buffer;

static Buffer buffer(size_t bytes)
{
    Buffer b = {.len = bytes + HUGE_PAGE};
    b.map = mmap(NULL, b.len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (b.map == MAP_FAILED)
        fail("no memory for %zu bytes: measure smaller ones", bytes);
    b.at = (double *)(((uintptr_t)b.map + HUGE_PAGE - 1) & ~(HUGE_PAGE - 1));
    madvise(b.map, b.len, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
    return b;
}

static void release(Buffer b) { munmap(b.map, b.len); }

// What a rank sends in an iteration: whole numbers, so that sums are exact.
static double value(int who, long iteration, size_t k) { return who + 1 + iteration + (double)(k & 511); }

typedef struct {
    const char *name;
    int calls;                         // a time is divided by
    int senders, receivers;            // who has a buffer: so many ranks from 0 on, 0 for all
    void (*run)(double *send, double *receive, int n);
    double (*expected)(long iteration, size_t block, size_t k);
    int blocks_of_all;                 // the result is one block of each rank
} Op;

static int *counts, *starts;

static void barrier(double *send, double *receive, int n)
{
    (void)send, (void)receive, (void)n;
    for (int i = 0; i < 20; i++)
        MPI_Barrier(WORLD);
}
static void broadcast(double *send, double *receive, int n) { MPI_Bcast(rank ? receive : send, n, MPI_DOUBLE, 0, WORLD); }
static void all_reduce(double *send, double *receive, int n) { MPI_Allreduce(send, receive, n, MPI_DOUBLE, MPI_SUM, WORLD); }
static void gather(double *send, double *receive, int n)
{
    MPI_Gatherv(send, n, MPI_DOUBLE, receive, counts, starts, MPI_DOUBLE, 0, WORLD);
}
static void pingpong(double *send, double *receive, int n)
{
    if (rank == 0)
        MPI_Send(send, n, MPI_DOUBLE, 1, 0, WORLD);
    if (rank < 2)
        MPI_Recv(receive, n, MPI_DOUBLE, 1 - rank, 0, WORLD, MPI_STATUS_IGNORE);
    if (rank == 1)
        MPI_Send(receive, n, MPI_DOUBLE, 0, 0, WORLD);
}

static double of_root(long iteration, size_t block, size_t k) { return (void)block, value(0, iteration, k); }
static double of_each(long iteration, size_t block, size_t k) { return value((int)block, iteration, k); }
static double sum(long iteration, size_t block, size_t k)
{
    double all = 0;
    (void)block;
    for (int who = 0; who < ranks; who++)
        all += value(who, iteration, k);
    return all;
}

static const Op OPS[] = {
    {"barrier", 20, 0, 0, barrier, NULL, 0},
    {"broadcast", 1, 1, 0, broadcast, of_root, 0},
    {"all_reduce", 1, 0, 0, all_reduce, sum, 0},
    {"gather", 1, 0, 1, gather, of_each, 1},
    {"pingpong", 2, 1, 2, pingpong, of_root, 0},
};

static int takes_part(int first) { return first == 0 || rank < first; }

typedef struct {
    const Op *op;
    size_t n, bytes;                   // elements sent; bytes of the result
    double *send;
    Buffer result;
} Point;

// A barrier is watched in its first iterations: one comes late, and nobody may leave before.
static int is_watched(const Op *op, long iteration) { return !op->expected && iteration < 3 && !hosts; }

static void compare(const Point *point, long iteration)
{
    const Op *op = point->op;
    const double *result = point->result.at;
    size_t n = point->n;
    for (int who = 0; is_watched(op, iteration) && who < ranks; who++)
        if (atomic_load(&shared->arrived[who]) < iteration)
            fail("wrong: rank %d left barrier %ld before rank %d came", rank, iteration, who);
    if (!op->expected || !takes_part(op->receivers) || (op->run == broadcast && rank == 0))
        return;
    for (size_t block = 0; block < (op->blocks_of_all ? (size_t)ranks : 1); block++)
        for (size_t k = 0; k < n; k++)
            if (result[block * n + k] != op->expected(iteration, block, k))
                fail("wrong: %s of %zu bytes, rank %d, block %zu, element %zu: %g instead of %g", op->name, n * sizeof(double),
                     rank, block, k, result[block * n + k], op->expected(iteration, block, k));
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

// Two milliseconds from now on rank 0, which all have slept for when this returns.
static double appointment(void)
{
    double moment = kernel_us() + 2e3;
    MPI_Bcast(&moment, 1, MPI_DOUBLE, 0, WORLD);
    double left = moment - kernel_us();
    if (left > 0)
        nanosleep(&(struct timespec){.tv_nsec = (long)(left * 1e3)}, NULL);
    return moment;
}

// One iteration: microseconds here.
static double iterate(Point *point, long iteration)
{
    const Op *op = point->op;
    Buffer old = point->result;
    for (size_t k = 0; k < (takes_part(op->senders) ? point->n : 0); k++)
        point->send[k] = value(rank, iteration, k);
    // Twice, as the engine's ranks, of whom one may have to be woken by the first.
    MPI_Barrier(WORLD);
    MPI_Barrier(WORLD);
    if (is_watched(op, iteration)) {
        if (iteration % ranks == rank)
            usleep(500);
        atomic_store(&shared->arrived[rank], iteration);
    }
    double start = hosts ? appointment() : now_us();
    if (fresh)
        point->result = buffer(point->bytes);
    op->run(point->send, point->result.at, (int)point->n);
    double end = now_us();
    if (fresh)
        release(old);
    return (end - start) / op->calls;
}

// Warms up, and says how many iterations the budget is good for.
static int warm_up(Point *point, double budget_us)
{
    double least = 1e18;
    int go = 1;
    double start = now_us();
    for (long i = 0; go; i++) {
        double began = now_us();
        iterate(point, i);
        double took = now_us() - began;
        least = took < least ? took : least;
        compare(point, i);
        go = i + 1 < 3 || (i + 1 < WARM && now_us() - start < budget_us / 4);
        MPI_Bcast(&go, 1, MPI_INT, 0, WORLD);
    }
    double worth = budget_us / least;
    int iterations = worth > MOST ? MOST : worth < LEAST ? LEAST : (int)worth;
    MPI_Bcast(&iterations, 1, MPI_INT, 0, WORLD);
    return iterations;
}

static void measure(const char *side, const char *variant, const Op *op, size_t bytes, double budget_us)
{
    Point point = {.op = op, .n = bytes / sizeof(double), .bytes = bytes * (op->blocks_of_all ? ranks : 1)};
    Buffer send = buffer(bytes);
    point.send = send.at;
    point.result = buffer(point.bytes);
    if (!fresh && takes_part(op->receivers))
        memset(point.result.at, 0, point.bytes);
    for (int who = 0; who < ranks; who++)
        counts[who] = (int)point.n, starts[who] = (int)(who * point.n);
    double before = placement();
    int iterations = warm_up(&point, budget_us);
    double *times = malloc(iterations * sizeof *times), *largest = malloc(iterations * sizeof *largest);
    for (int i = 0; i < iterations; i++)
        times[i] = iterate(&point, WARM + i);
    compare(&point, WARM + iterations - 1);
    double after = placement();
    MPI_Reduce(times, largest, iterations, MPI_DOUBLE, MPI_MAX, 0, WORLD);
    if (rank == 0) {
        qsort(largest, iterations, sizeof *largest, ascending);
        printf("%s,%s,private,%s,%d,%zu,%.4f,%.4f,%.4f,%d,%.0f,%.0f\n", side, op->name, variant, ranks, bytes,
               largest[iterations / 2], largest[iterations / 10], largest[iterations * 9 / 10], iterations, before, after);
        fflush(stdout);
    }
    free(times), free(largest), release(point.result), release(send);
}

int main(int argc, char **argv)
{
    set_clock();
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(WORLD, &rank);
    MPI_Comm_size(WORLD, &ranks);
    const Op *op = NULL;
    char *bytes = NULL;
    double budget_us = 0;
    for (int i = 3; i < argc; i++) {
        const char *next = i + 1 < argc ? argv[i + 1] : "";
        if (!strcmp(argv[i], "--fresh"))
            fresh = 1;
        else if (!strcmp(argv[i], "--huge"))
            huge = 1;
        else if (!strcmp(argv[i], "--crowded"))
            crowded = 1;
        else if (!strcmp(argv[i], "--hosts"))
            crowded = hosts = 1, us_per_tick = 0, prctl(PR_SET_TIMERSLACK, 1UL);
        else if (!strcmp(argv[i], "--bytes"))
            bytes = argv[++i];
        else if (!strcmp(argv[i], "--budget-ms"))
            budget_us = atof(next) * 1e3, i++;
        else if (!strcmp(argv[i], "--op")) {
            for (size_t k = 0; k < sizeof OPS / sizeof *OPS; k++)
                op = strcmp(OPS[k].name, next) ? op : &OPS[k];
            i++;
        } else
            fail("no such option: %s (usage: the first lines of the source)", argv[i]);
    }
    if (!op || !bytes || budget_us <= 0 || ranks < 2 || ranks > MAX_RANKS)
        fail("needs --op, --bytes, --budget-ms and 2 to %d ranks (here: %d; is this the right mpirun?)", MAX_RANKS, ranks);
    if (!crowded)
        refuse_shared_processors();
    if (!hosts)
        share();
    counts = malloc(ranks * sizeof *counts), starts = malloc(ranks * sizeof *starts);
    for (char *size = strtok(bytes, ","); size; size = strtok(NULL, ",")) {
        size_t each = strtoull(size, NULL, 10);
        if (op->expected ? each == 0 || each % sizeof(double) || each / sizeof(double) * ranks > INT32_MAX : each > 0)
            fail("--bytes %s: a positive multiple of 8, the ranks' together fewer than 2^31 elements; 0 for a barrier", size);
        measure(argv[1], argv[2], op, each, budget_us);
    }
    MPI_Finalize();
}
