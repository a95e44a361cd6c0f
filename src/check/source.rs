//! Tree blocks of an image that nobody writes to.

use std::sync::{Arc, PoisonError, RwLock};

use parser::map::Physical;
use parser::{ChecksumType, Header};
use shadow::{BlockSource, Geometry, ReadError, TreeBlock};

use crate::image::Image;

/// Nodes that are kept, to come down to leaf after leaf without reading them again.
const NODE_LIMIT: usize = 4096;

/// Reads blocks from an image; keeps nodes, which are few, and no leaves.
pub struct ImageSource {
    image: Arc<dyn Image>,
    nodesize: u32,
    sectorsize: u32,
    csum: ChecksumType,
    devid: u64,
    nodes: RwLock<std::collections::HashMap<u64, Arc<TreeBlock>>>,
}

impl ImageSource {
    /// Reads from `image`, whose blocks look like `geometry` says.
    #[must_use]
    pub fn new(image: Arc<dyn Image>, geometry: &Geometry) -> Self {
        ImageSource {
            image,
            nodesize: geometry.nodesize,
            sectorsize: geometry.sectorsize,
            csum: geometry.csum,
            devid: geometry.devid,
            nodes: RwLock::default(),
        }
    }
}

impl BlockSource for ImageSource {
    fn read(&self, place: Physical) -> Result<Arc<TreeBlock>, ReadError> {
        if place.devid != self.devid {
            return Err(ReadError::ForeignDevice(place.devid));
        }
        if let Some(node) = self.nodes.read().unwrap_or_else(PoisonError::into_inner).get(&place.offset) {
            return Ok(Arc::clone(node));
        }
        let end = place.offset.checked_add(self.nodesize.into());
        if end.is_none_or(|end| end > self.image.len()) {
            return Err(ReadError::OutOfBounds { devid: place.devid, offset: place.offset });
        }
        let mut bytes = vec![0; self.nodesize as usize].into_boxed_slice();
        self.image.read_at(&mut bytes, place.offset).map_err(|error| ReadError::Io(error.to_string()))?;
        let block = Arc::new(TreeBlock::new(bytes, self.csum, self.sectorsize));
        if Header::parse(block.bytes()).is_ok_and(|header| header.level() > 0) {
            let mut nodes = self.nodes.write().unwrap_or_else(PoisonError::into_inner);
            if nodes.len() < NODE_LIMIT {
                nodes.insert(place.offset, Arc::clone(&block));
            }
        }
        Ok(block)
    }
}
