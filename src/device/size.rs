//! The size of the disk while it is served: what requests are checked against, and what the guest is told of.
//!
//! Both are one number, so that they change at once, and it is in whole logical blocks. Knows nothing of how the frontend
//! is told, only whether it has to be.

use std::sync::atomic::{AtomicU64, Ordering};

use tracing::warn;

use crate::image::Image;

/// No size: the frontend has not asked for any.
const NEVER: u64 = u64::MAX;

/// The size of one session's disk.
pub(super) struct Size {
    block_size: u64,
    /// Bytes of the image, when it was looked at last.
    image: AtomicU64,
    /// Bytes that the guest may address.
    len: AtomicU64,
    /// What the frontend has read last.
    told: AtomicU64,
}

impl Size {
    /// What `image_len` bytes have room for, in blocks of `block_size` bytes.
    pub(super) fn new(image_len: u64, block_size: u32) -> Self {
        let size = Self {
            block_size: block_size.into(),
            image: AtomicU64::new(image_len),
            len: AtomicU64::new(0),
            told: AtomicU64::new(NEVER),
        };
        size.set(image_len);
        size
    }

    /// The size of `image` as it is now: it may have changed since the last connection.
    pub(super) fn of(image: &dyn Image, block_size: u32) -> Self {
        let len = image.refresh_len().unwrap_or_else(|error| {
            warn!(%error, "cannot find the image's size: taken to be what it was");
            image.len()
        });
        Self::new(len, block_size)
    }

    fn set(&self, image_len: u64) {
        let rest = image_len % self.block_size;
        if rest != 0 {
            warn!(bytes = rest, "the image's last bytes are no whole block and not served");
        }
        self.image.store(image_len, Ordering::Relaxed);
        self.len.store(image_len - rest, Ordering::Release);
    }

    /// Bytes that the guest may address.
    pub(super) fn len(&self) -> u64 {
        self.len.load(Ordering::Acquire)
    }

    /// Looks at the image anew. If it has another size than before, that is what counts from now on: the bytes that it had
    /// and has. By one thread at a time. If it can't be found, it stays what it was: the next look is soon enough.
    pub(super) fn follow(&self, image: &dyn Image) -> Option<(u64, u64)> {
        let now = image.refresh_len().ok()?;
        let before = self.image.load(Ordering::Relaxed);
        (now != before).then(|| {
            self.set(now);
            (before, now)
        })
    }

    /// The frontend reads the size: what it is told.
    pub(super) fn tell(&self) -> u64 {
        let len = self.len();
        self.told.store(len, Ordering::Release);
        len
    }

    /// Whether the frontend knows the size. One that has come back to a backend that was started anew has not asked: it
    /// goes on with what it knows.
    pub(super) fn is_told(&self) -> bool {
        self.told.load(Ordering::Acquire) == self.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::RawImage;

    #[test]
    fn follows_the_image_in_whole_blocks() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let resize = |len| file.as_file().set_len(len).unwrap();
        resize(10 * 4096 + 512);
        let image = RawImage::open(file.path(), false).unwrap();
        let size = Size::of(&image, 4096);
        assert_eq!(size.len(), 10 * 4096);
        assert_eq!(size.follow(&image), None);
        assert!(!size.is_told());
        assert_eq!(size.tell(), 10 * 4096);
        // Too little for another block, but the image is larger.
        resize(10 * 4096 + 1024);
        assert_eq!(size.follow(&image), Some((10 * 4096 + 512, 10 * 4096 + 1024)));
        assert!(size.is_told());
        assert_eq!(image.len(), 10 * 4096 + 1024);
        for blocks in [11, 3] {
            resize(blocks * 4096);
            assert!(size.is_told());
            assert!(size.follow(&image).is_some() && !size.is_told());
            assert_eq!((size.len(), image.len()), (blocks * 4096, blocks * 4096));
            assert_eq!(size.tell(), blocks * 4096);
            assert!(size.is_told() && size.follow(&image).is_none());
        }
    }
}
