//! Whether the map in `lib.rs` is the one of this tree.

use std::fs;
use std::path::{Path, PathBuf};

#[test]
fn every_file_of_the_map_exists_and_every_file_of_the_worker_is_on_it() {
    let map = map();

    let named: Vec<&str> = quoted(&map).filter(|name| name.starts_with("src/")).collect();

    for name in &named {
        assert!(root().join(name).exists(), "{name} is on the map and not in the tree");
    }
    for file in files("src/worker") {
        let is_code = file.parent() == Some(&root().join("src/worker")) && !file.ends_with("testing.rs");
        let name = file.strip_prefix(root()).unwrap().to_str().unwrap();
        assert!(!is_code || named.contains(&name), "{name} is not on the map");
    }
}

#[test]
fn every_invariant_names_tests_that_exist() {
    let map = map();
    let (_, invariants) = map.split_once("# The five invariants").unwrap();
    let code: Vec<String> = ["src", "tests"]
        .into_iter()
        .flat_map(files)
        .map(|path| read(&path))
        .collect();

    let invariants: Vec<&str> = (1..=5)
        .map(|number| {
            let (_, from) = invariants.split_once(&format!("\n{number}. ")).unwrap();
            from.split_once(&format!("\n{}. ", number + 1))
                .map_or(from, |(own, _)| own)
        })
        .collect();

    for invariant in invariants {
        let tests: Vec<&str> = quoted(invariant).filter(|name| name.contains('_')).collect();
        assert!(!tests.is_empty(), "no test is named for: {invariant}");
        for test in tests {
            let definition = format!("fn {test}(");
            assert!(
                code.iter().any(|file| file.contains(&definition)),
                "there is no test {test}"
            );
        }
    }
}

#[test]
fn no_stage_starts_another_but_consume_its_settler() {
    const STARTS: [(&str, &str); 6] = [
        ("consume", "Consume {"),
        ("batch", "batch::run("),
        ("batch", "Batcher::new("),
        ("infer", "Inference {"),
        ("reply", "Reply {"),
        ("settle", "settler.run("),
    ];
    let mut neighbours = Vec::new();

    for stage in ["consume", "decode", "batch", "infer", "reply", "settle"] {
        let file = read(&root().join(format!("src/worker/{stage}.rs")));
        let code = file.split("#[cfg(test)]\nmod tests").next().unwrap();
        for (other, start) in STARTS {
            if other != stage && code.contains(start) {
                neighbours.push((stage, other));
            }
        }
    }

    // A settler lives and dies with its channel, which is consume's.
    assert_eq!(neighbours, [("consume", "settle")]);
}

/// The documentation of the crate, without its comment marks.
fn map() -> String {
    let lines = include_str!("lib.rs").lines();
    let text = lines.map_while(|line| line.strip_prefix("//!"));
    text.map(|line| line.strip_prefix(' ').unwrap_or(line).to_owned() + "\n")
        .collect()
}

/// What stands between single backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .filter(|line| !line.starts_with("```"))
        .flat_map(|line| line.split('`').skip(1).step_by(2))
}

fn files(folder: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    found
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
