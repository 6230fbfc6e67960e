//! A store from when it is made until it is destroyed: carries steps out, several at a time, and
//! looks at what has become of them.

use std::cell::RefCell;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use spdk_rs::lvol::{Lvol, LvolStore, stop_checksum};
use spdk_rs::reactor::yield_now;
use spdk_rs::{ErrorKind, spawn};

use super::history::{Event, Outcome, explain, translate};
use super::model::{Model, Wrong};
use super::ops::{Key, Op, Step};
use super::store::place::{Place, Shape, perform, read};

/// Cells are blocks, so that all that is there is looked at. Space and names run short at times.
const SHAPE: Shape = Shape {
    cluster: 16 << 10,
    disk: 2 << 20,
    write_cache: false,
};

/// For anything to end.
const LIMIT: Duration = Duration::from_secs(30);

#[derive(Default)]
struct Shared {
    clock: u64,
    running: Vec<Step>,
    events: Vec<Event>,
    lvols: HashMap<Key, Lvol>,
}

impl Shared {
    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }
}

/// What was done.
#[derive(Default)]
pub struct Tally {
    pub done: u64,
    pub refused: u64,
    pub busy: u64,
    pub looks: u64,
    pub loads: u64,
}

pub struct Life {
    path: PathBuf,
    /// Only between a load and the next.
    place: Option<Place>,
    pub model: Model,
    shared: Rc<RefCell<Shared>>,
    /// What ran before the last look, for people.
    before: String,
    pub tally: Tally,
}

impl Life {
    pub async fn begin(path: &Path, wrong: Option<Wrong>) -> Result<Self> {
        let place = Place::create(path, SHAPE).await?;
        let report = place.report().await?;
        Ok(Self {
            path: path.to_owned(),
            model: Model::new(&report, place.store.name(), wrong),
            place: Some(place),
            shared: Rc::default(),
            before: String::new(),
            tally: Tally::default(),
        })
    }

    pub async fn take(&mut self, step: &Step) -> Result<()> {
        match step.op {
            Op::Settle => self.settle().await,
            Op::Reload { unload } => self.reload(unload).await,
            _ => self.start(step).await,
        }
    }

    /// A last look, and the end of the store.
    pub async fn end(mut self) -> Result<Tally> {
        self.reload(true).await?;
        self.place()?.store.destroy().await?;
        let place = self.place.take().context("a place")?;
        let gone = place.store.lvols().await;
        ensure!(gone.is_err(), "the store is there after its end");
        place.leave().await?;
        Ok(self.tally)
    }

    fn place(&self) -> Result<&Place> {
        self.place.as_ref().context("between two loads")
    }

    /// Turns the reactor until there is what is wanted.
    async fn until(&self, wanted: impl Fn(&Shared) -> bool) -> Result<()> {
        let begin = Instant::now();
        while !wanted(&self.shared.borrow()) {
            if begin.elapsed() > LIMIT {
                let shared = self.shared.borrow();
                let running: Vec<_> = shared.running.iter().map(Step::to_string).collect();
                let events: Vec<_> = shared.events.iter().map(Event::to_string).collect();
                bail!(
                    "never ended:\n    {}\n  What did:\n    {}",
                    running.join("\n    "),
                    events.join("\n    ")
                );
            }
            yield_now().await;
        }
        Ok(())
    }

    async fn start(&mut self, step: &Step) -> Result<()> {
        self.until(|shared| shared.running.len() < step.depth).await?;
        for _ in 0..step.turns {
            yield_now().await;
        }
        let mut origin = None;
        if let Some(vol) = step.op.vol() {
            let is_made = |shared: &Shared| shared.running.iter().any(|step| step.key == vol);
            self.until(|shared| !is_made(shared)).await?;
            origin = self.shared.borrow().lvols.get(&vol).cloned();
            if origin.is_none() {
                return Ok(()); // it was not made
            }
        }
        let (step, shared) = (step.clone(), Rc::clone(&self.shared));
        let store = self.place()?.store.clone();
        shared.borrow_mut().running.push(step.clone());
        spawn(async move {
            let began = shared.borrow_mut().tick();
            let outcome = match carry_out(&store, origin, &step, &shared).await {
                Ok(outcome) => outcome,
                Err(error) => Outcome::Refused(error.kind(), error.to_string()),
            };
            let mut shared = shared.borrow_mut();
            let ended = shared.tick();
            shared.running.retain(|running| running.key != step.key);
            shared.events.push(Event {
                step,
                began,
                ended,
                outcome,
            });
        });
        yield_now().await;
        Ok(())
    }

    async fn settle(&mut self) -> Result<()> {
        self.until(|shared| shared.running.is_empty()).await?;
        let mut events = std::mem::take(&mut self.shared.borrow_mut().events);
        events.sort_by_key(|event| event.began);
        for event in &events {
            match &event.outcome {
                Outcome::Refused(kind, _) => {
                    self.tally.refused += 1;
                    self.tally.busy += u64::from(*kind == ErrorKind::Busy);
                }
                _ => self.tally.done += 1,
            }
        }
        self.tally.looks += 1;
        self.before = events.iter().map(|event| format!("\n    {event}")).collect();
        let report = self.place()?.report().await.context("what is there");
        let report = report.with_context(|| format!("after this:{}\n ", self.before))?;
        let keys = self.keys();
        translate(&mut events, |uuid| keys.get(uuid).copied());
        let may_mark: Vec<_> = events
            .iter()
            .filter_map(|event| match (&event.step.op, &event.outcome) {
                (Op::Clone { vol, .. }, Outcome::Refused(..)) => Some(*vol),
                _ => None,
            })
            .collect();
        let name = LvolStore::find(&self.place()?.store.uuid().to_string()).await?;
        let name = name.name();
        let last = |model: &Model| {
            model.check(&report, &keys, &may_mark)?;
            ensure!(
                name == model.store,
                "the store's name is {name:?}, should be {:?}",
                model.store
            );
            Ok(())
        };
        let explained = explain(&self.model, &events, &last);
        self.model = explained.with_context(|| {
            let there = report.volumes.iter().map(|found| format!("\n    {found:?}"));
            format!("there is:{}\n  ", there.collect::<String>())
        })?;
        self.model.adopt(&report, &keys);
        Ok(())
    }

    async fn reload(&mut self, unload: bool) -> Result<()> {
        self.settle().await?;
        self.tally.loads += 1;
        let place = self.place.take().context("a place")?;
        if unload {
            place.store.unload().await?;
        }
        place.leave().await?;
        let place = Place::load(&self.path, SHAPE).await?;
        let report = place.report().await?;
        self.model.load();
        let checked = self.model.check(&report, &self.keys(), &[]);
        checked.with_context(|| {
            let how = if unload { "unload" } else { "loss of the disk" };
            format!("after this, {how} and load:{}\n ", self.before)
        })?;
        ensure!(
            place.store.name() == self.model.store,
            "after a load, the store's name is {}, should be {}",
            place.store,
            self.model.store
        );
        self.model.adopt(&report, &self.keys());
        self.place = Some(place);
        Ok(())
    }

    fn keys(&self) -> HashMap<String, Key> {
        let shared = self.shared.borrow();
        let lvols = shared.lvols.iter();
        lvols.map(|(key, lvol)| (lvol.uuid().to_string(), *key)).collect()
    }
}

async fn carry_out(
    store: &LvolStore,
    origin: Option<Lvol>,
    step: &Step,
    shared: &RefCell<Shared>,
) -> spdk_rs::Result<Outcome> {
    match (&step.op, &origin) {
        (Op::Read { cell, .. }, Some(lvol)) => return read(lvol, *cell, SHAPE).await.map(Outcome::Holds),
        (Op::StopChecksum { .. }, Some(lvol)) => stop_checksum(lvol).await?,
        (Op::Find { name }, _) => {
            let lvol = store.lvol(name).await?;
            return Ok(Outcome::Found(lvol.uuid().to_string()));
        }
        (Op::RenameStore { name }, _) => drop(store.rename(name).await?),
        (op, _) => {
            let new = match op {
                Op::Rename { name, .. } => name.as_str(),
                _ => op.makes().map_or("", String::as_str),
            };
            if let Some(op) = op.on_volumes(step.key, new) {
                if let Some(lvol) = perform(store, origin, &op, SHAPE).await? {
                    shared.borrow_mut().lvols.insert(step.key, lvol);
                }
            }
        }
    }
    Ok(Outcome::Done)
}
