//! How much memory this machine has to spare.

/// Bytes that can be taken without pushing others' pages out; 0 where the kernel doesn't say.
pub fn available() -> u64 {
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|rest| rest.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.unwrap_or(0).saturating_mul(1024)
}

#[cfg(test)]
mod tests {
    #[test]
    fn this_machine_has_some() {
        assert!(super::available() > 1 << 20);
    }
}
