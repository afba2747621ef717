//! A lease that was handed on is gone.
fn main() {
    let _ = phalanx::launch(2, |comm| {
        let mut array = comm.alloc::<f64, _>(4)?;
        comm.send_lease(array, 1)?;
        array.view_mut().fill(1.0);
        Ok(())
    });
}
