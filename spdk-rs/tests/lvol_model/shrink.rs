//! Runs steps in processes of their own, and finds a short list of steps that still fail.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::common::run_child_for;
use super::ops::{Key, Op, Step};

/// For one process.
const LIMIT: Duration = Duration::from_secs(90);
/// How often the shortest list is run again.
const AGAIN: usize = 3;

/// Before what a process says is wrong.
pub const MARK: &str = "@wrong ";

/// Runs processes of one test.
pub struct Runner<'a> {
    pub test: &'a str,
    pub place: &'a Path,
    pub env: Vec<(&'a str, String)>,
}

impl Runner<'_> {
    fn run(&self, more: &[(&str, &str)], limit: Duration) -> Result<String, String> {
        let mut env: Vec<_> = self
            .env
            .iter()
            .map(|(name, value)| (*name, value.as_str()))
            .collect();
        let place = self.place.to_str().expect("a path");
        env.extend([("LVOL_MODEL_PLACE", place)]);
        env.extend(more);
        let Some(output) = run_child_for(self.test, &env, limit) else {
            return Err("the process never ends".to_owned());
        };
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() {
            return Ok(said);
        }
        let complaint = String::from_utf8_lossy(&output.stderr);
        Err(match complaint.split_once(MARK) {
            Some((_, wrong)) => wrong.trim_end().to_owned(),
            None => {
                let last: Vec<_> = complaint.lines().rev().take(20).collect();
                let last: Vec<_> = last.into_iter().rev().collect();
                format!("the process ended with {}:\n{}", output.status, last.join("\n"))
            }
        })
    }

    /// Steps at random. Says what was done, or what went wrong.
    pub fn at_random(&self, seed: u64, count: u64, limit: Duration) -> Result<String, String> {
        let (seed, count) = (seed.to_string(), count.to_string());
        self.run(&[("LVOL_MODEL_SEED", &seed), ("LVOL_MODEL_OPS", &count)], limit)
    }

    /// The steps of the store at which that ended.
    pub fn steps(&self) -> Vec<Step> {
        read(&self.place.join("steps"))
    }

    /// Whether these steps fail, and how.
    pub fn fails(&self, steps: &[Step]) -> Option<String> {
        let list = self.place.join("list");
        write(&list, steps);
        let list = list.to_str().expect("a path");
        self.run(&[("LVOL_MODEL_STEPS", list)], LIMIT).err()
    }
}

/// One line a step.
pub fn read(path: &Path) -> Vec<Step> {
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    // (A line that was cut off is none.)
    text.lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect()
}

fn write(path: &Path, steps: &[Step]) {
    let lines: Vec<_> = steps
        .iter()
        .map(|step| serde_json::to_string(step).expect("plain data"))
        .collect();
    std::fs::write(path, lines.join("\n") + "\n")
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}

/// Without the steps on volumes that nobody makes.
fn sound(steps: Vec<Step>) -> Vec<Step> {
    let mut made: HashSet<Key> = HashSet::new();
    let mut sound = steps;
    sound.retain(|step| {
        let has = step.op.vol().is_none_or(|vol| made.contains(&vol));
        if has && step.op.makes().is_some() {
            made.insert(step.key);
        }
        has
    });
    sound
}

/// What leads to the volumes that were worked on last.
fn leading_there(steps: &[Step]) -> Vec<Step> {
    let looks = |step: &Step| matches!(step.op, Op::Settle | Op::Reload { .. });
    let end = steps.len() - steps.iter().rev().take_while(|step| looks(step)).count();
    let last = steps[..end].iter().rposition(looks).map_or(0, |at| at + 1);
    let mut wanted: HashSet<Key> = HashSet::new();
    for step in &steps[last..] {
        wanted.extend(step.op.vol());
    }
    // What was made of others comes later than they do.
    for step in steps.iter().rev().filter(|step| step.op.makes().is_some()) {
        if wanted.contains(&step.key) {
            wanted.extend(step.op.vol());
        }
    }
    let leads = |step: &&Step| {
        let makes = step.op.makes().is_some() && wanted.contains(&step.key);
        makes || looks(step) || step.op.vol().is_some_and(|vol| wanted.contains(&vol))
    };
    let mut steps: Vec<_> = steps[..last]
        .iter()
        .filter(leads)
        .chain(&steps[last..])
        .cloned()
        .collect();
    steps.dedup_by_key(|step| step.op.clone());
    sound(steps)
}

/// A list, and how it fails.
pub struct Failure {
    pub steps: Vec<Step>,
    pub why: String,
    pub again: usize,
    pub tried: usize,
}

/// Leaves out what need not be there, until nothing more can be or the time is over.
/// (Lists that fail in another way count, too.)
pub fn shrink(runner: &Runner, steps: Vec<Step>, why: String, time: Duration) -> Failure {
    let begin = Instant::now();
    let mut best = Failure {
        steps,
        why,
        again: 0,
        tried: 0,
    };
    let attempt = |best: &mut Failure, steps: Vec<Step>| {
        if begin.elapsed() > time || steps == best.steps {
            return false;
        }
        best.tried += 1;
        match runner.fails(&steps) {
            Some(why) => {
                (best.steps, best.why) = (steps, why);
                true
            }
            None => false,
        }
    };
    let leading = leading_there(&best.steps);
    attempt(&mut best, leading);
    // As plain as can be, and then shorter, as long as any of it helps.
    let plainer: [fn(&mut Step); 2] = [|step| step.turns = 0, |step| step.depth = 1];
    loop {
        let before = best.steps.clone();
        for change in plainer {
            let mut steps = best.steps.clone();
            steps.iter_mut().for_each(change);
            attempt(&mut best, steps);
        }
        let mut size = best.steps.len().div_ceil(2).max(1);
        loop {
            // The later ones first: what went wrong was seen at the end.
            let mut end = best.steps.len();
            while end > 0 {
                let start = end.saturating_sub(size);
                let mut steps = best.steps.clone();
                steps.drain(start..end);
                attempt(&mut best, sound(steps));
                end = start.min(best.steps.len());
            }
            if size == 1 {
                break;
            }
            size = size.div_ceil(2);
        }
        if best.steps == before {
            break;
        }
    }
    best.again = (0..AGAIN).filter(|_| runner.fails(&best.steps).is_some()).count();
    best
}

impl Failure {
    /// For people. The list is kept in a file, to be run again.
    pub fn report(&self, of: usize) -> String {
        let kept = keep(&self.steps);
        let mut text = String::new();
        let _ = writeln!(
            text,
            "{}\n\nThe shortest list found in {} attempts, {} of {of} steps ({} of {AGAIN} times it fails):",
            self.why,
            self.tried,
            self.steps.len(),
            self.again
        );
        for step in &self.steps {
            let _ = writeln!(text, "    {step}");
        }
        let _ = write!(
            text,
            "To run it again: SPDK_RS_LVOL_MODEL_STEPS={} cargo test -p spdk-rs --test lvol_model against_a_model",
            kept.display()
        );
        text
    }

    /// How many steps there are, looks not counted.
    pub fn len(&self) -> usize {
        let looks = |step: &&Step| matches!(step.op, Op::Settle | Op::Reload { .. });
        self.steps.len() - self.steps.iter().filter(looks).count()
    }
}

fn keep(steps: &[Step]) -> PathBuf {
    let path = std::env::temp_dir().join(format!("lvol-model-{}.steps", std::process::id()));
    write(&path, steps);
    path
}
