//! Reopening ends all views of the whole.
fn main() {
    let _ = phalanx::launch(2, |comm| {
        let whole = comm.parts::<f64, _>(4)?.publish(comm)?;
        let view = whole.view();
        let mut part = whole.reopen(comm)?;
        part.view_mut().fill(view[0]);
        Ok(())
    });
}
