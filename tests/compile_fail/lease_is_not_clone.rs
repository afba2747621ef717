//! One holder at a time may write a lease.
fn main() {
    let mut comm = phalanx::Comm::solo().unwrap();
    let lease = comm.alloc::<f64, _>(4).unwrap();
    let _twice = lease.clone();
}
