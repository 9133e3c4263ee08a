//! A real Chromium without a window, driven over the pipe of its DevTools protocol.

use std::{
    fs,
    io::{Read as _, Write as _},
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::process::CommandExt as _,
    },
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc::{self, Receiver},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::Host;

/// How long the browser may take for anything.
const PATIENCE: Duration = Duration::from_secs(60);

/// One browser with one page.
pub struct Browser {
    child: Child,
    commands: fs::File,
    messages: Receiver<Value>,
    session: Option<String>,
    sent: u64,
}

impl Host {
    /// A browser inside this host, so its 127.0.0.1 is the host's.
    pub fn browser(&self) -> Browser {
        let (from_us, to_browser) = nix::unistd::pipe().expect("a pipe");
        let (from_browser, to_us) = nix::unistd::pipe().expect("a pipe");
        let profile = self.folder().join("chromium");
        let mut command = Command::new("chromium");
        let background = ["background-networking", "component-update", "sync", "default-apps", "extensions", "quic"];
        command
            .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"])
            .args(background.map(|feature| format!("--disable-{feature}")))
            .args(["--remote-debugging-pipe", "--window-size=1400,900"])
            .arg(format!("--user-data-dir={}", profile.display()))
            .env("HOME", self.folder())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // its helpers go with it
            .process_group(0);
        let ends = [high(&from_us), high(&to_us)];
        let numbers = ends.each_ref().map(|end| end.as_raw_fd());
        // SAFETY: only dup2, which is async-signal-safe, on descriptors that stay open until after the fork.
        unsafe {
            command.pre_exec(move || {
                for (from, to) in numbers.into_iter().zip([3, 4]) {
                    if libc::dup2(from, to) < 0 {
                        return Err(std::io::Error::last_os_error());
                    }
                }
                Ok(())
            });
        }
        let child = self.namespace.enter(|| command.spawn()).expect("root");
        let child = child.unwrap_or_else(|error| {
            panic!("chromium: {error}; `cargo xtask setup` installs it (Debian's package chromium)")
        });
        drop((from_us, to_us, ends));
        let messages = listen(from_browser.into());
        let mut browser = Browser { child, commands: to_browser.into(), messages, session: None, sent: 0 };
        let target = browser.call("Target.createTarget", json!({"url": "about:blank"}))["targetId"].clone();
        let attached = browser.call("Target.attachToTarget", json!({"targetId": target, "flatten": true}));
        browser.session = attached["sessionId"].as_str().map(ToOwned::to_owned);
        browser.size(1400, 900);
        browser
    }
}

/// A copy of a descriptor that is none of those that the browser wants.
fn high(end: &OwnedFd) -> OwnedFd {
    use std::os::fd::FromRawFd as _;
    let copy = nix::fcntl::fcntl(end, nix::fcntl::FcntlArg::F_DUPFD_CLOEXEC(10)).expect("a descriptor");
    // SAFETY: the kernel has just made it, for nobody else.
    unsafe { OwnedFd::from_raw_fd(copy) }
}

/// Messages end with a zero byte.
fn listen(mut pipe: fs::File) -> Receiver<Value> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let (mut pending, mut buffer) = (Vec::new(), vec![0; 1 << 16]);
        while let Ok(length @ 1..) = pipe.read(&mut buffer) {
            pending.extend_from_slice(&buffer[..length]);
            while let Some(end) = pending.iter().position(|byte| *byte == 0) {
                let message: Vec<u8> = pending.drain(..=end).collect();
                let message = serde_json::from_slice(&message[..end]).expect("JSON of the browser");
                if sender.send(message).is_err() {
                    return;
                }
            }
        }
    });
    receiver
}

impl Browser {
    /// Opens a page and waits until `ready`, an expression, is true.
    #[track_caller]
    pub fn open(&mut self, url: &str, ready: &str) {
        self.call("Page.navigate", json!({"url": url}));
        self.wait(ready);
    }

    /// Waits until an expression is true, however often the page changes meanwhile.
    #[track_caller]
    pub fn wait(&mut self, expression: &str) {
        let begin = Instant::now();
        let guarded = format!("(() => {{ try {{ return Boolean({expression}) }} catch {{ return false }} }})()");
        while self.value(&guarded) != true {
            let patient = begin.elapsed() < PATIENCE;
            assert!(patient, "never: {expression}\n{}", self.text("document.body.innerText"));
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// What an expression gives; of a promise, what it promises.
    #[track_caller]
    pub fn value(&mut self, expression: &str) -> Value {
        let asked = json!({"expression": expression, "returnByValue": true, "awaitPromise": true});
        let result = self.call("Runtime.evaluate", asked);
        assert!(result.get("exceptionDetails").is_none(), "{expression}: {result:#}");
        result["result"]["value"].clone()
    }

    #[track_caller]
    pub fn text(&mut self, expression: &str) -> String {
        self.value(expression).as_str().unwrap_or_default().to_owned()
    }

    /// The colour scheme that the reader's system asks for.
    pub fn scheme(&mut self, scheme: &str) {
        let features = json!([{"name": "prefers-color-scheme", "value": scheme}]);
        self.call("Emulation.setEmulatedMedia", json!({"features": features}));
    }

    pub fn size(&mut self, width: u32, height: u32) {
        let metrics = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false});
        self.call("Emulation.setDeviceMetricsOverride", metrics);
    }

    /// Presses keys, by their names in events: `Enter`, `ArrowDown`, `a`.
    pub fn press(&mut self, keys: &[&str]) {
        const CODES: [(&str, u32); 7] = [
            ("Tab", 9),
            ("Enter", 13),
            ("Escape", 27),
            ("ArrowLeft", 37),
            ("ArrowUp", 38),
            ("ArrowRight", 39),
            ("ArrowDown", 40),
        ];
        for key in keys {
            let code = CODES.iter().find(|(name, _)| name == key).map(|(_, code)| *code);
            let mut event = json!({"type": "keyDown", "key": key, "windowsVirtualKeyCode": code.unwrap_or(0)});
            match *key {
                "Enter" => event["text"] = "\r".into(),
                key if code.is_none() => event["text"] = key.into(),
                _ => {}
            }
            self.call("Input.dispatchKeyEvent", event);
            let up = json!({"type": "keyUp", "key": key, "windowsVirtualKeyCode": code.unwrap_or(0)});
            self.call("Input.dispatchKeyEvent", up);
        }
    }

    /// A click with the mouse where `element`, an expression, is to be seen and nothing lies above it.
    #[track_caller]
    pub fn click(&mut self, element: &str) {
        let points = format!(
            "(() => {{
                const it = {element};
                const box = it.getBoundingClientRect();
                const along = (path) => [...Array(19).keys()].map((step) => {{
                    const on = path.getPointAtLength(path.getTotalLength() * (step + 1) / 20);
                    return on.matrixTransform(path.getScreenCTM());
                }});
                const middle = {{ x: box.x + box.width / 2, y: box.y + box.height / 2 }};
                const path = it.querySelector?.('path');
                const free = ({{ x, y }}) => it.contains(document.elementFromPoint(x, y));
                const point = (path ? along(path) : [middle]).find(free);
                return point ? [point.x, point.y] : null;
            }})()"
        );
        // where it is once the picture fits what the last step has left it of the window
        self.value("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done())))");
        let point = self.value(&points);
        let (Some(x), Some(y)) = (point[0].as_f64(), point[1].as_f64()) else { panic!("covered: {element}") };
        for kind in ["mousePressed", "mouseReleased"] {
            let event = json!({"type": kind, "x": x, "y": y, "button": "left", "clickCount": 1});
            self.call("Input.dispatchMouseEvent", event);
        }
    }

    /// A PNG of what is seen; kept as NAME.png in the folder that NETPOL_SCREENSHOTS names.
    pub fn screenshot(&mut self, name: &str) -> Vec<u8> {
        let shot = self.call("Page.captureScreenshot", json!({"format": "png"}));
        let png = base64(shot["data"].as_str().expect("a picture"));
        if let Some(folder) = std::env::var_os("NETPOL_SCREENSHOTS") {
            fs::create_dir_all(&folder).expect("a folder for pictures");
            fs::write(Path::new(&folder).join(format!("{name}.png")), &png).expect("a picture");
        }
        png
    }

    #[track_caller]
    fn call(&mut self, method: &str, params: Value) -> Value {
        self.sent += 1;
        let mut message = json!({"id": self.sent, "method": method, "params": params});
        if let Some(session) = &self.session {
            message["sessionId"] = session.clone().into();
        }
        self.commands.write_all(format!("{message}\0").as_bytes()).expect("the browser's pipe");
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let answer = self.messages.recv_timeout(left).unwrap_or_else(|error| panic!("{method}: {error}"));
            if answer["id"] == self.sent {
                assert!(answer.get("error").is_none(), "{method}: {answer}");
                return answer["result"].clone();
            }
        }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let group = nix::unistd::Pid::from_raw(-i32::try_from(self.child.id()).unwrap_or_default());
        _ = nix::sys::signal::kill(group, nix::sys::signal::Signal::SIGKILL);
        _ = self.child.wait();
        // its helpers may still write into the profile, which is about to be removed
        let gone = || nix::sys::signal::kill(group, None).is_err();
        _ = (0..500).any(|_| {
            gone() || {
                thread::sleep(Duration::from_millis(10));
                false
            }
        });
    }
}

/// RFC 4648.
fn base64(text: &str) -> Vec<u8> {
    let value = |byte: u8| match byte {
        b'A'..=b'Z' => Some(byte - b'A'),
        b'a'..=b'z' => Some(byte - b'a' + 26),
        b'0'..=b'9' => Some(byte - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    };
    let sextets: Vec<u8> = text.bytes().filter_map(value).collect();
    let group = |group: &[u8]| {
        let bits = group.iter().fold(0_u32, |bits, sextet| bits << 6 | u32::from(*sextet)) << (6 * (4 - group.len()));
        bits.to_be_bytes()[1..group.len()].to_vec()
    };
    sextets.chunks(4).flat_map(group).collect()
}
