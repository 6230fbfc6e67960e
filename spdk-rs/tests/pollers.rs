//! How pollers end.

mod common;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use common::bdev::until;
use common::{isolated, run};
use spdk_rs::reactor::{Poller, sleep};

#[test]
fn a_poller_pauses_and_drops_itself() {
    isolated("a_poller_pauses_and_drops_itself", || {
        run(async {
            for period in [0, 1, 2] {
                let place = Rc::new(RefCell::new(None::<Poller>));
                let calls = Rc::new(Cell::new(0));
                let poller = Poller::register("odd", Duration::from_millis(period), {
                    let (place, calls) = (Rc::clone(&place), Rc::clone(&calls));
                    move || {
                        calls.set(calls.get() + 1);
                        let poller = place.take().expect("called once");
                        poller.pause().expect("its own thread");
                        drop(poller);
                        true
                    }
                })?;
                place.replace(Some(poller));
                until("it was called", || calls.get() == 1).await?;
                // SPDK's lists are as they should be: others run, in their turn.
                let order = Rc::new(RefCell::new(Vec::new()));
                let sleepers: Vec<_> = [9, 3, 6]
                    .into_iter()
                    .map(|millis| {
                        let order = Rc::clone(&order);
                        spdk_rs::spawn(async move {
                            sleep(Duration::from_millis(millis)).await;
                            order.borrow_mut().push(millis);
                        })
                    })
                    .collect();
                for sleeper in sleepers {
                    sleeper.await?;
                }
                assert_eq!(*order.borrow(), [3, 6, 9]);
                assert_eq!(calls.get(), 1);
            }
            // One that is paused when it is dropped.
            let poller = Poller::register("paused", Duration::from_millis(1), || false)?;
            poller.pause()?;
            sleep(Duration::from_millis(3)).await;
            drop(poller);
            sleep(Duration::from_millis(3)).await;
            anyhow::Ok(())
        })
        .expect("the scenario");
    });
}
