//! Tests with pickles from Python 2 and 3, intact, damaged and hostile.

use super::*;

/// A dict as CPython 3.11 and numpy 2.4 write it with protocols 0 to 4:
/// ```text
/// data = (np.arange(6, dtype=np.uint8) * 9 + 90).reshape(2, 3)
/// d = {b"data": data, "labels": [1, 300, -2], "names": ["a\\b", "\u00e9\u20ac"], "more": (None, True)}
/// for protocol in range(5): print(pickle.dumps(d, protocol))
/// ```
const PYTHON3: [&[u8]; 5] = [
    b"(dp0\nc_codecs\nencode\np1\n(Vdata\np2\nVlatin1\np3\ntp4\nRp5\ncnumpy._core.multiarray\n_reconstruct\
        \np6\n(cnumpy\nndarray\np7\n(I0\ntp8\ng1\n(Vb\np9\ng3\ntp10\nRp11\ntp12\nRp13\n(I1\n(I2\nI3\ntp14\nc\
        numpy\ndtype\np15\n(Vu1\np16\nI00\nI01\ntp17\nRp18\n(I3\nV|\np19\nNNNI-1\nI-1\nI0\ntp20\nbI00\ng1\n(\
        VZclu~\x87\np21\ng3\ntp22\nRp23\ntp24\nbsVlabels\np25\n(lp26\nI1\naI300\naI-2\nasVnames\np27\n(lp28\
        \nVa\\u005cb\np29\naV\xe9\\u20ac\np30\nasVmore\np31\n(NI01\ntp32\ns.",
    b"}q\x00(c_codecs\nencode\nq\x01(X\x04\x00\x00\x00dataq\x02X\x06\x00\x00\x00latin1q\x03tq\x04Rq\x05cnu\
        mpy._core.multiarray\n_reconstruct\nq\x06(cnumpy\nndarray\nq\x07(K\x00tq\x08h\x01(X\x01\x00\x00\x00b\
        q\x09h\x03tq\nRq\x0btq\x0cRq\x0d(K\x01(K\x02K\x03tq\x0ecnumpy\ndtype\nq\x0f(X\x02\x00\x00\x00u1q\x10\
        I00\nI01\ntq\x11Rq\x12(K\x03X\x01\x00\x00\x00|q\x13NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tq\x14b\
        I00\nh\x01(X\x07\x00\x00\x00Zclu~\xc2\x87q\x15h\x03tq\x16Rq\x17tq\x18bX\x06\x00\x00\x00labelsq\x19]q\
        \x1a(K\x01M,\x01J\xfe\xff\xff\xffeX\x05\x00\x00\x00namesq\x1b]q\x1c(X\x03\x00\x00\x00a\\bq\x1dX\x05\
        \x00\x00\x00\xc3\xa9\xe2\x82\xacq\x1eeX\x04\x00\x00\x00moreq\x1f(NI01\ntq u.",
    b"\x80\x02}q\x00(c_codecs\nencode\nq\x01X\x04\x00\x00\x00dataq\x02X\x06\x00\x00\x00latin1q\x03\x86q\
        \x04Rq\x05cnumpy._core.multiarray\n_reconstruct\nq\x06cnumpy\nndarray\nq\x07K\x00\x85q\x08h\x01X\x01\
        \x00\x00\x00bq\x09h\x03\x86q\nRq\x0b\x87q\x0cRq\x0d(K\x01K\x02K\x03\x86q\x0ecnumpy\ndtype\nq\x0fX\
        \x02\x00\x00\x00u1q\x10\x89\x88\x87q\x11Rq\x12(K\x03X\x01\x00\x00\x00|q\x13NNNJ\xff\xff\xff\xffJ\xff\
        \xff\xff\xffK\x00tq\x14b\x89h\x01X\x07\x00\x00\x00Zclu~\xc2\x87q\x15h\x03\x86q\x16Rq\x17tq\x18bX\x06\
        \x00\x00\x00labelsq\x19]q\x1a(K\x01M,\x01J\xfe\xff\xff\xffeX\x05\x00\x00\x00namesq\x1b]q\x1c(X\x03\
        \x00\x00\x00a\\bq\x1dX\x05\x00\x00\x00\xc3\xa9\xe2\x82\xacq\x1eeX\x04\x00\x00\x00moreq\x1fN\x88\x86q \
        u.",
    b"\x80\x03}q\x00(C\x04dataq\x01cnumpy._core.multiarray\n_reconstruct\nq\x02cnumpy\nndarray\nq\x03K\x00\
        \x85q\x04C\x01bq\x05\x87q\x06Rq\x07(K\x01K\x02K\x03\x86q\x08cnumpy\ndtype\nq\x09X\x02\x00\x00\x00u1q\
        \n\x89\x88\x87q\x0bRq\x0c(K\x03X\x01\x00\x00\x00|q\x0dNNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tq\
        \x0eb\x89C\x06Zclu~\x87q\x0ftq\x10bX\x06\x00\x00\x00labelsq\x11]q\x12(K\x01M,\x01J\xfe\xff\xff\xffeX\
        \x05\x00\x00\x00namesq\x13]q\x14(X\x03\x00\x00\x00a\\bq\x15X\x05\x00\x00\x00\xc3\xa9\xe2\x82\xacq\
        \x16eX\x04\x00\x00\x00moreq\x17N\x88\x86q\x18u.",
    b"\x80\x04\x95\xd8\x00\x00\x00\x00\x00\x00\x00}\x94(C\x04data\x94\x8c\x16numpy._core.multiarray\x94\
        \x8c\x0c_reconstruct\x94\x93\x94\x8c\x05numpy\x94\x8c\x07ndarray\x94\x93\x94K\x00\x85\x94C\x01b\x94\
        \x87\x94R\x94(K\x01K\x02K\x03\x86\x94h\x05\x8c\x05dtype\x94\x93\x94\x8c\x02u1\x94\x89\x88\x87\x94R\
        \x94(K\x03\x8c\x01|\x94NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00t\x94b\x89C\x06Zclu~\x87\x94t\x94b\
        \x8c\x06labels\x94]\x94(K\x01M,\x01J\xfe\xff\xff\xffe\x8c\x05names\x94]\x94(\x8c\x03a\\b\x94\x8c\x05\
        \xc3\xa9\xe2\x82\xac\x94e\x8c\x04more\x94N\x88\x86\x94u.",
];

/// `data` in Fortran order: `pickle.dumps({"data": np.asfortranarray(data)}, 4)`.
const FORTRAN: &[u8] =
    b"\x80\x04\x95\x9b\x00\x00\x00\x00\x00\x00\x00}\x94\x8c\x04data\x94\x8c\x16numpy._core.multiarray\x94\
    \x8c\x0c_reconstruct\x94\x93\x94\x8c\x05numpy\x94\x8c\x07ndarray\x94\x93\x94K\x00\x85\x94C\x01b\x94\
    \x87\x94R\x94(K\x01K\x02K\x03\x86\x94h\x05\x8c\x05dtype\x94\x93\x94\x8c\x02u1\x94\x89\x88\x87\x94R\
    \x94(K\x03\x8c\x01|\x94NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00t\x94b\x88C\x06Zuc~l\x87\x94t\x94bs\
    .";

/// `pickle.dumps({"data": np.arange(2, dtype=np.float32)}, 4)`.
const FLOATS: &[u8] =
    b"\x80\x04\x95\x9b\x00\x00\x00\x00\x00\x00\x00}\x94\x8c\x04data\x94\x8c\x16numpy._core.multiarray\x94\
    \x8c\x0c_reconstruct\x94\x93\x94\x8c\x05numpy\x94\x8c\x07ndarray\x94\x93\x94K\x00\x85\x94C\x01b\x94\
    \x87\x94R\x94(K\x01K\x02\x85\x94h\x05\x8c\x05dtype\x94\x93\x94\x8c\x02f4\x94\x89\x88\x87\x94R\x94(K\
    \x03\x8c\x01<\x94NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00t\x94b\x89C\x08\x00\x00\x00\x00\x00\x00\
    \x80?\x94t\x94bs.";

/// The same `data` and lists as Python 2.7 and numpy 1 would write them with protocol 2, as in the
/// official files.
const PYTHON2: &[u8] =
    b"\x80\x02}q\x01(U\x04dataq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04\
    K\x00\x85U\x01b\x87Rq\x05(K\x01K\x02K\x03\x86cnumpy\ndtype\nq\x06U\x02u1K\x00K\x01\x87Rq\x07(K\x03U\x01|NNN\
    J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x06Zclu~\x87tbU\x06labelsq\x08]q\t(K\x01M,\x01\x8a\x01\xfee\
    U\x05namesq\n]q\x0b(U\x03a\\bq\x0cU\x05\xc3\xa9\xe2\x82\xacq\reu.";

/// The same `data` and lists as Python 2.7 would write them with protocol 0, in which the official
/// files hold the names of CIFAR-10's classes.
const PYTHON2_TEXT: &[u8] = b"(dp1\nS'data'\np2\ncnumpy.core.multiarray\n_reconstruct\np3\n(cnumpy\nndarray\np4\n\
    (I0\ntS'b'\ntRp5\n(I1\n(I2\nI3\ntcnumpy\ndtype\np6\n(S'u1'\nI0\nI1\ntRp7\n(I3\nS'|'\nNNNI-1\nI-1\nI0\n\
    tbI00\nS'Zclu~\\x87'\ntb\
    sS'labels'\np8\n(lp9\nI1\naL300L\naI-2\nasS'names'\np10\n(lp11\nS'a\\\\b'\np12\naS'\\xc3\\xa9\\xe2\\x82\\xac'\np13\nas.";

fn all() -> impl Iterator<Item = &'static [u8]> {
    PYTHON3.into_iter().chain([PYTHON2, PYTHON2_TEXT])
}

#[test]
fn both_pythons_and_all_protocols_give_the_same_values() {
    for bytes in all() {
        let pickle = Pickle::read(bytes).unwrap();
        assert_eq!(
            pickle.array("data").unwrap().unwrap(),
            Array { shape: vec![2, 3], fortran: false, bytes: vec![90, 99, 108, 117, 126, 135].into() }
        );
        assert_eq!(pickle.ints("labels").unwrap(), [1, 300, -2]);
        assert_eq!(pickle.strings("names").unwrap(), ["a\\b", "\u{e9}\u{20ac}"]);
        assert_eq!(pickle.ints("more"), None);
        assert_eq!(pickle.strings("labels"), None);
        assert_eq!(pickle.ints("absent"), None);
    }
}

#[test]
fn fortrans_order_is_told() {
    let pickle = Pickle::read(FORTRAN).unwrap();
    let array = pickle.array("data").unwrap().unwrap();
    assert!(array.fortran);
    assert_eq!(*array.bytes, [90, 117, 99, 126, 108, 135]);
}

/// Arrays in `pickle.dumps({"data": a}, 5)` of numpy 2.4 are read, for `a = np.arange(1, 7,
/// dtype=np.uint8).reshape(2, 3)`, for the same array made read-only, and for
/// `np.asfortranarray(a)`.
#[test]
fn arrays_of_protocol_5_are_read() {
    let pickle = |frame: u8, buffer: &[u8], order: &[u8]| {
        let head = [
            b"\x80\x05\x95",
            &[frame][..],
            &[0; 7],
            b"}\x94\x8c\x04data\x94\x8c\x13numpy._core.numeric\x94\x8c\x0b_frombuffer",
        ];
        let dtype = b"\x94\x8c\x05numpy\x94\x8c\x05dtype\x94\x93\x94\x8c\x02u1\x94\x89\x88\x87\x94R\x94(K\x03\x8c\x01|\x94NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00t\x94b";
        [&head.concat()[..], b"\x94\x93\x94(", buffer, dtype, b"K\x02K\x03\x86\x94\x8c\x01", order, b"\x94t\x94R\x94s."]
            .concat()
    };
    let (c, f) = (vec![1, 2, 3, 4, 5, 6], vec![1, 4, 2, 5, 3, 6]);
    let writable = |bytes: &[u8]| [b"\x96\x06\0\0\0\0\0\0\0", bytes].concat();
    for (bytes, fortran, elements) in [
        (pickle(0x86, &writable(&c), b"C"), false, &c),
        (pickle(0x7f, &[b"C\x06", &c[..]].concat(), b"C"), false, &c),
        (pickle(0x86, &writable(&f), b"F"), true, &f),
    ] {
        let pickle = Pickle::read(&bytes).unwrap();
        let array = pickle.array("data").unwrap().unwrap();
        assert_eq!(array, Array { shape: vec![2, 3], fortran, bytes: elements.clone().into() });
    }
    let short = pickle(0x7f, b"C\x02\x01\x02", b"C");
    assert_eq!(Pickle::read(&short).unwrap().array("data").unwrap_err(), "has an array of shape [2, 3] with 2 bytes");
    let order = pickle(0x86, &writable(&c), b"K");
    assert_eq!(Pickle::read(&order).unwrap().array("data").unwrap_err(), "has an array in an unknown form");
}

#[test]
fn what_is_no_plain_data_is_refused_by_name_and_never_run() {
    for (bytes, part) in [
        (
            b"\x80\x02cposix\nsystem\nq\x00X\x04\x00\x00\x00trueq\x01\x85q\x02Rq\x03.".as_slice(),
            "asks for `posix.system`",
        ),
        (
            b"\x80\x04\x8c\x05posix\x94\x8c\x06system\x94\x93\x94\x8c\x04true\x94\x85\x94R\x94.",
            "asks for `posix.system`",
        ),
        (b"\x80\x04\x8c\x03a\nb\x8c\x01c\x93.", "asks for `a\\nb.c`"),
        (b"\x80\x04\x8c\x01cK\x01\x93.", "whose name is no string"),
        (b"\x80\x06.", "protocol 6; save it with protocol 5 or lower"),
        (b"\x80\x02c__builtin__\neval\n.", "asks for `__builtin__.eval`"),
        (FLOATS, "array of `f4`, expected uint8"),
    ] {
        let error = Pickle::read(bytes).and_then(|pickle| pickle.array("data").map(drop)).unwrap_err();
        assert!(error.contains(part), "{error}");
        assert!(!error.contains('\n'), "{error}");
    }
}

#[test]
fn damage_is_an_error_that_says_where() {
    for (bytes, message) in [
        (b"".as_slice(), "ends early (at byte 0)"),
        (b"}", "ends early (at byte 1)"),
        (b".", "uses a value that isn't there (at byte 1)"),
        (b"(.", "uses a value that isn't there (at byte 2)"),
        (b"}(K\x01u.", "has a key without a value (at byte 5)"),
        (b"h\x07.", "refers to value 7, which it doesn't hold (at byte 2)"),
        (b"Iseven\n.", "has a number that is none (at byte 7)"),
        (b"u.", "ends a group that never began (at byte 1)"),
        (b"NNa.", "adds to a value that is no list or dict (at byte 3)"),
        (b"\x8e\xff\xff\xff\xff\xff\xff\xff\xff.", "ends early (at byte 9)"),
        (b"T\xff\xff\xff\x7fabc.", "ends early (at byte 5)"),
        (b"\x8a\x0912345678", "ends early (at byte 2)"),
        (b"X\x01\x00\x00\x00\xff.", "has a string in invalid UTF-8 (at byte 6)"),
        (b"Sabc\n.", "has a string without quotes (at byte 5)"),
        (b"S'\\q'\n.", "has a string with an unknown escape (at byte 6)"),
        (b"K\x01b.", "uses a value that isn't there (at byte 3)"),
        (b"\xfe", "has opcode 0xfe, which plain values don't need (at byte 1)"),
    ] {
        assert_eq!(Pickle::read(bytes).unwrap_err(), message, "{}", bytes.escape_ascii());
    }
}

#[test]
fn an_array_must_hold_as_many_bytes_as_its_shape_says() {
    let at = PYTHON2.windows(4).position(|bytes| bytes == b"K\x02K\x03").unwrap();
    let mut bytes = PYTHON2.to_vec();
    bytes[at + 1] = 200;
    let pickle = Pickle::read(&bytes).unwrap();
    let error = pickle.array("data").unwrap_err();
    assert!(error.contains("an array of shape [200, 3] with 6 bytes"), "{error}");
}

/// Every prefix is an error, and every change of a byte an error or other values, never a panic.
#[test]
fn no_damage_panics() {
    for bytes in all() {
        for length in 0..bytes.len() {
            assert!(Pickle::read(&bytes[..length]).is_err());
        }
        for at in 0..bytes.len() {
            for flip in [1, 2, 4, 8, 16, 32, 64, 128, 255] {
                let mut damaged = bytes.to_vec();
                damaged[at] ^= flip;
                if let Ok(pickle) = Pickle::read(&damaged) {
                    let _ = (pickle.array("data"), pickle.ints("labels"), pickle.strings("names"));
                }
            }
        }
    }
}

/// Sharing and nesting that would be exponential or overflow the call stack, if values were copied
/// or walked recursively, are read in time proportional to the bytes.
#[test]
fn nested_and_shared_values_cost_what_their_bytes_cost() {
    let mut deep = b"(".repeat(100_000);
    deep.extend(b"t".repeat(100_000));
    deep.push(b'.');
    assert!(Pickle::read(&deep).is_ok());
    let mut doubling = b"Nq\x00".to_vec();
    doubling.extend(b"h\x00h\x00\x86q\x00".repeat(10_000));
    doubling.push(b'.');
    assert!(Pickle::read(&doubling).is_ok());
    assert!(Pickle::read(b"]q\x00h\x00a.").is_ok(), "a list that contains itself");
    let error = Pickle::read(&b"N".repeat(2_000_000)).unwrap_err();
    assert!(error.starts_with("holds more than 1048576 values"), "{error}");
    let error = Pickle::read(&[b"N\x94".as_slice(), &b"h\x00".repeat(5_000_000)].concat()).unwrap_err();
    assert!(error.starts_with("uses values more than 4194304 times"), "{error}");
}
