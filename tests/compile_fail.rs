//! What must not compile.

#[test]
fn promises_of_the_types() {
    let cases = trybuild::TestCases::new();
    cases.compile_fail("tests/compile_fail/*.rs");
}
