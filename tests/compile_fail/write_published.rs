//! A published array is read-only: others read it.
fn main() {
    let _ = phalanx::launch(2, |comm| {
        let part = comm.parts::<f64, _>(4)?;
        let mut whole = part.publish(comm)?;
        whole.view_mut().fill(1.0);
        Ok(())
    });
}
