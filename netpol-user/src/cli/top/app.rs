//! What is on the screen, and what a key does to it. Nothing here draws or reads.

mod rows;

use std::{collections::VecDeque, sync::mpsc::Receiver};

use anyhow::{Result, bail};
use ratatui::{
    crossterm::event::{self, KeyCode, KeyEvent, KeyEventKind, KeyModifiers, MouseButton, MouseEventKind},
    layout::{Position, Rect},
};

use super::{
    draw,
    feed::{Enforcement, Event},
    tables::{Kind, Tab},
    terminal::Terminal,
};
use crate::observe::{Filter, Sample, summary::Grouping};
use rows::{Derived, View};

/// How many values the sparkline of one row has.
const PACES: usize = 120;

pub struct App {
    pub tab: Tab,
    views: [View; Tab::ALL.len()],
    pub filter: Filter,
    pub prompt: Option<Prompt>,
    pub paused: bool,
    /// Of the flows; `None`: each is a row.
    pub grouping: Option<Grouping>,
    pub help: bool,
    pub details: Option<Details>,
    pub sample: Option<Box<Sample>>,
    /// Why there is no sample.
    pub trouble: Option<String>,
    pub enforcement: Option<Enforcement>,
    derived: Derived,
    /// Where the last drawing put what can be clicked.
    pub hits: Vec<(Rect, Hit)>,
    /// Rows of the table that fit on the screen.
    pub height: usize,
    quit: bool,
}

/// The line in which a filter is written.
#[derive(Default)]
pub struct Prompt {
    pub text: String,
    pub error: Option<String>,
}

/// One row, followed through the readings.
pub struct Details {
    id: u64,
    pub lines: Vec<(&'static str, String)>,
    pub paces: VecDeque<f64>,
    /// It is not among the rows any more.
    pub gone: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hit {
    Tab(Tab),
    Sort(usize),
    /// By its place on the screen.
    Row(usize),
}

impl App {
    pub fn new(tab: Tab, filter: Filter) -> Self {
        Self {
            tab,
            // each by its rate
            views: [View::by(4), View::by(3), View::by(3), View::by(2), View::by(4)],
            filter,
            prompt: None,
            paused: false,
            grouping: None,
            help: false,
            details: None,
            sample: None,
            trouble: None,
            enforcement: None,
            derived: Derived::default(),
            hits: Vec::new(),
            height: 1,
            quit: false,
        }
    }

    /// Until somebody ends it.
    pub fn run(mut self, events: &Receiver<Event>, terminal: &mut Terminal) -> Result<()> {
        while !self.quit {
            terminal.draw(|frame| draw::screen(&mut self, frame))?;
            self.handle(events.recv()?)?;
            // a slow terminal must not make the next drawing late
            while let Ok(event) = events.try_recv() {
                self.handle(event)?;
            }
        }
        Ok(())
    }

    pub fn handle(&mut self, event: Event) -> Result<()> {
        match event {
            Event::Input(event::Event::Key(key)) if key.kind != KeyEventKind::Release => self.key(key),
            Event::Input(event::Event::Mouse(mouse)) => match mouse.kind {
                MouseEventKind::Down(MouseButton::Left) => self.click(Position::new(mouse.column, mouse.row)),
                MouseEventKind::ScrollUp => self.step(-3),
                MouseEventKind::ScrollDown => self.step(3),
                _ => {}
            },
            // the next drawing asks how large it is
            Event::Input(_) => {}
            Event::Sample(_) if self.paused => {}
            Event::Sample(Ok(sample)) => {
                (self.sample, self.trouble) = (Some(sample), None);
                self.arrange();
                self.follow();
            }
            Event::Sample(Err(trouble)) => {
                (self.sample, self.trouble) = (None, Some(trouble));
                self.arrange();
            }
            Event::Enforcement(enforcement) => self.enforcement = Some(enforcement),
            Event::Ended => self.quit = true,
            Event::Lost(_) if self.quit => {}
            Event::Lost(what) => bail!("the thread that reads {what} has ended"),
        }
        Ok(())
    }

    fn key(&mut self, key: KeyEvent) {
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        if control && key.code == KeyCode::Char('c') {
            self.quit = true;
            return;
        }
        if self.prompt.is_some() {
            return self.write(key.code, control);
        }
        let page = self.height as isize;
        match key.code {
            KeyCode::Char('q') => self.quit = true,
            KeyCode::Char('?') => self.help = !self.help,
            KeyCode::Esc if self.help => self.help = false,
            KeyCode::Esc => self.details = None,
            KeyCode::Char('/') => self.prompt = Some(Prompt { text: self.filter.text().to_owned(), error: None }),
            KeyCode::Char(' ') => self.paused = !self.paused,
            KeyCode::Char('g') => {
                self.grouping = match self.grouping {
                    None => Some(Grouping::Ends),
                    Some(Grouping::Ends) => Some(Grouping::Services),
                    Some(Grouping::Services) => None,
                };
                self.show(Tab::Flows);
            }
            KeyCode::Char('r') => {
                let descending = self.view().descending;
                self.view_mut().descending = !descending;
                self.arrange();
            }
            KeyCode::Char('>') | KeyCode::Right => self.sort_beside(1),
            KeyCode::Char('<') | KeyCode::Left => self.sort_beside(-1),
            KeyCode::Char(digit @ '1'..='9') => {
                if let Some(tab) = Tab::ALL.get(digit as usize - '1' as usize) {
                    self.show(*tab);
                }
            }
            KeyCode::Tab => self.show(Tab::ALL[(self.tab as usize + 1) % Tab::ALL.len()]),
            KeyCode::BackTab => self.show(Tab::ALL[(self.tab as usize + Tab::ALL.len() - 1) % Tab::ALL.len()]),
            KeyCode::Enter if self.details.is_some() => self.details = None,
            KeyCode::Enter => self.open(),
            KeyCode::Up | KeyCode::Char('k') => self.step(-1),
            KeyCode::Down | KeyCode::Char('j') => self.step(1),
            KeyCode::PageUp => self.step(-page),
            KeyCode::PageDown => self.step(page),
            KeyCode::Home => self.step(isize::MIN),
            KeyCode::End => self.step(isize::MAX),
            _ => {}
        }
    }

    /// A key, while a filter is being written.
    fn write(&mut self, key: KeyCode, control: bool) {
        let Some(prompt) = &mut self.prompt else { return };
        match key {
            KeyCode::Esc => self.prompt = None,
            KeyCode::Char('u') if control => prompt.text.clear(),
            KeyCode::Char(c) if !control => prompt.text.push(c),
            KeyCode::Backspace => _ = prompt.text.pop(),
            KeyCode::Enter => match prompt.text.parse() {
                Ok(filter) => {
                    (self.filter, self.prompt, self.details) = (filter, None, None);
                    for view in &mut self.views {
                        (view.selected, view.offset) = (0, 0);
                        view.widths.clear();
                    }
                    self.arrange();
                }
                Err(error) => prompt.error = Some(error.to_string()),
            },
            _ => {}
        }
        if let (Some(prompt), KeyCode::Char(_) | KeyCode::Backspace) = (&mut self.prompt, key) {
            prompt.error = None;
        }
    }

    fn click(&mut self, at: Position) {
        let Some(&(_, hit)) = self.hits.iter().find(|(area, _)| area.contains(at)) else { return };
        match hit {
            Hit::Tab(tab) => self.show(tab),
            Hit::Sort(column) => self.sort_by(column),
            Hit::Row(row) => {
                let view = self.view_mut();
                view.selected = (view.offset + row).min(view.order.len().saturating_sub(1));
            }
        }
    }

    fn show(&mut self, tab: Tab) {
        (self.tab, self.details) = (tab, None);
        self.view_mut().widths.clear();
        self.arrange();
    }

    /// The column beside the one that the table is sorted by.
    fn sort_beside(&mut self, step: isize) {
        let Some(columns) = self.with_table(|table| table.columns().len()) else { return };
        let sort = (self.view().sort as isize + step).rem_euclid(columns as isize);
        self.sort_by(sort as usize);
    }

    /// The same column again turns the order around.
    fn sort_by(&mut self, column: usize) {
        let Some(kind) = self.with_table(|table| table.columns()[column].kind) else { return };
        let view = self.view_mut();
        view.descending = if view.sort == column { !view.descending } else { kind == Kind::Number };
        view.sort = column;
        (view.selected, view.offset) = (0, 0);
        self.arrange();
    }

    fn step(&mut self, rows: isize) {
        let view = self.view_mut();
        view.selected = view.selected.saturating_add_signed(rows).min(view.order.len().saturating_sub(1));
    }

    fn open(&mut self) {
        let Some(row) = self.selected() else { return };
        let details = self.with_table(|table| Details {
            id: table.id(row),
            lines: table.details(row),
            paces: VecDeque::from([table.packets_per_second(row)]),
            gone: false,
        });
        self.details = details;
    }

    /// Looks up in a new reading what is shown in detail.
    fn follow(&mut self) {
        let Some(mut details) = self.details.take() else { return };
        let found = self.with_table(|table| {
            let mut rows = self.view().order.iter().map(|row| *row as usize);
            let row = rows.find(|row| table.id(*row) == details.id)?;
            Some((table.details(row), table.packets_per_second(row)))
        });
        match found.flatten() {
            Some((lines, pace)) => {
                (details.lines, details.gone) = (lines, false);
                details.paces.push_back(pace);
                if details.paces.len() > PACES {
                    details.paces.pop_front();
                }
            }
            None => details.gone = true,
        }
        self.details = Some(details);
    }
}
