//! Threads beside the data plane's, for clients' connections: each has a runtime of its own and what was given to it.

use std::cell::Cell;
use std::io;
use std::thread::JoinHandle;

use tokio::sync::mpsc;
use tokio::task::LocalSet;

/// Begins something within the `LocalSet` of its thread.
type Job = Box<dyn FnOnce() + Send>;

/// When it is dropped, everything that runs on its threads is, and they end.
pub struct Crew {
    threads: Vec<Thread>,
    turn: Cell<usize>,
}

struct Thread {
    /// `None`: told to end.
    jobs: Option<mpsc::UnboundedSender<Job>>,
    handle: Option<JoinHandle<()>>,
}

impl Crew {
    pub fn start(count: usize) -> io::Result<Crew> {
        let threads = (0..count).map(Thread::start).collect::<io::Result<_>>()?;
        Ok(Crew { threads, turn: Cell::new(0) })
    }

    /// One thread after the other.
    pub fn give_next(&self, job: impl FnOnce() + Send + 'static) {
        let turn = self.turn.get();
        self.turn.set((turn + 1) % self.threads.len());
        self.threads[turn].give(Box::new(job));
    }

    /// Each thread one of its own.
    pub fn give_each<J: FnOnce() + Send + 'static>(
        &self,
        mut job: impl FnMut() -> io::Result<J>,
    ) -> io::Result<()> {
        self.threads.iter().try_for_each(|thread| {
            thread.give(Box::new(job()?));
            Ok(())
        })
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        self.threads.iter_mut().for_each(|thread| drop(thread.jobs.take()));
        for handle in self.threads.iter_mut().filter_map(|thread| thread.handle.take()) {
            // A panic has ended the process.
            let _ = handle.join();
        }
    }
}

impl Thread {
    fn start(number: usize) -> io::Result<Thread> {
        // Bounded by the connections there are.
        let (jobs, todo) = mpsc::unbounded_channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let name = format!("clients-{number}");
        let handle = std::thread::Builder::new().name(name).spawn(move || work(&runtime, todo))?;
        Ok(Thread { jobs: Some(jobs), handle: Some(handle) })
    }

    fn give(&self, job: Job) {
        let jobs = self.jobs.as_ref().expect("it ends only with the crew");
        assert!(jobs.send(job).is_ok(), "it ends only with the crew");
    }
}

fn work(runtime: &tokio::runtime::Runtime, mut todo: mpsc::UnboundedReceiver<Job>) {
    let tasks = LocalSet::new();
    tasks.block_on(runtime, async move {
        while let Some(job) = todo.recv().await {
            job();
        }
    });
    // What was begun is dropped where it ran.
    runtime.block_on(async move { drop(tasks) });
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::mpsc::channel;

    #[test]
    fn each_thread_gets_its_share_and_ends_with_what_it_runs() {
        let crew = Crew::start(3).unwrap();
        let (told, heard) = channel();
        let alive = Arc::new(());
        let job = |told: std::sync::mpsc::Sender<String>, alive: Arc<()>| {
            move || {
                let name = std::thread::current().name().unwrap_or_default().to_string();
                tokio::task::spawn_local(async move {
                    told.send(name).unwrap();
                    std::future::pending::<()>().await;
                    drop(alive);
                });
            }
        };
        (0..6).for_each(|_| crew.give_next(job(told.clone(), alive.clone())));
        crew.give_each(|| Ok(job(told.clone(), alive.clone()))).unwrap();
        let mut names: Vec<String> = (0..9).map(|_| heard.recv().unwrap()).collect();
        names.sort();
        let expected: Vec<String> = (0..9).map(|n| format!("clients-{}", n / 3)).collect();
        assert_eq!(names, expected);
        drop(crew);
        assert_eq!(Arc::strong_count(&alive), 1);
    }
}
