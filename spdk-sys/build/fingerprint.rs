//! The name of a build: everything that its result depends on.

use crate::config::Part;
use crate::error::Result;
use crate::run;

/// What goes into the name.
#[derive(Debug, Clone)]
pub struct Inputs<'a> {
    /// SPDK's version, for people who look into the cache.
    pub version: &'a str,
    /// Part of the series, for the same.
    pub part: Part,
    /// Hash of the unpatched tree.
    pub source: &'a str,
    /// [`crate::series::Series::bytes`].
    pub series: &'a [u8],
    /// Arguments of configure and make.
    pub flags: &'a [String],
    /// [`compiler`].
    pub compiler: &'a str,
}

/// Counted up when this crate builds the same inputs in another way.
const RECIPE: u32 = 1;

/// The compiler's own description, version and target included.
pub fn compiler(cc: &str) -> Result<String> {
    let version = run::output(
        run::command(cc).arg("--version"),
        "ask the C compiler for its version",
    )?;
    let machine = run::output(
        run::command(cc).arg("-dumpmachine"),
        "ask the C compiler for its target",
    )?;
    Ok(format!(
        "{} {} {}",
        cc,
        version.lines().next().unwrap_or_default(),
        machine.trim()
    ))
}

/// `20.07-full-0123456789abcdef`.
pub fn fingerprint(inputs: &Inputs<'_>) -> Result<String> {
    let mut text = format!(
        "recipe {RECIPE}\nversion {}\npart {}\nsource {}\ncompiler {}\n",
        inputs.version,
        inputs.part.name(),
        inputs.source,
        inputs.compiler
    );
    for flag in inputs.flags {
        text.push_str(&format!("flag {flag}\n"));
    }
    let mut bytes = text.into_bytes();
    bytes.extend_from_slice(inputs.series);
    let hash = sha256(&bytes)?;
    Ok(format!(
        "{}-{}-{}",
        inputs.version,
        inputs.part.name(),
        &hash[..16]
    ))
}

/// SHA-256, by coreutils: build scripts are compiled without optimisation, where a Rust
/// implementation needs seconds for a source tree.
pub fn sha256(bytes: &[u8]) -> Result<String> {
    let text = run::output_with_input(&mut run::command("sha256sum"), bytes, "compute a SHA-256")?;
    Ok(text.chars().take_while(char::is_ascii_hexdigit).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sha256_of_nothing() {
        assert_eq!(
            sha256(b"").unwrap(),
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
    }

    #[test]
    fn each_input_counts() {
        let flags = ["--a".to_owned()];
        let base = Inputs {
            version: "20.07",
            part: Part::Full,
            source: "s",
            series: b"p",
            flags: &flags,
            compiler: "gcc",
        };
        let other_flags = ["--a".to_owned(), "--b".to_owned()];
        let all = [
            base.clone(),
            Inputs {
                version: "26.05",
                ..base.clone()
            },
            Inputs {
                part: Part::Enabling,
                ..base.clone()
            },
            Inputs {
                source: "t",
                ..base.clone()
            },
            Inputs {
                series: b"q",
                ..base.clone()
            },
            Inputs {
                flags: &other_flags,
                ..base.clone()
            },
            Inputs {
                compiler: "clang",
                ..base.clone()
            },
        ];
        let names: std::collections::BTreeSet<String> = all.iter().map(|i| fingerprint(i).unwrap()).collect();
        assert_eq!(names.len(), all.len());
        assert_eq!(fingerprint(&base).unwrap(), fingerprint(&base.clone()).unwrap());
        assert!(fingerprint(&base).unwrap().starts_with("20.07-full-"));
    }

    #[test]
    fn a_missing_compiler_is_named() {
        let error = compiler("no-such-compiler").unwrap_err().to_string();
        assert!(error.contains("no-such-compiler"), "{error}");
    }
}
