//! Tables as Parquet files.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;

use super::export::{Cell, Kind, Rows, Table};

/// Rows kept before they are written: they bound the memory.
const GROUP: usize = 1 << 17;

/// A table as `DIR/NAME.parquet`.
pub struct Parquet {
    writer: Option<SerializedFileWriter<File>>,
    columns: Vec<Column>,
    rows: usize,
}

/// The values of a column that are not written yet.
enum Column {
    /// With a level for each row: 1 where there is a value.
    Numbers(Vec<i64>, Option<Vec<i16>>),
    Words(Vec<ByteArray>),
}

impl Parquet {
    /// Creates the file.
    ///
    /// # Errors
    /// Whatever the file returns.
    pub fn create(dir: &Path, table: &Table) -> io::Result<Self> {
        let mut message = format!("message {} {{\n", table.name);
        for (name, kind) in table.columns {
            message += &match kind {
                Kind::Number => format!("required int64 {name};\n"),
                Kind::Maybe => format!("optional int64 {name};\n"),
                Kind::Word => format!("required binary {name} (UTF8);\n"),
            };
        }
        message.push('}');
        let schema = Arc::new(parse_message_type(&message).map_err(failed)?);
        let file = File::create(table.path(dir, "parquet"))?;
        let properties = Arc::new(WriterProperties::builder().build());
        let writer = SerializedFileWriter::new(file, schema, properties).map_err(failed)?;
        let columns = table.columns.iter().map(|(_, kind)| match kind {
            Kind::Number => Column::Numbers(Vec::new(), None),
            Kind::Maybe => Column::Numbers(Vec::new(), Some(Vec::new())),
            Kind::Word => Column::Words(Vec::new()),
        });
        Ok(Self { writer: Some(writer), columns: columns.collect(), rows: 0 })
    }

    fn flush(&mut self) -> Result<(), ParquetError> {
        let Some(writer) = &mut self.writer else { return Ok(()) };
        if std::mem::take(&mut self.rows) == 0 {
            return Ok(());
        }
        let mut group = writer.next_row_group()?;
        for column in &mut self.columns {
            let Some(mut to) = group.next_column()? else { break };
            match column {
                Column::Numbers(values, levels) => {
                    to.typed::<Int64Type>().write_batch(values, levels.as_deref(), None)?;
                    values.clear();
                    if let Some(levels) = levels {
                        levels.clear();
                    }
                }
                Column::Words(values) => {
                    to.typed::<ByteArrayType>().write_batch(values, None, None)?;
                    values.clear();
                }
            }
            to.close()?;
        }
        group.close()?;
        Ok(())
    }
}

/// The operating system's reason, if that is what it is.
fn failed(error: ParquetError) -> io::Error {
    match error {
        ParquetError::External(source) => match source.downcast::<io::Error>() {
            Ok(reason) => *reason,
            Err(other) => io::Error::other(other),
        },
        other => io::Error::other(other),
    }
}

impl Rows for Parquet {
    fn row(&mut self, cells: &[Cell]) -> io::Result<()> {
        for (column, cell) in self.columns.iter_mut().zip(cells) {
            match (column, *cell) {
                (Column::Numbers(values, levels), Cell::Number(number)) => {
                    values.push(number);
                    if let Some(levels) = levels {
                        levels.push(1);
                    }
                }
                (Column::Numbers(_, Some(levels)), Cell::Nothing) => levels.push(0),
                (Column::Words(values), Cell::Word(word)) => {
                    values.push(ByteArray::from(word));
                }
                _ => return Err(io::Error::other("a cell is not of its column's kind")),
            }
        }
        self.rows += 1;
        if self.rows == GROUP { self.flush().map_err(failed) } else { Ok(()) }
    }

    fn finish(&mut self) -> io::Result<()> {
        self.flush().map_err(failed)?;
        let Some(writer) = self.writer.take() else { return Ok(()) };
        writer.close().map(|_| ()).map_err(failed)
    }
}
