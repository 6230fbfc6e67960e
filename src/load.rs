//! Carrying out a configuration: its calls, in order, over the target's own RPC socket.
//!
//! SPDK's own loader does the same, but when a call fails it does not say which. The order is SPDK's: first, while the
//! target waits to be initialised, every call that is allowed then; then `framework_start_init`; then every call that
//! is allowed at run time. A call that the present state does not allow is left to the other pass.
//!
//! What was saved by this SPDK names volumes as namespaces before the volumes are found on their devices. So after the
//! calls of the subsystem `bdev`, the loader waits until every device has been examined.

use std::collections::HashSet;
use std::fmt;

use serde_json::{Value, json};
use spdk_rs::rpc::{CallError, Client};

use crate::config::{Call, Config};

const WAIT_FOR_EXAMINE: &str = "bdev_wait_for_examine";

/// A call of the configuration that failed, or the initialisation between them.
#[derive(Debug)]
pub enum LoadError {
    /// An entry's call failed.
    Entry {
        /// The subsystem that the entry stands under.
        subsystem: String,
        /// The entry's place there, from 1.
        entry: usize,
        /// What the server said; it names the method.
        error: CallError,
    },
    /// The target could not be initialised, or could not be asked.
    Target(CallError),
}

impl LoadError {
    /// Whether the target went away, rather than answered.
    pub fn connection_was_lost(&self) -> bool {
        let (Self::Entry { error, .. } | Self::Target(error)) = self;
        matches!(error, CallError::Connection { .. } | CallError::Connect { .. })
    }
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Entry {
                subsystem,
                entry,
                error,
            } => write!(f, "subsystem {subsystem}, entry {entry}: {error}"),
            Self::Target(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for LoadError {}

/// Carries out `config`. With `tolerate` given, an entry that fails is handed to it and passed over.
pub fn load(
    client: &mut Client,
    config: &Config,
    mut tolerate: Option<&mut dyn FnMut(LoadError)>,
) -> Result<(), LoadError> {
    let known = methods(client, false)?;
    run_pass(client, config, &known, true, &mut tolerate)?;
    client
        .call("framework_start_init", json!({}))
        .map_err(LoadError::Target)?;
    run_pass(client, config, &known, false, &mut tolerate)
}

/// The methods that the target has, or those that its present state allows.
fn methods(client: &mut Client, current: bool) -> Result<HashSet<String>, LoadError> {
    client
        .call_as(
            "rpc_get_methods",
            json!({"current": current, "include_aliases": true}),
        )
        .map_err(LoadError::Target)
}

/// One walk over the configuration. A method that the target does not know is reported in the first walk alone.
fn run_pass(
    client: &mut Client,
    config: &Config,
    known: &HashSet<String>,
    first: bool,
    tolerate: &mut Option<&mut dyn FnMut(LoadError)>,
) -> Result<(), LoadError> {
    let allowed = methods(client, true)?;
    for subsystem in &config.subsystems {
        for (index, call) in subsystem.calls.iter().flatten().enumerate() {
            let tell_unknown = first && !known.contains(&call.method);
            // SPDK's own target saves that one always, also where nobody uses iscsi.
            let pass_over = !tell_unknown || call.method == "iscsi_set_options";
            if pass_over && !allowed.contains(&call.method) {
                continue;
            }
            let Err(error) = make(client, call) else {
                continue;
            };
            let failed = LoadError::Entry {
                subsystem: subsystem.name.clone(),
                entry: index + 1,
                error,
            };
            match tolerate {
                Some(tolerate) => tolerate(failed),
                None => return Err(failed),
            }
        }
        if subsystem.name == "bdev" && allowed.contains(WAIT_FOR_EXAMINE) {
            client
                .call(WAIT_FOR_EXAMINE, json!({}))
                .map_err(LoadError::Target)?;
        }
    }
    Ok(())
}

fn make(client: &mut Client, call: &Call) -> Result<Value, CallError> {
    client.call(&call.method, &call.params)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixListener;
    use std::path::PathBuf;
    use std::sync::mpsc;
    use std::thread;

    use super::*;
    use crate::config::Subsystem;

    /// A target that has three methods and knows two states; says what was called.
    fn target(name: &str) -> (PathBuf, mpsc::Receiver<String>) {
        let path = std::env::temp_dir().join(format!("spdk-tgt-load-{}-{name}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).unwrap();
        let (calls, called) = mpsc::channel();
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut running = false;
            let mut buffer = [0; 4096];
            while let Ok(len) = stream.read(&mut buffer) {
                if len == 0 {
                    return;
                }
                let request: Value = serde_json::from_slice(&buffer[..len]).unwrap();
                let method = request["method"].as_str().unwrap();
                let outcome = match method {
                    "rpc_get_methods" => match (request["params"]["current"].as_bool(), running) {
                        (Some(false), _) => {
                            json!({"result": ["early", "late", "fails", "framework_start_init"]})
                        }
                        (_, false) => json!({"result": ["early", "framework_start_init"]}),
                        (_, true) => json!({"result": ["late", "fails", WAIT_FOR_EXAMINE]}),
                    },
                    "framework_start_init" => {
                        running = true;
                        json!({"result": true})
                    }
                    "early" | "late" | WAIT_FOR_EXAMINE => json!({"result": true}),
                    "fails" => json!({"error": {"code": -17, "message": "File exists"}}),
                    _ => json!({"error": {"code": -32601, "message": "Method not found"}}),
                };
                if method != "rpc_get_methods" {
                    calls.send(method.to_owned()).unwrap();
                }
                let mut answer = outcome;
                answer["id"] = request["id"].clone();
                stream.write_all(answer.to_string().as_bytes()).unwrap();
            }
        });
        (path, called)
    }

    fn config(methods: &[&str]) -> Config {
        let calls = methods
            .iter()
            .map(|method| Call {
                method: (*method).to_owned(),
                params: json!({"a": 1}),
            })
            .collect();
        Config {
            subsystems: vec![Subsystem {
                name: "bdev".into(),
                calls: Some(calls),
            }],
        }
    }

    #[test]
    fn each_call_is_made_once_in_the_state_that_allows_it() {
        let (path, called) = target("order");
        let mut client = Client::connect(&path).unwrap();
        load(&mut client, &config(&["late", "early", "late"]), None).unwrap();
        drop(client);
        let order = ["early", "framework_start_init", "late", "late", WAIT_FOR_EXAMINE];
        assert_eq!(called.iter().collect::<Vec<_>>(), order);
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn what_the_c_target_saves_of_iscsi_is_passed_over() {
        let (path, called) = target("iscsi");
        let mut client = Client::connect(&path).unwrap();
        load(&mut client, &config(&["iscsi_set_options", "late"]), None).unwrap();
        let refused = load(&mut client, &config(&["iscsi_create_portal_group"]), None);
        assert!(refused.is_err(), "but not what somebody wanted");
        drop(client);
        assert!(!called.iter().any(|method| method == "iscsi_set_options"));
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_failure_names_subsystem_entry_and_method() {
        let (path, _called) = target("fails");
        let error = load(
            &mut Client::connect(&path).unwrap(),
            &config(&["late", "fails"]),
            None,
        )
        .unwrap_err();
        assert_eq!(
            error.to_string(),
            "subsystem bdev, entry 2: fails: File exists (-17)"
        );
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn an_unknown_method_is_told_before_anything_starts() {
        let (path, called) = target("unknown");
        let error = load(
            &mut Client::connect(&path).unwrap(),
            &config(&["late", "no_such"]),
            None,
        )
        .unwrap_err();
        assert!(
            error.to_string().contains("entry 2: no_such: Method not found"),
            "{error}"
        );
        assert_eq!(called.iter().collect::<Vec<_>>(), ["no_such"]);
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn failures_can_be_passed_over_and_are_all_told_once() {
        let (path, called) = target("tolerated");
        let mut told = Vec::new();
        let mut tell = |error: LoadError| told.push(error.to_string());
        let mut client = Client::connect(&path).unwrap();
        load(
            &mut client,
            &config(&["no_such", "fails", "late"]),
            Some(&mut tell),
        )
        .unwrap();
        drop(client);
        assert_eq!(told.len(), 2, "{told:?}");
        assert!(called.iter().any(|method| method == "late"));
        std::fs::remove_file(path).unwrap();
    }
}
