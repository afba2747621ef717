//! An element type with a pointer: it means nothing to another process.
fn main() {
    let mut comm = phalanx::Comm::solo().unwrap();
    let mut names = ndarray::Array1::from_elem(3, "name");
    let _ = comm.broadcast(&mut names, 0);
}
