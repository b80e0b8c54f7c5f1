//! Reads request traces into a workload: Mooncake's JSON lines and Azure's CSV, plain or packed with zstd.
//!
//! The form is told by the content, not by the name. Timestamps are read from JSON lines only. Every complaint names
//! the file, the line, and what was expected there.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use serde::Deserialize;

use crate::failure::Failure;
use crate::keys::BLOCK_TOKENS;
use crate::prefix_tree::PrefixTree;
use crate::workload::{Arrival, MAX_BLOCKS, Workload};
use crate::zstd::{Frames, MAGIC};

/// Longest line; the longest of the public traces has 20 KB.
const MAX_LINE_BYTES: u64 = 64 << 20;

/// Trace files know no tenants.
const TENANT: u64 = 0;

const EXPECTED_JSON: &str =
    r#"expected {"timestamp": 0, "input_length": 1024, "output_length": 9, "hash_ids": [0, 1]}"#;
const EXPECTED_CSV: &str = "expected the columns TIMESTAMP,ContextTokens,GeneratedTokens";
const EXPECTED_ANY: &str = concat!(
    r#"expected {"timestamp": 0, "input_length": 1024, "output_length": 9, "hash_ids": [0, 1]}, "#,
    "or a CSV with the columns TIMESTAMP,ContextTokens,GeneratedTokens"
);

/// One line of a Mooncake trace; other fields are ignored.
#[derive(Deserialize)]
struct Record {
    timestamp: Option<f64>,
    input_length: i64,
    output_length: i64,
    hash_ids: Vec<u64>,
}

/// Reads at most `limit` requests of a trace file.
pub(crate) fn read(path: &Path, limit: usize) -> Result<Workload, Failure> {
    let name = path.display().to_string();
    let refuse = |reason: String| Failure::Input(format!("{name}: {reason}; expected a trace file"));
    let file = File::open(path).map_err(|error| refuse(error.to_string()))?;
    if file.metadata().is_ok_and(|metadata| metadata.is_dir()) {
        return Err(refuse("is a directory".into()));
    }
    let mut start = Vec::new();
    let mut source = BufReader::with_capacity(1 << 16, file);
    (&mut source).take(4).read_to_end(&mut start).map_err(|error| refuse(error.to_string()))?;
    let is_packed = start == MAGIC;
    if !is_packed && path.extension().is_some_and(|extension| extension == "zst") {
        return Err(refuse("does not begin like a zstd file".into()));
    }
    let whole = std::io::Cursor::new(start).chain(source);
    let reader: Box<dyn BufRead> =
        if is_packed { Box::new(BufReader::new(Frames::new(whole))) } else { Box::new(whole) };
    parse(Lines { reader, name, number: 0, line: Vec::new() }, limit)
}

/// Tells the form by the first line that is not blank and reads the rest.
fn parse(mut lines: Lines, limit: usize) -> Result<Workload, Failure> {
    let mut workload = Workload::new(lines.name.clone());
    if !lines.advance()? {
        return Err(Failure::Input(format!(
            "{}:{}: the trace is empty; {EXPECTED_ANY}",
            lines.name,
            lines.number.max(1)
        )));
    }
    if lines.line.starts_with(b"{") {
        read_mooncake(&mut lines, &mut workload, limit)?;
    } else if let Some(column) = lines.text()?.split(',').position(|name| name.trim() == "ContextTokens") {
        read_azure(&mut lines, &mut workload, limit, column)?;
    } else {
        return Err(lines.refuse(format!("neither JSON nor a known CSV header; {EXPECTED_ANY}")));
    }
    if workload.requests() == 0 {
        return Err(
            lines.refuse(format!("the trace holds no request; {EXPECTED_CSV} and one line a request"))
        );
    }
    Ok(workload)
}

/// JSON lines; the first is already there.
fn read_mooncake(lines: &mut Lines, workload: &mut Workload, limit: usize) -> Result<(), Failure> {
    let mut tree = PrefixTree::default();
    loop {
        let record: Record =
            serde_json::from_slice(&lines.line).map_err(|error| lines.refuse_json(&error))?;
        let input_tokens = lines.check_length("input_length", record.input_length)? as u64;
        let output_tokens = lines.check_length("output_length", record.output_length)? as u64;
        lines.check_room(workload, record.hash_ids.len())?;
        let mut parent = None;
        for &id in &record.hash_ids {
            let node = tree.node(parent, id, lines.number).map_err(|text| lines.refuse(text))?;
            workload.push_block(node);
            parent = Some(id);
        }
        workload.finish_request(TENANT);
        // Times that are not all there, or run backwards, are as good as none.
        let before = workload.arrivals().last().map_or(0.0, |arrival| arrival.ms);
        if let Some(ms) = record.timestamp.filter(|&ms| ms >= before)
            && workload.arrivals().len() + 1 == workload.requests()
        {
            workload.push_arrival(Arrival { ms, input_tokens, output_tokens });
        }
        if workload.requests() >= limit || !lines.advance()? {
            return Ok(());
        }
    }
}

/// CSV with lengths only: nothing says which prompts share a prefix, so every block is a new one.
fn read_azure(
    lines: &mut Lines,
    workload: &mut Workload,
    limit: usize,
    context_column: usize,
) -> Result<(), Failure> {
    let columns: Vec<String> = lines.text()?.split(',').map(|name| name.trim().to_string()).collect();
    let Some(generated_column) = columns.iter().position(|name| name == "GeneratedTokens") else {
        return Err(lines.refuse(format!("the header has no column GeneratedTokens; {EXPECTED_CSV}")));
    };
    let mut node = 0;
    while workload.requests() < limit && lines.advance()? {
        let cells: Vec<&str> = lines.text()?.split(',').collect();
        if cells.len() != columns.len() {
            let reason = format!("{} cells under a header of {}; {EXPECTED_CSV}", cells.len(), columns.len());
            return Err(lines.refuse(reason));
        }
        let tokens = lines.length(&columns[context_column], cells[context_column])?;
        lines.length(&columns[generated_column], cells[generated_column])?;
        let blocks = tokens.div_ceil(BLOCK_TOKENS);
        lines.check_room(workload, blocks)?;
        for _ in 0..blocks {
            workload.push_block(node);
            node += 1;
        }
        workload.finish_request(TENANT);
    }
    Ok(())
}

/// The lines of a file that are not blank, one at a time in one buffer.
struct Lines {
    reader: Box<dyn BufRead>,
    name: String,
    /// Of the line in the buffer, from 1.
    number: u64,
    line: Vec<u8>,
}

impl Lines {
    /// Moves to the next line that is not blank; false at the end.
    fn advance(&mut self) -> Result<bool, Failure> {
        loop {
            self.line.clear();
            let read = (&mut self.reader).take(MAX_LINE_BYTES).read_until(b'\n', &mut self.line);
            match read {
                Ok(0) => return Ok(false),
                Ok(_) => self.number += 1,
                Err(error) => {
                    self.number += 1;
                    return Err(self.refuse(format!(
                        "cannot be read from here on: {error}; expected the rest of the trace"
                    )));
                }
            }
            if self.line.len() as u64 == MAX_LINE_BYTES {
                return Err(self.refuse(format!("longer than {MAX_LINE_BYTES} bytes; expected one request")));
            }
            let blank = self.line.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
            self.line.drain(..blank);
            self.line.truncate(self.line.trim_ascii_end().len());
            if !self.line.is_empty() {
                return Ok(true);
            }
        }
    }

    /// The line as text.
    fn text(&self) -> Result<&str, Failure> {
        std::str::from_utf8(&self.line)
            .map_err(|_| self.refuse("not UTF-8 text; expected JSON or CSV".into()))
    }

    /// A count of tokens in a CSV cell.
    fn length(&self, column: &str, cell: &str) -> Result<usize, Failure> {
        let value = cell.trim().parse().map_err(|_| {
            self.refuse(format!("{column} is {:?}; expected a whole number of tokens", cell.trim()))
        })?;
        self.check_length(column, value)
    }

    /// Sequence lengths are 32-bit in the tables of every engine; more is a mistake in the trace.
    fn check_length(&self, field: &str, value: i64) -> Result<usize, Failure> {
        match i32::try_from(value) {
            Ok(length) if length >= 0 => Ok(length as usize),
            _ => Err(self.refuse(format!("{field} is {value}; expected 0 to {} tokens", i32::MAX))),
        }
    }

    fn check_room(&self, workload: &Workload, blocks: usize) -> Result<(), Failure> {
        match workload.blocks() + blocks <= MAX_BLOCKS {
            true => Ok(()),
            false => Err(self.refuse(format!("more than {MAX_BLOCKS} blocks; cut the trace with --limit"))),
        }
    }

    fn refuse_json(&self, error: &serde_json::Error) -> Failure {
        let text = error.to_string();
        // The parser sees one line at a time; its own "line 1" would mislead.
        let reason = text.split(" at line ").next().unwrap_or(&text);
        self.refuse(format!("{reason} (column {}); {EXPECTED_JSON}", error.column()))
    }

    fn refuse(&self, reason: String) -> Failure {
        Failure::Input(format!("{}:{}: {reason}", self.name, self.number))
    }
}

#[cfg(test)]
#[path = "trace_tests.rs"]
mod tests;
