//! What is known of a lane of operations, from what a process says until it ends.

use anyhow::{Context, Result, bail};

use super::actor::{Line, of_lane};
use super::store::place::Report;
use super::store::volumes::{Family, Op};

/// What a lane's volumes may be now.
#[derive(Default)]
pub struct Lane {
    pub family: Family,
    /// Nobody has heard whether it was done.
    pub unheard: Option<Op>,
}

impl Lane {
    /// It began with an operation, or has done it.
    pub fn hear(&mut self, line: Line) -> Result<()> {
        match line {
            Line::Begins(_, op) => self.unheard = Some(op),
            Line::Done(_) => {
                let op = self.unheard.take().context("nothing was begun")?;
                self.family.apply(&op);
            }
            Line::Failed(_, why) => bail!("{:?} failed: {why}", self.unheard),
            line => bail!("in the midst of it, {line:?}"),
        }
        Ok(())
    }

    /// Takes what was found for what is, if it may be.
    pub fn find(&mut self, report: &Report, lane: usize) -> Result<()> {
        let found = of_lane(report, lane);
        let may_be = match self.unheard.take() {
            None => vec![self.family.clone()],
            Some(op) => {
                let may_be = self.family.unheard(&op);
                let wrong: Vec<_> = may_be.iter().map(|family| family.check(&found)).collect();
                if wrong.iter().all(Result::is_err) {
                    bail!("after {op:?}, which was not answered: {wrong:?}");
                }
                may_be
            }
        };
        if may_be.len() == 1 {
            may_be[0].check(&found)?;
        }
        self.family = Family::of(&found);
        Ok(())
    }
}
