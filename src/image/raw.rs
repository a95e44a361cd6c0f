//! Raw images: regular files and block devices, byte for byte.
//!
//! Holes stay holes: nothing is written that wasn't asked for, and nothing is preallocated.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use super::Image;
use crate::engine::{Engine, SyncEngine};

/// A file or block device whose bytes are the disk's.
pub struct RawImage {
    file: Arc<File>,
    len: u64,
    read_only: bool,
}

impl RawImage {
    /// Opens the image at `path`. The size is what it is now; a file that grows later is not followed.
    pub fn open(path: &Path, read_only: bool) -> io::Result<Self> {
        let explain = |error: io::Error, what: &str| {
            io::Error::new(error.kind(), format!("{what} {}: {error}", path.display()))
        };
        // A block device that is mounted, or part of another device, must not be written to behind its user's back.
        let is_device = std::fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_block_device());
        let exclusive = if is_device && !read_only { libc::O_EXCL } else { 0 };
        let access = if read_only { "cannot open (read-only)" } else { "cannot open for writing" };
        let mut file = OpenOptions::new()
            .read(true)
            .write(!read_only)
            .custom_flags(exclusive)
            .open(path)
            .map_err(|error| explain(error, access))?;
        let kind = file.metadata().map_err(|error| explain(error, "cannot examine"))?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            let error =
                io::Error::new(io::ErrorKind::InvalidInput, "neither a regular file nor a block device");
            return Err(explain(error, "cannot use"));
        }
        // Unlike the file's metadata, this is the size of block devices as well.
        let len = file.seek(SeekFrom::End(0)).map_err(|error| explain(error, "cannot find the size of"))?;
        Ok(Self { file: Arc::new(file), len, read_only })
    }

    fn refuse_if_read_only(&self) -> io::Result<()> {
        if self.read_only { Err(io::ErrorKind::ReadOnlyFilesystem.into()) } else { Ok(()) }
    }
}

impl Image for RawImage {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.refuse_if_read_only()?;
        // A file would grow instead of refusing.
        match offset.checked_add(buf.len() as u64) {
            Some(end) if end <= self.len => self.file.write_all_at(buf, offset),
            _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "write past the end of the image")),
        }
    }

    fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn engine(&self) -> io::Result<Box<dyn Engine>> {
        Ok(Box::new(SyncEngine::new(self.file.clone())))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn image_of(len: u64, read_only: bool) -> (RawImage, tempfile::NamedTempFile) {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(len).unwrap();
        (RawImage::open(file.path(), read_only).unwrap(), file)
    }

    #[test]
    fn stays_sparse() {
        let (image, file) = image_of(1 << 30, false);
        assert_eq!(image.len(), 1 << 30);
        image.write_at(&[1; 4096], 512 << 20).unwrap();
        image.flush().unwrap();
        assert!(file.as_file().metadata().unwrap().blocks() * 512 < 1 << 20);
        let mut bytes = [9; 8];
        image.read_at(&mut bytes, (512 << 20) + 4092).unwrap();
        assert_eq!(bytes, [1, 1, 1, 1, 0, 0, 0, 0]);
    }

    #[test]
    fn never_grows() {
        let (image, file) = image_of(4096, false);
        assert!(image.write_at(&[1; 512], 4000).is_err());
        assert!(image.write_at(&[1; 512], u64::MAX - 10).is_err());
        assert_eq!(file.as_file().metadata().unwrap().len(), 4096);
        let mut bytes = [0; 512];
        assert_eq!(image.read_at(&mut bytes, 4000).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn read_only_refuses_writes() {
        let (image, _file) = image_of(4096, true);
        assert!(image.read_only());
        assert_eq!(image.write_at(&[1], 0).unwrap_err().kind(), io::ErrorKind::ReadOnlyFilesystem);
    }

    #[test]
    fn errors_name_the_path() {
        let error = RawImage::open(Path::new("/nonexistent/disk.img"), false).err().unwrap();
        assert!(error.to_string().contains("/nonexistent/disk.img"), "{error}");
        let error = RawImage::open(Path::new("/dev/null"), false).err().unwrap();
        assert!(error.to_string().contains("/dev/null"), "{error}");
    }
}
