//! What is let go, kept elsewhere: rows as compressed lines of JSON, each file with a manifest beside it.
//!
//! A file counts as written once it was synced and read back: only then may its rows be removed.

use std::{
    fs::{self, File},
    io::{self, BufRead as _, BufReader, BufWriter, Read, Write},
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use flate2::{Compression, bufread::GzDecoder, write::GzEncoder};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// A file that is being written. Without [`Export::finish`], nothing of it stays under its name.
pub struct Export {
    folder: PathBuf,
    name: String,
    table: &'static str,
    lines: GzEncoder<Hashed<BufWriter<File>>>,
    rows: u64,
}

/// What a file holds; stands beside it as `NAME.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The file, in the same folder.
    pub file: String,
    /// The table that the rows are from; each line is one row, as `row_to_json` writes it.
    pub table: String,
    /// Lines in the file.
    pub rows: u64,
    /// Its length as it is, compressed.
    pub bytes: u64,
    /// Its SHA-256 as it is, compressed, in lower-case hex.
    pub sha256: String,
}

impl Export {
    /// Begins a file `NAME.ndjson.gz` in the folder, which is made if it is not there.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn begin(folder: &Path, name: &str, table: &'static str) -> anyhow::Result<Self> {
        let name = format!("{name}.ndjson.gz");
        let context = || format!("cannot write the export {}", folder.join(&name).display());
        fs::create_dir_all(folder).with_context(context)?;
        let file = File::create(unfinished(folder, &name)).with_context(context)?;
        let hashed = Hashed { inner: BufWriter::new(file), hash: Sha256::new(), bytes: 0 };
        let lines = GzEncoder::new(hashed, Compression::fast());
        Ok(Self { folder: folder.to_owned(), name, table, lines, rows: 0 })
    }

    /// Adds a row.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn add(&mut self, json: &str) -> anyhow::Result<()> {
        self.rows += 1;
        let written = self.lines.write_all(json.as_bytes()).and_then(|()| self.lines.write_all(b"\n"));
        written.with_context(|| format!("cannot write the export {}", self.folder.join(&self.name).display()))
    }

    /// Syncs the file, gives it its name and its manifest, and reads both back.
    ///
    /// # Errors
    /// If anything of it fails, or what is read is not what was written.
    pub fn finish(self) -> anyhow::Result<Manifest> {
        let path = self.folder.join(&self.name);
        let manifest = self.write().with_context(|| format!("cannot write the export {}", path.display()))?;
        let read = verify(&path)?;
        anyhow::ensure!(read == manifest, "the export {} is not what was written", path.display());
        Ok(manifest)
    }

    fn write(self) -> io::Result<Manifest> {
        let hashed = self.lines.finish()?;
        let manifest = Manifest {
            file: self.name.clone(),
            table: self.table.to_owned(),
            rows: self.rows,
            bytes: hashed.bytes,
            sha256: hex(&hashed.hash.finalize()),
        };
        hashed.inner.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
        fs::rename(unfinished(&self.folder, &self.name), self.folder.join(&self.name))?;
        let beside = format!("{}.json", self.name);
        let mut file = File::create(unfinished(&self.folder, &beside))?;
        file.write_all(serde_json::to_string_pretty(&manifest)?.as_bytes())?;
        file.sync_all()?;
        fs::rename(unfinished(&self.folder, &beside), self.folder.join(&beside))?;
        File::open(&self.folder)?.sync_all()?;
        Ok(manifest)
    }
}

/// Reads an export through, and compares it with its manifest.
///
/// # Errors
/// If one of them cannot be read, or they do not fit.
pub fn verify(path: &Path) -> anyhow::Result<Manifest> {
    let context = || format!("cannot read the export {}", path.display());
    let beside = format!("{}.json", path.display());
    let manifest: Manifest = serde_json::from_slice(&fs::read(beside).with_context(context)?).with_context(context)?;
    let file = Hashed { inner: File::open(path).with_context(context)?, hash: Sha256::new(), bytes: 0 };
    let mut lines = BufReader::new(GzDecoder::new(BufReader::new(file)));
    let (mut rows, mut line) = (0, Vec::new());
    while lines.read_until(b'\n', &mut line).with_context(context)? > 0 {
        serde_json::from_slice::<serde::de::IgnoredAny>(&line).with_context(context)?;
        line.clear();
        rows += 1;
    }
    let mut compressed = lines.into_inner().into_inner();
    io::copy(&mut compressed, &mut io::sink()).with_context(context)?;
    let read = compressed.into_inner();
    let found = Manifest { rows, bytes: read.bytes, sha256: hex(&read.hash.finalize()), ..manifest.clone() };
    anyhow::ensure!(found == manifest, "the export {} does not fit its manifest", path.display());
    Ok(manifest)
}

/// Under this name it is nothing yet.
fn unfinished(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}.unfinished"))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Counts and hashes what goes through.
struct Hashed<T> {
    inner: T,
    hash: Sha256,
    bytes: u64,
}

impl<T> Hashed<T> {
    fn saw(&mut self, bytes: &[u8]) {
        self.hash.update(bytes);
        self.bytes += bytes.len() as u64;
    }
}

impl<T: Write> Write for Hashed<T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.saw(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<T: Read> Read for Hashed<T> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.saw(&buffer[..read]);
        Ok(read)
    }
}
