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

/// States that are looked at before it is given up.
const MOST_STATES: usize = 100_000;

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
    /// Indices of events that may also have got clusters on their way, before there was something in
    /// them; one for each time. Whether they have is known from what is there only.
    ways: &'a [usize],
    last: &'a dyn Fn(&Model) -> Result<()>,
    seen: HashSet<(u64, u64)>,
    /// A way was not taken, since there were to be no more.
    held_back: bool,
    /// The longest way, and what was in its way.
    furthest: (usize, Vec<String>),
}

impl Search<'_> {
    /// `done` has a bit for each event, and then one for each way. So many ways may still be taken, and
    /// of those that changed something none began after `latest`.
    fn go(&mut self, model: Model, mut done: u64, left: usize, latest: u64) -> Option<Model> {
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
                    Ok(effect) => ready.push((at, effect)),
                    Err(reason) => reasons.push(format!("{event}\n        {reason}")),
                }
            }
            if !moved {
                break;
            }
        }
        let mut hasher = DefaultHasher::new();
        (&model, latest).hash(&mut hasher);
        if self.seen.len() >= MOST_STATES || !self.seen.insert((done, hasher.finish())) {
            return None;
        }
        let count = (0..self.events.len()).filter(|at| done & 1 << at != 0).count();
        if count == self.events.len() {
            match (self.last)(&model) {
                Ok(()) => return Some(model),
                Err(reason) => reasons.push(format!("what is there in the end\n        {reason:#}")),
            }
        }
        if self.furthest.1.is_empty() || count > self.furthest.0 {
            self.furthest = (count, reasons);
        }
        for (bit, at) in self.next_ways(done, latest) {
            let most = model.needs(&self.events[at].step.op) as usize;
            if left > 0 {
                ready.extend((1..=most).map(|count| (bit, Effect::Touches(count))));
            }
            self.held_back |= left == 0 && most > 0;
        }
        ready.into_iter().find_map(|(bit, effect)| {
            let mut after = model.clone();
            let way = self.ways.get(bit.wrapping_sub(self.events.len()));
            let at = *way.unwrap_or(&bit);
            let step = &self.events[at].step;
            let left = match effect {
                Effect::Touches(count) => {
                    after.touch(&step.op, count);
                    left - 1
                }
                _ => {
                    after.apply(&step.op, step.key);
                    left
                }
            };
            self.go(after, done | 1 << bit, left, latest.max(self.events[at].began))
        })
    }

    /// When the first of those that are not done had ended.
    fn bound(&self, done: u64) -> u64 {
        let open = (0..self.events.len()).filter(|at| done & 1 << at == 0);
        open.map(|at| self.events[at].ended).min().unwrap_or(u64::MAX)
    }

    /// Those that may come next: nothing else had ended before they began. By their ends.
    fn next(&self, done: u64) -> Vec<usize> {
        let bound = self.bound(done);
        let open = (0..self.events.len()).filter(|at| done & 1 << at == 0);
        let mut next: Vec<_> = open.filter(|at| self.events[*at].began < bound).collect();
        next.sort_by_key(|at| self.events[*at].ended);
        next
    }

    /// Ways that may come next, and the events that they are of: nor has anything come that began
    /// after they had ended. (Of those of one event, the first.)
    fn next_ways(&self, done: u64, latest: u64) -> Vec<(usize, usize)> {
        let bound = self.bound(done);
        let all = self.ways.iter().enumerate();
        let open = all.filter(|(way, _)| done & 1 << (self.events.len() + way) == 0);
        let mut next: Vec<_> = open
            .filter(|(_, at)| self.events[**at].began < bound && latest < self.events[**at].ended)
            .map(|(way, at)| (self.events.len() + way, *at))
            .collect();
        next.dedup_by_key(|(_, at)| *at);
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
            _ => 0,
        },
        _ => 0,
    }
}

/// What the store is after all that, if an order explains it and `last` is content.
pub fn explain(model: &Model, events: &[Event], last: &dyn Fn(&Model) -> Result<()>) -> Result<Model> {
    let times = |at: usize| std::iter::repeat_n(at, leaves_clusters(&events[at], events));
    let ways: Vec<_> = (0..events.len())
        .flat_map(times)
        .take(64 - events.len())
        .collect();
    let mut search = Search {
        events,
        ways: &ways,
        last,
        seen: HashSet::new(),
        held_back: false,
        furthest: (0, Vec::new()),
    };
    // Most often there was none, or few.
    for most in 0..=ways.len() {
        search.seen.clear();
        search.held_back = false;
        if let Some(end) = search.go(model.clone(), 0, most, 0) {
            return Ok(end);
        }
        if !search.held_back || search.seen.len() >= MOST_STATES {
            break;
        }
    }
    let all = if search.seen.len() < MOST_STATES {
        "no order explains this"
    } else {
        "there are too many orders, and none of those that were looked at explains this"
    };
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
        "{all}.\n  There was, with {} clusters free:\n    {before}\n  What ran, and its \
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
