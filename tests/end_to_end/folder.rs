//! A folder of a test's own, gone with it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

#[derive(Debug)]
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let (process, number) = (std::process::id(), NEXT.fetch_add(1, Ordering::SeqCst));
        let path = std::env::temp_dir().join(format!("vllm-proxy-test-{process}-{number}"));
        fs::create_dir(&path).expect("nobody else has this name");
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// The path of a file in it, as an argument.
    pub(crate) fn file(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }

    /// Writes a file in it. Whoever reads it meanwhile finds what it was or what it is now.
    pub(crate) fn write(&self, name: &str, text: &str) {
        replace(&self.0.join(name), text);
    }

    /// The same, in place: whoever reads it meanwhile may find it empty.
    pub(crate) fn write_in_place(&self, name: &str, text: &str) {
        fs::write(self.0.join(name), text).expect("it is our own");
    }
}

/// Gives a file this content, in one step.
pub(crate) fn replace(file: &Path, text: &str) {
    let new = file.with_extension("new");
    fs::write(&new, text).expect("it is our own");
    fs::rename(&new, file).expect("it is our own");
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What is left of it does no harm.
        let _ = fs::remove_dir_all(&self.0);
    }
}
