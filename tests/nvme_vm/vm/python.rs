//! A Python program for the guest, with the interpreter of this machine and the modules that the program uses.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::Machine;

/// Runs a program to its end, and prints where the interpreter, its home and all the modules are that were loaded
/// by then. Compiled modules do without their source.
const PROBE: &str = "
import atexit, runpy, sys
def tell():
    print('interpreter', sys.executable, sys.prefix, sep='\\t')
    for module in list(sys.modules.values()):
        file, cached = getattr(module, '__file__', None), getattr(module, '__cached__', None)
        if file:
            print('module', file, cached or '', sep='\\t')
atexit.register(tell)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name='__main__')
";

/// A program in Python.
pub struct Python {
    interpreter: PathBuf,
    home: PathBuf,
    modules: Vec<(PathBuf, String)>,
    libraries: Vec<(PathBuf, String)>,
}

impl Python {
    /// Finds out what `program` needs by running it with `args` here.
    pub fn of(program: &Path, args: &[&str]) -> Result<Self> {
        let mut command = Command::new("python3");
        command.args(["-c", PROBE]).arg(program).args(args);
        let output = command.output().context("cannot run python3")?;
        let text = String::from_utf8_lossy(&output.stdout);
        ensure!(
            output.status.success(),
            "{}: {text}{}",
            program.display(),
            String::from_utf8_lossy(&output.stderr)
        );
        let mut this = Self {
            interpreter: PathBuf::new(),
            home: PathBuf::new(),
            modules: Vec::new(),
            libraries: Vec::new(),
        };
        for line in text.lines() {
            match line.split('\t').collect::<Vec<_>>().as_slice() {
                ["interpreter", path, home] => {
                    this.interpreter = PathBuf::from(path);
                    this.home = PathBuf::from(home);
                }
                ["module", file, cached] => this.module(file, cached),
                _ => {}
            }
        }
        ensure!(!this.modules.is_empty(), "{} told nothing", program.display());
        Ok(this)
    }

    fn module(&mut self, file: &str, cached: &str) {
        if file.ends_with(".so") {
            self.libraries.push((file.into(), file.to_owned()));
        } else if let Some(name) = file.strip_suffix(".py") {
            // To compile them takes seconds in the guest.
            if Path::new(cached).exists() {
                self.modules.push((cached.into(), format!("{name}.pyc")));
            } else if Path::new(file).exists() {
                self.modules.push((file.into(), file.to_owned()));
            }
        }
    }

    /// Puts it all into a machine.
    #[must_use]
    pub fn put_into(&self, mut machine: Machine) -> Machine {
        machine.files.extend(self.modules.iter().cloned());
        machine.programs.extend(self.libraries.iter().cloned());
        let interpreter = self.interpreter.display().to_string();
        machine.programs.push((self.interpreter.clone(), interpreter));
        machine
    }

    /// The interpreter, and its home (`PYTHONHOME`), for the guest.
    pub fn places(&self) -> (&Path, &Path) {
        (&self.interpreter, &self.home)
    }
}
