//! A result outlives its rank: it cannot borrow from it.
fn main() {
    let _ = phalanx::launch(2, |comm| {
        let local = String::from("gone with the process");
        Ok(&*local)
    });
}
