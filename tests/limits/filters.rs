//! Sandboxes and old kernels that refuse a system call: another way is found, or an error at the start names the call.
#![expect(unsafe_code, reason = "installs seccomp filters")]

use super::{Case, FACES, adopt, collect_adopted, holdings};
use crate::support::{self, launch};
use ndarray::{Ix1, arr1};
use phalanx::{Error, Op, SharedArray, create_parallel_manager};
use std::process::Command;
use std::time::Duration;

pub const CASES: &[Case] = &[
    ("refused_calls_have_substitutes", refused_calls_have_substitutes),
    ("refused_calls_are_named", refused_calls_are_named),
    ("helper: a refused call", a_refused_call),
];

/// A call, its number, and the faces that cannot do without it.
type Refused = (&'static str, libc::c_long, &'static [&'static str]);

const FORKING: &[&str] = &["launch", "sweep", "scatter"];
const CALLS: &[Refused] = &[
    ("futex_waitv", libc::SYS_futex_waitv, &[]),
    ("set_robust_list", libc::SYS_set_robust_list, &[]),
    ("memfd_create", libc::SYS_memfd_create, &[]),
    ("pidfd_send_signal", libc::SYS_pidfd_send_signal, &[]),
    ("setpgid", libc::SYS_setpgid, &[]),
    ("sched_getaffinity", libc::SYS_sched_getaffinity, &[]),
    ("sched_yield", libc::SYS_sched_yield, &[]),
    ("pidfd_open", libc::SYS_pidfd_open, FORKING),
    ("eventfd", libc::SYS_eventfd2, FORKING),
    ("prctl", libc::SYS_prctl, FORKING),
    ("mremap", libc::SYS_mremap, &["shared array"]),
    ("madvise", libc::SYS_madvise, &["launch", "sweep", "scatter", "solo", "shared array", "threads"]),
];

/// From now on the kernel answers `errno` to system call `number`, here and in all children.
fn refuse(number: libc::c_long, errno: i32) {
    let load = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    let compare = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    let answer = (libc::BPF_RET | libc::BPF_K) as u16;
    let step = |code, k, jf| libc::sock_filter { code, jt: 0, jf, k };
    // The number stands first in what a filter sees.
    let mut filter = [
        step(load, 0, 0),
        step(compare, number as u32, 1),
        step(answer, libc::SECCOMP_RET_ERRNO | errno as u32, 0),
        step(answer, libc::SECCOMP_RET_ALLOW, 0),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    nix::sys::prctl::set_no_new_privs().unwrap();
    // SAFETY: `program` and the four steps that it points to outlive the call, which copies them.
    let installed =
        unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program, 0, 0) };
    if installed != 0 {
        support::skip("this kernel has no seccomp filters");
    }
}

/// Each of the calls refused, in a process of its own.
fn run(calls: impl Iterator<Item = &'static Refused>) {
    let (mut installed, mut failed) = (false, Vec::new());
    for told in
        calls.flat_map(|(name, ..)| [libc::ENOSYS, libc::EPERM].map(|errno| format!("{name} {errno}")))
    {
        let status = support::case("helper: a refused call").env(support::MARK, &told).status().unwrap();
        let skipped = status.code() == Some(support::SKIPPED);
        installed |= !skipped;
        if !status.success() && !skipped {
            failed.push(told);
        }
    }
    if !installed {
        support::skip("this kernel has no seccomp filters");
    }
    assert!(failed.is_empty(), "{failed:?}");
}

fn refused_calls_have_substitutes() {
    run(CALLS.iter().filter(|(_, _, needed)| needed.is_empty()));
}

fn refused_calls_are_named() {
    run(CALLS.iter().filter(|(_, _, needed)| !needed.is_empty()));
}

fn a_refused_call() {
    let Ok(told) = std::env::var(support::MARK) else { return };
    let (name, errno) = told.split_once(' ').unwrap();
    let (name, number, needed) = CALLS.iter().find(|(known, ..)| *known == name).unwrap();
    adopt();
    super::all_works();
    let before = holdings();
    refuse(*number, errno.parse().unwrap());
    for (face, attempt) in FACES {
        match (attempt(), needed.contains(face)) {
            (Ok(()), false) => {}
            (Ok(()), true) => panic!("{told}: {face} does without it"),
            (Err(error), false) => panic!("{told}: {face}: {error}"),
            (Err(error), true) => {
                let text = error.to_string();
                assert!(text.contains(&format!("{name} failed, needed ")), "{told}: {face}: {text}");
                assert!(text.contains("sandbox"), "{told}: {face}: {text}");
            }
        }
        assert_eq!(holdings(), before, "{told}: {face}");
    }
    if needed.is_empty() {
        ends_are_noticed();
        collect_adopted();
        assert_eq!(holdings(), before, "{told}");
    }
}

/// Ranks, workers and supervisors that die or are to die.
fn ends_are_noticed() {
    let mut survivors = SharedArray::<u8, Ix1>::zeros(3).unwrap();
    let error = launch(3, |comm| {
        let mut survived = comm.open(&survivors)?;
        for _ in 0..20 {
            comm.all_reduce(&arr1(&[1.0]), &mut arr1(&[0.0]), &Op::sum())?;
        }
        if comm.rank() == 1 {
            std::process::abort();
        }
        let error = comm.barrier().unwrap_err();
        assert!(matches!(error, Error::PeerDied { rank: 1, .. }), "{error}");
        survived.view_mut()[0] = 1;
        Err::<(), _>(error)
    });
    assert!(matches!(error, Err(Error::PeerDied { rank: 1, .. })), "{error:?}");
    assert_eq!(survivors.view().to_vec(), [1, 0, 1]);

    let mut manager = create_parallel_manager("shared-memory", 2).unwrap();
    let sleep = |_: &[u8], (): &mut ()| {
        std::thread::sleep(Duration::from_secs(1000));
        Ok(())
    };
    drop(manager.scatter(|| Ok(()), sleep, &[1, 2]).unwrap());

    let error = launch(2, |comm| {
        if comm.rank() == 1 {
            let zygote = std::os::unix::process::parent_id().to_string();
            Command::new("kill").args(["-KILL", &zygote]).status()?;
            std::thread::sleep(Duration::from_secs(1000));
        }
        comm.barrier()
    });
    assert!(matches!(error, Err(Error::Supervisor { .. })), "{error:?}");
}
