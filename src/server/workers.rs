//! Threads for connections: each has one, and some wait for the next when theirs has ended.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// Bytes of stack of a connection's thread. The deepest path, decoding nested items up to their limit, takes about a tenth of it.
pub const STACK_BYTES: usize = 256 << 10;

/// Threads that wait for a connection, at the most. To start one takes as long as a short request twice over; clients that ask often ask one
/// after the other, and a few at once.
const IDLE_MAX: usize = 4;

/// How long a thread waits for a connection. Then its stack goes back to the system, which a guest that is left alone shall have.
const IDLE_TIME: Duration = Duration::from_secs(1);

type Work = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Queue {
    /// Never more than threads that wait.
    work: VecDeque<Work>,
    idle: usize,
}

/// The threads of one agent.
#[derive(Default)]
pub struct Workers {
    queue: Mutex<Queue>,
    more: Condvar,
}

impl Workers {
    /// Does the work in a thread of its own.
    ///
    /// # Errors
    /// No thread could be started; the work is dropped.
    pub fn start(self: &Arc<Workers>, work: Work) -> io::Result<()> {
        let mut queue = self.queue();
        if queue.work.len() < queue.idle {
            queue.work.push_back(work);
            drop(queue);
            self.more.notify_one();
            return Ok(());
        }
        drop(queue);
        let workers = Arc::clone(self);
        let run = move || {
            work();
            while let Some(next) = workers.next() {
                next();
            }
        };
        thread::Builder::new().stack_size(STACK_BYTES).spawn(run).map(drop)
    }

    /// The next work for this thread; `None`: it is to end.
    fn next(&self) -> Option<Work> {
        let mut queue = self.queue();
        if queue.idle == IDLE_MAX {
            return None;
        }
        queue.idle += 1;
        let waited = self.more.wait_timeout_while(queue, IDLE_TIME, |queue| queue.work.is_empty());
        let (mut queue, _) = waited.unwrap_or_else(PoisonError::into_inner);
        queue.idle -= 1;
        queue.work.pop_front()
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        // Nothing panics while it is locked.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Instant;

    use super::*;

    fn name_of_thread(workers: &Arc<Workers>) -> thread::ThreadId {
        let (said, heard) = mpsc::channel();
        workers
            .start(Box::new(move || said.send(thread::current().id()).expect("somebody listens")))
            .expect("a thread");
        heard.recv().expect("the work is done")
    }

    fn wait_for_idle(workers: &Workers, count: usize) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while workers.queue().idle != count {
            assert!(Instant::now() < deadline, "{} threads wait", workers.queue().idle);
            thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn a_thread_that_is_done_does_the_next_work_and_ends_when_none_comes() {
        let workers = Arc::new(Workers::default());
        let first = name_of_thread(&workers);
        wait_for_idle(&workers, 1);
        assert_eq!(name_of_thread(&workers), first);
        wait_for_idle(&workers, 1);
        wait_for_idle(&workers, 0);
        assert_ne!(name_of_thread(&workers), first);
    }

    #[test]
    fn work_that_blocks_holds_up_no_other_and_few_threads_wait_afterwards() {
        let workers = Arc::new(Workers::default());
        let (gates, doors): (Vec<_>, Vec<_>) = (0..IDLE_MAX + 3).map(|_| mpsc::channel::<()>()).unzip();
        for door in doors {
            let wait = move || {
                let _ = door.recv();
            };
            workers.start(Box::new(wait)).expect("a thread");
        }
        name_of_thread(&workers);
        wait_for_idle(&workers, 1);
        drop(gates);
        wait_for_idle(&workers, IDLE_MAX);
    }
}
