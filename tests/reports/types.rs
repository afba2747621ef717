//! Bytes written as one type are never handed out as another, whatever the types are called.

use crate::support::{Case, launch};
use bytemuck::{CheckedBitPattern, NoUninit, Pod, Zeroable};
use ndarray::{Array1, Ix1};
use phalanx::{Comm, Element, Lease, Op, Result, SharedArray};

pub const CASES: &[Case] = cases! {
    types_of_one_name_are_not_one_type
    types_of_one_name_are_told_apart_in_every_call
    types_of_one_name_are_told_apart_in_messages_to_oneself
    types_of_one_name_are_told_apart_in_results
    valid_elements_of_checked_types_pass
};

/// Two types of one name: local ones of one function are called alike.
fn twins() -> (impl Element + std::fmt::Debug, impl Element + std::fmt::Debug) {
    let byte = {
        #[derive(Clone, Copy, Debug, Pod, Zeroable)]
        #[repr(transparent)]
        struct P(u8);
        P(7)
    };
    let flag = {
        #[derive(Clone, Copy, Debug, NoUninit, CheckedBitPattern, Zeroable)]
        #[repr(u8)]
        #[expect(dead_code, reason = "a pattern that is never made here")]
        enum P {
            A = 0,
            B = 1,
        }
        P::A
    };
    (byte, flag)
}

fn name_of<T>(_: &T) -> &'static str {
    std::any::type_name::<T>()
}

fn types_of_one_name_are_not_one_type() {
    let (byte, flag) = twins();
    assert_eq!(name_of(&byte), name_of(&flag));
    let told = launch(2, |comm| {
        if comm.is_root() {
            let mut lease = comm.alloc(4)?;
            lease.view_mut().fill(byte);
            comm.send_lease(lease, 1)?;
            return Ok(String::new());
        }
        let received = recv_lease_like(comm, flag);
        Ok(received.map_or_else(|error| error.to_string(), |lease| format!("took it: {:?}", lease.view())))
    });
    let told = told.unwrap().unwrap();
    assert!(told[1].contains("another kind"), "{}", told[1]);
}

fn recv_lease_like<T: Element>(comm: &mut Comm<'_>, _: T) -> Result<Lease<T, Ix1>> {
    comm.recv_lease::<T, _>(4, 0)
}

/// Every call in which both ranks name a type: rank 0 that of `a`, rank 1 that of `b`.
fn calls<T: Element>(comm: &mut Comm<'_>, value: T, number: usize) -> Result<()> {
    let one = Array1::from_elem(4, value);
    let mut room = Array1::from_elem(8, value);
    let counts = [4, 4];
    match number {
        0 => comm.broadcast(&mut Array1::from_elem(4, value), 0),
        1 => comm.all_gather(&one, &mut room),
        2 => comm.gather_varcount(&one, &mut comm.is_root().then_some(&mut room), &counts[..], 0),
        3 => comm.all_to_all(&Array1::from_elem(8, value), &mut room),
        4 => comm.parts::<T, _>(4).map(drop),
        5 => comm.gather_to_lease(&one, &counts[..], 0).map(drop),
        6 => comm.scatter(
            &comm.is_root().then_some(&Array1::from_elem(8, value)),
            &mut Array1::from_elem(4, value),
            0,
        ),
        7 => comm.all_reduce(&one, &mut Array1::from_elem(4, value), &Op::user(|a: T, _| a)),
        8 if comm.is_root() => comm.send(&one, 1),
        8 => comm.recv(&mut Array1::from_elem(4, value), 0),
        // Pieces through the ring's store.
        9 if comm.is_root() => comm.send(&Array1::from_elem(4000, value), 1),
        _ => comm.recv(&mut Array1::from_elem(4000, value), 0),
    }
}

fn types_of_one_name_are_told_apart_in_every_call() {
    let (byte, flag) = twins();
    for number in 0..10 {
        let told = launch(2, |comm| match comm.is_root() {
            true => calls(comm, byte, number),
            false => calls(comm, flag, number),
        });
        let text = told.unwrap_err().to_string();
        assert!(text.contains("user type #"), "{number}: {text}");
    }
}

fn types_of_one_name_are_told_apart_in_messages_to_oneself() {
    let (byte, flag) = twins();
    let mut comm = Comm::solo().unwrap();
    comm.send(&Array1::from_elem(4, byte), 0).unwrap();
    assert!(comm.recv(&mut Array1::from_elem(4, flag), 0).is_err());
    comm.recv(&mut Array1::from_elem(4, byte), 0).unwrap();
    let lease = lease_like(&mut comm, byte);
    comm.send_lease(lease, 0).unwrap();
    assert!(recv_lease_like(&mut comm, flag).is_err());
    recv_lease_like(&mut comm, byte).unwrap();
}

fn lease_like<T: Element>(comm: &mut Comm<'_>, value: T) -> Lease<T, Ix1> {
    let mut lease = comm.alloc::<T, _>(4).unwrap();
    lease.view_mut().fill(value);
    lease
}

/// A result whose reader takes another type than its writer gave.
struct Forged<T: Element, U: Element>(Option<Lease<T, Ix1>>, Option<Lease<U, Ix1>>);

impl<T: Element, U: Element> serde::Serialize for Forged<T, U> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de, T: Element, U: Element> serde::Deserialize<'de> for Forged<T, U> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        Option::<Lease<U, Ix1>>::deserialize(deserializer).map(|lease| Forged(None, lease))
    }
}

fn forge<T: Element, U: Element>(value: T, _: U) -> Result<Option<Vec<Forged<T, U>>>> {
    launch(1, |comm| Ok(Forged(Some(lease_like(comm, value)), None)))
}

fn types_of_one_name_are_told_apart_in_results() {
    let (byte, flag) = twins();
    let error = forge(byte, flag).err().unwrap().to_string();
    assert!(error.contains("another element type"), "{error}");
    assert!(forge(byte, byte).unwrap().unwrap()[0].1.is_some());
}

fn valid_elements_of_checked_types_pass() {
    let mut array = SharedArray::<bool, Ix1>::zeros(6).unwrap();
    let results = launch(2, |comm| {
        let mut part = comm.open(&array)?;
        part.view_mut().fill(true);
        assert!(part.publish(comm)?.view().iter().all(|&flag| flag));
        let mut part = comm.parts::<bool, _>(3)?;
        part.view_mut()[1] = true;
        let whole = part.publish(comm)?;
        assert_eq!(whole.view().iter().filter(|&&flag| flag).count(), 2);
        let all = comm.gather_to_lease(&Array1::from_elem(2, true), &[2, 2][..], 0)?;
        assert!(all.is_none_or(|all| all.view().iter().all(|&flag| flag)));
        let mut lease = comm.alloc::<bool, _>(3)?;
        lease.view_mut()[2] = true;
        Ok(lease)
    });
    assert_eq!(results.unwrap().unwrap()[1].view().to_vec(), [false, false, true]);
    assert!(array.view().iter().all(|&flag| flag));
}
