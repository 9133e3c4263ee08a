//! One reading of the kernel for everybody who asks: at most one at a time, and none while nobody asks.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::Mutex;

/// Makes a reading; it is given the one before.
type Read<T> = dyn Fn(Option<&T>) -> Result<T, String> + Send + Sync;

/// The latest reading, which is good for a while.
pub struct Kept<T> {
    read: Arc<Read<T>>,
    good_for: Duration,
    latest: Mutex<Option<(Instant, Arc<T>)>>,
}

impl<T: Send + Sync + 'static> Kept<T> {
    pub fn new(good_for: Duration, read: impl Fn(Option<&T>) -> Result<T, String> + Send + Sync + 'static) -> Self {
        Self { read: Arc::new(read), good_for, latest: Mutex::new(None) }
    }

    /// What was read a moment ago, else a new reading.
    ///
    /// # Errors
    /// In the words of the reader; nothing is kept then, and the next one tries again.
    pub async fn get(&self) -> Result<Arc<T>, String> {
        // whoever comes meanwhile waits here, and finds it done
        let mut latest = self.latest.lock().await;
        if let Some((at, value)) = &*latest
            && at.elapsed() < self.good_for
        {
            return Ok(Arc::clone(value));
        }
        let before = latest.as_ref().map(|(_, value)| Arc::clone(value));
        let read = Arc::clone(&self.read);
        let reading = tokio::task::spawn_blocking(move || read(before.as_deref()));
        let value = Arc::new(reading.await.map_err(|error| error.to_string())??);
        *latest = Some((Instant::now(), Arc::clone(&value)));
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn a_hundred_who_ask_at_once_cost_one_reading() {
        let readings = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&readings);
        let kept =
            Kept::new(Duration::from_secs(3600), move |_: Option<&u32>| Ok(counted.fetch_add(1, Ordering::SeqCst)));
        let all = futures_util::future::join_all((0..100).map(|_| kept.get())).await;
        assert!(all.iter().all(|value| value.as_deref() == Ok(&0)));
        assert_eq!(readings.load(Ordering::SeqCst), 1);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn an_error_is_told_and_not_kept() {
        let calls = AtomicU32::new(0);
        let kept = Kept::new(Duration::ZERO, move |before: Option<&u32>| match calls.fetch_add(1, Ordering::SeqCst) {
            1 => Err("no".into()),
            call => Ok(call + before.copied().unwrap_or(100)),
        });
        assert_eq!(kept.get().await.as_deref(), Ok(&100));
        assert_eq!(kept.get().await.unwrap_err(), "no");
        assert_eq!(kept.get().await.as_deref(), Ok(&102));
    }
}
