//! Source files as the rules see them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// One Rust file of the workspace.
pub(crate) struct Source {
    /// Path from the workspace's root, with `/`.
    pub(crate) path: String,
    /// The whole text.
    pub(crate) text: String,
    /// The text with comments and the insides of strings blanked; lines and columns as in `text`.
    pub(crate) code: String,
}

impl Source {
    /// Lines before the inline test module; none for a file of tests.
    pub(crate) fn production_lines(&self) -> usize {
        if self.is_test() {
            return 0;
        }
        let lines: Vec<&str> = self.code.lines().collect();
        let tests = lines.windows(2).position(|pair| {
            let [first, second] = pair else { return false };
            first.trim() == "#[cfg(test)]"
                && second.trim_start().starts_with("mod ")
                && second.trim_end().ends_with('{')
        });
        tests.unwrap_or(lines.len())
    }

    /// True for files that hold only tests.
    pub(crate) fn is_test(&self) -> bool {
        let name = self.path.rsplit('/').next().unwrap_or_default();
        self.path.contains("/tests/") || name == "tests.rs" || name.ends_with("_tests.rs") || name.ends_with("_test.rs")
    }

    /// The production code.
    pub(crate) fn production(&self) -> String {
        self.code.lines().take(self.production_lines()).collect::<Vec<_>>().join("\n")
    }
}

/// The workspace's root.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the workspace").to_path_buf()
}

/// A file's text.
pub(crate) fn read(path: &str) -> String {
    let text = fs::read_to_string(root().join(path));
    text.map_err(|error| format!("{path}: {error}")).expect("a rule reads a file of the project")
}

/// Paths of all files that belong to the project: those git tracks or would track; without git, those on disk.
pub(crate) fn files() -> Vec<String> {
    let git = Command::new("git")
        .arg("-C")
        .arg(root())
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .output();
    let mut paths: Vec<String> = match git {
        Ok(output) if output.status.success() => {
            String::from_utf8(output.stdout).expect("paths are text").lines().map(str::to_owned).collect()
        }
        _ => walk(&root()),
    };
    paths.retain(|path| root().join(path).is_file());
    paths.sort();
    paths.dedup();
    assert!(paths.len() > 20, "the project has files");
    paths
}

fn walk(root: &Path) -> Vec<String> {
    let (mut folders, mut found) = (vec![root.to_path_buf()], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("the workspace can be read") {
            let path = entry.expect("the workspace can be read").path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() && name != "target" && !name.starts_with('.') {
                folders.push(path);
            } else if path.is_file() {
                found.push(path.strip_prefix(root).expect("it lies below the root").to_string_lossy().into_owned());
            }
        }
    }
    found
}

/// All Rust files below `prefix`.
pub(crate) fn sources(prefix: &str) -> Vec<Source> {
    let paths = files().into_iter().filter(|path| path.starts_with(prefix) && path.ends_with(".rs"));
    paths
        .map(|path| {
            let text = read(&path);
            let code = blank(&text);
            Source { path, text, code }
        })
        .collect()
}

/// Blanks comments and the insides of strings and characters.
fn blank(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let length = match first {
            '/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            '/' if rest.starts_with("/*") => rest.find("*/").map_or(rest.len(), |end| end + 2),
            '"' => string_length(rest, 0),
            'r' | 'b' if !out.ends_with(|c: char| c.is_alphanumeric() || c == '_') => prefixed_length(rest),
            '\'' => character_length(rest),
            _ => 0,
        };
        if length == 0 {
            out.push(first);
            rest = &rest[first.len_utf8()..];
        } else {
            out.extend(rest[..length].chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
            rest = &rest[length..];
        }
    }
    out
}

/// Length of a string that starts at `rest`; `hashes` around a raw one.
fn string_length(rest: &str, hashes: usize) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' if hashes == 0 => escaped = true,
            '"' if rest[at + 1..].starts_with(&"#".repeat(hashes)) => return at + 1 + hashes,
            _ => {}
        }
    }
    rest.len()
}

/// Length of `b"..."`, `r"..."`, `br#"..."#`; 0 when it is an identifier.
fn prefixed_length(rest: &str) -> usize {
    let prefix = rest.len() - rest.trim_start_matches(['b', 'r']).len();
    let after = &rest[prefix..];
    let hashes = after.len() - after.trim_start_matches('#').len();
    let raw = rest[..prefix].contains('r');
    let quote = &after[hashes..];
    if prefix > 2 || !quote.starts_with('"') || (hashes > 0 && !raw) {
        return 0;
    }
    if raw {
        let close = format!("\"{}", "#".repeat(hashes));
        let end = quote[1..].find(&close).map_or(quote.len(), |at| at + 1 + close.len());
        return prefix + hashes + end;
    }
    prefix + string_length(quote, 0)
}

/// Length of a character literal; 0 for a lifetime.
fn character_length(rest: &str) -> usize {
    let mut chars = rest.char_indices().skip(1);
    match (chars.next(), chars.next()) {
        (Some((_, '\\')), Some(_)) => rest[3..].find('\'').map_or(0, |at| at + 4),
        (Some(_), Some((at, '\''))) => at + 1,
        _ => 0,
    }
}

#[test]
fn blanking_keeps_code_and_hides_text() {
    let code =
        blank("let a = \"x // y\"; // note\nlet b = r#\"q\"uote\"#; let c = '\"'; fn f<'a>() {} /* z */ b\"bytes\"");
    assert_eq!(code.matches('\n').count(), 1);
    for hidden in ["x", "note", "uote", "z", "bytes"] {
        assert!(!code.contains(hidden), "{hidden}: {code}");
    }
    assert!(code.contains("let a =") && code.contains("fn f<'a>()") && code.contains("let c ="), "{code}");
}
