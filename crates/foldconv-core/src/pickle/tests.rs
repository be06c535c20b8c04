//! Tests of calls, persistent objects and opcodes that CIFAR's files don't have. The other opcodes
//! are tested by the reader of CIFAR, on whole and damaged files.

use super::*;

fn any(name: &str) -> Result<(), String> {
    if name == "os.system" { Err("no".into()) } else { Ok(()) }
}

/// The pickle is `pickle.dumps((OrderedDict(a=1.5), {1, 2}, 2**70), 2)` of CPython 3.11, with a
/// persistent object in place of the 2.
#[test]
fn calls_are_kept_and_not_made() {
    let bytes =
        b"\x80\x02ccollections\nOrderedDict\nq\x00)Rq\x01X\x01\x00\x00\x00aq\x02G?\xf8\x00\x00\x00\x00\x00\x00s\
        c__builtin__\nset\nq\x03]q\x04(K\x01X\x01\x00\x00\x00kQe\x85q\x05Rq\x06\x8a\x09\0\0\0\0\0\0\0\0@\x87q\x07.rest";
    let pickle = Pickle::read(bytes, any).unwrap();
    assert_eq!(pickle.length, bytes.len() - 4);
    let [dict, set, wide] = pickle.root().tuple().unwrap()[..] else { panic!() };
    let (name, arguments) = dict.call().unwrap();
    assert_eq!((name, arguments.len()), ("collections.OrderedDict", 0));
    assert!(dict.get("a").is_some_and(|value| matches!(value.values[value.at], Value::Float)));
    let (name, arguments) = set.call().unwrap();
    assert_eq!((name, arguments.len()), ("__builtin__.set", 1));
    let items: Vec<Node> = arguments[0].list().unwrap().collect();
    assert_eq!((items[0].int(), items[1].persistent().and_then(Node::text)), (Some(1), Some("k")));
    assert_eq!(wide.wide_int(), Some(b"\0\0\0\0\0\0\0\0@".as_slice()));
}

#[test]
fn the_state_of_an_object_and_the_older_opcodes_are_read() {
    let bytes = b"cargparse\nNamespace\n)\x81}X\x02\x00\x00\x00lrK\x03sb.";
    let pickle = Pickle::read(bytes, any).unwrap();
    assert_eq!(pickle.root().state().and_then(|state| state.get("lr")).and_then(Node::int), Some(3));
    assert!(Pickle::read(b"Pid\n.", any).unwrap().root().persistent().is_some());
    assert_eq!(Pickle::read(b"K\x01K\x020.", any).unwrap().root().int(), Some(1));
    assert_eq!(Pickle::read(b"K\x01(K\x02K\x031.", any).unwrap().root().int(), Some(1));
    assert_eq!(Pickle::read(b"K\x012\x86.", any).unwrap().root().tuple().map(|items| items.len()), Some(2));
    assert_eq!(
        Pickle::read(b"L119547037146038801333356L\n.", any).unwrap().root().wide_int().map(<[u8]>::len),
        Some(24)
    );
}

#[test]
fn an_unknown_name_ends_the_reading_wherever_it_stands() {
    for bytes in
        [b"cos\nsystem\n.".as_slice(), b"\x8c\x02os\x8c\x06system\x93.", b"N0cos\nsystem\nX\x00\x00\x00\x00\x85R."]
    {
        assert!(Pickle::read(bytes, any).unwrap_err().starts_with("asks for `os.system`, no"));
    }
    let long = [b"c", "x".repeat(2000).as_bytes(), b"\ny\n."].concat();
    assert!(Pickle::read(&long, any).unwrap_err().contains("a name of 2002 bytes"));
}
