//! Where the nodes of a model really ran, read from the profile that ONNX Runtime writes while it runs them.
//!
//! What a session was asked for says little: a provider that cannot take a node leaves it to the CPU.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::path::PathBuf;

use serde::Deserialize;
use tempfile::TempDir;

/// A folder for one profile, removed with all that is in it.
pub struct ProfileFolder(TempDir);

impl ProfileFolder {
    /// # Errors
    /// There is no folder for temporary files that can be written.
    pub fn new() -> io::Result<Self> {
        tempfile::Builder::new().prefix("inferq-profile-").tempdir().map(Self)
    }

    /// What the names of profiles in it begin with.
    pub fn prefix(&self) -> PathBuf {
        self.0.path().join("run")
    }
}

/// How many nodes ran on which of ONNX Runtime's execution providers, and what they do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Placement(BTreeMap<String, Nodes>);

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Nodes {
    names: BTreeSet<String>,
    operators: BTreeSet<String>,
}

impl Placement {
    /// Reads a profile, a JSON array of events.
    ///
    /// # Errors
    /// It is none.
    pub fn of_profile(text: &str) -> serde_json::Result<Self> {
        let mut placement = Self::default();
        for event in serde_json::from_str::<Vec<Event>>(text)? {
            let Some(provider) = event.args.provider.filter(|provider| !provider.is_empty()) else {
                continue;
            };
            let nodes = placement.0.entry(provider).or_default();
            nodes.names.insert(event.name);
            nodes.operators.extend(event.args.op_name);
        }
        Ok(placement)
    }

    /// The providers, by name.
    pub fn providers(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// Whether any run was seen.
    pub fn is_known(&self) -> bool {
        !self.0.is_empty()
    }

    /// What ran on the CPU, as `3 nodes (Gather, Shape)`.
    pub fn on_cpu(&self) -> Option<String> {
        self.0.get(CPU).map(ToString::to_string)
    }
}

impl fmt::Display for Placement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (provider, nodes)) in self.0.iter().enumerate() {
            let comma = if at > 0 { ", " } else { "" };
            write!(f, "{comma}{provider}: {nodes}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Nodes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let operators: Vec<&str> = self.operators.iter().map(String::as_str).collect();
        let plural = if self.names.len() == 1 { "" } else { "s" };
        write!(f, "{} node{plural} ({})", self.names.len(), operators.join(", "))
    }
}

/// One event of a profile; those of nodes name a provider.
#[derive(Deserialize)]
struct Event {
    #[serde(default)]
    name: String,
    #[serde(default)]
    args: Arguments,
}

#[derive(Default, Deserialize)]
struct Arguments {
    provider: Option<String>,
    op_name: Option<String>,
}

/// ONNX Runtime's name of the provider that is always there.
const CPU: &str = "CPUExecutionProvider";

#[cfg(test)]
mod tests {
    use super::*;

    /// Shortened from what ONNX Runtime 1.28 writes.
    const PROFILE: &str = r#"[
        {"cat": "Session", "pid": 1, "tid": 1, "dur": 9, "ts": 1, "ph": "X", "name": "model_loading_uri", "args": {}},
        {"cat": "Node", "dur": 0, "ts": 2, "ph": "X", "name": "gemm1_kernel_time",
         "args": {"thread_scheduling_stats": "", "op_name": "FusedGemm", "provider": "CUDAExecutionProvider", "node_index": "4"}},
        {"cat": "Node", "dur": 0, "ts": 3, "ph": "X", "name": "shape_kernel_time",
         "args": {"op_name": "Shape", "provider": "CPUExecutionProvider", "node_index": "5"}},
        {"cat": "Node", "dur": 0, "ts": 4, "ph": "X", "name": "gemm1_kernel_time",
         "args": {"op_name": "FusedGemm", "provider": "CUDAExecutionProvider", "node_index": "4"}},
        {"cat": "Node", "dur": 0, "ts": 5, "ph": "X", "name": "gemm2_kernel_time",
         "args": {"op_name": "Gemm", "provider": "CUDAExecutionProvider", "node_index": "6"}}
    ]"#;

    #[test]
    fn each_node_counts_once_for_the_provider_that_ran_it() {
        let placement = Placement::of_profile(PROFILE).unwrap();

        assert_eq!(
            placement.to_string(),
            "CPUExecutionProvider: 1 node (Shape), CUDAExecutionProvider: 2 nodes (FusedGemm, Gemm)"
        );
        assert_eq!(placement.on_cpu().as_deref(), Some("1 node (Shape)"));
        assert!(placement.is_known());
    }

    #[test]
    fn a_profile_without_a_run_shows_nothing() {
        let placement = Placement::of_profile(r#"[{"cat": "Session", "name": "session_initialization", "args": {}}]"#);

        let placement = placement.unwrap();
        assert!(!placement.is_known());
        assert_eq!(placement.on_cpu(), None);
        assert!(Placement::of_profile("[{").is_err());
    }

    #[test]
    fn the_folder_of_a_profile_goes_with_it() {
        let (first, second) = (ProfileFolder::new().unwrap(), ProfileFolder::new().unwrap());
        let path = first.0.path().to_owned();
        std::fs::write(first.prefix(), "profile").unwrap();

        assert_ne!(path, second.0.path());
        drop(first);

        assert!(!path.exists());
        assert!(second.0.path().exists());
    }
}
