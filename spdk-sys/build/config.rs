//! Everything that the environment says, read in one place.
//!
//! [`Env`] is the one helper that reads a variable; it remembers each name, so that the list of
//! `rerun-if-env-changed` lines cannot miss one. A name with the target appended
//! (`SPDK_SYS_DIR_x86_64_unknown_linux_gnu`) goes before the plain one.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::sanitizer::Sanitizer;

type Getter = Box<dyn Fn(&str) -> Option<OsString>>;

/// Reads variables and remembers which.
pub struct Env {
    get: Getter,
    target: String,
    asked: BTreeSet<String>,
}

impl Env {
    /// The process environment.
    pub fn process() -> Self {
        Self::with(|name| std::env::var_os(name))
    }

    /// An environment that `get` answers for.
    pub fn with(get: impl Fn(&str) -> Option<OsString> + 'static) -> Self {
        let target = get("TARGET")
            .map(|t| t.to_string_lossy().replace(['-', '.'], "_"))
            .unwrap_or_default();
        Self {
            get: Box::new(get),
            target,
            asked: BTreeSet::new(),
        }
    }

    /// A variable that a person sets. An empty one is as good as none.
    pub fn user(&mut self, name: &str) -> Option<OsString> {
        let specific = format!("{name}_{}", self.target);
        let value = [specific.as_str(), name]
            .into_iter()
            .find_map(|n| (self.get)(n).filter(|v| !v.is_empty()));
        self.asked.insert(specific);
        self.asked.insert(name.to_owned());
        value
    }

    /// A variable that cargo sets; cargo itself knows when it changes.
    pub fn cargo(&self, name: &str) -> Result<OsString> {
        (self.get)(name).ok_or_else(|| Error::from(format!("{name} is not set: run this through cargo")))
    }

    /// Whether a variable that cargo sets is there.
    pub fn has(&self, name: &str) -> bool {
        (self.get)(name).is_some()
    }

    /// A line for cargo for each variable that was asked for.
    pub fn rerun_lines(&self) -> Vec<String> {
        self.asked
            .iter()
            .map(|name| format!("cargo::rerun-if-env-changed={name}"))
            .collect()
    }
}

/// Which part of the patch series is applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// What makes SPDK build and run here, and no more: the control build.
    Enabling,
    /// The whole series.
    Full,
}

impl Part {
    /// As `SPDK_SYS_SERIES` and `DEP_SPDK_SERIES` spell it.
    pub fn name(self) -> &'static str {
        match self {
            Part::Enabling => "enabling",
            Part::Full => "full",
        }
    }
}

/// The cargo features that are on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs)]
pub struct Features {
    pub nvme: bool,
    pub nvmf: bool,
    pub uring: bool,
    pub raid: bool,
    pub nbd: bool,
}

impl Features {
    /// Every feature on.
    pub const ALL: Self = Self {
        nvme: true,
        nvmf: true,
        uring: true,
        raid: true,
        nbd: true,
    };
}

/// What the environment asks for.
#[derive(Debug, Clone)]
pub struct Config {
    /// `SPDK_SYS_DIR`: a build tree, linked as it is.
    pub dir: Option<PathBuf>,
    /// `SPDK_SYS_SOURCE`: a source tree or a tarball.
    pub source: Option<PathBuf>,
    /// `SPDK_SYS_CACHE`: where sources and builds are kept.
    pub cache: PathBuf,
    /// `SPDK_SYS_SERIES`.
    pub series: Part,
    /// `SPDK_SYS_ARCH`: the oldest processor that the result runs on.
    pub arch: String,
    /// `SPDK_SYS_SANITIZE`: the sanitizer in it.
    pub sanitize: Option<Sanitizer>,
    /// `SPDK_SYS_ALLOW_UNPATCHED`: take an SPDK without the patches.
    pub allow_unpatched: bool,
    /// `NUM_JOBS`.
    pub jobs: usize,
    /// The C compiler that SPDK is built with (`CC`).
    pub cc: String,
    /// The cargo features.
    pub features: Features,
    /// `OUT_DIR`.
    pub out_dir: PathBuf,
    /// `CARGO_MANIFEST_DIR`.
    pub manifest_dir: PathBuf,
}

/// The oldest processors that the result runs on, unless `SPDK_SYS_ARCH` says otherwise.
pub const DEFAULT_ARCH: &str = "x86-64-v2";

impl Config {
    /// Reads all variables; the first senseless one is the error.
    pub fn from_env(env: &mut Env) -> Result<Self> {
        let target = env.cargo("TARGET")?;
        if target != "x86_64-unknown-linux-gnu" {
            return Err(Error::from(format!(
                "the target {} is not supported: SPDK v20.07 is built and tested on x86_64-unknown-linux-gnu only.",
                target.to_string_lossy()
            )));
        }
        let path = |value: Option<OsString>| value.map(PathBuf::from);
        let dir = path(env.user("SPDK_SYS_DIR"));
        let source = path(env.user("SPDK_SYS_SOURCE"));
        let cache = cache_dir(env)?;
        let series = match word(env, "SPDK_SYS_SERIES")?.as_deref() {
            None | Some("full") => Part::Full,
            Some("enabling") => Part::Enabling,
            Some(other) => {
                return Err(Error::from(format!(
                    "SPDK_SYS_SERIES={other} is not known: say \"full\" (or nothing) for all patches, or \"enabling\" for the control build."
                )));
            }
        };
        let arch = word(env, "SPDK_SYS_ARCH")?.unwrap_or_else(|| DEFAULT_ARCH.to_owned());
        if !arch
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "-_.+".contains(c))
        {
            return Err(Error::from(format!(
                "SPDK_SYS_ARCH={arch}: say one that gcc knows for -march, as x86-64-v2 or native."
            )));
        }
        let sanitize =
            match word(env, "SPDK_SYS_SANITIZE")? {
                None => None,
                Some(name) => Some(Sanitizer::ALL.into_iter().find(|s| s.name() == name).ok_or_else(
                    || {
                        Error::from(format!(
                            "SPDK_SYS_SANITIZE={name}: say address, or undefined, or nothing."
                        ))
                    },
                )?),
            };
        let allow_unpatched = match word(env, "SPDK_SYS_ALLOW_UNPATCHED")?.as_deref() {
            None | Some("0") => false,
            Some("1") => true,
            Some(other) => {
                return Err(Error::from(format!(
                    "SPDK_SYS_ALLOW_UNPATCHED={other}: say 1, or nothing."
                )));
            }
        };
        let cc = word(env, "CC")?.unwrap_or_else(|| "cc".to_owned());
        let feature = |name: &str| env.has(&format!("CARGO_FEATURE_{name}"));
        let features = Features {
            nvme: feature("NVME"),
            nvmf: feature("NVMF"),
            uring: feature("URING"),
            raid: feature("RAID"),
            nbd: feature("NBD"),
        };
        let jobs = env
            .cargo("NUM_JOBS")?
            .to_string_lossy()
            .parse()
            .unwrap_or(1)
            .max(1);
        let out_dir = PathBuf::from(env.cargo("OUT_DIR")?);
        let manifest_dir = PathBuf::from(env.cargo("CARGO_MANIFEST_DIR")?);
        Ok(Self {
            dir,
            source,
            cache,
            series,
            arch,
            sanitize,
            allow_unpatched,
            jobs,
            cc,
            features,
            out_dir,
            manifest_dir,
        })
    }
}

/// `SPDK_SYS_CACHE`, else `spdk-sys` in the user's cache directory.
fn cache_dir(env: &mut Env) -> Result<PathBuf> {
    let chosen = env.user("SPDK_SYS_CACHE").map(PathBuf::from);
    let xdg = env
        .user("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .filter(|p| p.is_absolute());
    let home = env.user("HOME").map(PathBuf::from);
    let cache = match (chosen, xdg, home) {
        (Some(cache), _, _) => cache,
        (None, Some(xdg), _) => xdg.join("spdk-sys"),
        (None, None, Some(home)) => home.join(".cache/spdk-sys"),
        (None, None, None) => {
            return Err(Error::from(
                "neither SPDK_SYS_CACHE nor HOME is set: say where to keep SPDK with SPDK_SYS_CACHE.",
            ));
        }
    };
    check_path("SPDK_SYS_CACHE", &cache)?;
    Ok(cache)
}

/// Refuses paths that make and configure would take apart.
fn check_path(name: &str, path: &Path) -> Result<()> {
    let bad = |c: char| !(c.is_ascii_alphanumeric() || "/._-+@,".contains(c));
    if !path.is_absolute() || path.to_string_lossy().contains(bad) {
        return Err(Error::from(format!(
            "{name} = {}: SPDK's makefiles need an absolute path of letters, digits and . _ - + @ , only. Choose another place with {name}.",
            path.display()
        )));
    }
    Ok(())
}

/// A variable that must be text.
fn word(env: &mut Env, name: &str) -> Result<Option<String>> {
    match env.user(name) {
        None => Ok(None),
        Some(value) => match value.into_string() {
            Ok(text) => Ok(Some(text.trim().to_owned())),
            Err(_) => Err(Error::from(format!("{name} is not text."))),
        },
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn read(variables: &[(&str, &str)]) -> (Result<Config>, Vec<String>) {
        let mut all: BTreeMap<String, OsString> = [
            ("TARGET", "x86_64-unknown-linux-gnu"),
            ("NUM_JOBS", "2"),
            ("OUT_DIR", "/out"),
            ("CARGO_MANIFEST_DIR", "/manifest"),
            ("HOME", "/home/me"),
        ]
        .iter()
        .chain(variables)
        .map(|(k, v)| ((*k).to_owned(), OsString::from(v)))
        .collect();
        all.retain(|_, v| v != "(unset)");
        let mut env = Env::with(move |name| all.get(name).cloned());
        let config = Config::from_env(&mut env);
        (config, env.rerun_lines())
    }

    /// A configuration for tests of other modules: every feature on.
    pub fn config() -> Config {
        let (config, _) = read(&[]);
        Config {
            features: Features::ALL,
            ..config.unwrap()
        }
    }

    fn error(variables: &[(&str, &str)]) -> String {
        read(variables).0.unwrap_err().to_string()
    }

    #[test]
    fn nothing_set() {
        let config = read(&[]).0.unwrap();
        assert_eq!(config.cache, Path::new("/home/me/.cache/spdk-sys"));
        assert_eq!((config.dir, config.source), (None, None));
        assert_eq!(
            (config.series, config.arch.as_str(), config.cc.as_str()),
            (Part::Full, "x86-64-v2", "cc")
        );
        assert_eq!(
            (
                config.features,
                config.sanitize,
                config.allow_unpatched,
                config.jobs
            ),
            (Features::default(), None, false, 2)
        );
    }

    #[test]
    fn the_cache() {
        let cache = |v: &[(&str, &str)]| read(v).0.unwrap().cache;
        let xdg = ("XDG_CACHE_HOME", "/xdg");
        assert_eq!(cache(&[xdg]), Path::new("/xdg/spdk-sys"));
        assert_eq!(cache(&[xdg, ("SPDK_SYS_CACHE", "/c")]), Path::new("/c"));
        // The specification says to ignore a relative one.
        assert_eq!(
            cache(&[("XDG_CACHE_HOME", "xdg")]),
            Path::new("/home/me/.cache/spdk-sys")
        );
        assert!(error(&[("HOME", "(unset)")]).contains("SPDK_SYS_CACHE"));
        for bad in ["relative", "/with space", "/with:colon", "/with$dollar"] {
            assert!(
                error(&[("SPDK_SYS_CACHE", bad)]).contains("Choose another place"),
                "{bad}"
            );
        }
    }

    #[test]
    fn a_name_with_the_target_goes_first_and_an_empty_value_is_none() {
        let variables = [
            ("SPDK_SYS_DIR", "/plain"),
            ("SPDK_SYS_DIR_x86_64_unknown_linux_gnu", "/specific"),
            ("CC", ""),
        ];
        let config = read(&variables).0.unwrap();
        assert_eq!((config.dir, config.cc.as_str()), (Some("/specific".into()), "cc"));
    }

    #[test]
    fn senseless_values_are_named() {
        assert!(error(&[("SPDK_SYS_SERIES", "half")]).contains("SPDK_SYS_SERIES=half"));
        assert!(error(&[("SPDK_SYS_SANITIZE", "memory")]).contains("SPDK_SYS_SANITIZE=memory: say address"));
        assert!(error(&[("SPDK_SYS_ALLOW_UNPATCHED", "yes")]).contains("SPDK_SYS_ALLOW_UNPATCHED=yes"));
        assert!(error(&[("TARGET", "aarch64-unknown-linux-gnu")]).contains("aarch64-unknown-linux-gnu"));
        assert!(error(&[("SPDK_SYS_ARCH", "a b")]).contains("SPDK_SYS_ARCH"));
    }

    #[test]
    fn series_and_features() {
        let variables = [
            ("SPDK_SYS_SERIES", "enabling"),
            ("CARGO_FEATURE_NVMF", "1"),
            ("SPDK_SYS_SANITIZE", "address"),
            ("SPDK_SYS_ALLOW_UNPATCHED", "1"),
        ];
        let config = read(&variables).0.unwrap();
        assert_eq!(
            (config.series, config.sanitize, config.allow_unpatched),
            (Part::Enabling, Some(Sanitizer::Address), true)
        );
        assert_eq!(
            config.features,
            Features {
                nvmf: true,
                ..Features::default()
            }
        );
    }

    /// Whoever reads a variable without asking for a new run when it changes builds yesterday's SPDK.
    #[test]
    fn every_variable_is_watched() {
        let (_, lines) = read(&[]);
        for name in [
            "SPDK_SYS_DIR",
            "SPDK_SYS_SOURCE",
            "SPDK_SYS_CACHE",
            "SPDK_SYS_SERIES",
            "SPDK_SYS_ARCH",
            "SPDK_SYS_SANITIZE",
            "SPDK_SYS_ALLOW_UNPATCHED",
            "XDG_CACHE_HOME",
            "HOME",
            "CC",
        ] {
            assert!(
                lines.contains(&format!("cargo::rerun-if-env-changed={name}")),
                "{name}"
            );
            let specific = format!("cargo::rerun-if-env-changed={name}_x86_64_unknown_linux_gnu");
            assert!(lines.contains(&specific), "{specific}");
        }
    }
}
