//! What an operation that runs may do to the answers of others: the only excuses that there are.

use spdk_rs::ErrorKind;

use super::history::{Event, Outcome};
use super::model::{Model, Wrong};
use super::ops::{Key, Op, called};

/// Whether what ran meanwhile explains that an operation was refused so. (`Other`, of stopping a
/// checksum: that it was not.) `events` are all since the last look.
pub fn explains(model: &Model, events: &[Event], event: &Event, kind: ErrorKind) -> bool {
    let op = &event.step.op;
    let others: Vec<_> = events.iter().filter(|other| event.meets(other)).collect();
    let others = others.as_slice();
    let any = |reason: &dyn Fn(&Op) -> bool| others.iter().any(|other| reason(&other.step.op));
    let Some(vol) = op.vol() else {
        return match kind {
            ErrorKind::AlreadyExists => any(&|other| is_named(model, other, op)),
            ErrorKind::NoSpace => is_full(model, others, op),
            // Of the store there is one at a time.
            ErrorKind::Busy => {
                let renames = |op: &Op| matches!(op, Op::RenameStore { .. });
                renames(op) && any(&renames)
            }
            _ => false,
        };
    };
    let destroyed = || any(&|other| *other == Op::Destroy { vol });
    match (op, kind) {
        (Op::Write { .. } | Op::Read { .. }, _) => {
            let changed = any(&|other| {
                matches!(other, Op::Resize { .. } | Op::ReadOnly { .. }) && other.vol() == Some(vol)
            });
            match kind {
                ErrorKind::Io => destroyed() || changed || is_full(model, others, op),
                ErrorKind::NotFound | ErrorKind::Removed | ErrorKind::Canceled => destroyed(),
                _ => false,
            }
        }
        (Op::StopChecksum { .. }, _) => {
            kind == ErrorKind::Other && any(&|other| *other == Op::Checksum { vol })
        }
        (Op::Checksum { .. }, ErrorKind::Canceled) => others
            .iter()
            .any(|other| other.step.op == Op::StopChecksum { vol } && matches!(other.outcome, Outcome::Done)),
        // SPDK looks at what is new, and has it open for that.
        (Op::Resize { .. }, ErrorKind::Busy) if events.iter().any(|event| event.step.key == vol) => true,
        (_, ErrorKind::Busy) => any(&|other| is_busy(model, other, op, vol)),
        (_, ErrorKind::AlreadyExists) => any(&|other| is_named(model, other, op)),
        (_, ErrorKind::NoSpace) => is_full(model, others, op),
        (_, ErrorKind::NotFound) => destroyed(),
        // For a moment it has more clones than one.
        (Op::Destroy { .. }, ErrorKind::PermissionDenied) => any(&|other| match other {
            Op::Clone { vol: on, .. } => *on == vol,
            Op::Snapshot { vol: on, .. } | Op::Destroy { vol: on } => is_clone(model, *on, vol),
            _ => false,
        }),
        _ => false,
    }
}

fn is_clone(model: &Model, vol: Key, of: Key) -> bool {
    let parent = model.volume(vol).and_then(|volume| volume.parent.clone());
    parent == Some(called(of))
}

/// Whether `other` takes the lock of a volume.
fn locks(model: &Model, other: &Op, vol: Key) -> bool {
    match other {
        Op::Checksum { .. } if model.wrong == Some(Wrong::Holder) => false,
        Op::Snapshot { .. }
        | Op::Clone { .. }
        | Op::Inflate { .. }
        | Op::Decouple { .. }
        | Op::Resize { .. }
        | Op::ReadOnly { .. }
        | Op::Checksum { .. } => other.vol() == Some(vol),
        Op::Destroy { vol: on } => *on == vol || is_clone(model, vol, *on),
        _ => false,
    }
}

fn is_busy(model: &Model, other: &Op, op: &Op, vol: Key) -> bool {
    match op {
        Op::Rename { .. } => *other == Op::Destroy { vol },
        Op::Destroy { .. } => {
            // A rename holds the volume, an operation on a clone its lock.
            let renames = matches!(other, Op::Rename { .. });
            (renames && other.vol() == Some(vol))
                || locks(model, other, vol)
                || other
                    .vol()
                    .is_some_and(|on| is_clone(model, on, vol) && locks(model, other, on))
        }
        // It is to lie on the snapshot beneath its parent.
        Op::Decouple { .. } if matches!(other, Op::Destroy { .. }) => {
            let parent = model.volume(vol).and_then(|volume| volume.parent.as_ref());
            let beneath = parent.and_then(|parent| model.family.0[parent].parent.clone());
            beneath.is_some() && beneath == other.vol().map(called) || locks(model, other, vol)
        }
        // What is open can not shrink.
        Op::Resize { .. } if matches!(other, Op::Read { .. } | Op::Write { .. }) => other.vol() == Some(vol),
        _ => locks(model, other, vol),
    }
}

/// Whether `other` has to do with the name that `op` wants.
fn is_named(model: &Model, other: &Op, op: &Op) -> bool {
    match (op, other) {
        (Op::RenameStore { name }, Op::RenameStore { name: other }) => name == other,
        (Op::RenameStore { .. }, _) => false,
        (Op::Rename { name, .. }, _) => wants(model, other, name),
        _ => op.makes().is_some_and(|name| wants(model, other, name)),
    }
}

fn wants(model: &Model, other: &Op, name: &String) -> bool {
    let has = |vol: &Key| model.names.get(&called(*vol)) == Some(name);
    match other {
        Op::Rename { vol, name: new } => new == name || has(vol),
        Op::Destroy { vol } => has(vol),
        _ => other.makes() == Some(name),
    }
}

/// Whether there would be too little space if the others had taken what they may take.
fn is_full(model: &Model, others: &[&Event], op: &Op) -> bool {
    let taken: u64 = others.iter().map(|other| model.needs(&other.step.op)).sum();
    let needs = model.needs(op);
    taken > 0 && needs > 0 && needs + taken > model.free()
}
