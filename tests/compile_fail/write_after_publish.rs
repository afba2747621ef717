//! Publishing consumes the right to write.
fn main() {
    let _ = phalanx::launch(2, |comm| {
        let mut part = comm.parts::<f64, _>(4)?;
        let _whole = part.publish(comm)?;
        part.view_mut().fill(1.0);
        Ok(())
    });
}
