//! One collective at a time.
fn main() {
    let mut comm = phalanx::Comm::solo().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| comm.barrier());
        scope.spawn(|| comm.barrier());
    });
}
