//! The promises of a wire that protocols rely on, and the behaviour of the loop-back where MPI promises
//! nothing.

use super::Watchdog;
use crate::comm::hybrid::loopback::Loopback;
use crate::comm::hybrid::net::{Net, Step, Tag, always, end_job, step};
use crate::comm::hybrid::wire::{LARGEST, Wire};
use crate::error::Error;
use std::thread;

/// Returns two processes whose sends of more than `eager` bytes complete when they are received.
fn two(eager: usize) -> [&'static Loopback; 2] {
    Loopback::job(2, eager).try_into().unwrap_or_else(|_| unreachable!("two"))
}

#[test]
fn messages_of_a_tag_arrive_in_order() {
    let [a, b] = two(100);
    for byte in 0..3u8 {
        assert!(a.send(&[byte], 1, 5).unwrap().test().unwrap());
    }
    let mut other = [0];
    a.send(&[9], 1, 6).unwrap().test().unwrap();
    assert!(b.recv(&mut other, 0, 6).unwrap().test().unwrap());
    let (mut first, mut second) = ([0], [0]);
    {
        // These complete in another order than they begin.
        let (mut earlier, mut later) =
            (b.recv(&mut first, 0, 5).unwrap(), b.recv(&mut second, 0, 5).unwrap());
        assert!(later.test().unwrap() && earlier.test().unwrap());
    }
    assert_eq!((first, second, other, a.waiting()), ([0], [1], [9], 1));
    assert_eq!((b.probe(5).unwrap(), b.probe(6).unwrap(), a.probe(5).unwrap()), (Some(0), None, None));
}

#[test]
fn long_sends_complete_when_received() {
    let [a, b] = two(4);
    let mut sent = a.send(&[1; 5], 1, 0).unwrap();
    assert!(!sent.test().unwrap());
    let mut room = [0; 5];
    assert!(b.recv(&mut room, 0, 0).unwrap().test().unwrap());
    assert!(sent.test().unwrap());
    drop(sent);
    assert_eq!(room, [1; 5]);
    assert!(a.probe(0).is_ok(), "a flight that has completed silences nothing");
}

#[test]
fn a_flight_dropped_early_silences_its_process() {
    let [a, b] = two(0);
    drop(a.send(&[1; 5], 1, 0).unwrap());
    assert!(a.probe(0).is_err() && a.send(&[], 1, 0).is_err() && b.probe(0).is_ok());
    let mut room = [0; 5];
    drop(b.recv(&mut room, 0, 3).unwrap());
    assert!(b.probe(0).is_err());
}

#[test]
fn an_abort_ends_the_calls_of_all_processes() {
    let [a, b] = two(100);
    let mut room = [0; 5];
    let mut flight = b.recv(&mut room, 0, 0).unwrap();
    end_job(a, &Error::option("test", "enough"));
    assert!(flight.test().is_err() && a.probe(0).is_err() && b.send(&[], 0, 0).is_err());
    let text = b.aborted().unwrap();
    assert!(text.starts_with("phalanx: process 0 on ") && text.contains("enough"), "{text}");
}

#[test]
fn messages_of_other_lengths_are_errors() {
    let [a, b] = two(100);
    a.send(&[1; 5], 1, 0).unwrap().test().unwrap();
    let mut room = [0; 4];
    assert!(b.recv(&mut room, 0, 0).unwrap().test().is_err());
}

#[test]
fn one_thread_per_process() {
    let [a, _] = two(100);
    assert!(a.probe(0).is_ok());
    assert!(thread::spawn(|| a.probe(0).is_err()).join().unwrap());
}

/// Runs `body` on every process of a job.
fn processes<R: Send>(size: usize, body: impl Fn(Net) -> R + Sync) -> Vec<R> {
    let _watchdog = Watchdog::new(format!("{size} processes"));
    let wires = Loopback::job(size, 0);
    let body = &body;
    thread::scope(|scope| {
        let threads: Vec<_> = wires.iter().map(|&wire| scope.spawn(move || body(Net::job(wire)))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

#[test]
fn every_process_is_told_all_parts() {
    for size in 1..8 {
        processes(size, |net| {
            let told = net.tell((net.me as u64).to_ne_bytes(), &always).unwrap();
            assert!(told.into_iter().map(u64::from_ne_bytes).eq(0..size as u64));
            let sizes: Vec<usize> = (0..size).map(|node| 3 * (node % 3)).collect();
            let all: Vec<u8> = (0..size).flat_map(|node| vec![node as u8; sizes[node]]).collect();
            let start: usize = sizes[..net.me].iter().sum();
            let mut mine = vec![0xEE; all.len()];
            mine[start..start + sizes[net.me]].fill(net.me as u8);
            net.all_gather(&mut mine, &sizes, &always).unwrap();
            assert_eq!(mine, all);
        });
    }
}

#[test]
fn different_steps_are_found_by_all() {
    for (number, other) in [(7, Step::Sweep), (8, Step::Launch), (7, Step::Manager), (7, Step::Queue)] {
        let found = processes(3, |net| match net.me {
            2 => step(&net, other, number),
            _ => step(&net, Step::Launch, 7),
        });
        let text = "all processes must run the same program";
        assert!(found.into_iter().all(|found| found.unwrap_err().to_string().contains(text)));
    }
    assert_eq!(processes(3, |net| step(&net, Step::Launch, 7).unwrap()), [1; 3]);
}

#[test]
fn a_message_that_has_arrived_is_announced() {
    for (question, answer) in [(Tag::Ask, Tag::Grant), (Tag::Event, Tag::Post)] {
        processes(3, |net| ask(&net, question, answer));
    }
}

fn ask(net: &Net, question: Tag, answer: Tag) {
    let mut word = [0];
    if net.me > 0 {
        net.send_all(&[net.me as u8], 0, question, &always).unwrap();
        net.recv_all(&mut word, 0, answer, &always).unwrap();
        return net.send_all(&word, 0, Tag::Result, &always).unwrap();
    }
    for _ in 0..2 {
        let from = loop {
            if let Some(from) = net.arrived(question).unwrap() {
                break from;
            }
        };
        net.recv_all(&mut word, from, question, &always).unwrap();
        assert_eq!(word, [from as u8]);
        net.send_all(&word, from, answer, &always).unwrap();
        net.recv_all(&mut word, from, Tag::Result, &always).unwrap();
    }
}

#[test]
fn contexts_end_where_tags_do() {
    let [a, _] = two(0);
    assert!(Net::new(a, vec![0], 0, 1 << 20, false).is_err());
    assert!(Net::new(a, vec![0], 0, (1 << 20) - 1, false).is_ok());
    assert!(LARGEST <= i32::MAX as usize);
}
