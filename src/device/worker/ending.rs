//! What has come of requests that were begun: completions of the engine, answers of the tap, and what follows from them
//! before the guest may hear of it. Knows nothing of rings.

use std::io;

use super::{IOERR, OK, Worker};
use crate::device::in_flight::Stage;
use crate::engine::{Buffer, Completion};

impl Worker {
    /// Handles completions and answers until there are none.
    pub(super) fn reap(&mut self) {
        let (mut completions, mut answers) = (Vec::new(), Vec::new());
        loop {
            self.engine.completions(&mut completions);
            self.answers.take(&mut answers);
            if completions.is_empty() && answers.is_empty() {
                return;
            }
            for completion in completions.drain(..) {
                let token = completion.token;
                if self.guarded(|worker| worker.completed(completion)).is_none() {
                    self.finish(token, IOERR, 0);
                }
            }
            for (token, result) in answers.drain(..) {
                self.answered(token, result);
            }
            // What was completed may have been followed up by a flush.
            self.engine.submit();
        }
    }

    fn completed(&mut self, completion: Completion) {
        let Completion { token, result, buffer } = completion;
        let Some(stage) = self.pending.get(token).map(|pending| pending.stage) else { return };
        if let Err(error) = &result {
            self.report_failure(format_args!("I/O error ({stage:?}): {error}"));
        }
        let tap = self.shared.tap.clone();
        match (stage, result, buffer) {
            (Stage::Read { len }, Ok(()), _) => self.finish(token, OK, len),
            (Stage::Write { offset, .. }, Ok(()), buffer) => {
                if let Some(Buffer::Owned(bytes)) = buffer {
                    tap.written(offset, bytes);
                }
                self.written(token);
            }
            (Stage::Write { offset, len }, Err(_), _) => {
                tap.write_failed(offset, len);
                self.finish(token, IOERR, 0);
            }
            (Stage::Flush { begun }, Ok(()), _) => {
                tap.flushed(begun);
                self.finish(token, OK, 0);
            }
            (Stage::Flush { .. }, Err(_), _) => self.flush_failed(token),
            (Stage::Erase { left, failed }, result, _) => {
                self.erased(token, left.saturating_sub(1), failed || result.is_err());
            }
            _ => self.finish(token, IOERR, 0),
        }
    }

    /// The tap has answered a held write.
    fn answered(&mut self, token: u64, result: io::Result<()>) {
        let Some(Stage::Held { len }) = self.pending.get(token).map(|pending| pending.stage) else { return };
        self.held_bytes -= len;
        self.set_stage(token, Stage::New);
        match result {
            Ok(()) => self.written(token),
            Err(error) => {
                self.report_failure(format_args!("a held write was not carried out: {error}"));
                self.finish(token, IOERR, 0);
            }
        }
    }

    /// One range of a request is done; the last one ends it.
    fn erased(&mut self, token: u64, left: usize, failed: bool) {
        self.set_stage(token, Stage::Erase { left, failed });
        if left > 0 {
            return;
        }
        let ranges = self.pending.get_mut(token).map(|pending| std::mem::take(&mut pending.erasing));
        for (offset, len) in ranges.unwrap_or_default() {
            self.shared.tap.erased(offset, len);
        }
        if failed { self.finish(token, IOERR, 0) } else { self.written(token) }
    }

    fn written(&mut self, token: u64) {
        if self.shared.write_cache.is_write_through() {
            self.flush(token);
        } else {
            self.finish(token, OK, 0);
        }
    }
}
