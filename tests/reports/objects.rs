//! Serialised objects arrive as they were sent, on every back end.

use crate::support::{Case, launch};
use ndarray::{Array2, ArrayD, Ix1, array};
use phalanx::{Comm, Lease, ParallelManager, Result, create_parallel_manager};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_bytes::ByteBuf;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt::Debug;
use std::net::IpAddr;
use std::ops::Range;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

pub const CASES: &[Case] = cases! {
    skipped_fields_arrive
    flattened_fields_arrive
    tagged_and_untagged_enums_arrive
    values_of_any_type_arrive
    nested_options_arrive
    numbers_arrive_to_the_bit
    maps_arrive
    types_of_the_standard_library_arrive
    arrays_arrive
    long_lists_arrive
    types_that_read_otherwise_arrive
    leases_beside_them_arrive
    skipped_for_good_is_lost_on_every_back_end
    another_variant_is_refused
    what_cannot_be_written_is_refused
    what_cannot_be_read_is_refused
    a_refused_object_is_told_to_all_and_nothing_is_sent
};

/// What objects are here.
trait Object: Serialize + DeserializeOwned + Clone + PartialEq + Debug + Send + Sync + 'static {}
impl<T: Serialize + DeserializeOwned + Clone + PartialEq + Debug + Send + Sync + 'static> Object for T {}

/// What arrives of `sent`, by each of the ways, with its name.
fn ways<T: Object>(sent: &T) -> Vec<(String, Result<Vec<T>>)> {
    let mut ways = vec![("launch".to_owned(), launch(2, |_| Ok(sent.clone())).map(Option::unwrap))];
    let one = |of: fn(&mut Comm<'_>, &T) -> Result<Vec<T>>| {
        // Ranks compare: the result does not travel once more.
        let same = launch(2, |comm| Ok(of(comm, sent)?.iter().all(|arrived| arrived == sent)));
        match same.map(Option::unwrap) {
            Ok(same) if same == [true, true] => Ok(vec![sent.clone()]),
            Ok(same) => panic!("{sent:?} arrives otherwise (ranks: {same:?})"),
            Err(error) => Err(error),
        }
    };
    let broadcast = |comm: &mut Comm<'_>, sent: &T| Ok(vec![comm.broadcast_object(sent.clone(), 1)?]);
    let gather = |comm: &mut Comm<'_>, sent: &T| Ok(comm.gather_objects(sent, 0)?.unwrap_or_default());
    let peers = |comm: &mut Comm<'_>, sent: &T| {
        let mut manager = ParallelManager::with_peers(comm);
        let scattered = manager.scatter(|| Ok(()), |_, ()| Ok(sent.clone()), &[1, 2, 3])?;
        Ok(manager.gather(scattered)?.into_iter().map(|local| local.results).collect())
    };
    ways.push(("broadcast_object".to_owned(), one(broadcast)));
    ways.push(("gather_objects".to_owned(), one(gather)));
    ways.push(("all_gather_objects".to_owned(), one(|comm, sent| comm.all_gather_objects(sent))));
    ways.push(("peers".to_owned(), one(peers)));
    ways.push(("alone".to_owned(), Comm::solo().and_then(|mut solo| broadcast_alone(&mut solo, sent))));
    for backend in ["serial", "threads", "concurrentfutures", "multiprocessing"] {
        let mut manager = create_parallel_manager(backend, 2).unwrap();
        let scattered = manager.scatter(|| Ok(()), |_, ()| Ok(sent.clone()), &[1, 2, 3]);
        let gathered = scattered.and_then(|scattered| manager.gather(scattered));
        let results = gathered.map(|all| all.into_iter().map(|local| local.results).collect());
        ways.push((backend.to_owned(), results));
    }
    ways
}

fn broadcast_alone<T: Object>(solo: &mut Comm<'_>, sent: &T) -> Result<Vec<T>> {
    let mut all = solo.all_gather_objects(sent)?;
    all.push(solo.broadcast_object(sent.clone(), 0)?);
    Ok(all)
}

#[track_caller]
fn arrives<T: Object>(sent: T) {
    for (way, arrived) in ways(&sent) {
        let arrived = arrived.unwrap_or_else(|error| panic!("{way}: {error}"));
        assert!(!arrived.is_empty());
        arrived.iter().for_each(|arrived| assert_eq!(*arrived, sent, "{way}"));
    }
}

#[track_caller]
fn is_refused<T: Object>(sent: T, says: &[&str]) {
    for (way, arrived) in ways(&sent) {
        let error = arrived.map_err(|error| error.to_string()).expect_err(&way);
        let mut said = vec!["cannot travel between ranks", std::any::type_name::<T>()];
        said.extend(says);
        said.iter().for_each(|part| assert!(error.contains(part), "{way}: no {part:?} in: {error}"));
    }
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Answer {
    #[serde(default, skip_serializing_if = "is_zero")]
    retries: u32,
    residuals: Vec<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    note: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    children: Vec<Answer>,
}

fn skipped_fields_arrive() {
    let short = Answer { residuals: vec![0, 1, 9], ..Answer::default() };
    let noted = Answer { note: Some("salty".to_owned()), ..short.clone() };
    let parent = Answer { retries: 3, children: vec![short.clone(), noted.clone()], ..Answer::default() };
    arrives((short, noted, parent.clone(), Answer::default(), vec![parent; 3]));
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Flat {
    name: String,
    #[serde(flatten)]
    inner: Inner,
    #[serde(flatten)]
    perhaps: Option<Extra>,
    #[serde(flatten)]
    rest: HashMap<String, Value>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Inner {
    x: f64,
    by_number: BTreeMap<u32, i8>,
    address: IpAddr,
    shape: Option<Shape>,
    deep: Option<Option<u8>>,
    pair: (char, u64),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Extra {
    extra: Newtype,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Newtype(Vec<i16>);

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Shape {
    Point,
    Circle(f32),
    Box(u8, u8),
    Named { name: String, sides: u64 },
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Numbered {
    #[serde(flatten)]
    by_number: BTreeMap<u32, String>,
}

fn flattened_fields_arrive() {
    let inner = Inner {
        x: f64::MIN_POSITIVE,
        by_number: BTreeMap::from([(3, -1), (0, 127)]),
        address: "fe80::1".parse().unwrap(),
        shape: Some(Shape::Named { name: "hex".to_owned(), sides: u64::MAX }),
        deep: Some(None),
        pair: ('\u{10ffff}', 0),
    };
    let full = Flat {
        name: "full".to_owned(),
        inner: inner.clone(),
        perhaps: Some(Extra { extra: Newtype(vec![i16::MIN, 7]) }),
        rest: HashMap::from([("more".to_owned(), json!({"a": [1, null, 2.5]})), ("z".to_owned(), json!(-3))]),
    };
    let plain = Inner { shape: Some(Shape::Point), deep: None, ..inner.clone() };
    let bare = Flat { inner: plain, perhaps: None, rest: HashMap::new(), ..full.clone() };
    let boxed = Inner { shape: Some(Shape::Box(1, 2)), deep: Some(Some(3)), ..inner };
    let numbered =
        Numbered { by_number: BTreeMap::from([(7, "seven".to_owned()), (u32::MAX, String::new())]) };
    arrives((full.clone(), bare, Flat { inner: boxed, ..full }, numbered));
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind")]
enum Internal {
    Unit,
    Struct { at: Option<f64>, who: IpAddr },
    Wrapped(Inner2),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Inner2 {
    shape: Shape,
    none: Option<()>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "t", content = "c")]
enum Adjacent {
    Unit,
    One(Option<Box<Adjacent>>),
    Two(u8, String),
    Struct { list: Vec<Shape> },
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
enum Untagged {
    Nothing,
    Flag(bool),
    Small(u8),
    Signed(i64),
    Real(f64),
    Text(String),
    List(Vec<Untagged>),
    Struct { shape: Shape, internal: Internal },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[repr(u64)]
enum Far {
    #[serde(rename = "the first")]
    First = 1,
    Last = u64::MAX,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct Renamed {
    long_name: Result2,
    #[serde(alias = "old")]
    new: u8,
}
type Result2 = std::result::Result<u8, String>;
impl Default for Renamed {
    fn default() -> Renamed {
        Renamed { long_name: Ok(3), new: 1 }
    }
}

fn tagged_and_untagged_enums_arrive() {
    let who: IpAddr = "10.0.0.1".parse().unwrap();
    let wrapped = Internal::Wrapped(Inner2 { shape: Shape::Circle(-0.0), none: Some(()) });
    let internal = vec![Internal::Unit, Internal::Struct { at: None, who }, wrapped.clone()];
    let shapes = vec![Shape::Point, Shape::Box(0, 255), Shape::Circle(f32::INFINITY)];
    let adjacent = vec![
        Adjacent::Unit,
        Adjacent::One(None),
        Adjacent::One(Some(Box::new(Adjacent::Unit))),
        Adjacent::Two(9, "\0".to_owned()),
        Adjacent::Struct { list: shapes.clone() },
    ];
    let untagged = vec![
        Untagged::Nothing,
        Untagged::Flag(true),
        Untagged::Small(200),
        Untagged::Signed(-1),
        Untagged::Real(2.0),
        Untagged::Text("2".to_owned()),
        Untagged::List(vec![Untagged::Nothing, Untagged::Small(0), Untagged::List(vec![])]),
        Untagged::Struct { shape: Shape::Point, internal: wrapped },
    ];
    let renamed = [Renamed::default(), Renamed { long_name: Err(String::new()), new: 0 }];
    arrives((internal, shapes, adjacent, untagged, vec![Far::Last, Far::First], renamed));
}

fn values_of_any_type_arrive() {
    let numbers = json!([0, -1, u64::MAX, i64::MIN, 0.1, 1e300, -0.0, 5.0]);
    let nested = json!({"": null, "a": {"b": [[], {}, [null, true, "text\u{0}"]]}, "n": numbers});
    arrives((Value::Null, nested.clone(), Some(Value::Null), None::<Value>, vec![nested; 2]));
    let deep = (0..60).fold(Value::Null, |inner, _| json!([{ "in": inner }]));
    arrives(deep);
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Unit;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Wrap<T>(T);

fn nested_options_arrive() {
    type Deep = Option<Option<Option<u8>>>;
    let deep: Vec<Deep> = vec![None, Some(None), Some(Some(None)), Some(Some(Some(0)))];
    let units: Vec<Option<Option<()>>> = vec![None, Some(None), Some(Some(()))];
    let structs = vec![None, Some(Unit)];
    let wrapped: Vec<Wrap<Option<Wrap<Option<Unit>>>>> =
        vec![Wrap(None), Wrap(Some(Wrap(None))), Wrap(Some(Wrap(Some(Unit))))];
    let keys: BTreeMap<Option<Option<bool>>, Option<()>> =
        BTreeMap::from([(None, None), (Some(None), Some(())), (Some(Some(false)), None)]);
    let results: Vec<std::result::Result<Option<()>, ()>> = vec![Ok(None), Ok(Some(())), Err(())];
    arrives((deep, units, structs, wrapped, keys, results, ((), Unit, Some(((), None::<()>)))));
}

/// Floats that are equal if their bits are.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Bits(f64, f32);

impl PartialEq for Bits {
    fn eq(&self, other: &Bits) -> bool {
        (self.0.to_bits(), self.1.to_bits()) == (other.0.to_bits(), other.1.to_bits())
    }
}

fn numbers_arrive_to_the_bit() {
    let nan = |payload: u64| {
        Bits(f64::from_bits(0x7ff8 << 48 | payload), f32::from_bits(0x7fc0_0000 | payload as u32))
    };
    let floats = vec![
        Bits(0.0, -0.0),
        Bits(-0.0, 0.0),
        Bits(f64::INFINITY, f32::NEG_INFINITY),
        nan(0),
        nan(0x1234),
        Bits(f64::from_bits(0xfff0_0000_0000_0001), f32::from_bits(0xff80_0001)),
        Bits(f64::from_bits(1), f32::from_bits(1)),
        Bits(0.1, 0.1),
        Bits(f64::MAX, f32::MIN_POSITIVE),
    ];
    let whole = (
        [i8::MIN, i8::MAX],
        [i16::MIN, i16::MAX],
        [i32::MIN, -1],
        [i64::MIN, i64::MAX],
        [i128::MIN, i128::MAX, 0],
        [u8::MAX, 0],
        [u16::MAX],
        [u32::MAX],
        [u64::MAX, 1 << 63],
        [u128::MAX, 1 << 100],
        [usize::MAX],
        [isize::MIN],
    );
    let others = ([true, false, true], ['a', 'ß', '\u{0}', '\u{10ffff}'], [1u8; 32], 5u8, 6u8, 7i8);
    arrives((floats, whole, others));
}

fn maps_arrive() {
    let numbers: HashMap<i64, f64> = (-50..50).map(|n| (n, n as f64 / 3.0)).collect();
    let tuples: HashMap<(u8, String), [u8; 2]> =
        HashMap::from([((0, String::new()), [1, 2]), ((1, "one".to_owned()), [3, 4])]);
    let variants: BTreeMap<Far, HashSet<String>> =
        BTreeMap::from([(Far::First, HashSet::from(["a".to_owned(), "b".to_owned(), "c".to_owned()]))]);
    let flags: HashMap<bool, char> = HashMap::from([(true, 't'), (false, 'f')]);
    let structs: HashSet<Vec<Option<u8>>> = HashSet::from([vec![], vec![None], vec![Some(1), None]]);
    let unit: HashMap<(), ()> = HashMap::from([((), ())]);
    arrives((numbers, tuples, variants, flags, structs, unit, BTreeSet::from([3, 1, 2])));
}

fn types_of_the_standard_library_arrive() {
    let addresses: Vec<IpAddr> = vec!["1.2.3.4".parse().unwrap(), "::1".parse().unwrap()];
    let times = (Duration::new(5, 999_999_999), SystemTime::UNIX_EPOCH + Duration::from_nanos(1));
    let bytes = ByteBuf::from((0..=255).collect::<Vec<u8>>());
    let range: (Range<i32>, std::ops::RangeInclusive<u8>) = (-5..3, 0..=255);
    let boxed: (Box<str>, Box<[u16]>, std::borrow::Cow<'static, str>) =
        ("b".into(), Box::new([1, 2]), "c".into());
    let path = PathBuf::from("/tmp/ü");
    let cell = (std::num::NonZeroU8::new(3), std::num::Wrapping(250u8), std::cmp::Reverse(1));
    let text = std::ffi::CString::new("c").unwrap();
    arrives((addresses, times, bytes, range, boxed, path, cell, text, std::ops::Bound::Included(4)));
}

fn arrays_arrive() {
    let table = array![[1.5, f64::NEG_INFINITY], [-0.0, 4.0]];
    let any: ArrayD<u32> = ArrayD::from_elem(vec![2, 1, 3], 7);
    arrives((table.clone(), any, Array2::<u8>::zeros((0, 5)), table.t().to_owned(), ndarray::arr0(3i8)));
}

fn long_lists_arrive() {
    let bytes: Vec<u8> = (0..50_000u32).map(|i| (i * 7) as u8).collect();
    let reals: Vec<f64> = (0..5000).map(|i| i as f64 / 7.0).collect();
    let options: Vec<Option<u16>> = (0..2000).map(|i| (i % 3 > 0).then_some(i)).collect();
    let answers = vec![Answer { residuals: vec![1, 2], ..Answer::default() }; 100];
    arrives((bytes, reals, options, answers));
}

/// Writes `Some` of a text, and reads a text.
mod as_text {
    use super::*;
    pub fn serialize<S: Serializer>(
        number: &Option<u8>,
        serializer: S,
    ) -> std::result::Result<S::Ok, S::Error> {
        number.map(|number| number.to_string()).serialize(serializer)
    }
    pub fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> std::result::Result<Option<u8>, D::Error> {
        String::deserialize(deserializer)?.parse().map(Some).map_err(serde::de::Error::custom)
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Otherwise {
    #[serde(with = "as_text")]
    number: Option<u8>,
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    field: Option<u8>,
    human: Human,
    #[serde(with = "serde_bytes")]
    bytes: Vec<u8>,
}

fn present<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Option<u8>, D::Error> {
    u8::deserialize(deserializer).map(Some)
}

/// A text in formats that people read, its length in others.
#[derive(Clone, Debug, PartialEq)]
struct Human(String);

impl Serialize for Human {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        match serializer.is_human_readable() {
            true => serializer.serialize_str(&self.0),
            false => serializer.serialize_u64(self.0.len() as u64),
        }
    }
}

impl<'de> Deserialize<'de> for Human {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Human, D::Error> {
        match deserializer.is_human_readable() {
            true => String::deserialize(deserializer).map(Human),
            false => Ok(Human("x".repeat(u64::deserialize(deserializer)? as usize))),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Around {
    #[serde(flatten)]
    otherwise: Otherwise,
}

fn types_that_read_otherwise_arrive() {
    let otherwise =
        Otherwise { number: Some(7), field: Some(3), human: Human("text".to_owned()), bytes: vec![0, 255] };
    let without = Otherwise { field: None, ..otherwise.clone() };
    arrives((otherwise.clone(), without.clone(), Around { otherwise }, Around { otherwise: without }));
}

#[derive(Debug, Serialize, Deserialize)]
struct Solved {
    #[serde(default, skip_serializing_if = "is_zero")]
    retries: u32,
    #[serde(flatten)]
    meta: Answer,
    columns: Vec<Option<Lease<f64, Ix1>>>,
}

fn leases_beside_them_arrive() {
    let answer = Answer { residuals: vec![0, 1, 9], ..Answer::default() };
    let check = |solved: &Solved| {
        assert_eq!((&solved.meta.residuals, solved.columns.len()), (&answer.residuals, 2));
        assert_eq!(solved.columns[1].as_ref().unwrap().view().to_vec(), [2.5; 3]);
    };
    let all = launch(2, |comm| {
        let mut lease = comm.alloc(3)?;
        lease.view_mut().fill(2.5);
        Ok(Solved { retries: 0, meta: answer.clone(), columns: vec![None, Some(lease)] })
    });
    all.unwrap().unwrap().iter().for_each(check);
    for backend in ["serial", "threads", "multiprocessing"] {
        let mut manager = create_parallel_manager(backend, 2).unwrap();
        let solve = |_: &[i32], (): &mut ()| {
            let mut lease = Lease::zeros(3)?;
            lease.view_mut().fill(2.5);
            Ok(Solved { retries: 0, meta: answer.clone(), columns: vec![None, Some(lease)] })
        };
        let scattered = manager.scatter(|| Ok(()), solve, &[1, 2, 3]).unwrap();
        manager.gather(scattered).unwrap().iter().for_each(|local| check(&local.results));
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Cached {
    value: u8,
    #[serde(skip)]
    cache: Option<u8>,
}

fn skipped_for_good_is_lost_on_every_back_end() {
    let sent = Cached { value: 1, cache: Some(2) };
    let told = launch(2, |comm| {
        let broadcast = comm.broadcast_object(sent.clone(), 0)?;
        let all = comm.all_gather_objects(&sent)?;
        Ok([vec![broadcast], all].concat().iter().all(|arrived| arrived.cache.is_none()))
    });
    assert_eq!(told.unwrap().unwrap(), [true, true]);
    let alone = broadcast_alone(&mut Comm::solo().unwrap(), &sent).unwrap();
    assert!(alone.iter().all(|arrived| arrived.cache.is_none()));
    for backend in ["serial", "threads", "multiprocessing"] {
        let mut manager = create_parallel_manager(backend, 2).unwrap();
        let scattered = manager.scatter(|| Ok(()), |_, ()| Ok(sent.clone()), &[1, 2]).unwrap();
        let results = manager.gather(scattered).unwrap();
        assert!(results.iter().all(|local| local.results == Cached { value: 1, cache: None }), "{backend}");
    }
}

/// An integer is read as the first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
enum Ambiguous {
    Real(f64),
    Whole(u32),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Lossy {
    #[serde(skip_deserializing)]
    unread: u8,
    kept: u8,
}

fn another_variant_is_refused() {
    arrives(vec![Ambiguous::Real(3.0)]);
    is_refused(vec![Ambiguous::Real(3.0), Ambiguous::Whole(3)], &["another value", "untagged"]);
    arrives(Lossy { unread: 0, kept: 4 });
    is_refused(Lossy { unread: 3, kept: 4 }, &["another value"]);
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind")]
enum TaggedList {
    List(Vec<u8>),
}

fn what_cannot_be_written_is_refused() {
    use std::os::unix::ffi::OsStringExt;
    let path = PathBuf::from(std::ffi::OsString::from_vec(vec![b'/', 0xff]));
    is_refused(path, &["UTF-8"]);
    is_refused(TaggedList::List(vec![1]), &["sequence"]);
    is_refused(Wrap(Kept), &["kept by the caller"]);
}

/// Cannot be written.
#[derive(Clone, Debug, PartialEq, Deserialize)]
struct Kept;

impl Serialize for Kept {
    fn serialize<S: Serializer>(&self, _: S) -> std::result::Result<S::Ok, S::Error> {
        Err(serde::ser::Error::custom("kept by the caller"))
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind")]
enum Wide {
    Wide { number: u128 },
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct NoDefault {
    #[serde(skip_serializing_if = "is_zero")]
    retries: u32,
    other: u8,
}

fn what_cannot_be_read_is_refused() {
    is_refused(Wide::Wide { number: 1 }, &["cannot be read back", "u128"]);
    arrives(NoDefault { retries: 1, other: 2 });
    is_refused(NoDefault { retries: 0, other: 2 }, &["cannot be read back", "retries"]);
}

fn a_refused_object_is_told_to_all_and_nothing_is_sent() {
    let told = launch(3, |comm| {
        let object = |rank: usize| NoDefault { retries: rank as u32, other: 1 };
        let rank = (comm.rank() + 2) % 3;
        let errors = [
            comm.all_gather_objects(&object(rank)).unwrap_err(),
            comm.gather_objects(&object(rank), 2).unwrap_err(),
            comm.broadcast_object(object(0), 1).unwrap_err(),
        ];
        // The communicator goes on.
        let sent = comm.all_gather_objects(&object(comm.rank() + 1))?;
        assert_eq!(sent[2].retries, 3);
        Ok(errors.map(|error| error.to_string()))
    });
    for error in told.unwrap().unwrap().concat() {
        let parts =
            ["(call", "the object of rank 1", "NoDefault", "cannot travel", "missing field `retries`"];
        parts.iter().for_each(|part| assert!(error.contains(part), "no {part:?} in: {error}"));
    }
}
