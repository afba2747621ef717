//! The house as it is meant to stand: calls go down, `unsafe` lives in named rooms and is explained.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// Floors from the ground up: a room uses only rooms below it, and its own.
const FLOORS: [&str; 7] = ["error", "os", "sync", "shm", "channel", "comm", "work"];

/// The only files in which `unsafe` may stand.
const UNSAFE: [&str; 23] = [
    "channel/ledger/mod.rs",
    "channel/ring.rs",
    "channel/view.rs",
    "channel/window.rs",
    "comm/hybrid/mpi.rs",
    "os/blas.rs",
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
    "shm/named.rs",
    "shm/object/arrays.rs",
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

/// The module that a file is: `work/crew/mod.rs` is `work::crew`.
fn module_of(name: &str) -> String {
    name.trim_end_matches(".rs").trim_end_matches("/mod").replace('/', "::")
}

/// Paths of modules of this crate that a file uses, from the root. Re-exports are none: they lead others on.
fn uses(name: &str, text: &str) -> BTreeSet<String> {
    let flat: String = code(text).filter(|line| !line.contains("pub use ")).collect::<Vec<_>>().join(" ");
    // A statement may be long: `pub(crate) use a::{b, c};`
    let statements = flat.split(';').map(|statement| {
        let bare = statement.rsplit(']').next().unwrap().trim_start();
        if bare.starts_with("pub(crate) use ") { "" } else { statement }
    });
    let flat = statements.collect::<Vec<_>>().join(";");
    let own = module_of(name);
    let parent = own.rsplit_once("::").map_or("", |(parent, _)| parent);
    let mut found = BTreeSet::new();
    let mut add = |prefix: &str, rest: &str| {
        let end = rest.find(|c: char| !(c.is_alphanumeric() || "_:".contains(c))).unwrap_or(rest.len());
        let path = format!("{prefix}{}", rest[..end].trim_end_matches(':'));
        // use crate::comm::{Comm, views::array_split}
        if let Some(list) = rest[end..].strip_prefix('{') {
            let list = list.split('}').next().unwrap();
            found.extend(list.split(',').map(|item| format!("{path}::{}", item.trim())));
        } else {
            found.insert(path);
        }
    };
    flat.split("crate::").skip(1).for_each(|rest| add("", rest));
    let above = if parent.is_empty() { String::new() } else { format!("{parent}::") };
    flat.split("super::").skip(1).for_each(|rest| add(&above, rest));
    // A room's front uses its children by their names alone.
    if name.ends_with("/mod.rs") {
        let children = code(text).filter_map(|line| {
            let line = line.trim().trim_start_matches("pub(crate) ").trim_start_matches("pub ");
            line.strip_prefix("mod ")?.strip_suffix(';').map(str::to_owned)
        });
        for child in children.collect::<Vec<_>>() {
            let used = flat.match_indices(&format!("{child}::")).any(|(at, _)| {
                let before = flat[..at].chars().next_back();
                before.is_none_or(|c| !(c.is_alphanumeric() || "_:".contains(c)))
            });
            if used {
                found.insert(format!("{own}::{child}"));
            }
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
        for path in uses(&name, &text) {
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
            let used =
                uses(name, text).iter().filter_map(|path| file_of(path, &files)).collect::<BTreeSet<_>>();
            (name, used.into_iter().filter(|used| used != name).collect())
        })
        .collect();
    let reached = |from: &String| {
        let (mut seen, mut next) = (BTreeSet::new(), vec![from.clone()]);
        while let Some(at) = next.pop() {
            next.extend(
                edges.get(&at).into_iter().flatten().filter(|file| seen.insert((*file).clone())).cloned(),
            );
        }
        seen
    };
    let all: BTreeMap<&String, BTreeSet<String>> = edges.keys().map(|name| (*name, reached(name))).collect();
    let knots: BTreeSet<Vec<&String>> = all
        .iter()
        .filter(|(name, reached)| reached.contains(**name))
        .map(|(name, reached)| reached.iter().filter(|other| all[other].contains(*name)).collect())
        .collect();
    // The state of a transport over nodes is made of what its files keep, and they are methods of it.
    let known = ["comm/hybrid/carry.rs", "comm/hybrid/message.rs", "comm/hybrid/mod.rs"];
    let other = knots.iter().filter(|knot| !knot.iter().eq(known.iter()));
    assert_eq!(other.count(), 0, "files that use each other: {knots:#?}");
    assert!(all.len() > 20, "the walk saw the house");
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

/// Returns public types and free functions, with the documentation above each. (The example of a type shows its methods.)
fn public_items(text: &str) -> Vec<(String, String)> {
    let (mut found, mut docs) = (Vec::new(), String::new());
    for line in text.lines().filter(|line| !line.starts_with(' ')) {
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
fn every_public_type_and_function_has_an_example_that_runs() {
    let is_shown = |docs: &str| docs.contains("```") || docs.contains("see [`");
    let without: Vec<String> = sources()
        .iter()
        .flat_map(|(name, text)| public_items(text).into_iter().map(move |(item, docs)| (name, item, docs)))
        .filter(|(_, _, docs)| !is_shown(docs))
        .map(|(name, item, _)| format!("{name}: {item}"))
        .collect();
    assert!(without.is_empty(), "{without:#?}");
}

/// A face is what users see of the executor: it knows that, communicators and errors.
#[test]
fn faces_know_the_executor_only() {
    let files = sources();
    let faces = files.iter().filter(|(name, _)| {
        name.as_str() == "work/launch.rs"
            || name.starts_with("work/sweep/")
            || name.starts_with("work/manager/")
    });
    let mut seen = 0;
    for (name, text) in faces {
        seen += 1;
        let own = name.split('/').take(2).collect::<Vec<_>>().join("::");
        for path in uses(name, text) {
            let allowed = ["work::executor", "comm", "error", own.trim_end_matches(".rs")];
            // Their docs name what the crate's front shows.
            let is_front = !path.contains("::") && !FLOORS.contains(&path.as_str());
            assert!(is_front || allowed.iter().any(|room| path.starts_with(room)), "{name} uses {path}");
        }
    }
    assert!(seen >= 8, "the faces were found");
}

#[test]
fn the_kernel_is_called_from_its_room() {
    for (name, text) in sources() {
        let foreign = code(&text).any(|line| {
            ["libc", "nix"].iter().any(|room| {
                let words = line
                    .split("::")
                    .map(|part| part.rsplit(|c: char| !c.is_alphanumeric() && c != '_').next());
                line.contains(&format!("{room}::")) && words.flatten().any(|word| word == *room)
            })
        });
        // Errors name the kernel's; a job that is being ended needs a signal and a timer.
        let allowed = name.starts_with("os/")
            || ["error/mod.rs", "error/place.rs", "comm/hybrid/mpi.rs"].contains(&name.as_str());
        assert!(allowed || !foreign, "{name} calls libc or nix");
    }
}

/// Lines of code from a function's signature to its closing brace, for each function of a file.
fn functions(text: &str) -> Vec<(&str, usize)> {
    let lines: Vec<&str> = code(text).filter(|line| !line.trim().is_empty()).collect();
    let starts = lines.iter().enumerate().filter_map(|(at, line)| {
        let declared = line.split("fn ").next().is_some_and(|before| {
            let words = ["pub", "pub(crate)", "pub(super)", "const", "unsafe", "extern", "\"C\""];
            line.contains("fn ") && before.split_whitespace().all(|word| words.contains(&word))
        });
        (declared && !line.ends_with(';')).then_some(at)
    });
    let long = |at: usize| {
        let indent = lines[at].len() - lines[at].trim_start().len();
        let closes = |line: &&str| {
            line.len() - line.trim_start().len() == indent && line.trim_start().starts_with('}')
        };
        (lines[at].trim(), 1 + lines[at + 1..].iter().position(closes).map_or(0, |end| end + 1))
    };
    starts.map(long).collect()
}

#[test]
fn functions_are_short() {
    let (files, mut seen) = (sources(), 0);
    for (name, text) in &files {
        for (function, lines) in functions(text) {
            seen += 1;
            // One that ends on its first line has no closing brace of its own.
            assert!(lines <= 60 || function.ends_with('}'), "{name}: {function} has {lines} lines");
        }
    }
    assert!(seen > 1000, "the functions were found");
}

/// The pages of the repository, by their path.
fn pages() -> Vec<std::path::PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let listed = [root.to_path_buf(), root.join("docs"), root.join("docs/guide"), root.join("tools/peers.d")];
    let entries = listed.iter().flat_map(|dir| fs::read_dir(dir).unwrap());
    entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "md"))
        .collect()
}

/// The lines of a page that are no program.
fn prose(page: &str) -> impl Iterator<Item = &str> {
    let mut inside = false;
    page.lines().filter(move |line| {
        let fence = line.starts_with("```");
        inside ^= fence;
        !inside && !fence
    })
}

/// The anchors of a page's headings, as code hosts make them.
fn anchors(page: &str) -> BTreeSet<String> {
    let heading = |line: &str| {
        let text = line.strip_prefix('#')?.trim_start_matches('#').strip_prefix(' ')?.to_lowercase();
        let kept = text.trim().chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        Some(kept.map(|c| if c == ' ' { '-' } else { c }).collect())
    };
    prose(page).filter_map(heading).collect()
}

#[test]
fn links_of_the_pages_lead_somewhere() {
    let mut seen = 0;
    for path in pages() {
        let page = fs::read_to_string(&path).unwrap();
        for target in
            prose(&page).flat_map(|line| line.split("](").skip(1)).filter_map(|rest| rest.split(')').next())
        {
            if target.contains("://") {
                continue;
            }
            seen += 1;
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            let file = if file.is_empty() { path.clone() } else { path.parent().unwrap().join(file) };
            assert!(file.exists(), "{} links to {target}", path.display());
            let found = anchor.is_empty() || anchors(&fs::read_to_string(&file).unwrap()).contains(anchor);
            assert!(found, "{} links to {target}: there is no such heading", path.display());
        }
    }
    assert!(seen >= 20, "the links were found");
}

#[test]
fn every_suite_is_run_by_the_gate() {
    let gate = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/test")).unwrap();
    // Words of the lists, and of commands.
    let words: BTreeSet<&str> = gate.split(|c: char| !(c.is_alphanumeric() || c == '_')).collect();
    for entry in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests")).unwrap() {
        let path = entry.unwrap().path();
        let suite = path.file_stem().unwrap().to_string_lossy().into_owned();
        let is_suite = path.extension().is_some_and(|extension| extension == "rs");
        assert!(!is_suite || words.contains(&suite[..]), "tools/test does not run the suite {suite}");
    }
}
