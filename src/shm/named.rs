//! Arrays that programs share by a name: POSIX shared memory (crate `shared_memory`), which other languages open, too.
//!
//! Whoever makes the memory removes its name at the end. The crate would do this in every process that has inherited the
//! array by a fork; here only the process that has made it does.
#![expect(unsafe_code, reason = "copies out of memory that another program may write meanwhile")]

use crate::error::{Error, Result};
use crate::os::mapping;
use crate::os::process;
use crate::shm::array::byte_len;
use crate::shm::element::{Element, bytes_of, fill_bytes};
use ndarray::{Array, ArrayBase, Data, Dimension, IntoDimension, IxDyn};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use shared_memory::{Shmem, ShmemConf, ShmemError};
use std::fmt;
use std::marker::PhantomData;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// An array in shared memory that has a name: any program of this user opens it by that name.
///
/// As an argument or result of a call it travels by its name, so that programs that [share a queue](crate::Service)
/// exchange arrays of any size without sending them. The name goes with the value that has made it: who makes an array keeps
/// that value, and hands on what [`NamedArray::open`] returns. Its elements are copied in and out, as another program may write
/// at any moment; the programs agree by their calls who writes when. (If one cuts the memory short, SIGBUS ends those that
/// touch what is gone.)
///
/// In Python, `multiprocessing.shared_memory.SharedMemory(name)` opens it: its buffer holds the elements in row-major
/// order. (Up to Python 3.12 its resource tracker removes the name when that Python ends, unless it is told not to:
/// `resource_tracker.unregister("/" + name, "shared_memory")`.)
///
/// ```
/// use ndarray::{Ix1, arr1};
/// use phalanx::NamedArray;
/// let name = format!("wave-{}", std::process::id());
/// let mut made = NamedArray::<f64, Ix1>::create(&name, 3)?;
/// made.assign(&arr1(&[1.0, 2.0, 3.0]))?;
/// let opened = NamedArray::<f64, Ix1>::open(&name, 3)?;            // in another program
/// assert_eq!(opened.to_array()?, arr1(&[1.0, 2.0, 3.0]));
/// # Ok::<(), phalanx::Error>(())
/// ```
pub struct NamedArray<T, D> {
    memory: Shmem,
    /// The process that has mapped the memory, and the file that it has made.
    process: u32,
    made: Option<u64>,
    dim: D,
    element: PhantomData<T>,
}

// SAFETY: the mapping belongs to the process, not to a thread; all access to it goes through `&self` and `&mut self`.
unsafe impl<T: Send, D: Send> Send for NamedArray<T, D> {}
// SAFETY: through `&self` elements are only copied out.
unsafe impl<T: Sync, D: Sync> Sync for NamedArray<T, D> {}

impl<T: Element, D: Dimension> NamedArray<T, D> {
    /// Makes a zeroed array of `shape` under a name. The name goes when this value is dropped; if the program is killed, it
    /// stays until [`NamedArray::remove`].
    ///
    /// # Errors
    /// If the name is no name or taken, the shape overflows, or there is no room.
    ///
    /// ```
    /// use ndarray::Ix2;
    /// let name = format!("table-{}", std::process::id());
    /// let table = phalanx::NamedArray::<u32, Ix2>::create(&name, (2, 3))?;
    /// let taken = phalanx::NamedArray::<u32, Ix2>::create(&name, (2, 3)).unwrap_err();
    /// assert!(taken.to_string().contains("is taken"));
    /// # drop(table);
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn create(name: &str, shape: impl IntoDimension<Dim = D>) -> Result<NamedArray<T, D>> {
        let dim = shape.into_dimension();
        let len = byte_len::<T, D>(&dim)?.max(1);
        let made = ShmemConf::new().os_id(checked(name)?).size(len).create();
        let memory = made.map_err(|error| match error {
            ShmemError::MappingIdExists => {
                refused(name, "the name is taken; choose another, or `remove` what a killed program has left")
            }
            error => refused(name, &error.to_string()),
        })?;
        mapping::reserve(&path(name), len)?;
        Ok(NamedArray {
            memory,
            process: process::incarnation(),
            made: inode(name),
            dim,
            element: PhantomData,
        })
    }

    /// Opens the array of `shape` that another program has made under this name.
    ///
    /// # Errors
    /// If there is none, or it is shorter.
    ///
    /// ```
    /// let error = phalanx::NamedArray::<f64, ndarray::Ix1>::open("nobody-has-made-this", 3).unwrap_err();
    /// assert!(error.to_string().contains("nobody-has-made-this"));
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn open(name: &str, shape: impl IntoDimension<Dim = D>) -> Result<NamedArray<T, D>> {
        let dim = shape.into_dimension();
        let len = byte_len::<T, D>(&dim)?;
        let opened = ShmemConf::new().os_id(checked(name)?).open();
        let memory =
            opened.map_err(|_| refused(name, "there is no shared memory of this name that may be opened"))?;
        if memory.len() < len {
            let why = format!("it has {} bytes; an array of this shape and type has {len}", memory.len());
            return Err(refused(name, &why));
        }
        Ok(NamedArray { memory, process: process::incarnation(), made: None, dim, element: PhantomData })
    }

    /// Removes a name that a program has left behind that was killed. Returns whether there was one.
    ///
    /// # Errors
    /// If it is no name.
    ///
    /// ```
    /// assert!(!phalanx::NamedArray::<f64, ndarray::Ix1>::remove("nobody-has-made-this")?);
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn remove(name: &str) -> Result<bool> {
        let opened = ShmemConf::new().os_id(checked(name)?).open();
        // The owner removes the name when it is dropped.
        Ok(opened.map(|mut memory| memory.set_owner(true)).is_ok())
    }

    /// Returns the name.
    ///
    /// ```
    /// let name = format!("named-{}", std::process::id());
    /// assert_eq!(phalanx::NamedArray::<u8, ndarray::Ix1>::create(&name, 3)?.name(), name);
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn name(&self) -> &str {
        self.memory.get_os_id().trim_start_matches('/')
    }

    /// Returns the shape.
    ///
    /// ```
    /// let name = format!("shaped-{}", std::process::id());
    /// assert_eq!(phalanx::NamedArray::<u8, ndarray::Ix2>::create(&name, (3, 4))?.shape(), [3, 4]);
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn shape(&self) -> &[usize] {
        self.dim.slice()
    }

    /// Copies the elements of an array of the same shape into this one.
    ///
    /// # Errors
    /// If the shapes differ.
    ///
    /// ```
    /// # let name = format!("assigned-{}", std::process::id());
    /// let mut array = phalanx::NamedArray::<u8, ndarray::Ix1>::create(&name, 2)?;
    /// array.assign(&ndarray::arr1(&[7, 8]))?;
    /// assert!(array.assign(&ndarray::arr1(&[7, 8, 9])).is_err());
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn assign<S: Data<Elem = T>>(&mut self, array: &ArrayBase<S, D>) -> Result<()> {
        if array.shape() != self.dim.slice() {
            let why =
                format!("an array of shape {:?} does not fit into {:?}", array.shape(), self.dim.slice());
            return Err(refused(self.name(), &why));
        }
        let standard = array.as_standard_layout();
        let bytes = bytes_of(standard.as_slice().unwrap_or_default());
        // SAFETY: the mapping is as long as the array (see `create` and `open`), and nothing of this process borrows it. What
        // other programs read meanwhile is theirs to agree upon.
        unsafe { core::ptr::copy_nonoverlapping(bytes.as_ptr(), self.memory.as_ptr(), bytes.len()) };
        Ok(())
    }

    /// Returns a copy of the elements.
    ///
    /// # Errors
    /// If bytes there are no elements of this type (`bool`, `char`).
    ///
    /// ```
    /// # let name = format!("copied-{}", std::process::id());
    /// let zeros = phalanx::NamedArray::<u8, ndarray::Ix1>::create(&name, 2)?;
    /// assert_eq!(zeros.to_array()?, ndarray::arr1(&[0, 0]));
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn to_array(&self) -> Result<Array<T, D>> {
        let count = self.dim.size();
        let mut elements: Vec<T> = mapping::spacious(count);
        elements.resize_with(count, T::zeroed);
        fill_bytes(&mut elements, |bytes| {
            // SAFETY: as in `assign`; the bytes are looked at when they have been copied.
            unsafe { core::ptr::copy_nonoverlapping(self.memory.as_ptr(), bytes.as_mut_ptr(), bytes.len()) };
            Ok(())
        })?;
        Array::from_shape_vec(self.dim.clone(), elements)
            .map_err(|error| refused(self.name(), &error.to_string()))
    }
}

impl<T, D> Drop for NamedArray<T, D> {
    fn drop(&mut self) {
        let name = self.memory.get_os_id().trim_start_matches('/');
        if self.process != process::incarnation() || self.made != inode(name) {
            // A fork has brought it here, or another array has the name now: it is not this value's to remove.
            self.memory.set_owner(false);
        }
    }
}

impl<T: Element, D: Dimension> fmt::Debug for NamedArray<T, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NamedArray({:?}, shape {:?})", self.name(), self.shape())
    }
}

impl<T: Element, D: Dimension> Serialize for NamedArray<T, D> {
    /// Serialises name, shape and type of elements.
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        (self.name(), self.shape(), std::any::type_name::<T>()).serialize(serializer)
    }
}

impl<'de, T: Element, D: Dimension> Deserialize<'de> for NamedArray<T, D> {
    /// Opens the array.
    fn deserialize<S: Deserializer<'de>>(deserializer: S) -> std::result::Result<Self, S::Error> {
        let (name, shape, element) = <(String, Vec<usize>, String)>::deserialize(deserializer)?;
        let dim = D::from_dimension(&IxDyn(&shape)).filter(|_| element == std::any::type_name::<T>());
        let problem =
            || format!("the array {name:?} has elements of type {element}, and the shape {shape:?}");
        let dim = dim.ok_or_else(|| de::Error::custom(problem()))?;
        NamedArray::open(&name, dim).map_err(de::Error::custom)
    }
}

fn path(name: &str) -> PathBuf {
    Path::new("/dev/shm").join(name)
}

/// Returns the number of the file that has this name.
fn inode(name: &str) -> Option<u64> {
    std::fs::metadata(path(name)).ok().map(|file| file.ino())
}

/// Returns the name, if it is one.
fn checked(name: &str) -> Result<&str> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    match !name.is_empty() && name.len() <= 200 && !name.starts_with('.') && name.chars().all(is_plain) {
        true => Ok(name),
        false => Err(refused(name, "a name has up to 200 letters, digits, '-', '_' and '.'")),
    }
}

fn refused(name: &str, why: &str) -> Error {
    Error::option("NamedArray", format!("{name:?}: {why}"))
}
