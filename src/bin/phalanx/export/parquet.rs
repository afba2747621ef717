//! Parquet: a typed column for each of the table's, in groups of rows that are gathered in memory. Outputs are null in rows
//! without a result, seconds and worker in rows that were not tried.

use super::columns::{attempt, is_done, names, outcome};
use super::rows::Rows;
use parquet::basic::{LogicalType, Repetition, Type as Physical};
use parquet::data_type::{ByteArray, ByteArrayType, DataType, DoubleType, Int32Type, Int64Type};
use parquet::errors::{ParquetError, Result};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::types::{Type, TypePtr};
use phalanx::{Error, TableRow};
use std::io::{self, Write};
use std::sync::Arc;

/// The number of bytes, about, after which a group of rows is written.
const GROUP: usize = 32 << 20;

pub(super) fn write(rows: &Rows, out: impl Write + Send) -> phalanx::Result<()> {
    let names = names(&rows.table);
    let inputs = rows.table.inputs().len();
    let schema = schema(&names, inputs).map_err(Error::other)?;
    let properties = Arc::new(WriterProperties::builder().build());
    let mut writer = SerializedFileWriter::new(out, schema, properties).map_err(Error::other)?;
    let mut group = Group::default();
    rows.each(&mut |row| {
        group.add(row);
        if group.bytes < GROUP {
            return Ok(());
        }
        std::mem::take(&mut group).write(inputs, &mut writer).map_err(io::Error::other)
    })?;
    let rest = if group.bytes > 0 { group.write(inputs, &mut writer) } else { Ok(()) };
    rest.and_then(|()| writer.close()).map(drop).map_err(Error::other)
}

/// Returns the types of the columns: see [`names`].
fn schema(names: &[String], inputs: usize) -> Result<TypePtr> {
    let (required, optional) = (Repetition::REQUIRED, Repetition::OPTIONAL);
    let field = |(at, name): (usize, &String)| {
        let (physical, repetition) = match names.len() - at {
            _ if at == 0 => (Physical::INT64, required),
            5 | 4 => (Physical::BYTE_ARRAY, required),
            3 => (Physical::INT32, required),
            2 => (Physical::DOUBLE, optional),
            1 => (Physical::INT32, optional),
            _ if at <= inputs => (Physical::DOUBLE, required),
            _ => (Physical::DOUBLE, optional),
        };
        let text = (physical == Physical::BYTE_ARRAY).then_some(LogicalType::String);
        let field = Type::primitive_type_builder(name, physical).with_repetition(repetition);
        field.with_logical_type(text).build().map(Arc::new)
    };
    let fields = names.iter().enumerate().map(field).collect::<Result<Vec<_>>>()?;
    Type::group_type_builder("table").with_fields(fields).build().map(Arc::new)
}

/// Rows that are not written yet, column by column. Nulls are left out of the values; a level is 1 where there is one.
#[derive(Default)]
struct Group {
    index: Vec<i64>,
    /// The inputs, then the outputs.
    values: Vec<Vec<f64>>,
    has_result: Vec<i16>,
    outcome: Vec<ByteArray>,
    reason: Vec<ByteArray>,
    attempts: Vec<i32>,
    seconds: Vec<f64>,
    worker: Vec<i32>,
    was_tried: Vec<i16>,
    /// The number of bytes of all these, about.
    bytes: usize,
}

impl Group {
    fn add(&mut self, row: &TableRow<'_>) {
        let (outcome, reason) = outcome(row);
        let (is_done, attempt) = (is_done(row), attempt(row));
        let kept = if is_done { row.outputs } else { &[] };
        self.values.resize_with(row.inputs.len() + row.outputs.len(), Vec::new);
        let given = row.inputs.iter().chain(kept);
        self.values.iter_mut().zip(given).for_each(|(column, &value)| column.push(value));
        self.index.push(row.index as i64);
        self.has_result.push(is_done.into());
        self.outcome.push(outcome.into());
        self.reason.push(reason.into());
        self.attempts.push(row.attempts as i32);
        self.seconds.extend(attempt.map(|(seconds, _)| seconds));
        self.worker.extend(attempt.map(|(_, worker)| worker as i32));
        self.was_tried.push(attempt.is_some().into());
        self.bytes += 8 * self.values.len() + 2 * size_of::<ByteArray>() + reason.len() + 40;
    }

    fn write<W: Write + Send>(self, inputs: usize, writer: &mut SerializedFileWriter<W>) -> Result<()> {
        let mut rows = writer.next_row_group()?;
        put::<Int64Type, W>(&mut rows, &self.index, None)?;
        for (at, values) in self.values.iter().enumerate() {
            put::<DoubleType, W>(&mut rows, values, (at >= inputs).then_some(&self.has_result))?;
        }
        put::<ByteArrayType, W>(&mut rows, &self.outcome, None)?;
        put::<ByteArrayType, W>(&mut rows, &self.reason, None)?;
        put::<Int32Type, W>(&mut rows, &self.attempts, None)?;
        put::<DoubleType, W>(&mut rows, &self.seconds, Some(&self.was_tried))?;
        put::<Int32Type, W>(&mut rows, &self.worker, Some(&self.was_tried))?;
        rows.close().map(drop)
    }
}

/// Writes the next column of a group.
fn put<T: DataType, W: Write + Send>(
    rows: &mut SerializedRowGroupWriter<'_, W>,
    values: &[T::T],
    levels: Option<&Vec<i16>>,
) -> Result<()> {
    let missing = || ParquetError::General("a column more than the schema has".to_owned());
    let mut column = rows.next_column()?.ok_or_else(missing)?;
    column.typed::<T>().write_batch(values, levels.map(Vec::as_slice), None)?;
    column.close()
}
