//! `foldconv data`: sets are listed and checked, and files are fetched from a local server that
//! misbehaves in every way.

use crate::common::{arg, error, foldconv, folder, run, stdout};
use foldconv::data::fetch::{self, Event, Outcome, Patience};
use foldconv::data::provenance::Download;
use foldconv::error::{exit_status, one_line};
use md5::{Digest, Md5};
use serde_json::Value;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// A request as seen by the server.
#[derive(Clone, Debug, PartialEq)]
struct Request {
    path: String,
    /// First byte requested.
    from: Option<usize>,
}

/// A server that passes each request, with its number, to a function; it closes the connection
/// after each answer.
struct Server {
    address: String,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    fn start(answer: impl Fn(usize, &Request, &mut TcpStream) -> std::io::Result<()> + Send + 'static) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&requests);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let Some(request) = Request::read(&stream) else { continue };
                let number = {
                    let mut seen = seen.lock().unwrap();
                    seen.push(request.clone());
                    seen.len() - 1
                };
                // An error means that the client has gone, which is fine.
                let _ = answer(number, &request, &mut stream);
            }
        });
        Server { address, requests }
    }

    /// Returns the first byte of each request.
    fn froms(&self) -> Vec<Option<usize>> {
        self.requests.lock().unwrap().iter().map(|request| request.from).collect()
    }
}

impl Request {
    fn read(stream: &TcpStream) -> Option<Request> {
        let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
        let path = lines.next()?.split(' ').nth(1)?.to_string();
        let mut from = None;
        for line in lines.take_while(|line| !line.is_empty()) {
            let line = line.to_ascii_lowercase();
            if let Some(range) = line.strip_prefix("range: bytes=") {
                from = range.trim_end_matches('-').parse().ok();
            }
        }
        Some(Request { path, from })
    }
}

fn head(stream: &mut TcpStream, status: &str, length: usize, more: &str) -> std::io::Result<()> {
    write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n{more}\r\n")
}

/// Sends the requested bytes, at most `most` of them, although the header promises all.
fn send(stream: &mut TcpStream, request: &Request, content: &[u8], most: usize) -> std::io::Result<()> {
    let from = request.from.unwrap_or(0);
    if from >= content.len() {
        return head(stream, "416 Range Not Satisfiable", 0, "");
    }
    let rest = &content[from..];
    let range = format!("Content-Range: bytes {from}-{}/{}\r\n", content.len() - 1, content.len());
    match request.from {
        Some(_) => head(stream, "206 Partial Content", rest.len(), &range)?,
        None => head(stream, "200 OK", rest.len(), "")?,
    }
    stream.write_all(&rest[..most.min(rest.len())])
}

/// Returns bytes without a pattern that would survive a shift.
fn content() -> Vec<u8> {
    (0..300_000_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

/// Describes the file [`content`], to be saved in the folder of its set.
fn download() -> Download {
    let md5 = format!("{:x}", Md5::digest(content()));
    Download { url: "", file: "set/file.bin", md5: md5.leak() }
}

/// Retry settings with short pauses; even a busy machine must answer within the timeout.
const PATIENCE: Patience = Patience { timeout: Duration::from_secs(20), attempts: 3, pause: Duration::from_millis(5) };

/// Fetches the file. Returns the outcome, and the reasons of retries.
fn fetch(root: &Path, url: &str, patience: &Patience) -> (anyhow::Result<Outcome>, Vec<String>) {
    let mut retries = Vec::new();
    let outcome = fetch::fetch(&download(), url, root, patience, &mut |event| {
        if let Event::Retry(reason, _) = event {
            retries.push(reason.to_string());
        }
    });
    (outcome, retries)
}

/// Returns the one-line error of a fetch that must fail, and checks that at most a partial file is
/// left.
fn failure(root: &Path, server: &Server, status: u8) -> String {
    let error = fetch(root, &format!("{}/file.bin", server.address), &PATIENCE).0.unwrap_err();
    assert_eq!(exit_status(&error), status, "{error:#}");
    let line = one_line(&error);
    assert!(line.contains("file.bin"), "{line}");
    assert!(!root.join("set/file.bin").exists());
    line
}

/// Fetches the file, which must be correct in the end. Returns the reasons of retries.
fn fetched(root: &Path, server: &Server) -> Vec<String> {
    let (outcome, retries) = fetch(root, &format!("{}/file.bin", server.address), &PATIENCE);
    assert_eq!(outcome.unwrap(), Outcome::Fetched);
    assert!(std::fs::read(root.join("set/file.bin")).unwrap() == content());
    assert!(!root.join("set/file.bin.part").exists());
    retries
}

/// Creates a folder with the partial file of an earlier call.
fn with_part(part: &[u8]) -> (tempfile::TempDir, std::path::PathBuf) {
    folder(&[("set/file.bin.part", part)])
}

#[test]
fn a_file_is_fetched_once() {
    let (_guard, root) = folder(&[]);
    let server = Server::start(|_, request, stream| send(stream, request, &content(), usize::MAX));
    assert!(fetched(&root, &server).is_empty());
    let again = fetch(&root, &server.address, &PATIENCE);
    assert_eq!(again.0.unwrap(), Outcome::Present);
    assert_eq!(server.froms(), [None]);
}

#[test]
fn a_connection_that_is_cut_is_gone_on_with_where_it_stopped() {
    let (_guard, root) = folder(&[]);
    // There are more cuts than attempts, but each attempt brings new bytes.
    let server = Server::start(|_, request, stream| send(stream, request, &content(), 50_000));
    let retries = fetched(&root, &server);
    let expected: Vec<Option<usize>> = (0..6).map(|at| (at > 0).then_some(at * 50_000)).collect();
    assert_eq!(server.froms(), expected);
    assert!(retries.len() == 5 && retries[0].starts_with("cut after byte 50000 ("), "{retries:?}");
}

#[test]
fn a_server_that_ignores_the_range_is_read_from_the_start() {
    let (_guard, root) = folder(&[]);
    let server = Server::start(|number, _, stream| {
        let whole = Request { path: String::new(), from: None };
        send(stream, &whole, &content(), if number == 0 { 100_000 } else { usize::MAX })
    });
    assert_eq!(fetched(&root, &server).len(), 1);
    assert_eq!(server.froms(), [None, Some(100_000)]);
    // A partial file longer than the file is discarded.
    let (_guard, root) = with_part(&[0; 300_001]);
    assert!(fetched(&root, &server).is_empty());
    assert_eq!(server.froms().len(), 3);
}

#[test]
fn a_server_that_always_cuts_at_the_same_place_is_given_up() {
    let (_guard, root) = folder(&[]);
    let server =
        Server::start(|_, _, stream| send(stream, &Request { path: String::new(), from: None }, &content(), 1000));
    let line = failure(&root, &server, 1);
    assert!(line.contains("cut after byte 1000") && line.contains("also after 3 attempts; the same command"), "{line}");
    assert_eq!(server.froms().len(), 3, "the first brought something, and two more in a row did not");
    assert_eq!(std::fs::metadata(root.join("set/file.bin.part")).unwrap().len(), 1000);
}

#[test]
fn wrong_bytes_are_removed() {
    let (_guard, root) = folder(&[]);
    let server = Server::start(|_, request, stream| send(stream, request, b"<html>moved</html>", usize::MAX));
    let line = failure(&root, &server, 1);
    assert!(line.contains("is not the official file (md5 ") && line.contains("so it was removed"), "{line}");
    assert!(!root.join("set").exists(), "the folder that was made for the file goes with it");
    assert_eq!(server.froms().len(), 1);
}

#[test]
fn an_answer_that_will_not_change_is_not_asked_for_again() {
    for status in ["404 Not Found", "403 Forbidden", "204 No Content"] {
        let (_guard, root) = folder(&[]);
        let server = Server::start(move |_, _, stream| head(stream, status, 0, ""));
        let line = failure(&root, &server, 1);
        assert!(line.contains(&format!("the server answers {status}; give another address with --url")), "{line}");
        assert_eq!(server.froms().len(), 1);
    }
}

#[test]
fn a_busy_server_is_asked_again() {
    for status in ["503 Service Unavailable", "429 Too Many Requests", "500 Internal Server Error"] {
        let (_guard, root) = folder(&[]);
        let server = Server::start(move |number, request, stream| match number {
            0 => head(stream, status, 0, ""),
            _ => send(stream, request, &content(), usize::MAX),
        });
        assert_eq!(fetched(&root, &server), [format!("the server answers {status}")]);
    }
}

#[test]
fn a_redirect_is_followed_with_the_range() {
    let (_guard, root) = folder(&[]);
    let server = Server::start(|number, request, stream| match &*request.path {
        "/file.bin" => head(stream, "302 Found", 0, "Location: /elsewhere/../other?name=../../x\r\n"),
        _ => send(stream, request, &content(), if number < 2 { 70_000 } else { usize::MAX }),
    });
    assert_eq!(fetched(&root, &server).len(), 1);
    assert_eq!(server.froms(), [None, None, Some(70_000), Some(70_000)]);
    let (_guard, root) = folder(&[]);
    let circle = Server::start(|_, _, stream| head(stream, "302 Found", 0, "Location: /file.bin\r\n"));
    let line = failure(&root, &circle, 1);
    assert!(line.contains("too many redirects"), "{line}");
}

/// The client waits neither for an answer nor for its body without limit.
#[test]
fn a_server_that_hangs_is_given_up() {
    for sends_a_head in [false, true] {
        let (_guard, root) = folder(&[]);
        let held = Mutex::new(Vec::new());
        let server = Server::start(move |_, _, stream| {
            if sends_a_head {
                head(stream, "200 OK", 1000, "")?;
                stream.write_all(b"some")?;
            }
            // Keeps the connection open.
            held.lock().unwrap().push(stream.try_clone()?);
            Ok(())
        });
        let patience = Patience { timeout: Duration::from_millis(200), attempts: 2, ..PATIENCE };
        let clock = Instant::now();
        let error = fetch(&root, &server.address, &patience).0.unwrap_err();
        assert!(clock.elapsed() < Duration::from_secs(10), "{:?}", clock.elapsed());
        let line = one_line(&error);
        assert!(line.contains("the server says nothing for 200ms") && exit_status(&error) == 1, "{line}");
    }
}

#[test]
fn a_server_that_is_not_there_is_said() {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (_guard, root) = folder(&[]);
    let error = fetch(&root, &format!("http://{address}/file.bin"), &PATIENCE).0.unwrap_err();
    let line = one_line(&error);
    assert!(line.contains("refused") && line.contains("after 3 attempts") && exit_status(&error) == 1, "{line}");
}

#[test]
fn what_an_earlier_call_left_is_used_where_it_is_of_this_file() {
    let good = |_, request: &Request, stream: &mut TcpStream| send(stream, request, &content(), usize::MAX);
    let cases: [(&[u8], &[Option<usize>]); 4] = [
        (&content()[..1234], &[Some(1234)]),
        (&content(), &[]),
        // Parts of another file: one shorter, one longer than the file.
        (b"other bytes", &[Some(11), None]),
        (&[0; 300_001], &[Some(300_001), None]),
    ];
    for (part, froms) in cases {
        let (_guard, root) = with_part(part);
        let server = Server::start(good);
        fetched(&root, &server);
        assert_eq!(server.froms(), froms);
    }
}

#[test]
fn a_part_from_another_place_than_asked_for_is_not_appended() {
    let (_guard, root) = with_part(&content()[..1000]);
    let server = Server::start(|_, request, stream| {
        let wrong = Request { from: request.from.map(|from| from + 7), ..request.clone() };
        send(stream, &wrong, &content(), usize::MAX)
    });
    assert_eq!(fetched(&root, &server).len(), 1);
    assert_eq!(server.froms(), [Some(1000), None]);
}

#[test]
fn a_file_that_claims_to_be_huge_is_refused() {
    let (_guard, root) = folder(&[]);
    let server = Server::start(|_, _, stream| head(stream, "200 OK", 5 << 30, ""));
    let line = failure(&root, &server, 1);
    assert!(line.contains("larger than 4294967296 bytes"), "{line}");
}

/// The folder holds the file at its place and nothing else, whatever the address and the answers
/// say.
#[test]
fn nothing_that_a_server_says_becomes_a_path() {
    let (_guard, outer) = folder(&[]);
    let root = outer.join("root");
    let server = Server::start(|_, request, stream| {
        let content = content();
        head(stream, "200 OK", content.len(), "Content-Disposition: attachment; filename=\"../../evil\"\r\n")?;
        assert!(request.from.is_none());
        stream.write_all(&content)
    });
    let url = format!("{}/../../..%2fevil/..", server.address);
    assert_eq!(fetch(&root, &url, &PATIENCE).0.unwrap(), Outcome::Fetched);
    let names = |folder: &Path| -> Vec<_> {
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    };
    assert_eq!([names(&outer), names(&root), names(&root.join("set"))].concat(), ["root", "set", "file.bin"]);
}

#[test]
fn another_file_in_its_place_is_left_alone() {
    let (_guard, root) = folder(&[("set/file.bin", b"mine")]);
    let server = Server::start(|_, request, stream| send(stream, request, &content(), usize::MAX));
    let error = fetch(&root, &server.address, &PATIENCE).0.unwrap_err();
    assert!(one_line(&error).contains("is not the official file") && exit_status(&error) == 2, "{error:#}");
    assert_eq!(std::fs::read(root.join("set/file.bin")).unwrap(), b"mine");
    assert!(server.froms().is_empty());
}

#[test]
fn a_folder_that_cannot_be_written_is_said() {
    let (_guard, root) = folder(&[("set", b"a file")]);
    let error = fetch(&root, "http://127.0.0.1:1/", &PATIENCE).0.unwrap_err();
    assert!(one_line(&error).contains("cannot make this folder") && exit_status(&error) == 2, "{error:#}");
}

/// Runs `data fetch` through the binary, without the proxies of the environment.
fn fetch_command(args: &[&str]) -> std::process::Output {
    let mut command = foldconv();
    for name in ["http_proxy", "https_proxy", "all_proxy"] {
        command.env_remove(name).env_remove(name.to_uppercase());
    }
    command.args(["data", "fetch"]).args(args).output().unwrap()
}

#[test]
fn fetch_asks_for_the_official_names_below_another_address() {
    let (_guard, root) = folder(&[]);
    let server = Server::start(|_, request, stream| send(stream, request, b"a", usize::MAX));
    let asked = |set: &str, url: &str| {
        let line = error(&fetch_command(&[set, "--root", &arg(&root), "--url", url]), 1);
        assert!(line.contains("is not the official file"), "{line}");
        server.requests.lock().unwrap().pop().unwrap().path
    };
    assert_eq!(asked("cifar10", &format!("{}/a/b", server.address)), "/a/b/cifar-10-binary.tar.gz");
    let python = format!("{}/cifar-100-python.tar.gz", server.address);
    assert_eq!(asked("cifar100", &python), "/cifar-100-python.tar.gz");
    assert_eq!(asked("mnist", &server.address), "/train-images-idx3-ubyte.gz");
    assert_eq!(asked("svhn", &server.address), "/train_32x32.mat");
}

#[test]
fn fetch_says_what_it_cannot_do() {
    let (_guard, root) = folder(&[]);
    let root = arg(&root);
    assert!(error(&fetch_command(&["shapes", "--root", &root]), 2).contains("shapes: has no files to fetch"));
    assert!(error(&fetch_command(&["cifar10"]), 2).contains("--root: give the folder to put cifar10 into"));
    assert!(error(&fetch_command(&["cifar", "--root", &root]), 2).contains("did you mean `cifar10`?"));
    assert!(error(&fetch_command(&["mnist", "--root", &root, "--url", "ftp://a"]), 2).contains("http:// or https://"));
    assert!(error(&fetch_command(&["svhn", "--root", &root, "--set", "extras=true"]), 2).contains("`extra`"));
}

#[test]
fn list_has_every_set_of_the_registry() {
    let text = stdout(&run(["data", "list"]));
    let names = foldconv::data::SourceConfig::NAMES;
    for name in names {
        assert_eq!(text.lines().filter(|line| line.starts_with(&format!(" {name} "))).count(), 1, "{name}\n{text}");
    }
    assert!(text.contains("https://www.cs.toronto.edu/~kriz/cifar.html"), "{text}");
    assert!(text.contains("\nfashion_mnist: licence: MIT, copyright Zalando SE; cite H. Xiao"), "{text}");
    let sets: Vec<Value> = serde_json::from_str(&stdout(&run(["data", "list", "--json"]))).unwrap();
    assert_eq!(sets.len(), names.len());
    let svhn = sets.iter().find(|set| set["name"] == "svhn").unwrap();
    assert_eq!(svhn["home"]["downloads"][1]["md5"], "eb5a983be6a315427106f1b164d9cef3");
}

/// Writes MNIST with `train` and `test` images: class 3 (white), and every third image class 7
/// (black).
fn mnist(train: u8, test: u8) -> (tempfile::TempDir, std::path::PathBuf) {
    let label = |at: u8| if at % 3 == 2 { 7 } else { 3 };
    let labels = |n: u8| [vec![0, 0, 8, 1, 0, 0, 0, n], (0..n).map(label).collect()].concat();
    let images = |n: u8| {
        let pixels = (0..n).flat_map(|at| [if label(at) == 7 { 0 } else { 255 }; 784]);
        [0, 0, 8, 3, 0, 0, 0, n, 0, 0, 0, 28, 0, 0, 0, 28].into_iter().chain(pixels).collect::<Vec<u8>>()
    };
    folder(&[
        ("mnist/train-images-idx3-ubyte", &images(train)),
        ("mnist/train-labels-idx1-ubyte", &labels(train)),
        ("mnist/t10k-images-idx3-ubyte", &images(test)),
        ("mnist/t10k-labels-idx1-ubyte", &labels(test)),
        ("t10k-labels-idx1-ubyte.gz", b"not the official one"),
    ])
}

#[test]
fn check_counts_a_set() {
    let (_guard, root) = mnist(6, 3);
    let root = arg(&root);
    let text = stdout(&run(["data", "check", "mnist", "--root", &root]));
    for part in ["images 1x28x28", "mean 0.6667, standard deviation 0.4714", "ubyte.gz: not the official file (md5 "] {
        assert!(text.contains(part), "{part}:\n{text}");
    }
    let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    for row in [["3", "4", "2"].as_slice(), &["7", "2", "1"], &["9", "0", "0"], &["all", "10", "6", "3"]] {
        assert!(rows.iter().any(|found| found == row), "{row:?}:\n{text}");
    }
    let found: Value =
        serde_json::from_str(&stdout(&run(["data", "check", "mnist", "--root", &root, "--json"]))).unwrap();
    assert_eq!((&found["train"], &found["classes"][7]["train"]), (&6.into(), &2.into()));
    assert_eq!((&found["official"][0]["same"], &found["damaged"]), (&false.into(), &Value::Array(vec![])));
    // The folder of FOLDCONV_DATA is used as well, and a set that needs no folder can be checked.
    let output = foldconv().env("FOLDCONV_DATA", &root).args(["data", "check", "mnist"]).output().unwrap();
    assert_eq!(stdout(&output), text);
    assert!(
        stdout(&run(["data", "check", "shapes", "--set", "train=20", "--set", "test=10"])).contains("images 3x32x32")
    );
}

#[test]
fn check_says_what_is_wrong() {
    let (_guard, root) = mnist(6, 3);
    let check = |args: &[&str]| error(&run(["data", "check"].iter().chain(args)), 2);
    assert!(check(&["mnist"]).contains("data.root is not given"));
    assert!(check(&["mnis", "--root", "x"]).contains("data.name: no data set `mnis`, did you mean `mnist`?"));
    assert!(check(&["svhn", "--set", "extra=1"]).contains("data.extra: 1; give true or false"));
    assert!(check(&["shapes", "--set", "train=0"]).contains("data.train: 0"));
    assert!(check(&["external"]).contains("there are no images"));
    std::fs::write(root.join("mnist/train-images-idx3-ubyte"), [0, 0, 8, 3]).unwrap();
    let cut = check(&["mnist", "--root", &arg(&root)]);
    assert!(cut.contains("mnist/train-images-idx3-ubyte: is cut short; get it again from"), "{cut}");
}

/// A set with one channel and 28x28 pixels is trained on, folded and compared.
#[test]
fn a_grey_set_is_trained_on() {
    let (_guard, root) = mnist(60, 30);
    for (name, net, sites) in [("a", "{name: smallnet}", "pointwise"), ("b", "{name: resnet20}", "spatial")] {
        let config = root.join(format!("{name}.yaml"));
        let text = format!(
            "data: {{name: mnist, root: {}, augment: {{pad: 2, flip: true}}}}\nnet: {net}\n\
             operator: {{name: mdconv}}\napply_to: [{sites}]\ntrain: {{epochs: 1, batch: 20}}\n",
            root.display()
        );
        std::fs::write(&config, text).unwrap();
        let out = stdout(&run(["train", &arg(&config), "--out", &arg(&root.join(name)), "--threads", "2"]));
        assert!(out.contains("100.00 % of predictions agree"), "{out}");
    }
}
