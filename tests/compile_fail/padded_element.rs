//! An element type with padding: uninitialised bytes would travel.
#[derive(Clone, Copy)]
#[repr(C)]
struct Padded {
    flag: u8,
    value: f64,
}

fn main() {
    let mut comm = phalanx::Comm::solo().unwrap();
    let _ = comm.alloc::<Padded, _>(3);
}
