//! The readers against good and bad files, all of them written into memory or a temporary folder.

use super::*;

fn parsed(text: &str) -> Result<Workload, Failure> {
    let reader = Box::new(std::io::Cursor::new(text.as_bytes().to_vec()));
    parse(Lines { reader, name: "t.jsonl".into(), number: 0, line: Vec::new() }, usize::MAX)
}

fn complaint(text: &str) -> String {
    match parsed(text) {
        Err(Failure::Input(reason)) => reason,
        Err(other) => panic!("not an input failure: {other:?}"),
        Ok(_) => panic!("accepted: {text}"),
    }
}

fn request(ids: &str) -> String {
    format!(
        r#"{{"timestamp": 1, "input_length": 9, "output_length": 2, "hash_ids": [{ids}], "session": "x"}}"#
    )
}

#[test]
fn json_lines_become_paths_whatever_the_blank_lines_between() {
    let text = format!("\n  {}\r\n\n{}\n{}", request("10,11,12"), request("10,11,13"), request("10"));
    let workload = parsed(&text).unwrap();
    assert_eq!(workload.nodes(), [0, 1, 2, 0, 1, 3, 0]);
    assert_eq!((workload.requests(), workload.unique_blocks()), (3, 4));
}

#[test]
fn csv_gives_fresh_blocks_of_512_tokens() {
    let workload =
        parsed("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.97,513,10\nx,512,1\nx,0,1\n")
            .unwrap();
    assert_eq!(workload.nodes(), [0, 1, 2]);
    assert_eq!((workload.range(0), workload.range(1), workload.range(2)), (0..2, 2..3, 3..3));
}

#[test]
fn every_bad_line_is_named_with_file_line_and_expectation() {
    let good = request("1,2");
    let bad = [
        ("{\"timestamp\":".to_string(), "EOF"),
        (r#"{"input_length": 3, "output_length": 1}"#.into(), "missing field `hash_ids`"),
        (request("-4"), "integer `-4`"),
        (request("1.5"), "1.5"),
        (r#"{"input_length": -3, "output_length": 1, "hash_ids": []}"#.into(), "input_length is -3"),
        (r#"{"input_length": 3, "output_length": -1, "hash_ids": []}"#.into(), "output_length is -1"),
        (request("2"), "hash id 2 opens the request here, but follows 1 on line 1"),
        (request("1,1"), "hash id 1 follows 1"),
        ("[1]".into(), "invalid"),
        ("\u{fffd}".into(), "expected value"),
    ];
    for (line, reason) in bad {
        let text = complaint(&format!("{good}\n\n{line}\n{good}\n"));
        assert!(text.starts_with("t.jsonl:3: "), "{text}");
        assert!(text.contains(reason), "{text} lacks {reason}");
        assert!(text.contains("expected"), "{text}");
    }
}

#[test]
fn every_bad_csv_line_is_named_too() {
    let bad =
        [("x,-5,1", "ContextTokens is -5"), ("x,5", "2 cells"), ("x,5,many", "GeneratedTokens is \"many\"")];
    for (line, reason) in bad {
        let text = complaint(&format!("TIMESTAMP,ContextTokens,GeneratedTokens\nx,1,1\n{line}\n"));
        assert!(text.starts_with("t.jsonl:3: ") && text.contains(reason), "{text}");
    }
    assert!(complaint("ContextTokens,Other\n1,2\n").starts_with("t.jsonl:1: "));
}

#[test]
fn empty_and_foreign_files_are_refused() {
    for text in ["", "\n\n", "hello\n", "TIMESTAMP,ContextTokens,GeneratedTokens\n"] {
        assert!(complaint(text).contains("expected"), "{text:?}");
    }
}

#[test]
fn a_limit_stops_the_reading_before_later_mistakes() {
    let text = format!("{}\n{}\nrubbish", request("1"), request("1,2"));
    let reader = Box::new(std::io::Cursor::new(text.into_bytes()));
    let lines = Lines { reader, name: "t".into(), number: 0, line: Vec::new() };
    assert_eq!(parse(lines, 2).unwrap().requests(), 2);
}

#[test]
fn files_may_be_packed_and_a_cut_one_is_refused() {
    use ruzstd::encoding::{CompressionLevel, compress_to_vec};
    let folder = std::env::temp_dir().join(format!("kavern-trace-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let text: String = (0..5000).map(|id| request(&format!("{id}")) + "\n").collect();
    let packed = compress_to_vec(text.as_bytes(), CompressionLevel::Fastest);
    // Without the ending .zst, because the content tells.
    let (whole, cut, plain) = (folder.join("whole"), folder.join("cut.zst"), folder.join("plain.zst"));
    std::fs::write(&whole, &packed).unwrap();
    std::fs::write(&cut, &packed[..packed.len() / 2]).unwrap();
    std::fs::write(&plain, &text).unwrap();
    assert_eq!(read(&whole, usize::MAX).unwrap().requests(), 5000);
    for (path, reason) in [
        (&cut, "cut off or damaged"),
        (&plain, "zstd"),
        (&folder, "directory"),
        (&folder.join("none"), "No such"),
    ] {
        let text = read(path, usize::MAX).err().map(|failure| failure.to_string()).unwrap_or_default();
        assert!(text.contains(&path.display().to_string()) && text.contains(reason), "{text}");
        assert!(text.contains("expected"), "{text}");
    }
    std::fs::remove_dir_all(&folder).unwrap();
}
