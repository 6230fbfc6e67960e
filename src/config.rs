//! Reading a JSON configuration: what SPDK's `save_config` writes, and what people write by hand.
//!
//! A configuration is a list of RPC calls, grouped by subsystem. [`read`] checks its form, before SPDK starts, so that
//! a broken file is told by file and line; [`crate::load`] then makes the calls.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

/// A whole configuration.
#[derive(Debug, Default, PartialEq, Deserialize)]
pub struct Config {
    /// The subsystems in the order in which they are configured.
    #[serde(default)]
    pub subsystems: Vec<Subsystem>,
}

/// The calls that configure one subsystem.
#[derive(Debug, PartialEq, Deserialize)]
pub struct Subsystem {
    /// The subsystem's name, for messages only.
    #[serde(rename = "subsystem")]
    pub name: String,
    /// The calls, none if `null`.
    #[serde(rename = "config")]
    pub calls: Option<Vec<Call>>,
}

/// One RPC call.
#[derive(Debug, PartialEq, Deserialize)]
pub struct Call {
    /// The RPC method.
    pub method: String,
    /// Its parameters.
    #[serde(default)]
    pub params: Value,
}

/// Why a configuration file cannot be used.
#[derive(Debug)]
pub struct ConfigError {
    path: PathBuf,
    reason: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "configuration {}: {}", self.path.display(), self.reason)
    }
}

impl std::error::Error for ConfigError {}

/// Reads the configuration file at `path`.
///
/// # Errors
///
/// The file cannot be read, is in the old INI form, is no JSON, or is JSON of another form; each by name.
pub fn read(path: &Path) -> Result<Config, ConfigError> {
    let failed = |reason: String| ConfigError {
        path: path.to_owned(),
        reason,
    };
    let text = std::fs::read_to_string(path).map_err(|e| failed(format!("cannot be read: {e}")))?;
    parse(&text).map_err(failed)
}

fn parse(text: &str) -> Result<Config, String> {
    if is_ini(text) {
        return Err("this is the INI form, which is no longer taken: \
                    convert it with SPDK's scripts/config_converter.py"
            .into());
    }
    let config: Config = serde_json::from_str(&without_comments(text)).map_err(|e| {
        let kind = match e.classify() {
            serde_json::error::Category::Data => "not a configuration",
            _ => "not JSON",
        };
        format!("{kind}: {e}")
    })?;
    for subsystem in &config.subsystems {
        for (index, call) in subsystem.calls.iter().flatten().enumerate() {
            if !(call.params.is_object() || call.params.is_null()) {
                return Err(format!(
                    "subsystem {}, entry {}: the params of {} are not an object",
                    subsystem.name,
                    index + 1,
                    call.method
                ));
            }
        }
    }
    Ok(config)
}

/// Whether the first line that says something is a section of the INI form, such as `[Global]`.
fn is_ini(text: &str) -> bool {
    text.lines()
        .map(str::trim)
        .find(|line| !line.is_empty() && !line.starts_with('#'))
        .and_then(|line| line.strip_prefix('['))
        .and_then(|rest| rest.split_once(']'))
        .is_some_and(|(section, _)| {
            section.starts_with(|c: char| c.is_ascii_alphabetic())
                && section.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        })
}

/// The text with `//` and `/* */` comments blanked out, which SPDK allows and JSON does not. Positions stay.
fn without_comments(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    let mut in_string = false;
    while let Some(c) = chars.next() {
        match c {
            '\\' if in_string => {
                out.push(c);
                out.extend(chars.next());
            }
            '"' => {
                in_string = !in_string;
                out.push(c);
            }
            '/' if !in_string && chars.peek() == Some(&'/') => {
                out.push(' ');
                while let Some(skipped) = chars.next_if(|c| *c != '\n') {
                    out.push(blank(skipped));
                }
            }
            '/' if !in_string && chars.peek() == Some(&'*') => {
                out.push(' ');
                let mut before = ' ';
                chars.next();
                out.push(' ');
                for skipped in chars.by_ref() {
                    out.push(blank(skipped));
                    if before == '*' && skipped == '/' {
                        break;
                    }
                    before = skipped;
                }
            }
            _ => out.push(c),
        }
    }
    out
}

fn blank(c: char) -> char {
    if c == '\n' { c } else { ' ' }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_save_config_writes_is_read() {
        let config = parse(
            r#"{"subsystems": [
                {"subsystem": "interface", "config": null},
                {"subsystem": "bdev", "config": [
                    {"method": "bdev_malloc_create", "params": {"name": "M0", "num_blocks": 8, "block_size": 512}},
                    {"method": "bdev_wait_for_examine"}]}]}"#,
        )
        .unwrap();
        assert_eq!(config.subsystems.len(), 2);
        assert_eq!(config.subsystems[0].calls, None);
        let calls = config.subsystems[1].calls.as_ref().unwrap();
        assert_eq!(calls[0].params["num_blocks"], 8);
        assert_eq!(
            calls[1],
            Call {
                method: "bdev_wait_for_examine".into(),
                params: json!(null)
            }
        );
    }

    #[test]
    fn comments_and_other_keys_are_passed_over() {
        let config = parse(
            "// written by hand\n{ /* a note: \"x\" */ \"subsystems\": [ {\"subsystem\": \"bdev // not a comment\",\n\
             \"config\": [] /**/ } ], \"comment\": \"say \\\" /* no */\" }",
        )
        .unwrap();
        assert_eq!(config.subsystems[0].name, "bdev // not a comment");
        assert_eq!(parse("{}").unwrap(), Config::default());
    }

    #[test]
    fn the_ini_form_is_refused_by_name() {
        for text in [
            "[Global]\n  ReactorMask 0x3\n",
            "# a comment\n\n[Malloc]\n",
            "[TargetNode1] # x\n",
        ] {
            assert!(parse(text).unwrap_err().contains("INI"), "{text}");
        }
        assert!(!parse("[1, 2]").unwrap_err().contains("INI"));
    }

    #[test]
    fn broken_json_is_told_by_line() {
        let error = parse("{\n \"subsystems\": [\n }\n").unwrap_err();
        assert!(
            error.starts_with("not JSON") && error.contains("line 3"),
            "{error}"
        );
        assert!(parse("").unwrap_err().starts_with("not JSON"));
        let error = parse(r#"{"subsystems": [{"config": []}]}"#).unwrap_err();
        assert!(
            error.starts_with("not a configuration") && error.contains("subsystem"),
            "{error}"
        );
        let error =
            parse(r#"{"subsystems": [{"subsystem": "bdev", "config": [{"method": "m", "params": 7}]}]}"#);
        assert!(
            error
                .unwrap_err()
                .contains("subsystem bdev, entry 1: the params of m")
        );
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let error = read(Path::new("/nonexistent/c.json")).unwrap_err().to_string();
        assert!(error.contains("/nonexistent/c.json") && error.contains("cannot be read"));
        assert_eq!(error.lines().count(), 1);
    }
}
