//! A scratch folder, and the command run in it with a bound on its time.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// No command of these tests takes longer; one that does is stuck.
const LONGEST: Duration = Duration::from_secs(120);
/// How folders begin that keep what commands said.
pub(crate) const SAID: &str = "said-";
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// How a command ended.
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ended {
    /// Fails unless the exit code is `code` and all `words` are on stderr; gives the outcome back.
    pub(crate) fn expect(self, code: i32, words: &[&str]) -> Self {
        assert_eq!(self.code, Some(code), "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        for word in words {
            assert!(self.stderr.contains(word), "`{word}` is not in: {}", self.stderr);
        }
        self
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {}", self.stdout))
    }
}

/// A folder for one test.
pub(crate) struct Bench(tempfile::TempDir);

/// A command on its way.
pub(crate) struct Running {
    child: Child,
    stdout: PathBuf,
    stderr: PathBuf,
}

/// A node that serves.
pub(crate) struct Node {
    running: Running,
    pub(crate) admin: String,
    pub(crate) nbd: String,
    pub(crate) volumes: Vec<String>,
    /// Guests' and operators' doors of every node of the process, this one first.
    pub(crate) beside: Vec<(String, String)>,
}

/// Settings that make a small node quickly: the journal is written in advance. Everything is beside the file.
pub(crate) fn settings(more: &str) -> String {
    let clouds = ["a", "b", "c"].map(|name| format!("[[clouds]]\nname = \"{name}\"\nurl = \"file:clouds/{name}\"\n"));
    format!(
        "dir = \"node-1\"\nplain_exports = true\nmemory = \"64MiB\"\n{more}\n\
         [key]\nkeyfile = \"root.key\"\n\
         [nbd]\nlisten = [\"127.0.0.1:0\"]\n[admin]\nlisten = \"127.0.0.1:0\"\n\
         [journal]\nfile_bytes = \"16MiB\"\nfiles_initial = 2\nbytes_max = \"128MiB\"\n\
         [cache]\ndisk_bytes = 0\n{}",
        clouds.concat()
    )
}

impl Bench {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().expect("a scratch folder"))
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// Makes a folder with settings, from which `velum up` goes on.
    pub(crate) fn prepare(&self, folder: &str, settings: &str) -> PathBuf {
        let folder = self.path(folder);
        fs::create_dir_all(&folder).expect("a folder can be made");
        fs::write(folder.join("node.toml"), settings).expect("settings can be written");
        folder
    }

    /// Runs `velum` to its end.
    pub(crate) fn velum(&self, arguments: &[&str]) -> Ended {
        self.spawn(arguments, &[]).ended()
    }

    pub(crate) fn spawn(&self, arguments: &[&str], variables: &[(&str, &str)]) -> Running {
        let unique = tempfile::Builder::new().prefix(SAID).tempdir_in(self.0.path()).expect("a scratch folder").keep();
        let (stdout, stderr) = (unique.join("stdout"), unique.join("stderr"));
        let file = |path: &Path| Stdio::from(fs::File::create(path).expect("a scratch file"));
        let child = Command::new(env!("CARGO_BIN_EXE_velum"))
            .args(arguments)
            .env_remove("VELUM_ADMIN")
            .envs(variables.iter().copied())
            .current_dir(self.0.path())
            .stdin(Stdio::null())
            .stdout(file(&stdout))
            .stderr(file(&stderr))
            .spawn()
            .expect("the command starts");
        Running { child, stdout, stderr }
    }

    /// Serves `folder` and waits until it does.
    pub(crate) fn up(&self, folder: &str, more: &[&str]) -> Node {
        let folder = self.text(folder);
        self.serve(&[&["--output", "json", "up", "--dir", &folder], more].concat())
    }

    pub(crate) fn serve(&self, arguments: &[&str]) -> Node {
        Node::ready(self.spawn(arguments, &[]))
    }
}

impl Running {
    /// The first line of its stdout.
    fn await_line(&mut self) -> Value {
        let began = Instant::now();
        loop {
            let said = fs::read_to_string(&self.stdout).unwrap_or_default();
            if let Some((line, _)) = said.split_once('\n') {
                return serde_json::from_str(line).expect("a line of JSON");
            }
            let stderr = fs::read_to_string(&self.stderr).unwrap_or_default();
            let ended = self.child.try_wait().expect("a child can be asked");
            assert!(ended.is_none() && began.elapsed() < LONGEST, "it does not serve: {ended:?} {stderr}");
            thread::sleep(LOOK_EVERY);
        }
    }

    /// What it has said so far beside its data.
    pub(crate) fn said(&self) -> String {
        fs::read_to_string(&self.stderr).unwrap_or_default()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).expect("a child can be signalled");
    }

    /// Waits for its end.
    pub(crate) fn ended(mut self) -> Ended {
        let began = Instant::now();
        while self.child.try_wait().expect("a child can be asked").is_none() {
            assert!(began.elapsed() < LONGEST, "it does not end: {}", self.said());
            thread::sleep(LOOK_EVERY);
        }
        let code = self.child.wait().expect("it has ended").code();
        let stdout = fs::read_to_string(&self.stdout).unwrap_or_default();
        Ended { code, stdout, stderr: self.said() }
    }
}

impl Drop for Running {
    /// A test that failed leaves nothing running.
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            let _ = self.child.kill().and_then(|()| self.child.wait());
        }
    }
}

impl Node {
    /// A node on its way, once it serves.
    pub(crate) fn ready(mut running: Running) -> Self {
        let ready: Value = running.await_line();
        let text = |value: &Value| value.as_str().expect("a text").to_owned();
        let volumes = ready["volumes"].as_array().expect("volumes").iter().map(text).collect();
        let doors = |of: &Value| {
            let nbd = text(&of["nbd"][0]);
            let nbd = nbd.trim_start_matches("nbd://").split('/').next().expect("an address").to_owned();
            (nbd, text(&of["admin"]))
        };
        let beside = ready["nodes"].as_array().expect("nodes").iter().map(doors).collect();
        let (nbd, admin) = doors(&ready);
        Self { running, admin, nbd, volumes, beside }
    }

    /// Waits for an end that it comes to by itself.
    pub(crate) fn ended(self) -> Ended {
        self.running.ended()
    }

    pub(crate) fn said(&self) -> String {
        self.running.said()
    }

    /// Stops it as `signal` does, and gives how it ended.
    pub(crate) fn stop(self, signal: Signal) -> Ended {
        self.running.signal(signal);
        self.running.ended()
    }

    /// Sends bytes to the admin door; gives the status and the whole answer, status 0 for none.
    pub(crate) fn http(&self, bytes: &[u8]) -> (u16, String) {
        let address = self.admin.trim_start_matches("http://");
        let mut stream = TcpStream::connect(address).expect("the admin door is open");
        stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a timeout can be set");
        // The door may answer and close before it has read everything.
        let _ = stream.write_all(bytes);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        (status, answer)
    }
}

/// Everything below a folder, by path, with its length.
pub(crate) fn tree(folder: &Path) -> Vec<(PathBuf, u64)> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder can be listed") {
            let entry = entry.expect("an entry");
            let metadata = entry.metadata().expect("metadata");
            if metadata.is_dir() {
                folders.push(entry.path());
            }
            found.push((entry.path(), if metadata.is_dir() { 0 } else { metadata.len() }));
        }
    }
    found.sort();
    found
}
