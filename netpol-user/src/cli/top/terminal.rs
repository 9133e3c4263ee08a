//! The terminal, taken for the whole screen and given back however the program ends: by itself, by a
//! signal (which is an event like a key) or by a panic.

use std::{
    io::{self, Stdout, stdout},
    panic,
    sync::Once,
};

use ratatui::{
    Frame,
    backend::CrosstermBackend,
    crossterm::{
        cursor::Show,
        event::{DisableMouseCapture, EnableMouseCapture},
        execute, queue,
        terminal::{
            BeginSynchronizedUpdate, EndSynchronizedUpdate, EnterAlternateScreen, LeaveAlternateScreen,
            disable_raw_mode, enable_raw_mode,
        },
    },
};

pub struct Terminal(ratatui::Terminal<CrosstermBackend<Stdout>>);

impl Terminal {
    pub fn take() -> io::Result<Self> {
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            let before = panic::take_hook();
            panic::set_hook(Box::new(move |panic| {
                give_back();
                before(panic);
            }));
        });
        enable_raw_mode()?;
        let terminal = ratatui::Terminal::new(CrosstermBackend::new(stdout())).map(Self);
        // from here on dropping it gives back what was taken
        let terminal = terminal.inspect_err(|_| give_back())?;
        execute!(stdout(), EnterAlternateScreen, EnableMouseCapture)?;
        Ok(terminal)
    }

    /// Shows a screen as a whole (mode 2026, where the terminal knows it): it is longer than what is written
    /// at once, so a reader would see the columns of one screen above the rows of another.
    pub fn draw(&mut self, draw: impl FnOnce(&mut Frame<'_>)) -> io::Result<()> {
        queue!(stdout(), BeginSynchronizedUpdate)?;
        let drawn = self.0.draw(draw).map(|_| ());
        drawn.and(execute!(stdout(), EndSynchronizedUpdate))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        give_back();
    }
}

fn give_back() {
    // there is nobody to tell when the terminal itself is gone
    let _ = execute!(stdout(), EndSynchronizedUpdate, DisableMouseCapture, LeaveAlternateScreen, Show);
    let _ = disable_raw_mode();
}
