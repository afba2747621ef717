//! The caller cannot look at an array while a world may hold parts of it.
fn main() {
    let mut array = phalanx::SharedArray::<f64, ndarray::Ix1>::zeros(8).unwrap();
    let view = array.view();
    let _ = phalanx::launch(2, |comm| comm.open(&array).map(drop));
    drop(view);
}
