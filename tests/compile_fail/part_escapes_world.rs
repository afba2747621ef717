//! Parts end with their world.
fn main() {
    let escaped = std::cell::RefCell::new(None);
    let _ = phalanx::launch(2, |comm| {
        *escaped.borrow_mut() = Some(comm.parts::<f64, _>(4)?);
        Ok(())
    });
}
