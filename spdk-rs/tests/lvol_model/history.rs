//! What was done and answered between two looks, and whether there is an order of it that explains
//! all answers and what is there in the end: each operation at one instant while it ran.

use std::collections::HashSet;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};

use anyhow::{Result, bail};
use spdk_rs::ErrorKind;

use super::conflict::explains;
use super::model::Model;
use super::ops::{Op, Step, called};

/// More than these at a time would be too many to order.
pub const MOST: usize = 60;

#[derive(Clone, Debug)]
pub enum Outcome {
    Done,
    /// What a cell holds.
    Holds(u64),
    /// The UUID of the volume that was found.
    Found(String),
    /// The same, as the model calls it.
    Volume(String),
    Refused(ErrorKind, String),
    /// The way to another outcome: clusters are got before there is something in them.
    OnTheWay,
}

#[derive(Clone, Debug)]
pub struct Event {
    pub step: Step,
    pub began: u64,
    pub ended: u64,
    pub outcome: Outcome,
}

impl Event {
    pub fn meets(&self, other: &Self) -> bool {
        self.step != other.step && self.began < other.ended && other.began < self.ended
    }
}

/// For people.
impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            step,
            began,
            ended,
            outcome,
        } = self;
        write!(f, "{began:>6}..{ended:<6} v{} = {}: ", step.key, step.op)?;
        match outcome {
            Outcome::Done => f.write_str("done"),
            Outcome::Holds(id) => write!(f, "it holds {id:#x}"),
            Outcome::Found(uuid) => f.write_str(uuid),
            Outcome::Volume(vol) => write!(f, "it is {vol}"),
            Outcome::Refused(_, why) => f.write_str(why),
            Outcome::OnTheWay => f.write_str("on the way"),
        }
    }
}

/// What an operation was to the model.
#[derive(Clone, Copy)]
enum Effect {
    None,
    Applies,
    /// It got so many clusters, and did nothing with them.
    Touches(usize),
}

/// Whether the answer is right in this state.
fn accept(model: &Model, events: &[Event], event: &Event) -> Result<Effect, String> {
    let op = &event.step.op;
    match (model.answer(op), &event.outcome) {
        (Err(should), Outcome::Refused(is, _)) if should == *is => Ok(Effect::None),
        (_, Outcome::OnTheWay) => Ok(Effect::Touches(model.needs(op) as usize)),
        (_, Outcome::Refused(kind, _)) if explains(model, events, event, *kind) => Ok(Effect::None),
        (Err(_), Outcome::Done) if explains(model, events, event, ErrorKind::Other) => Ok(Effect::None),
        (Ok(()), Outcome::Done) => Ok(Effect::Applies),
        (Ok(()), Outcome::Holds(id)) => {
            let Op::Read { vol, cell } = op else {
                return Err("no answer to this".to_owned());
            };
            let may = model.volume(*vol).map(|volume| &volume.cells[*cell as usize]);
            match may {
                Some(may) if may.is_empty() || may.contains(id) => Ok(Effect::None),
                _ => Err(format!("should hold one of {may:x?}")),
            }
        }
        (Ok(()), Outcome::Volume(key)) => {
            let Op::Find { name } = op else {
                return Err("no answer to this".to_owned());
            };
            match model.named(name) {
                Some(own) if own == key => Ok(Effect::None),
                own => Err(format!("should be {own:?}")),
            }
        }
        (should, _) => Err(match should {
            Ok(()) => "should be done, and nothing that runs is in the way".to_owned(),
            Err(kind) => format!("should be refused as {kind:?}"),
        }),
    }
}

struct Search<'a> {
    events: &'a [Event],
    last: &'a dyn Fn(&Model) -> Result<()>,
    seen: HashSet<(u64, u64)>,
    /// The longest way, and what was in its way.
    furthest: (usize, Vec<String>),
}

impl Search<'_> {
    fn go(&mut self, model: Model, mut done: u64) -> Option<Model> {
        // What changes nothing may come first, wherever it may come.
        let mut ready;
        let mut reasons;
        loop {
            (ready, reasons) = (Vec::new(), Vec::new());
            let mut moved = false;
            for at in self.next(done) {
                let event = &self.events[at];
                match accept(&model, self.events, event) {
                    Ok(Effect::None) => {
                        done |= 1 << at;
                        moved = true;
                    }
                    Ok(Effect::Applies) => ready.push((at, Effect::Applies)),
                    Ok(Effect::Touches(most)) => {
                        ready.extend((0..=most).map(|count| (at, Effect::Touches(count))));
                    }
                    Err(reason) => reasons.push(format!("{event}\n        {reason}")),
                }
            }
            if !moved {
                break;
            }
        }
        let mut hasher = DefaultHasher::new();
        model.hash(&mut hasher);
        if !self.seen.insert((done, hasher.finish())) {
            return None;
        }
        let count = done.count_ones() as usize;
        if count == self.events.len() {
            match (self.last)(&model) {
                Ok(()) => return Some(model),
                Err(reason) => reasons.push(format!("what is there in the end\n        {reason:#}")),
            }
        }
        if self.furthest.1.is_empty() || count > self.furthest.0 {
            self.furthest = (count, reasons);
        }
        ready.into_iter().find_map(|(at, effect)| {
            let mut after = model.clone();
            let step = &self.events[at].step;
            match effect {
                Effect::None => {}
                Effect::Applies => after.apply(&step.op, step.key),
                Effect::Touches(count) => after.touch(&step.op, count),
            }
            self.go(after, done | 1 << at)
        })
    }

    /// Those that may come next: nothing else had ended before they began. By their ends.
    fn next(&self, done: u64) -> Vec<usize> {
        let open = || (0..self.events.len()).filter(|at| done & 1 << at == 0);
        let bound = open().map(|at| self.events[at].ended).min().unwrap_or(0);
        let mut next: Vec<_> = open().filter(|at| self.events[*at].began < bound).collect();
        next.sort_by_key(|at| self.events[*at].ended);
        next
    }
}

/// How often clusters that an operation got may be seen without it: it failed in the midst of it, a
/// snapshot was taken just then (it tries again after that), or somebody read. (Where nothing lies
/// beneath, SPDK leaves in a cluster what was there before.)
fn leaves_clusters(event: &Event, events: &[Event]) -> usize {
    let op = &event.step.op;
    let meets = |other: &&Event| event.meets(other) && other.step.op.vol() == op.vol();
    let others = || events.iter().filter(meets).map(|other| &other.step.op);
    let count = |kind: fn(&Op) -> bool| others().filter(|other| kind(other)).count();
    match (op, &event.outcome) {
        (Op::Write { .. }, outcome) => {
            let snapshots = count(|other| matches!(other, Op::Snapshot { .. }));
            let seen = match outcome {
                Outcome::Refused(ErrorKind::Io, _) => true,
                _ => snapshots == 0 && count(|other| matches!(other, Op::Read { .. })) > 0,
            };
            snapshots + usize::from(seen)
        }
        (Op::Inflate { .. } | Op::Decouple { .. }, Outcome::Refused(kind, _)) => match kind {
            ErrorKind::NoSpace | ErrorKind::Busy => 1,
            ErrorKind::PermissionDenied => count(|other| matches!(other, Op::ReadOnly { .. })).min(1),
            _ => 0,
        },
        _ => 0,
    }
}

/// What the store is after all that, if an order explains it and `last` is content.
pub fn explain(model: &Model, events: &[Event], last: &dyn Fn(&Model) -> Result<()>) -> Result<Model> {
    let on_the_way = events.iter().flat_map(|event| {
        let way = Event {
            outcome: Outcome::OnTheWay,
            ..event.clone()
        };
        std::iter::repeat_n(way, leaves_clusters(event, events))
    });
    let all: Vec<_> = events.iter().cloned().chain(on_the_way).take(64).collect();
    let mut search = Search {
        events: &all,
        last,
        seen: HashSet::new(),
        furthest: (0, Vec::new()),
    };
    if let Some(end) = search.go(model.clone(), 0) {
        return Ok(end);
    }
    let listed = |lines: Vec<String>| lines.join("\n    ");
    let before = model.family.0.iter().map(|(key, volume)| {
        format!(
            "{key} {:?}: {} clusters, own {:?}, {}{}on {:?}",
            model.names[key],
            volume.clusters,
            volume.own,
            if volume.thin { "thin, " } else { "" },
            if volume.read_only { "read-only, " } else { "" },
            volume.parent
        )
    });
    let before = listed(before.collect());
    let said = listed(events.iter().map(Event::to_string).collect());
    let (count, reasons) = search.furthest;
    bail!(
        "no order explains this.\n  There was, with {} clusters free:\n    {before}\n  What ran, and its \
         answers:\n    {said}\n  Explained were at most {count} of them; then:\n    {}",
        model.free(),
        listed(reasons)
    )
}

/// Puts what the model calls the volumes in the place of UUIDs.
pub fn translate(events: &mut [Event], key_of: impl Fn(&str) -> Option<u32>) {
    for event in events {
        if let Outcome::Found(uuid) = &event.outcome {
            let key = key_of(uuid).map_or_else(|| format!("unknown: {uuid}"), called);
            event.outcome = Outcome::Volume(key);
        }
    }
}
