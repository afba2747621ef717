//! Models of links.

use super::{ALIVE, Bounds, explore, launch};
use crate::channel::guards::Guards;
use crate::channel::link::{Event, Heard, Link, LinkWords, Links};
use crate::channel::ring::RingWords;
use crate::shm::segment::{Placed, Places, Segment};
use crate::sync::atomic::AtomicU32;
use crate::sync::wait::Pace;
use std::sync::Arc;

/// Makes the links of one slot. `segment`, the machine's and not loom's, serves all executions.
fn links(segment: &Arc<Segment>) -> Links {
    let guards = || {
        let alive = Places::over(vec![AtomicU32::new(ALIVE)]);
        Guards::new(alive, Placed::over(AtomicU32::new(0)), 0)
    };
    let ring = || (Placed::over(RingWords::default()), 0);
    let (words, segment) = (Placed::over(LinkWords::default()), Arc::clone(segment));
    let link = Link { words, segment, down: ring(), up: ring(), room: 64, pace: Pace::ASLEEP };
    Links { heard: Placed::over(Heard::default()), links: Arc::new([link]), guards: [guards(), guards()] }
}

/// The step that is out of order.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    /// The zygote does not tell that a process has ended.
    Untold,
    /// A process does not wait until its rings are ready.
    Early,
}

/// Lets two processes fill the slot, one after the other. The first says something and dies, having taken
/// nothing; the second takes what is posted to it, and answers. The caller hears all of it, in this order,
/// and sleeps where it can.
fn two_processes(bounds: Bounds, fault: Fault) {
    let segment = Arc::new(Segment::new(1).unwrap());
    explore(bounds, move || {
        launch(2, links(&segment), move |links, rank| {
            if rank == 1 {
                links.turn(0);
                let mut process = if fault == Fault::Early { links.hurry(0) } else { links.join(0).unwrap() };
                process.say(&[1]).unwrap();
                if fault == Fault::Untold {
                    return links.turn_untold(0);
                }
                links.turn(0);
                links.turn(0);
                let mut process = links.join(0).unwrap();
                let message = process.take().unwrap().unwrap();
                return process.say(&message).unwrap();
            }
            let mut caller = links.listen();
            let mut heard = vec![];
            for number in 10..15 {
                let event = caller.next(|| false).unwrap().unwrap();
                if event == (Event::Began { slot: 0 }) {
                    // Posts to the process that began, even if it is gone by now.
                    caller.post(0, &[number], || false);
                }
                heard.push(event);
            }
            let said = |message: u8| Event::Said { slot: 0, message: vec![message] };
            let (began, gone) = (Event::Began { slot: 0 }, Event::Gone { slot: 0, begun: 0, overdue: false });
            assert_eq!(heard, [began.clone(), said(1), gone, began, said(13)]);
        });
    });
}

#[test]
fn link_of_two_processes() {
    two_processes([2, 3], Fault::None);
}

#[test]
#[should_panic(expected = "deadlock")]
fn planted_death_that_is_not_told() {
    two_processes([2, 2], Fault::Untold);
}

#[test]
#[should_panic(expected = "deadlock")]
fn planted_rings_used_before_they_are_ready() {
    two_processes([2, 2], Fault::Early);
}
