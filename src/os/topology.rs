//! The number of processors that this process may really use, and the sizes of caches and memory.

use crate::os::fault::{Site, refused, sys};
use core::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Reads a file of the kernel's.
fn read_to_string(path: impl AsRef<std::path::Path>) -> std::io::Result<String> {
    match refused(Site::ReadProc) {
        Some(errno) => Err(errno.into()),
        None => std::fs::read_to_string(path),
    }
}

/// Returns the number of processors by affinity mask and cgroup quota (v1 and v2), at least one.
pub(crate) fn cpus() -> usize {
    count(affinity()).min(quota().unwrap_or(usize::MAX)).max(1)
}

/// Returns the number of processors by affinity mask alone, which takes one system call.
pub(crate) fn allowed() -> usize {
    count(affinity())
}

/// A set of processors, one bit for each.
pub(crate) type Mask = [u64; 16];

/// Returns the processors that this process may run on.
pub(crate) fn affinity() -> Mask {
    let mut mask = [0; 16];
    let set = sys(Site::GetAffinity, || nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0)));
    if let Ok(set) = set {
        let known = 0..nix::sched::CpuSet::count().min(64 * mask.len());
        known
            .filter(|&cpu| set.is_set(cpu).unwrap_or(false))
            .for_each(|cpu| mask[cpu / 64] |= 1 << (cpu % 64));
    }
    mask
}

/// Returns how many processors a mask has, at least one.
pub(crate) fn count(mask: Mask) -> usize {
    mask.iter().map(|word| word.count_ones() as usize).sum::<usize>().max(1)
}

/// Returns the tightest processor quota from this process's cgroup up to the root, in processors.
pub(crate) fn quota() -> Option<usize> {
    let groups = read_to_string("/proc/self/cgroup").ok()?;
    let limits = groups.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        match controllers {
            "" => tightest("/sys/fs/cgroup", path, v2_quota),
            list if list.split(',').any(|name| name == "cpu") => {
                tightest("/sys/fs/cgroup/cpu", path, v1_quota)
            }
            _ => None,
        }
    });
    limits.min_by(f64::total_cmp).map(|cpus| cpus.ceil() as usize)
}

fn tightest(mount: &str, path: &str, read: fn(&str) -> Option<f64>) -> Option<f64> {
    let ancestors = std::path::Path::new(path).ancestors();
    ancestors.filter_map(|group| read(&format!("{mount}{}", group.display()))).min_by(f64::total_cmp)
}

fn v2_quota(group: &str) -> Option<f64> {
    let text = read_to_string(format!("{group}/cpu.max")).ok()?;
    let (quota, period) = text.trim().split_once(' ')?;
    Some(quota.parse::<f64>().ok()? / period.parse::<f64>().ok()?)
}

fn v1_quota(group: &str) -> Option<f64> {
    let read = |name: &str| read_to_string(format!("{group}/{name}")).ok()?.trim().parse::<f64>().ok();
    let quota = read("cpu.cfs_quota_us").filter(|&quota| quota > 0.0)?;
    Some(quota / read("cpu.cfs_period_us")?)
}

/// A number that is found out once and kept. There is no lock, which a fork might copy locked, so `find` may
/// run twice.
pub(crate) struct Found(AtomicUsize);

impl Found {
    pub(crate) const fn nothing() -> Found {
        Found(AtomicUsize::new(0))
    }

    /// Returns the number, which is not 0.
    pub(crate) fn or(&self, find: impl FnOnce() -> usize) -> usize {
        match self.0.load(Ordering::Relaxed) {
            0 => {
                let found = find();
                self.0.store(found, Ordering::Relaxed);
                found
            }
            found => found,
        }
    }
}

/// Lets this process run on the processors of a mask only. (If the kernel refuses, it runs where it did.)
pub(crate) fn stay_on(mask: &Mask) {
    let mut set = nix::sched::CpuSet::new();
    let is_in = |cpu: &usize| mask[cpu / 64] >> (cpu % 64) & 1 != 0;
    let known = 0..nix::sched::CpuSet::count().min(64 * mask.len());
    known.filter(is_in).for_each(|cpu| _ = set.set(cpu));
    let _ = nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set);
}

/// Returns the place of a processor, from far to near: NUMA node, last-level cache, core, the processor itself.
fn place(cpu: usize) -> [usize; 4] {
    let base = format!("/sys/devices/system/cpu/cpu{cpu}");
    let number =
        |file: &str| read_to_string(format!("{base}/{file}")).ok().and_then(|text| text.trim().parse().ok());
    let nodes = std::fs::read_dir(&base).into_iter().flatten().flatten();
    let node =
        nodes.filter_map(|entry| entry.file_name().to_str()?.strip_prefix("node")?.parse().ok()).next();
    let package = number("topology/physical_package_id").unwrap_or(0);
    // The numbers of caches and cores begin anew in each package on some machines.
    let within = |number: Option<usize>| package << 16 | number.unwrap_or(0);
    let cache = number("cache/index3/id").or_else(|| number("cache/index2/id"));
    [node.unwrap_or(0), within(cache), within(number("topology/core_id")), cpu]
}

/// Returns for each of so many workers the processors on which it is to stay, out of those that this process may run on:
/// neighbours get processors that are near each other. If `whole`, a worker has all processors of the last-level caches
/// that it has a share of. `None` if there are more workers than processors, or nothing to choose.
pub(crate) fn shares(workers: usize, whole: bool) -> Option<Vec<Mask>> {
    let allowed = affinity();
    let mut places: Vec<[usize; 4]> =
        (0..64 * allowed.len()).filter(|cpu| allowed[cpu / 64] >> (cpu % 64) & 1 != 0).map(place).collect();
    places.sort_unstable();
    shares_of(&places, workers, whole)
}

fn shares_of(places: &[[usize; 4]], workers: usize, whole: bool) -> Option<Vec<Mask>> {
    let is_same = |a: &[usize; 4], b: &[usize; 4]| a[..2] == b[..2];
    if workers == 0
        || workers > places.len()
        || whole && places.windows(2).all(|two| is_same(&two[0], &two[1]))
    {
        return None;
    }
    let share = |worker: usize| {
        let own = &places[worker * places.len() / workers..(worker + 1) * places.len() / workers];
        let mut mask: Mask = [0; 16];
        let near = places
            .iter()
            .filter(|&place| own.contains(place) || whole && own.iter().any(|own| is_same(own, place)));
        near.for_each(|&[.., cpu]| mask[cpu / 64] |= 1 << (cpu % 64));
        mask
    };
    Some((0..workers).map(share).collect())
}

/// Returns the bytes of the second-level cache of a processor.
pub(crate) fn second_level_cache() -> usize {
    static SIZE: Found = Found::nothing();
    SIZE.or(|| {
        let size = read_to_string("/sys/devices/system/cpu/cpu0/cache/index2/size").unwrap_or_default();
        let kib = size.trim().strip_suffix('K').and_then(|kib| kib.parse::<usize>().ok());
        kib.filter(|&kib| kib > 0).map_or(1 << 20, |kib| kib << 10)
    })
}

/// Returns how many pauses of a processor last for `time`. (One lasts 13 ns on one machine, 23 or 140 cycles
/// on others.)
pub(crate) fn pauses(time: Duration) -> u32 {
    static PICOS: Found = Found::nothing();
    const FEW: u32 = 64;
    let timed = || {
        let start = Instant::now();
        (0..FEW).for_each(|_| core::hint::spin_loop());
        start.elapsed()
    };
    // The shortest of some: a processor may be taken away meanwhile.
    let picos = PICOS.or(|| {
        let least = (0..8).map(|_| timed()).min().unwrap_or_default();
        (least.as_nanos() as usize * 1000 / FEW as usize).clamp(1000, 1_000_000)
    });
    (time.as_nanos() as usize * 1000 / picos) as u32
}

/// Returns the bytes of memory in this machine.
pub(crate) fn memory() -> usize {
    let info = read_to_string("/proc/meminfo").unwrap_or_default();
    let total = info
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse().ok());
    total.map_or(8 << 30, |kib: usize| kib << 10)
}

/// Returns the bytes of memory that programs may still use without swapping, by the machine and by memory cgroups.
pub(crate) fn memory_available() -> usize {
    let info = read_to_string("/proc/meminfo").unwrap_or_default();
    let available = info.lines().find_map(|line| {
        line.strip_prefix("MemAvailable:")?.trim().strip_suffix(" kB")?.parse::<usize>().ok()
    });
    let left = memory_left().map_or(usize::MAX, |left| usize::try_from(left).unwrap_or(usize::MAX));
    available.map_or(0, |kib| kib << 10).min(left)
}

/// Returns the largest resident memory that this process has had, in KiB.
pub(crate) fn peak_memory() -> u32 {
    use nix::sys::resource::{UsageWho, getrusage};

    getrusage(UsageWho::RUSAGE_SELF).map_or(0, |usage| u32::try_from(usage.max_rss()).unwrap_or(0))
}

/// Returns the bytes of address space that this process may still map, if there is a limit (RLIMIT_AS).
pub(crate) fn addresses_left() -> Option<usize> {
    use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};

    let (limit, _) = sys(Site::Getrlimit, || getrlimit(Resource::RLIMIT_AS)).ok()?;
    let pages = read_to_string("/proc/self/statm").ok();
    let pages = pages.and_then(|text| text.split(' ').next()?.parse::<u64>().ok());
    let size = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten().unwrap_or(4096);
    let used = pages.unwrap_or(0).saturating_mul(size as u64);
    (limit != RLIM_INFINITY).then(|| limit.saturating_sub(used) as usize)
}

/// Returns the directories of this process's memory cgroup and those above it, innermost first; `true` for
/// version 2.
fn memory_groups() -> Vec<(String, bool)> {
    let groups = read_to_string("/proc/self/cgroup").unwrap_or_default();
    let found = groups.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        let (mount, v2) = match controllers {
            "" => ("/sys/fs/cgroup", true),
            list if list.split(',').any(|name| name == "memory") => ("/sys/fs/cgroup/memory", false),
            _ => return None,
        };
        let above = std::path::Path::new(path).ancestors().map(|group| format!("{mount}{}", group.display()));
        Some(above.map(move |group| (group, v2)).collect::<Vec<_>>())
    });
    found.flatten().collect()
}

/// Returns how often the kernel has killed a process of this process's memory cgroup (v1 and v2) for want of
/// memory.
pub(crate) fn oom_kills() -> u64 {
    let counts = memory_groups().into_iter().filter_map(|(group, v2)| {
        let file = if v2 { "memory.events" } else { "memory.oom_control" };
        let text = read_to_string(format!("{group}/{file}")).ok()?;
        text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse::<u64>().ok())
    });
    counts.sum()
}

/// Returns the bytes that this process's memory cgroups still allow, counting what the page cache can give
/// back; `None` without a limit.
pub(crate) fn memory_left() -> Option<u64> {
    let left = memory_groups().into_iter().filter_map(|(group, v2)| {
        let read = |name: &str| read_to_string(format!("{group}/{name}")).ok();
        let number = |name: &str| read(name)?.trim().parse::<u64>().ok();
        let names = match v2 {
            true => ["memory.max", "memory.current", "inactive_file "],
            false => ["memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file "],
        };
        // Version 1 writes "no limit" as a number of nearly 2^63.
        let limit = number(names[0]).filter(|&limit| limit < 1 << 60)?;
        let stat = read("memory.stat").unwrap_or_default();
        let cache = stat.lines().find_map(|line| line.strip_prefix(names[2])?.trim().parse::<u64>().ok());
        Some((limit + cache.unwrap_or(0)).saturating_sub(number(names[1])?))
    });
    left.min()
}

#[cfg(not(miri))]
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_stay_with_their_neighbours() {
        // Two nodes of two caches of two cores with two processors each, numbered as Linux does it.
        let mut places: Vec<[usize; 4]> =
            (0..16).map(|cpu| [cpu % 8 / 4, cpu % 8 / 2, cpu % 8, cpu]).collect();
        places.sort_unstable();
        let masks = |workers, whole| {
            shares_of(&places, workers, whole)
                .map(|masks| masks.iter().map(|mask| mask[0]).collect::<Vec<_>>())
        };
        assert_eq!(masks(8, false).unwrap(), (0..8).map(|core| 0x101 << core).collect::<Vec<u64>>());
        assert_eq!(masks(8, true).unwrap(), [0x303, 0x303, 0xC0C, 0xC0C, 0x3030, 0x3030, 0xC0C0, 0xC0C0]);
        assert_eq!(masks(2, true).unwrap(), [0x0F0F, 0xF0F0]);
        assert_eq!(masks(16, false).unwrap()[..3], [1, 0x100, 2]);
        assert_eq!((masks(17, false), masks(0, true)), (None, None));
        assert_eq!(shares_of(&places[..4], 2, true), None, "one cache");
        assert!(shares(1, false).is_some());
    }

    #[test]
    fn at_least_one_cpu_and_some_memory() {
        assert!(cpus() >= 1);
        assert!(memory() > 1 << 20);
    }
}
