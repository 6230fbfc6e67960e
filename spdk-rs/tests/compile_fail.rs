//! What the compiler must refuse, and that it refuses nothing else.
//!
//! A line of `tests/compile_fail/*.rs` that ends in `//~ CODE text` is a mistake: the compiler must
//! answer with an error of that code whose message contains the text, at that line or caused by
//! it, and with no other. Without those lines the same file must compile, so that it is the
//! mistake that is refused and not, say, a name that no longer exists.
//!
//! No snapshots of the compiler's output: they change with each of its versions. And no doctests
//! that must fail: whether they fail for the right reason is checked by a nightly compiler only.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

/// Where an error is, and what it says.
#[derive(Debug)]
struct Refusal {
    /// All lines that the compiler points at.
    lines: BTreeSet<u64>,
    code: String,
    text: String,
}

struct Mistake<'a> {
    line: u64,
    code: &'a str,
    text: &'a str,
}

impl Mistake<'_> {
    fn is(&self, refusal: &Refusal) -> bool {
        refusal.code == self.code && refusal.lines.contains(&self.line) && refusal.text.contains(self.text)
    }
}

/// The library that this test is linked with: the newest one beside it.
fn library() -> PathBuf {
    let exe = std::env::current_exe().expect("a path to this binary");
    let entries = exe.parent().expect("a directory").read_dir().expect("readable");
    let libraries = entries.map(|entry| entry.expect("readable")).filter(|entry| {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        name.starts_with("libspdk_rs-") && name.ends_with(".rlib")
    });
    let newest = libraries.max_by_key(|entry| {
        let metadata = entry.metadata().expect("metadata");
        metadata.modified().expect("a time")
    });
    newest.expect("this test is linked with the library").path()
}

/// Compiles, without linking, and returns the errors.
fn compile(source: &str) -> Vec<Refusal> {
    let library = library();
    let out = tempfile::tempdir().expect("a directory");
    let mut child = Command::new("rustc")
        .args([
            "-",
            "--crate-type=lib",
            "--edition=2024",
            "--emit=metadata",
            "--error-format=json",
        ])
        .args(["--crate-name=case", "--out-dir"])
        .arg(out.path())
        .arg("-L")
        .arg(format!(
            "dependency={}",
            library.parent().expect("a directory").display()
        ))
        .arg("--extern")
        .arg(format!("spdk_rs={}", library.display()))
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the compiler can be started");
    let mut stdin = child.stdin.take().expect("piped");
    stdin.write_all(source.as_bytes()).expect("it reads");
    drop(stdin);
    let output = child.wait_with_output().expect("it ends");
    let errors: Vec<Refusal> = String::from_utf8(output.stderr)
        .expect("text")
        .lines()
        .filter_map(|line| refusal(&serde_json::from_str(line).expect("JSON")))
        .collect();
    assert_eq!(output.status.success(), errors.is_empty(), "{errors:#?}");
    errors
}

fn refusal(diagnostic: &Value) -> Option<Refusal> {
    let text = diagnostic["message"].as_str()?;
    if diagnostic["level"] != "error" || text.starts_with("aborting due to") {
        return None;
    }
    let spans = diagnostic["spans"].as_array()?;
    let labels = spans.iter().filter_map(|span| span["label"].as_str());
    let notes = diagnostic["children"].as_array()?;
    let notes = notes.iter().filter_map(|note| note["message"].as_str());
    Some(Refusal {
        lines: spans
            .iter()
            .filter_map(|span| span["line_start"].as_u64())
            .collect(),
        code: diagnostic["code"]["code"].as_str().unwrap_or_default().to_owned(),
        text: std::iter::once(text)
            .chain(labels)
            .chain(notes)
            .collect::<Vec<_>>()
            .join("\n"),
    })
}

#[track_caller]
fn check(name: &str, at_least: usize) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/compile_fail")
        .join(name);
    let source = std::fs::read_to_string(file).expect("readable");
    let mistakes: Vec<Mistake> = (1..)
        .zip(source.lines())
        .filter_map(|(line, text)| {
            let (code, text) = text.split_once("//~ ")?.1.split_once(' ').unwrap_or_else(|| {
                panic!("{name}:{line}: a mistake has a code and a text");
            });
            Some(Mistake { line, code, text })
        })
        .collect();
    assert!(
        mistakes.len() >= at_least,
        "{name} has {} mistakes",
        mistakes.len()
    );

    let refusals = compile(&source);
    for mistake in &mistakes {
        assert!(
            refusals.iter().any(|refusal| mistake.is(refusal)),
            "{name}:{}: not refused with {} {:?}, but: {refusals:#?}",
            mistake.line,
            mistake.code,
            mistake.text
        );
    }
    for refusal in &refusals {
        assert!(
            mistakes.iter().any(|mistake| mistake.is(refusal)),
            "{name}: {refusal:#?}"
        );
    }

    let without = |line: &'_ str| {
        if line.contains("//~ ") {
            "\n".to_owned()
        } else {
            format!("{line}\n")
        }
    };
    let mended: String = source.lines().map(without).collect();
    let refusals = compile(&mended);
    assert!(refusals.is_empty(), "{name} without its mistakes: {refusals:#?}");
}

#[test]
fn threads() {
    check("threads.rs", 10);
}

#[test]
fn buffers() {
    check("buffers.rs", 10);
}

#[test]
fn unused() {
    check("unused.rs", 10);
}
