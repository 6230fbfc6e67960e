//! What is done until the power is cut.

use std::rc::Rc;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use spdk_rs::bdev::{Channel, Mode, wait_for_examine};
use spdk_rs::lvol::{LvolStore, Provisioning, StoreOptions};
use spdk_rs::{nvme, spawn};

use super::LANES;
use super::actor::{Chooser, Line, SHAPE, of_lane};
use super::random::Random;
use super::store::place::{perform, report};
use super::store::volumes::{Family, Op};
use crate::guest;
use crate::vm::Link;

/// A volume that belongs to no lane: it is there to be flushed.
const FLUSHED: &str = "flushed";

/// The program: finds what there is, says so, and works for ever.
pub fn work(link: &Link, params: &Value) -> Result<()> {
    let (link, params) = (link.clone(), params.clone());
    guest::with_spdk(async move {
        let number = |name: &str| params[name].as_u64().context("a number");
        nvme::attach_pcie("Nvme0", params["address"].as_str().context("an address")?).await?;
        let life = number("life")?;
        let store = if life == 0 {
            let options = StoreOptions::default().cluster_size(SHAPE.cluster as u32);
            let store = LvolStore::create("Nvme0n1", "lvs", options).await?;
            store
                .create_lvol(FLUSHED, SHAPE.cluster, Provisioning::Thick)
                .await?;
            store
        } else {
            wait_for_examine().await?;
            LvolStore::find("lvs").await?
        };
        let check = store.check().await?;
        ensure!(check.findings.is_empty(), "{check}");
        let found = report(&store, SHAPE).await?;
        let families: Vec<_> = (0..LANES)
            .map(|lane| Family::of(&of_lane(&found, lane)))
            .collect();
        link.tell(serde_json::to_value(Line::Report(found))?)?;
        if params["work"] != true {
            return Ok(());
        }
        let descriptor = store.lvol(FLUSHED).await?.open(Mode::ReadWrite)?;
        let channel = descriptor.channel()?;
        if life == 0 {
            flush_is_sent(&link, &channel).await?;
        }
        let flush = (params["flush"] == true).then(|| Rc::new(channel));
        let seed = number("seed")?;
        let store = Rc::new(store);
        let mut tasks = Vec::new();
        for (lane, family) in families.into_iter().enumerate() {
            let chooser = Chooser {
                lane,
                random: Random(seed.wrapping_add(lane as u64)),
                next: (life << 20 | lane as u64) << 20,
            };
            tasks.push(spawn(lane_of_work(
                link.clone(),
                Rc::clone(&store),
                chooser,
                family,
                flush.clone(),
            )));
        }
        for task in tasks {
            task.await??;
        }
        Ok(())
    })
}

/// Works until the power is cut. With `flush`, an operation has been done when it lasts.
async fn lane_of_work(
    link: Link,
    store: Rc<LvolStore>,
    mut chooser: Chooser,
    mut family: Family,
    flush: Option<Rc<Channel>>,
) -> Result<()> {
    let lane = chooser.lane;
    loop {
        let op = chooser.choose(&family);
        link.ask("begins", serde_json::to_value(Line::Begins(lane, op.clone()))?)?;
        let done = carry_out(&store, &op, flush.as_deref()).await;
        done.with_context(|| format!("{op:?}"))?;
        link.tell(serde_json::to_value(Line::Done(lane))?)?;
        family.apply(&op);
    }
}

async fn carry_out(store: &LvolStore, op: &Op, flush: Option<&Channel>) -> Result<()> {
    let origin = match op {
        Op::Create { .. } => None,
        _ => Some(store.lvol(op.vol()).await?),
    };
    perform(store, origin, op, SHAPE).await?;
    // A flush of a volume is one of the whole disk: any volume will do.
    if let Some(channel) = flush {
        channel.flush().await?;
    }
    Ok(())
}

/// A flush of a volume reaches the controller.
async fn flush_is_sent(link: &Link, channel: &Channel) -> Result<()> {
    let count = || link.ask("flushes", json!({}))?.as_u64().context("a number");
    let before = count()?;
    channel.flush().await?;
    link.same(
        "Flush commands that the controller gets for one of a volume",
        count()? - before,
        1,
    )
}
