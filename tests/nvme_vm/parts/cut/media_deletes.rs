//! Deletes on a disk of which one place after the other, among those that they change, can not be written; and one that
//! can not be read. Each has a disk of its own, which is what it was when the delete began in a machine before.

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use spdk_rs::bdev::wait_for_examine;
use spdk_rs::lvol::LvolStore;
use spdk_rs::nvme;

use super::actor::SHAPE;
use super::media::{Bad, PART, damage, heal};
use super::record::{Done, Recording, record};
use super::store::place::{Report, report};
use super::store::volumes::{Family, Op};
use crate::guest;
use crate::run::Run;
use crate::vm::{Drive, Link, Machine};

/// More controllers than this have no room beside each other.
const AT_ONCE: usize = 12;

/// A delete that meets a bad place.
struct Case<'a> {
    done: &'a Done,
    /// Which of its changes can not be made; none: nothing can be read.
    change: Option<usize>,
    bad: Bad,
    drive: Drive,
}

/// What a guest says of a delete.
#[derive(Deserialize, Serialize)]
enum Said {
    /// What is there before.
    Before(Report),
    /// How it was answered, and what is there when the disk has been healed.
    Answered(Option<String>, Report),
    /// What a load finds, if it was refused.
    Refused(Report),
    /// What is there in the end: healed, deleted once more if it was refused, and loaded anew.
    Finally(Report),
}

pub fn host(run: &mut Run) -> Result<()> {
    let recording = record(run, PART.name)?;
    let wanted = if run.full {
        &["0-thick", "0-other", "0-old", "0-clone", "0-new", "0-thin"][..]
    } else {
        &["0-thick", "0-new"]
    };
    let mut cases = Vec::new();
    for done in &recording.done {
        if matches!(&done.op, Op::Destroy { vol } if wanted.contains(&vol.as_str())) {
            cases.extend(of_delete(run, &recording, done)?);
        }
    }
    for (number, cases) in cases.chunks(AT_ONCE).enumerate() {
        boot(run, number, cases)?;
    }
    Ok(())
}

fn of_delete<'a>(run: &Run, recording: &Recording, done: &'a Done) -> Result<Vec<Case<'a>>> {
    let Recording { log, changes, .. } = recording;
    let case = |change: Option<usize>, bad| {
        let node = match change {
            Some(change) => format!("disk{change}"),
            None => "diskr".to_owned(),
        };
        let node = format!("{node}{}", &done.op.vol()[2..]);
        let drive = Drive::create(&node, run.file(&format!("{node}.img")), SHAPE.disk)?;
        log.replay(&changes[..done.begun], &drive.image)?;
        anyhow::Ok(Case {
            done,
            change,
            bad,
            drive,
        })
    };
    let mut cases = vec![case(None, Bad::everywhere("read"))?];
    for (number, change) in (done.begun..).zip(&changes[done.begun..done.answered]) {
        // What is only given back to the disk can not fail so.
        if change.has_data() {
            cases.push(case(Some(number), Bad::at("write", change.at()))?);
        }
    }
    Ok(cases)
}

fn boot(run: &mut Run, number: usize, cases: &[Case]) -> Result<()> {
    let mut machine = Machine::for_user_space();
    for (number, case) in cases.iter().enumerate() {
        machine = machine.controller(&format!("nvme{number}"), &case.drive);
    }
    let vols: Vec<&String> = cases.iter().map(|case| case.done.op.vol()).collect();
    let mut vm = run.boot(
        &machine,
        PART.name,
        json!({"program": "media-deletes", "vols": vols}),
    )?;
    run.note(format_args!("{} disks in machine {}", cases.len(), number + 1));
    let mut outcomes: Vec<Outcome> = cases.iter().map(|_| Outcome::default()).collect();
    run.serve(&mut vm, |_, vm, what, params| {
        let at = params["case"].as_u64().context("a case")? as usize;
        let case = cases.get(at).context("a case")?;
        match what {
            "bad" => damage(vm, &case.drive.node, std::slice::from_ref(&case.bad)),
            "healed" => heal(vm, &case.drive.node),
            "said" => {
                outcomes[at].hear(case, serde_json::from_value(params["said"].clone())?)?;
                Ok(Value::Null)
            }
            what => bail!("nobody here knows {what}"),
        }
    })?;
    vm.quit()?;
    for (case, outcome) in cases.iter().zip(&outcomes) {
        outcome.tell(run, case);
    }
    Ok(())
}

/// What came of a delete.
#[derive(Default)]
struct Outcome {
    said: usize,
    refused: Option<String>,
    wrong: Vec<String>,
}

impl Outcome {
    fn hear(&mut self, case: &Case, said: Said) -> Result<()> {
        self.said += 1;
        let (before, after) = (&case.done.before, &case.done.after());
        let mut is = |when: &str, report: &Report, should: &Family| {
            if let Err(error) = should.check(&report.volumes) {
                self.wrong.push(format!("{when}: {error:#}"));
            }
        };
        match &said {
            Said::Before(report) => is("before", report, before),
            Said::Answered(None, report) => is("answered as done", report, after),
            Said::Answered(Some(_), report) => is("refused", report, before),
            Said::Refused(report) => is("refused, and loaded anew", report, before),
            Said::Finally(report) => {
                is("in the end", report, after);
                if let Err(error) = report.check_space() {
                    self.wrong.push(format!("in the end: {error:#}"));
                }
            }
        }
        if let Said::Answered(Some(why), _) = said {
            self.refused = Some(why);
        }
        Ok(())
    }

    fn tell(&self, run: &mut Run, case: &Case) {
        for wrong in &self.wrong {
            run.note(wrong);
        }
        let place = match case.change {
            Some(change) => format!(
                "change {} of {} fails",
                change - case.done.begun + 1,
                case.done.answered - case.done.begun
            ),
            None => "nothing can be read".to_owned(),
        };
        let answer = self.refused.as_deref().unwrap_or("done");
        // The first change decides, or prepares what does: without it nothing may be.
        let must_fail = case.change == Some(case.done.begun);
        let vol = format!("lvs/{}", case.done.op.vol());
        let says_why = |why: &String| why.contains(&vol) && why.contains("Input/output error");
        let fine = self.refused.as_ref().map_or(!must_fail, says_why);
        let reports = 3 + usize::from(self.refused.is_some());
        run.check(
            self.said == reports && self.wrong.is_empty() && fine,
            format_args!("delete of {}, {place}: {answer}", case.done.op.vol()),
        );
    }
}

/// The half for the guest: one disk after the other, in one process.
pub fn in_guest(link: &Link, params: &Value) -> Result<()> {
    let (link, params) = (link.clone(), params.clone());
    guest::with_spdk(async move {
        let texts = |name: &str| -> Result<Vec<String>> { Ok(serde_json::from_value(params[name].clone())?) };
        let (addresses, vols) = (texts("addresses")?, texts("vols")?);
        ensure!(
            addresses.len() == vols.len(),
            "{} controllers, {} disks",
            addresses.len(),
            vols.len()
        );
        for (case, (address, vol)) in addresses.iter().zip(&vols).enumerate() {
            one(&link, case, address, vol)
                .await
                .with_context(|| format!("disk {case}, {vol}"))?;
        }
        Ok(())
    })
}

async fn one(link: &Link, case: usize, address: &str, vol: &str) -> Result<()> {
    let ask = |what: &str| link.ask(what, json!({ "case": case }));
    let say = |said: Said| link.ask("said", json!({"case": case, "said": said}));
    let controller = format!("Nvme{case}");
    let mut store = load(&controller, address).await?;
    say(Said::Before(report(&store, SHAPE).await?))?;
    ask("bad")?;
    let answer = store
        .lvol(vol)
        .await?
        .destroy()
        .await
        .err()
        .map(|error| error.to_string());
    let refused = answer.is_some();
    // What can not be read now can not be looked at.
    ask("healed")?;
    say(Said::Answered(answer, report(&store, SHAPE).await?))?;
    if refused {
        nvme::detach(&controller).await?;
        store = load(&controller, address).await?;
        say(Said::Refused(report(&store, SHAPE).await?))?;
        store.lvol(vol).await?.destroy().await.context("once more")?;
    }
    nvme::detach(&controller).await?;
    let store = load(&controller, address).await?;
    let check = store.check().await?;
    ensure!(check.findings.is_empty(), "{check}");
    say(Said::Finally(report(&store, SHAPE).await?))?;
    Ok(nvme::detach(&controller).await?)
}

async fn load(controller: &str, address: &str) -> Result<LvolStore> {
    nvme::attach_pcie(controller, address).await?;
    wait_for_examine().await?;
    Ok(LvolStore::find("lvs").await?)
}
