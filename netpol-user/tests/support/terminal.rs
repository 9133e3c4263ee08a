//! A program in a terminal: what it shows, and keys and clicks for it.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    num::NonZeroU16,
    os::{fd::AsFd as _, unix::process::CommandExt as _},
    process::{Child, Command, ExitStatus},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use nix::{
    pty::{Winsize, openpty},
    sys::{
        signal::{Signal, kill},
        termios::{LocalFlags, tcgetattr},
    },
    unistd::Pid,
};

use super::Host;

/// How long something is awaited on the screen.
const PATIENCE: Duration = Duration::from_secs(30);

/// How a program says that a screen begins and ends (synchronized output).
const WHOLE: u16 = 2026;

pub struct Terminal {
    child: Child,
    keyboard: File,
    shown: Arc<Mutex<vt100::Screen>>,
}

/// What a reader sees: the last screen that was whole.
#[derive(Default)]
struct Shown {
    is_drawing: bool,
    whole: Option<vt100::Screen>,
}

impl vt100::Callbacks for Shown {
    fn unhandled_csi(
        &mut self,
        screen: &mut vt100::Screen,
        mark: Option<u8>,
        _: Option<u8>,
        parameters: &[&[u16]],
        end: char,
    ) {
        match (mark, parameters, end) {
            (Some(b'?'), [[WHOLE]], 'h') => self.is_drawing = true,
            (Some(b'?'), [[WHOLE]], 'l') => (self.is_drawing, self.whole) = (false, Some(screen.clone())),
            _ => (),
        }
    }
}

impl Host {
    /// Runs `netpol` on this host, in a terminal of so many rows and columns.
    pub fn terminal(&self, (rows, columns): (u16, u16), environment: &[(&str, &str)], arguments: &[&str]) -> Terminal {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        let pair = openpty(&size, None).expect("a pseudo-terminal");
        let (master, slave) = (File::from(pair.master), File::from(pair.slave));
        let mut command = Command::new(env!("CARGO_BIN_EXE_netpol"));
        command.arg("--bpffs").arg(self.bpffs()).arg("--state").arg(self.folder().join("state")).args(arguments);
        command.env("TERM", "xterm-256color").env_remove("NO_COLOR").envs(environment.iter().copied());
        let again = || slave.try_clone().expect("a descriptor");
        command.stdin(again()).stdout(again()).stderr(again());
        // SAFETY: two system calls on the child's own descriptor, which is open.
        unsafe {
            command.pre_exec(|| {
                nix::unistd::setsid()?;
                if libc::ioctl(0, libc::TIOCSCTTY, 0) < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
            });
        }
        let spawned = self.namespace.enter(|| command.spawn()).expect("entering a network namespace needs root");
        let child = spawned.unwrap_or_else(|error| panic!("netpol: {error}"));
        // the command holds descriptors, too: the terminal must end with the program
        drop((command, slave));
        let (rows, columns) = (at_least_one(rows), at_least_one(columns));
        let mut parser = vt100::Parser::new_with_callbacks(rows, columns, 0, Shown::default());
        let shown = Arc::new(Mutex::new(parser.screen().clone()));
        let mut output = master.try_clone().expect("a descriptor");
        let screen = Arc::clone(&shown);
        thread::spawn(move || {
            let mut buffer = [0; 65_536];
            // it fails when the program is gone
            while let Ok(length @ 1..) = output.read(&mut buffer) {
                parser.process(&buffer[..length]);
                let whole = parser.callbacks_mut().whole.take();
                let whole = if parser.callbacks().is_drawing { whole } else { Some(parser.screen().clone()) };
                if let Some(whole) = whole {
                    *screen.lock().expect("the screen") = whole;
                }
            }
        });
        Terminal { child, keyboard: master, shown }
    }
}

impl Terminal {
    /// What is on the screen now.
    pub fn text(&self) -> String {
        self.shown.lock().expect("the screen").contents()
    }

    /// Waits until the screen is as wanted, and gives it back.
    #[track_caller]
    pub fn wait(&self, what: &str, wanted: impl Fn(&str) -> bool) -> String {
        let begin = Instant::now();
        loop {
            let text = self.text();
            if wanted(&text) {
                return text;
            }
            assert!(begin.elapsed() < PATIENCE, "never seen: {what}\n{text}");
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until all of these are on the screen.
    #[track_caller]
    pub fn shows(&self, parts: &[&str]) -> String {
        self.wait(&format!("{parts:?}"), |text| parts.iter().all(|part| text.contains(part)))
    }

    /// Waits until a line has all of these.
    #[track_caller]
    pub fn line(&self, parts: &[&str]) -> String {
        let has =
            |text: &str| text.lines().find(|line| parts.iter().all(|part| line.contains(part))).map(str::to_owned);
        let text = self.wait(&format!("a line with {parts:?}"), |text| has(text).is_some());
        has(&text).expect("it was there")
    }

    /// Some character on the screen has a colour of its own.
    pub fn has_colour(&self) -> bool {
        let screen = self.shown.lock().expect("the screen");
        let (rows, columns) = screen.size();
        let mut cells = (0..rows.get()).flat_map(|row| (0..columns.get()).map(move |column| (row, column)));
        cells.any(|(row, column)| screen.cell(row, column).is_some_and(|cell| cell.fgcolor() != vt100::Color::Default))
    }

    pub fn keys(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).expect("the keyboard");
    }

    /// A click on the first occurrence of this, as xterm reports it (SGR mode, 1006).
    #[track_caller]
    pub fn click(&mut self, on: &str) {
        let text = self.shows(&[on]);
        let mut lines = (1..).zip(text.lines());
        let found = lines.find_map(|(row, line)| Some((row, line[..line.find(on)?].chars().count() + 1)));
        let (row, column) = found.expect("it was there");
        self.keys(&format!("\x1b[<0;{column};{row}M\x1b[<0;{column};{row}m"));
    }

    /// The program's process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.id() as i32), signal).expect("it runs");
    }

    /// The program must end, with the terminal as it was.
    #[track_caller]
    pub fn ends_and_restores(mut self) -> ExitStatus {
        let begin = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("a child") {
                break status;
            }
            assert!(begin.elapsed() < PATIENCE, "it does not end\n{}", self.text());
            thread::sleep(Duration::from_millis(20));
        };
        let restored = |screen: &vt100::Screen| {
            !screen.alternate_screen()
                && !screen.hide_cursor()
                && screen.mouse_protocol_mode() == vt100::MouseProtocolMode::None
        };
        while !restored(&self.shown.lock().expect("the screen")) {
            assert!(begin.elapsed() < PATIENCE, "the screen is not restored\n{}", self.text());
            thread::sleep(Duration::from_millis(20));
        }
        let flags = tcgetattr(self.keyboard.as_fd()).expect("a terminal").local_flags;
        assert!(flags.contains(LocalFlags::ICANON | LocalFlags::ECHO | LocalFlags::ISIG), "{flags:?}");
        status
    }
}

fn at_least_one(size: u16) -> NonZeroU16 {
    NonZeroU16::new(size).expect("a terminal has rows and columns")
}

impl Drop for Terminal {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}
