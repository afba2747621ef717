//! Booleans have no sum.
fn main() {
    let _ = phalanx::Op::<bool>::sum();
}
