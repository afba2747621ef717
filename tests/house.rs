//! The house as it is meant to stand: calls go down, `unsafe` lives in named rooms and is explained.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// Floors from the ground up: a room uses only rooms below it, and its own.
const FLOORS: [&str; 7] = ["error", "os", "sync", "shm", "channel", "comm", "work"];

/// The only files in which `unsafe` may stand.
const UNSAFE: [&str; 20] = [
    "channel/ledger/mod.rs",
    "channel/ring.rs",
    "channel/view.rs",
    "channel/window.rs",
    "comm/hybrid/mpi.rs",
    "os/clock.rs",
    "os/descriptor.rs",
    "os/fault.rs",
    "os/futex.rs",
    "os/inherit.rs",
    "os/launcher.rs",
    "os/mapping.rs",
    "os/process.rs",
    "os/robust.rs",
    "os/signal.rs",
    "shm/arena.rs",
    "shm/copy.rs",
    "shm/element.rs",
    "shm/kernel.rs",
    "shm/segment.rs",
];

/// Source files by their path below `src`, without tests at their end.
fn sources() -> BTreeMap<String, String> {
    fn walk(dir: &Path, found: &mut Vec<std::path::PathBuf>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { walk(&path, found) } else { found.push(path) }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    walk(&root, &mut found);
    let name = |path: &Path| path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
    let code = |path: &Path| {
        let text = fs::read_to_string(path).unwrap();
        text.split("#[cfg(all(test").next().unwrap().split("#[cfg(test)]\nmod").next().unwrap().to_owned()
    };
    // Models of a protocol, for the model checker only.
    found
        .iter()
        .map(|path| (name(path), code(path)))
        .filter(|(name, _)| !name.starts_with("channel/model"))
        .collect()
}

/// Lines without comments and doc examples.
fn code(text: &str) -> impl Iterator<Item = &str> {
    text.lines().map(|line| line.split("//").next().unwrap())
}

/// What a file uses of this crate, as paths of modules.
fn uses(text: &str) -> BTreeSet<String> {
    let flat: String = code(text).collect::<Vec<_>>().join(" ");
    let mut found = BTreeSet::new();
    for rest in flat.split("crate::").skip(1) {
        let end = rest.find(|c: char| !(c.is_alphanumeric() || "_:".contains(c))).unwrap_or(rest.len());
        let path = rest[..end].trim_end_matches(':');
        found.insert(path.to_owned());
        // use crate::comm::{Comm, views::array_split}
        if let Some(list) = rest[end..].strip_prefix('{') {
            let list = list.split('}').next().unwrap();
            found.extend(list.split(',').map(|item| format!("{path}::{}", item.trim())));
        }
    }
    found
}

/// The file that a module path leads to.
fn file_of(path: &str, files: &BTreeMap<String, String>) -> Option<String> {
    let names: Vec<&str> = path.split("::").collect();
    (1..=names.len()).rev().find_map(|depth| {
        let stem = names[..depth].join("/");
        [format!("{stem}.rs"), format!("{stem}/mod.rs")].into_iter().find(|name| files.contains_key(name))
    })
}

#[test]
fn floors_use_only_what_is_below() {
    let level =
        |name: &str| FLOORS.iter().position(|floor| name.split(['/', '.', ':']).next() == Some(floor));
    for (name, text) in sources() {
        let Some(own) = level(&name) else { continue };
        for path in uses(&text) {
            let used = level(&path);
            assert!(used.is_none_or(|used| used <= own), "{name} uses {path}, which lies above it");
        }
    }
}

#[test]
fn no_cycles_between_files() {
    let files = sources();
    let edges: BTreeMap<&String, BTreeSet<String>> = files
        .iter()
        .filter(|(name, _)| *name != "lib.rs")
        .map(|(name, text)| {
            let used = uses(text).iter().filter_map(|path| file_of(path, &files)).collect::<BTreeSet<_>>();
            // A room's children see the room itself: its mod.rs only declares them.
            let room = name.rsplit_once('/').map(|(room, _)| format!("{room}/mod.rs"));
            (name, used.into_iter().filter(|used| used != name && Some(used) != room.as_ref()).collect())
        })
        .collect();
    fn visit<'a>(
        at: &'a String,
        edges: &'a BTreeMap<&String, BTreeSet<String>>,
        path: &mut Vec<&'a String>,
        done: &mut BTreeSet<&'a String>,
    ) {
        assert!(!path.contains(&at), "a cycle: {path:?} and back to {at}");
        if done.insert(at) {
            path.push(at);
            edges.get(at).into_iter().flatten().for_each(|next| visit(next, edges, path, done));
            path.pop();
        }
    }
    let mut done = BTreeSet::new();
    edges.keys().for_each(|name| visit(name, &edges, &mut Vec::new(), &mut done));
    assert!(done.len() > 20, "the walk saw the house");
}

#[test]
fn unsafe_stands_in_named_files_only() {
    let found: Vec<String> = sources()
        .into_iter()
        .filter(|(_, text)| {
            code(text).any(|line| {
                line.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == "unsafe")
            })
        })
        .map(|(name, _)| name)
        .collect();
    assert_eq!(found, UNSAFE, "add no file to this list without a reason in DESIGN.md");
}

#[test]
fn every_unsafe_block_is_explained() {
    for (name, text) in sources() {
        let lines: Vec<&str> = text.lines().collect();
        for (number, line) in lines.iter().enumerate() {
            let is_block = line.contains("unsafe {") || line.trim_start().starts_with("unsafe impl");
            if !is_block || line.trim_start().starts_with("//") {
                continue;
            }
            // The comment stands above the statement that the block is part of.
            let above = lines[..number].iter().rev().take(12).take_while(|line| !line.trim().is_empty());
            assert!(
                above.clone().any(|line| line.contains("// SAFETY:")),
                "{name}:{}: no SAFETY comment",
                number + 1
            );
        }
    }
}

#[test]
fn atomics_have_one_door() {
    for (name, text) in sources() {
        let allowed = [
            "sync/atomic.rs",
            "os/fault.rs",
            "os/futex.rs",
            "os/inherit.rs",
            "os/process.rs",
            "os/procfs.rs",
            "os/robust.rs",
            "os/signal.rs",
            "os/topology.rs",
        ]
        .contains(&name.as_str());
        let direct =
            code(&text).any(|line| line.contains("core::sync::atomic") || line.contains("std::sync::atomic"));
        assert!(allowed || !direct, "{name}: use crate::sync::atomic");
    }
}

/// Public functions and types, with the documentation above each.
fn public_items(text: &str) -> Vec<(String, String)> {
    let (mut found, mut docs) = (Vec::new(), String::new());
    for line in text.lines().map(str::trim) {
        let is_item =
            ["pub fn ", "pub struct ", "pub enum ", "pub trait "].iter().any(|item| line.starts_with(item));
        if line.starts_with("///") {
            docs.push_str(line);
        } else if is_item && !line.contains("Sealed {") {
            found.push((line.to_owned(), std::mem::take(&mut docs)));
        } else if !line.starts_with("#[") && !line.ends_with(")]") {
            docs.clear();
        }
    }
    found
}

#[test]
fn every_public_item_has_an_example_that_runs() {
    let without: Vec<String> = sources()
        .iter()
        .flat_map(|(name, text)| public_items(text).into_iter().map(move |(item, docs)| (name, item, docs)))
        .filter(|(_, _, docs)| !docs.contains("```"))
        .map(|(name, item, _)| format!("{name}: {item}"))
        .collect();
    assert!(without.is_empty(), "{without:#?}");
}
