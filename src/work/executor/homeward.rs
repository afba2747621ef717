//! Rows that come home while the nodes work: what a node has finished lies in root's ledger soon afterwards, so that little
//! is lost if the job ends early.
//!
//! ```text
//! node                                                    root
//! [1] looks, now and then, which of its tasks are finished
//! [2] Rows, to root; then one message:
//!     texts | for each task: number, record, row    ───→  puts row and record into its ledger, at the same place
//! ```
//!
//! Only tasks with an outcome of their own travel. A task that is not home when the work ends has not been done.

use crate::channel::ledger::{Ledger, State, Texts};
use crate::comm::hybrid::net::{Net, Tag, always};
use crate::error::{Error, Result};
use crate::shm::object;
use std::collections::BTreeMap;

/// The most bytes of rows that are sent in one message.
const MOST: usize = 4 << 20;

/// The tasks of a node that are not home yet.
#[derive(Default)]
pub(super) struct Outbox {
    away: Vec<u32>,
}

impl Outbox {
    /// Notes that the node is to do these tasks.
    pub(super) fn expect(&mut self, tasks: impl Iterator<Item = usize>) {
        self.away.extend(tasks.map(|task| task as u32));
    }

    /// \[1] Takes finished tasks, as many as travel together.
    pub(super) fn take(&mut self, ledger: &Ledger) -> Vec<usize> {
        let most = (MOST / (72 + ledger.row_len())).max(1);
        let mut taken = Vec::new();
        self.away.retain(|&task| {
            let task = task as usize;
            let is_home = taken.len() < most && ledger.state(task).is_settled();
            taken.extend(is_home.then_some(task));
            !is_home
        });
        taken
    }
}

/// \[2] Sends these tasks home.
pub(super) fn send(net: &Net, ledger: &Ledger, tasks: &[usize]) -> Result<()> {
    let mut texts = BTreeMap::new();
    for &task in tasks {
        if let State::Failed(_) = ledger.state(task) {
            let place = ledger.record(task).facts().text;
            texts.entry(place).or_insert_with(|| ledger.text(task));
        }
    }
    // Place 0 is that of texts for which there was no room.
    texts.remove(&0);
    let head = object::write(&texts)?;
    let mut bytes = Vec::with_capacity(tasks.len() * (72 + ledger.row_len()));
    for &task in tasks {
        bytes.extend_from_slice(bytemuck::bytes_of(&(task as u64)));
        bytes.extend_from_slice(bytemuck::cast_slice(&ledger.words_of(task..task + 1)));
        bytes.extend_from_slice(ledger.row(task).unwrap_or_default());
    }
    let lens = [head.len() as u64, bytes.len() as u64];
    net.send_all(bytemuck::bytes_of(&lens), 0, Tag::Result, &always)?;
    net.send_all(&head, 0, Tag::Result, &always)?;
    net.send_all(&bytes, 0, Tag::Result, &always)
}

/// \[2] Receives what a node sends home, in root. `number` maps the number of a worker there to its number here.
pub(super) fn receive(
    net: &Net,
    node: usize,
    ledger: &Ledger,
    numbers: (usize, usize),
    texts: &mut Texts,
) -> Result<()> {
    let corrupt = Error::Corrupt { what: "the rows of a node" };
    let mut lens = [0u64; 2];
    net.recv_all(bytemuck::bytes_of_mut(&mut lens), node, Tag::Result, &always)?;
    let (mut head, mut bytes) = (vec![0; lens[0] as usize], vec![0; lens[1] as usize]);
    net.recv_all(&mut head, node, Tag::Result, &always)?;
    net.recv_all(&mut bytes, node, Tag::Result, &always)?;
    let told: BTreeMap<u64, String> = object::read(&head)?;
    let mut here = |text: &str| texts.place(ledger.log(), text, &|| ledger.tasks());
    let places: BTreeMap<u64, u64> = told.iter().map(|(&there, text)| (there, here(text))).collect();
    for one in bytes.chunks(72 + ledger.row_len()) {
        let (Some((words, row)), true) = (one.split_at_checked(72), one.len() == 72 + ledger.row_len())
        else {
            return Err(corrupt);
        };
        let words: [u64; 9] = bytemuck::pod_read_unaligned(words);
        let task = words[0] as usize;
        let record = [words[1], words[2], words[3], words[4], words[5], words[6], words[7], words[8]];
        if task >= ledger.tasks() || !ledger.bring(task, row) {
            return Err(corrupt);
        }
        ledger.adopt(task, record, numbers, &places)?;
    }
    Ok(())
}

/// Tells all nodes the agenda, from root; returns it elsewhere.
pub(super) fn agenda(net: &Net, own: &[u32]) -> Result<Option<Vec<u32>>> {
    if net.me != 0 {
        let mut len = [0; 8];
        net.recv_all(&mut len, 0, Tag::Grant, &always)?;
        let mut list = vec![0u32; u64::from_ne_bytes(len) as usize];
        net.recv_all(bytemuck::cast_slice_mut(&mut list), 0, Tag::Grant, &always)?;
        return Ok(Some(list));
    }
    for node in 1..net.size() {
        net.send_all(&(own.len() as u64).to_ne_bytes(), node, Tag::Grant, &always)?;
        net.send_all(bytemuck::cast_slice(own), node, Tag::Grant, &always)?;
    }
    Ok(None)
}
