//! The `.walsh` file (`conformance/FORMAT.md`): a safetensors container whose metadata has one key, `walsh`, with one JSON
//! record {format, version, config, tokenizer, tensors: name -> {packing, shape, sha256}}.
//!
//! Every offset, size and code is checked before it is used; what is allocated is bounded by the sizes that the checked
//! header states and the file's own length.

use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::bitmask;

use crate::error::{Result, checked_product, error, require, try_vec};
use crate::json::Json;
use crate::rows::{Bytes, RowTable};
use crate::ternary;

/// Version of the format that is read.
const VERSION: i64 = 1;
/// Longest header.
const MAX_HEADER: usize = 16 << 20;
/// Most elements of one tensor: far above any model that fits, far below what could exhaust memory by a lie of a kilobyte.
const MAX_ELEMENTS: usize = 1 << 30;

/// Where a tensor stands and what it is.
#[derive(Clone, Debug)]
struct Entry {
    name: String,
    dtype: String,
    /// Shape of the stored bytes.
    stored: Vec<usize>,
    start: usize,
    length: usize,
    packing: String,
    /// Shape of the tensor.
    shape: Vec<usize>,
}

impl Entry {
    /// Whether it holds int4 codes that can be read where they are.
    fn four_bits(&self) -> bool {
        self.packing == "int4" && self.dtype == "U8"
    }
}

/// A parsed file.
pub struct Container {
    buffer: Vec<u8>,
    entries: Vec<Entry>,
    /// The model's configuration.
    pub config: Json,
    /// The tokenizer's description, or null.
    pub tokenizer: Json,
}

fn width(dtype: &str) -> Option<usize> {
    Some(match dtype {
        "I8" | "U8" => 1,
        "I32" | "F32" => 4,
        "I64" | "F64" => 8,
        _ => return None,
    })
}

impl Container {
    /// Parse and check a file; `verify` compares every tensor's SHA-256.
    pub fn parse(buffer: Vec<u8>, verify: bool) -> Result<Self> {
        let (header, data) = header(&buffer)?;
        let members = header.members().ok_or_else(|| error!(Format, "the header is no JSON object"))?;
        let mut entries = Vec::new();
        for (name, member) in members.iter().filter(|(name, _)| name != "__metadata__") {
            entries.push(entry(name, member, data, buffer.len())?);
        }
        check_coverage(&mut entries, data, buffer.len())?;
        let record = record(&header)?;
        describe(&mut entries, &record, &buffer, verify)?;
        let take = |key: &str| record.get(key).cloned().ok_or_else(|| error!(Format, "the record has no {key}"));
        Ok(Self { config: take("config")?, tokenizer: take("tokenizer")?, buffer, entries })
    }

    /// Bytes of the file.
    pub fn len(&self) -> usize {
        self.buffer.len()
    }

    /// Whether the file is empty; a parsed one never is.
    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    /// Names of all tensors.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().map(|entry| entry.name.as_str())
    }

    /// Shape of a tensor, if there is one of this name.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.entries.iter().find(|entry| entry.name == name).map(|entry| entry.shape.as_slice())
    }

    /// Bytes of a table of `rows` rows in memory, scales included.
    pub fn table_bytes(&self, stem: &str, rows: usize, width: usize) -> usize {
        let name = format!("{stem}.codes");
        let four_bits = self.find(&name).is_ok_and(Entry::four_bits);
        rows * RowTable::row_bytes(width, four_bits)
    }

    fn find(&self, name: &str) -> Result<&Entry> {
        self.entries
            .iter()
            .find(|entry| entry.name == name)
            .ok_or_else(|| error!(Parameter, "weight {name:?} is missing; make weights with `export`"))
    }

    fn stored(&self, entry: &Entry) -> &[u8] {
        &self.buffer[entry.start..entry.start + entry.length]
    }

    /// The entry, which must have this shape.
    fn shaped(&self, name: &str, shape: &[usize]) -> Result<&Entry> {
        let entry = self.find(name)?;
        require!(entry.shape == shape, Shape, "weight {name:?} has shape {:?}: expected {shape:?}", entry.shape);
        Ok(entry)
    }

    fn numbers<const N: usize, T>(
        &self,
        name: &str,
        shape: &[usize],
        dtype: &str,
        read: fn([u8; N]) -> T,
    ) -> Result<Vec<T>> {
        let entry = self.shaped(name, shape)?;
        let raw = entry.packing == "raw" && entry.dtype == dtype;
        require!(raw, DType, "weight {name:?} is {} ({}): expected {dtype}", entry.dtype, entry.packing);
        let mut numbers = Vec::new();
        let count = entry.length / N;
        numbers.try_reserve_exact(count).map_err(|_| error!(Capacity, "{count} numbers do not fit into memory"))?;
        numbers.extend(self.stored(entry).chunks_exact(N).map(|bytes| {
            let mut array = [0; N];
            array.copy_from_slice(bytes);
            read(array)
        }));
        Ok(numbers)
    }

    /// A float32 tensor of this shape, all of it finite.
    pub fn floats(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let numbers = self.numbers(name, shape, "F32", f32::from_le_bytes)?;
        require!(numbers.iter().all(|v| v.is_finite()), NonFinite, "weight {name:?} holds NaN or infinity");
        Ok(numbers)
    }

    /// A float64 tensor of this shape, all of it finite.
    pub fn doubles(&self, name: &str, shape: &[usize]) -> Result<Vec<f64>> {
        let numbers = self.numbers(name, shape, "F64", f64::from_le_bytes)?;
        require!(numbers.iter().all(|v| v.is_finite()), NonFinite, "weight {name:?} holds NaN or infinity");
        Ok(numbers)
    }

    /// An int64 tensor of this shape.
    pub fn integers(&self, name: &str, shape: &[usize]) -> Result<Vec<i64>> {
        self.numbers(name, shape, "I64", i64::from_le_bytes)
    }

    /// int8 codes of this shape, whatever their packing.
    pub fn codes(&self, name: &str, shape: &[usize]) -> Result<Vec<i8>> {
        let entry = self.shaped(name, shape)?;
        let stored = self.stored(entry);
        let mut codes = try_vec(checked_product(shape)?, 0i8)?;
        match (entry.packing.as_str(), entry.dtype.as_str()) {
            ("raw", "I8") => codes.iter_mut().zip(stored).for_each(|(code, &byte)| *code = byte as i8),
            ("two_bits", "U8") => {
                require!(stored.len() == codes.len().div_ceil(4), Format, "{name:?} has {} packed bytes", stored.len());
                let columns = codes.len();
                ternary::unpack(stored, columns, &mut codes)?;
            }
            ("bitmask", "U8") => {
                let mask = codes.len().div_ceil(8);
                require!(
                    stored.len() >= mask,
                    Format,
                    "{name:?} has {} bytes: expected a mask of {mask}",
                    stored.len()
                );
                let (mask, signs) = stored.split_at(mask);
                bitmask::decode(mask, signs, &mut codes)?;
            }
            ("base3", "U8") => ternary::unpack_base3(stored, &mut codes)?,
            ("base3_deflate", "U8") => {
                let bytes = inflate(name, stored, codes.len().div_ceil(5))?;
                ternary::unpack_base3(&bytes, &mut codes)?;
            }
            (packing, dtype) => {
                return Err(error!(DType, "weight {name:?} is {dtype} ({packing}): expected int8 or ternary codes"));
            }
        }
        Ok(codes)
    }

    /// The tables `{stem}.codes` [rows, width] with `{stem}.scale` [rows], read where they stand.
    ///
    /// This is the last that is taken from a file: what lies behind the tables is given back to the allocator, so a
    /// writer that puts tables first leaves next to nothing twice in memory.
    pub fn into_tables(mut self, tables: &[(String, usize, usize)]) -> Result<(Vec<RowTable>, usize)> {
        let mut plans = Vec::new();
        let (mut start, mut end) = (self.buffer.len(), 0);
        for (stem, rows, width) in tables {
            let name = format!("{stem}.codes");
            let entry = self.shaped(&name, &[*rows, *width])?;
            let scale = self.floats(&format!("{stem}.scale"), &[*rows])?;
            let four_bits = entry.four_bits();
            let in_place = four_bits || entry.packing == "raw" && entry.dtype == "I8";
            let owned = if in_place {
                (start, end) = (start.min(entry.start), end.max(entry.start + entry.length));
                None
            } else {
                Some(self.codes(&name, &[*rows, *width])?.into_iter().map(|code| code as u8).collect())
            };
            plans.push((entry.start, entry.length, four_bits, owned, scale, *rows, *width));
        }
        self.buffer.truncate(end);
        // Of a large file what stands before its tables is little, and moving them is dear.
        let before = if 50 * start > end { start.min(end) } else { 0 };
        self.buffer.drain(..before);
        self.buffer.shrink_to_fit();
        let (buffer, kept) = (Arc::new(self.buffer), end - before);
        let tables = plans.into_iter().map(|(start, length, four_bits, owned, scale, rows, width)| {
            let codes = match owned {
                Some(codes) => Bytes::owned(codes),
                None => Bytes::new(buffer.clone(), start - before, length)?,
            };
            RowTable::new(codes, rows, width, four_bits, scale)
        });
        Ok((tables.collect::<Result<Vec<_>>>()?, kept))
    }

    /// A byte string that was deflated, or stored as it is.
    pub fn bytes(&self, name: &str) -> Result<Vec<u8>> {
        let entry = self.find(name)?;
        let stored = self.stored(entry);
        match (entry.packing.as_str(), entry.dtype.as_str()) {
            ("raw", "U8") => Ok(stored.to_vec()),
            ("deflate", "U8") => inflate(name, stored, checked_product(&entry.shape)?),
            (packing, dtype) => Err(error!(DType, "tensor {name:?} is {dtype} ({packing}): expected bytes")),
        }
    }
}

/// The JSON header and where the data starts.
fn header(buffer: &[u8]) -> Result<(Json, usize)> {
    require!(buffer.len() >= 8, Format, "a file of {} bytes: expected at least 8", buffer.len());
    let mut length = [0; 8];
    length.copy_from_slice(&buffer[..8]);
    let length = u64::from_le_bytes(length);
    let room = (buffer.len() - 8).min(MAX_HEADER) as u64;
    require!(length <= room, Format, "a header of {length} bytes: expected at most {room}");
    let end = 8 + length as usize;
    require!(buffer[8..end].first() == Some(&b'{'), Format, "the header does not start with an opening brace");
    Ok((Json::parse("the header", &buffer[8..end])?, end))
}

fn entry(name: &str, member: &Json, data: usize, end: usize) -> Result<Entry> {
    let wrong = || error!(Format, "tensor {name:?}: expected dtype, shape and data_offsets");
    let fields = member.members().ok_or_else(wrong)?;
    require!(fields.len() == 3, Format, "tensor {name:?} has {} fields: expected 3", fields.len());
    let dtype = member.get("dtype").and_then(Json::text).ok_or_else(wrong)?;
    let stored = member.get("shape").and_then(Json::sizes).ok_or_else(wrong)?;
    let offsets = member.get("data_offsets").and_then(Json::sizes).ok_or_else(wrong)?;
    let &[from, to] = offsets.as_slice() else { return Err(wrong()) };
    let width =
        width(dtype).ok_or_else(|| error!(Format, "tensor {name:?} has dtype {dtype:?}: not of this format"))?;
    let inside = from <= to && to <= end - data;
    require!(inside, Format, "tensor {name:?} is at {from} .. {to} of {} bytes", end - data);
    let elements = checked_product(&stored).unwrap_or(usize::MAX);
    require!(elements <= MAX_ELEMENTS, Format, "tensor {name:?} has shape {stored:?}: too large");
    require!(
        elements * width == to - from,
        Format,
        "tensor {name:?} has {} bytes: expected {}",
        to - from,
        elements * width
    );
    Ok(Entry {
        name: name.to_owned(),
        dtype: dtype.to_owned(),
        stored,
        start: data + from,
        length: to - from,
        packing: String::new(),
        shape: Vec::new(),
    })
}

/// Tensors must cover the data without holes and without overlap.
fn check_coverage(entries: &mut [Entry], data: usize, end: usize) -> Result<()> {
    entries.sort_by_key(|entry| (entry.start, entry.length));
    let mut at = data;
    for entry in entries.iter() {
        require!(entry.start == at, Format, "tensor {:?} starts at {}: expected {at}", entry.name, entry.start);
        at += entry.length;
    }
    require!(at == end, Format, "{} bytes after the last tensor", end - at);
    Ok(())
}

fn record(header: &Json) -> Result<Json> {
    let metadata = header.get("__metadata__").and_then(Json::members);
    let text = match metadata {
        Some([(key, Json::Text(text))]) if key == "walsh" => text,
        _ => return Err(error!(Format, "__metadata__ must have one key, \"walsh\", with a text")),
    };
    let record = Json::parse("the record", text.as_bytes())?;
    let keys = ["format", "version", "config", "tokenizer", "tensors"];
    let members = record.members().ok_or_else(|| error!(Format, "the record is no JSON object"))?;
    if let Some((unknown, _)) = members.iter().find(|(key, _)| !keys.contains(&key.as_str())) {
        return Err(error!(Format, "the record has key {unknown:?}: expected {keys:?}"));
    }
    require!(
        record.get("format").and_then(Json::text) == Some("walsh"),
        Format,
        "the record is not of format \"walsh\""
    );
    let version = record.get("version");
    require!(version == Some(&Json::Integer(VERSION)), Format, "version {version:?}: expected {VERSION}");
    Ok(record)
}

/// Give every entry its packing and shape, and check its digest.
fn describe(entries: &mut [Entry], record: &Json, buffer: &[u8], verify: bool) -> Result<()> {
    let described =
        record.get("tensors").and_then(Json::members).ok_or_else(|| error!(Format, "the record has no tensors"))?;
    require!(described.len() == entries.len(), Format, "{} tensors, {} described", entries.len(), described.len());
    for entry in entries {
        let name = &entry.name;
        let wrong = || error!(Format, "tensor {name:?}: expected packing, shape and sha256 in the record");
        let (_, member) = described.iter().find(|(key, _)| key == name).ok_or_else(wrong)?;
        require!(member.members().is_some_and(|fields| fields.len() == 3), Format, "{}", wrong().message);
        entry.packing = member.get("packing").and_then(Json::text).ok_or_else(wrong)?.to_owned();
        entry.shape = member.get("shape").and_then(Json::sizes).ok_or_else(wrong)?;
        let digest = member.get("sha256").and_then(Json::text).ok_or_else(wrong)?;
        let elements = checked_product(&entry.shape).unwrap_or(usize::MAX);
        require!(elements <= MAX_ELEMENTS, Format, "tensor {name:?} has shape {:?}: too large", entry.shape);
        if entry.packing == "raw" {
            require!(entry.shape == entry.stored, Format, "tensor {name:?}: stored and described shapes differ");
        } else {
            require!(
                entry.dtype == "U8" && entry.stored.len() == 1,
                Format,
                "packed tensor {name:?} must be U8, one axis"
            );
            // No packing spends less than a thousandth of a byte on an element: a short lie cannot claim a long tensor.
            require!(
                elements / 5 / 1040 <= entry.length,
                Format,
                "tensor {name:?}: {elements} elements in {} bytes",
                entry.length
            );
        }
        if verify {
            let found = Sha256::digest(&buffer[entry.start..entry.start + entry.length]);
            let found: String = found.iter().map(|byte| format!("{byte:02x}")).collect();
            require!(found == digest, Format, "tensor {name:?} has SHA-256 {found}: expected {digest}");
        }
    }
    Ok(())
}

/// Inflate a zlib stream to exactly `length` bytes.
fn inflate(name: &str, stored: &[u8], length: usize) -> Result<Vec<u8>> {
    use miniz_oxide::inflate::{TINFLStatus, core};
    let mut bytes = try_vec(length, 0u8)?;
    let flags = core::inflate_flags::TINFL_FLAG_PARSE_ZLIB_HEADER
        | core::inflate_flags::TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF
        | core::inflate_flags::TINFL_FLAG_COMPUTE_ADLER32;
    let mut state = Box::<core::DecompressorOxide>::default();
    let (status, read, written) = core::decompress(&mut state, stored, &mut bytes, 0, flags);
    let whole = status == TINFLStatus::Done && read == stored.len() && written == length;
    require!(whole, Format, "tensor {name:?}: the stream is damaged or not of {length} bytes");
    Ok(bytes)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A file of raw tensors: (name, dtype, shape, bytes).
    pub fn file(config: &str, tokenizer: &str, tensors: &[(&str, &str, Vec<usize>, Vec<u8>)]) -> Vec<u8> {
        let (mut header, mut described, mut data) = (String::new(), String::new(), Vec::new());
        for (name, dtype, shape, bytes) in tensors {
            let digest: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
            let (start, end) = (data.len(), data.len() + bytes.len());
            header +=
                &format!(",\"{name}\":{{\"dtype\":\"{dtype}\",\"shape\":{shape:?},\"data_offsets\":[{start},{end}]}}");
            if !described.is_empty() {
                described.push(',');
            }
            described += &format!("\"{name}\":{{\"packing\":\"raw\",\"shape\":{shape:?},\"sha256\":\"{digest}\"}}");
            data.extend_from_slice(bytes);
        }
        let record = format!(
            "{{\"format\":\"walsh\",\"version\":1,\"config\":{config},\"tokenizer\":{tokenizer},\"tensors\":{{{described}}}}}"
        );
        let record = record.replace('\\', "\\\\").replace('"', "\\\"");
        let header = format!("{{\"__metadata__\":{{\"walsh\":\"{record}\"}}{header}}}");
        [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &data].concat()
    }

    fn example() -> Vec<u8> {
        file(
            "{}",
            "null",
            &[
                ("a", "F32", vec![2], [1.0f32, 2.0].iter().flat_map(|v| v.to_le_bytes()).collect()),
                ("b", "I8", vec![2, 2], vec![1, 0, 255, 0]),
            ],
        )
    }

    #[test]
    fn a_file_is_read() {
        let container = Container::parse(example(), true).unwrap();
        assert_eq!(container.floats("a", &[2]).unwrap(), [1.0, 2.0]);
        assert_eq!(container.codes("b", &[2, 2]).unwrap(), [1, 0, -1, 0]);
        assert!(container.floats("a", &[3]).is_err() && container.floats("b", &[2, 2]).is_err());
        assert!(container.floats("c", &[1]).is_err());
    }

    #[test]
    fn every_truncation_and_every_flipped_byte_is_refused_or_harmless() {
        let good = example();
        for length in 0..good.len() {
            assert!(Container::parse(good[..length].to_vec(), true).is_err(), "{length} bytes");
        }
        for at in 0..good.len() {
            for bit in 0..8 {
                let mut bad = good.clone();
                bad[at] ^= 1 << bit;
                if let Ok(container) = Container::parse(bad, true) {
                    // A name, a key inside the configuration or white space: the data is what it was.
                    assert!(container.entries.iter().map(|e| e.length).sum::<usize>() == 12);
                }
            }
        }
    }

    #[test]
    fn inflating_is_bounded_and_exact() {
        // A zlib stream of five zero bytes, stored.
        let stream = [0x78, 0x01, 1, 5, 0, 250, 255, 0, 0, 0, 0, 0, 0, 5, 0, 1];
        assert_eq!(inflate("x", &stream, 5).unwrap(), [0; 5]);
        assert!(inflate("x", &stream, 4).is_err() && inflate("x", &stream, 6).is_err());
        assert!(inflate("x", &stream[..10], 5).is_err());
        assert!(inflate("x", &[&stream[..], &[0]].concat(), 5).is_err(), "bytes after the end");
    }
}
