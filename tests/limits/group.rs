//! Control groups for a case, of either version.

use crate::support;
use std::fs;
use std::path::{Path, PathBuf};

const NAME: &str = "phalanx-limits-";

/// A group of one case, removed when it is dropped; its processes go back to where the case came from.
pub struct Group {
    path: PathBuf,
    home: PathBuf,
    unified: bool,
}

impl Group {
    /// Makes one with this controller, below the group of this process or the nearest of its ancestors where that is
    /// possible; skips the case where it is not.
    pub fn new(controller: &str) -> Group {
        let made = places(controller).into_iter().find_map(|(home, root, unified)| {
            let ancestors = home.ancestors().take_while(|place| place.starts_with(&root));
            let path = ancestors.into_iter().find_map(|place| make(place, controller, unified))?;
            Some(Group { path, home: home.clone(), unified })
        });
        made.unwrap_or_else(|| support::skip(&format!("no control group for {controller} can be made here")))
    }

    /// Writes a file of the group, by its name in version 1 or in version 2.
    pub fn set(&self, first: &str, second: &str, value: &str) {
        let file = self.path.join(if self.unified { second } else { first });
        fs::write(&file, value).unwrap_or_else(|error| panic!("{value} to {}: {error}", file.display()));
    }

    /// At most so many bytes, and no others on disk.
    pub fn limit_memory(&self, bytes: usize) {
        let bytes = bytes.to_string();
        self.set("memory.limit_in_bytes", "memory.max", &bytes);
        // Whichever there is.
        for (file, value) in [("memory.memsw.limit_in_bytes", bytes.as_str()), ("memory.swap.max", "0")] {
            let _ = fs::write(self.path.join(file), value);
        }
    }

    /// At most `quota` in every `period` microseconds.
    pub fn limit_processors(&self, quota: u32, period: u32) {
        if !self.unified {
            self.set("cpu.cfs_period_us", "", &period.to_string());
        }
        self.set(
            "cpu.cfs_quota_us",
            "cpu.max",
            &if self.unified { format!("{quota} {period}") } else { quota.to_string() },
        );
    }

    /// Puts this process in: children that it forks from now on belong to the group.
    pub fn enter(&self) {
        fs::write(self.path.join("cgroup.procs"), "0").unwrap();
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let procs = fs::read_to_string(self.path.join("cgroup.procs")).unwrap_or_default();
        for pid in procs.lines() {
            let _ = fs::write(self.home.join("cgroup.procs"), pid);
        }
        let _ = fs::remove_dir(&self.path);
    }
}

/// A group below `place`, if it has the controller.
fn make(place: &Path, controller: &str, unified: bool) -> Option<PathBuf> {
    // What a case that was killed has left.
    for old in fs::read_dir(place).into_iter().flatten().flatten() {
        if old.file_name().to_str().is_some_and(|name| name.starts_with(NAME)) {
            let _ = fs::remove_dir(old.path());
        }
    }
    let path = place.join(format!("{NAME}{}", std::process::id()));
    fs::create_dir(&path).ok()?;
    let limit = match controller {
        _ if !unified => "cgroup.procs".to_owned(),
        "cpu" => "cpu.max".to_owned(),
        controller => format!("{controller}.max"),
    };
    if !path.join(&limit).exists() {
        let _ = fs::write(place.join("cgroup.subtree_control"), format!("+{controller}"));
    }
    if path.join(&limit).exists() {
        return Some(path);
    }
    let _ = fs::remove_dir(&path);
    None
}

/// Where this process's groups with the controller lie: the group, the root of its hierarchy, whether that is version 2.
fn places(controller: &str) -> Vec<(PathBuf, PathBuf, bool)> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let own = fs::read_to_string("/proc/self/cgroup").unwrap();
    let own = |wanted: &str| {
        own.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let (controllers, path) = (fields.next()?, fields.next()?);
            controllers.split(',').any(|name| name == wanted).then(|| path.trim_start_matches('/').to_owned())
        })
    };
    let place = |line: &str| {
        let fields: Vec<&str> = line.split(' ').collect();
        let (root, kind, options) = (PathBuf::from(*fields.get(1)?), *fields.get(2)?, *fields.get(3)?);
        let path = match kind {
            "cgroup" if options.split(',').any(|option| option == controller) => own(controller)?,
            "cgroup2" => own("")?,
            _ => return None,
        };
        // In a container the path may be one that is not mounted.
        let home = Some(root.join(path)).filter(|home| home.is_dir()).unwrap_or_else(|| root.clone());
        Some((home, root, kind == "cgroup2"))
    };
    mounts.lines().filter_map(place).collect()
}
