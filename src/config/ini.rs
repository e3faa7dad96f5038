//! From bytes to sections, keys and values, each with its place.
//!
//! The grammar: lines are trimmed; `#` and `;` begin a comment, only at the start of a line;
//! `[section]`; the first `=` splits key and value; values are verbatim, for they are shell
//! commands. Globals stand before the first section. Nothing continues on the next line.
//!
//! The values are read by `rust-ini`, which reads some texts otherwise: a backslash at the end
//! joins lines, `:` separates, a line without `=` is swallowed into the next key, an indented
//! comment is a key. So the scanner here finds the lines, refuses what is malformed, and hands
//! on a normalised text which both read alike. That they do is checked for every value: where
//! they differ, it is an error and the file is not used.

use ini::{Ini, ParseOption};

use super::diag::{Code, Diagnostic, Place, Report, quote};

/// Whether a text can stand in a list of names or numbers as it is.
#[must_use]
pub fn is_word(text: &str) -> bool {
    let fit = |c: char| c.is_alphanumeric() || "._-+@$".contains(c);
    !text.is_empty() && !text.starts_with('-') && text.chars().all(fit)
}

/// The sections of a file, in its order; the first is the global part, which has no header.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Document {
    /// Global part, then one for each header, same-named ones apart.
    pub sections: Vec<Section>,
}

/// The lines below one section header.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Section {
    /// The text between the brackets; none for the global part.
    pub header: Option<Header>,
    /// Its keys, in the order of the file, same-named ones apart.
    pub entries: Vec<Entry>,
}

/// A section header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// The trimmed text between the brackets.
    pub name: String,
    /// Line, from 1.
    pub line: usize,
    /// Column of the name, from 1, in characters.
    pub col: usize,
    /// An error of this line is already reported; the name is a guess.
    pub damaged: bool,
}

/// A `key = value` line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The trimmed text before the first `=`; never empty.
    pub key: String,
    /// The trimmed text after it.
    pub value: String,
    /// Line, from 1.
    pub line: usize,
    /// Column of the key, from 1, in characters.
    pub key_col: usize,
    /// Column of the value, or where one would begin.
    pub value_col: usize,
    /// An error of this line is already reported; the value is not to be looked at.
    pub damaged: bool,
}

/// What [`scan`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scan {
    /// The well-formed lines, and guesses at headers that are not.
    pub document: Document,
    /// The text in UTF-8, without byte order mark; what is not UTF-8 is replaced.
    pub source: String,
    /// Malformed lines, in the order of the file. All of them are errors.
    pub diagnostics: Vec<Diagnostic>,
}

/// Stands in for what cannot be shown or read.
const REPLACEMENT: char = char::REPLACEMENT_CHARACTER;

/// Takes a configuration text apart.
#[must_use]
pub fn scan(bytes: &[u8]) -> Scan {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let mut scanner = Scanner {
        document: Document {
            sections: vec![Section::default()],
        },
        report: Report::default(),
    };
    for (index, line) in bytes.split(|b| *b == b'\n').enumerate() {
        scanner.line(index + 1, line.strip_suffix(b"\r").unwrap_or(line));
    }
    scanner.read_values();
    let mut diagnostics = scanner.report.diagnostics;
    diagnostics.sort_by_key(|d| d.line);
    Scan {
        document: scanner.document,
        source: String::from_utf8_lossy(bytes).into_owned(),
        diagnostics,
    }
}

struct Scanner {
    document: Document,
    report: Report,
}

/// A part of a line, and the column it begins at.
#[derive(Clone, Copy)]
struct Part<'a> {
    text: &'a str,
    col: usize,
}

impl<'a> Part<'a> {
    fn trim(self) -> Self {
        let rest = self.text.trim_start();
        let cut = &self.text[..self.text.len() - rest.len()];
        Self {
            text: rest.trim_end(),
            col: self.col + cut.chars().count(),
        }
    }

    fn split_at(self, byte: usize) -> (Self, Self) {
        let (a, b) = self.text.split_at(byte);
        (
            Self {
                text: a,
                col: self.col,
            },
            Self {
                text: b,
                col: self.col + a.chars().count(),
            },
        )
    }
}

impl Scanner {
    fn line(&mut self, number: usize, bytes: &[u8]) {
        let (text, damaged) = self.clean(number, bytes);
        let line = Part {
            text: &text,
            col: 1,
        }
        .trim();
        if line.text.is_empty() || line.text.starts_with(['#', ';']) {
            return;
        }
        if line.text.starts_with('[') {
            self.header(number, line, damaged);
        } else {
            self.entry(number, line, damaged);
        }
    }

    /// The line as text without control characters but tabs; reports the first fault of each kind.
    fn clean(&mut self, number: usize, bytes: &[u8]) -> (String, bool) {
        let mut damaged = false;
        if let Err(e) = std::str::from_utf8(bytes) {
            damaged = true;
            let before = String::from_utf8_lossy(&bytes[..e.valid_up_to()])
                .chars()
                .count();
            self.report(
                Code::NotUtf8,
                number,
                Part {
                    text: "?",
                    col: before + 1,
                },
                format!("byte 0x{:02x} is not UTF-8", bytes[e.valid_up_to()]),
                "save the file as UTF-8",
            );
        }
        let mut text = String::from_utf8_lossy(bytes).into_owned();
        let forbidden = |c: char| c.is_control() && c != '\t';
        if let Some((n, c)) = text.chars().enumerate().find(|(_, c)| forbidden(*c)) {
            damaged = true;
            self.report(
                Code::ControlCharacter,
                number,
                Part {
                    text: "?",
                    col: n + 1,
                },
                format!("control character U+{:04X}", u32::from(c)),
                "remove it; of the control characters only tab and the end of line are allowed",
            );
            text = text.replace(forbidden, REPLACEMENT.encode_utf8(&mut [0; 4]));
        }
        (text, damaged)
    }

    fn header(&mut self, number: usize, line: Part<'_>, mut damaged: bool) {
        let (_, inside) = line.split_at(1);
        let (name, rest) = match inside.text.find(']') {
            Some(at) => inside.split_at(at),
            None => (
                inside,
                Part {
                    text: "",
                    col: inside.col,
                },
            ),
        };
        let name = name.trim();
        let fault = if rest.text.is_empty() {
            Some((
                line,
                "section header without `]`".to_owned(),
                "write `[prog-NAME]`",
            ))
        } else if rest.text.len() > 1 {
            let after = rest.split_at(1).1.trim();
            Some((
                after,
                format!("text after the section header: {}", quote(after.text)),
                "comments stand on lines of their own",
            ))
        } else if name.text.is_empty() {
            Some((
                line,
                "section header without a name".to_owned(),
                "write `[prog-NAME]`",
            ))
        } else {
            name.text.find(['[', '\\']).map(|at| {
                let bad = &name.split_at(at).1.text[..1];
                (
                    Part {
                        text: bad,
                        col: name.split_at(at).1.col,
                    },
                    format!("`{bad}` in a section name"),
                    "write `[prog-NAME]`",
                )
            })
        };
        if let Some((part, message, help)) = fault {
            damaged = true;
            self.report(Code::MalformedLine, number, part, message, help);
        }
        // Even a bad header ends the section before it, or its keys would be reported twice over.
        let (name, col) = (name.text.replace(['[', '\\'], "?"), name.col);
        self.document.sections.push(Section {
            header: Some(Header {
                name,
                line: number,
                col,
                damaged,
            }),
            entries: Vec::new(),
        });
    }

    fn entry(&mut self, number: usize, line: Part<'_>, damaged: bool) {
        let Some(at) = line.text.find('=') else {
            let message = format!("no `=` in {}", quote(line.text));
            let help = "write `key = value`; a comment begins with `#`, a section with `[`";
            return self.report(Code::MalformedLine, number, line, message, help);
        };
        let (key, rest) = line.split_at(at);
        let (key, value) = (key.trim(), rest.split_at(1).1.trim());
        if key.text.is_empty() {
            let help = "write `key = value`";
            return self.report(
                Code::MalformedLine,
                number,
                line,
                "no key before `=`".into(),
                help,
            );
        }
        if let Some(at) = key.text.find([':', '\\']) {
            let bad = key.split_at(at).1;
            let bad = Part {
                text: &bad.text[..1],
                col: bad.col,
            };
            let message = format!("`{}` in the key {}", bad.text, quote(key.text));
            let help = "the key ends at the first `=`; write `key = value`";
            return self.report(Code::MalformedLine, number, bad, message, help);
        }
        let entry = Entry {
            key: key.text.to_owned(),
            value: value.text.to_owned(),
            line: number,
            key_col: key.col,
            value_col: value.col,
            damaged,
        };
        if let Some(section) = self.document.sections.last_mut() {
            section.entries.push(entry);
        }
    }

    fn report(&mut self, code: Code, line: usize, at: Part<'_>, message: String, help: &str) {
        let place = Place {
            line,
            col: at.col,
            width: at.text.chars().count(),
        };
        self.report
            .error(code, place, message, Some(help.to_owned()));
    }

    /// Has `rust-ini` read the normalised text and takes its values, in order.
    fn read_values(&mut self) {
        let mut read = match read_pairs(&normalised(&self.document)) {
            Ok(pairs) => pairs.into_iter(),
            Err(line) => return self.disagree(line),
        };
        let mut sections = std::mem::take(&mut self.document.sections);
        for section in &mut sections {
            let name = section.header.as_ref().map(|h| h.name.as_str());
            for entry in &mut section.entries {
                match read.next() {
                    Some((s, k, v))
                        if s.as_deref() == name && k == entry.key && v == entry.value =>
                    {
                        entry.value = v;
                    }
                    _ => self.disagree(entry.line),
                }
            }
        }
        if read.next().is_some() {
            self.disagree(1);
        }
        self.document.sections = sections;
    }

    fn disagree(&mut self, line: usize) {
        let message = "the two readers of this file understand this line differently".to_owned();
        let help = "please report this line as a fault of deployer";
        self.report(
            Code::ReadersDisagree,
            line,
            Part { text: "?", col: 1 },
            message,
            help,
        );
    }
}

/// The document as text that `rust-ini` reads as the scanner does: no blanks, no comments, no
/// malformed lines; every line ends in CR LF, which a backslash before it does not join.
fn normalised(document: &Document) -> String {
    let mut text = String::new();
    for section in &document.sections {
        if let Some(header) = &section.header {
            text.extend(["[", &header.name, "]\r\n"]);
        }
        for entry in &section.entries {
            text.extend([&entry.key, "=", &entry.value, "\r\n"]);
        }
    }
    text
}

/// Section, key and value.
type Pair = (Option<String>, String, String);

/// What `rust-ini` reads, in the order of the text; the error is a line number.
fn read_pairs(text: &str) -> Result<Vec<Pair>, usize> {
    let options = ParseOption {
        enabled_quote: false,
        enabled_escape: false,
        enabled_indented_mutiline_value: false,
        enabled_preserve_key_leading_whitespace: false,
    };
    let ini = Ini::load_from_str_opt(text, options).map_err(|e| e.line)?;
    let mut pairs = Vec::new();
    for (section, properties) in &ini {
        for (key, value) in properties.iter() {
            pairs.push((section.map(str::to_owned), key.to_owned(), value.to_owned()));
        }
    }
    Ok(pairs)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// `section/key=value` of every entry.
    fn pairs(text: &str) -> Vec<String> {
        let scan = scan(text.as_bytes());
        assert_eq!(scan.diagnostics, [], "{text:?}");
        flat(&scan.document)
            .into_iter()
            .map(|(s, k, v)| format!("{}/{k}={v}", s.unwrap_or_default()))
            .collect()
    }

    fn flat(document: &Document) -> Vec<Pair> {
        let mut all = Vec::new();
        for section in &document.sections {
            let name = section.header.as_ref().map(|h| h.name.clone());
            for e in &section.entries {
                all.push((name.clone(), e.key.clone(), e.value.clone()));
            }
        }
        all
    }

    /// `line:col+width code` of every diagnostic.
    fn faults(bytes: &[u8]) -> Vec<String> {
        let place =
            |d: &Diagnostic| format!("{}:{}+{} {}", d.line, d.col, d.width, d.code.as_str());
        scan(bytes).diagnostics.iter().map(place).collect()
    }

    #[test]
    fn values_are_verbatim() {
        for value in [
            r#"echo "a" 'b' $PID; x=1 # no comment"#,
            r"ends in a backslash \",
            r"ends in two \\",
            r"C:\new\table",
            "a:b",
            "= starts with one",
            "[not a section]",
            "; not a comment",
            "ünïcödé 🐱",
            "a\tb",
            "",
        ] {
            assert_eq!(
                pairs(&format!("k = {value}\nnext=1")),
                [format!("/k={value}"), "/next=1".into()]
            );
        }
    }

    #[test]
    fn lines_are_trimmed_and_comments_may_be_indented() {
        let text = "\u{feff}a=1\r\n  # c\n\t; c\n\n [ prog-x ] \r\n\tk  =  v  \n";
        assert_eq!(pairs(text), ["/a=1", "prog-x/k=v"]);
    }

    #[test]
    fn keys_and_values_know_their_place() {
        let scan = scan("\n  [ prog-é ]\n\tké  =\t wert \nk=".as_bytes());
        let section = &scan.document.sections[1];
        assert_eq!(
            section.header.as_ref().map(|h| (h.line, h.col)),
            Some((2, 5))
        );
        let places: Vec<_> = section
            .entries
            .iter()
            .map(|e| (e.line, e.key_col, e.value_col))
            .collect();
        assert_eq!(places, [(3, 2, 9), (4, 1, 3)]);
    }

    #[test]
    fn malformed_lines_are_all_reported() {
        let text = b"novalue\n = 1\na: b\na:b = 1\n[prog-x\nk=1\n[prog-y] # c\n[]\n[a\\b]\nx\x01y = 1\n\xff = 1\nk = \x00";
        assert_eq!(
            faults(text),
            [
                "1:1+7 malformed-line",
                "2:2+3 malformed-line",
                "3:1+4 malformed-line",
                "4:2+1 malformed-line",
                "5:1+7 malformed-line",
                "7:10+3 malformed-line",
                "8:1+2 malformed-line",
                "9:3+1 malformed-line",
                "10:2+1 control-character",
                "11:1+1 not-utf-8",
                "12:5+1 control-character",
            ]
        );
    }

    #[test]
    fn bytes_that_are_not_utf_8_are_named_with_their_column() {
        assert_eq!(
            faults(b"a = 1\n# caf\xe9\nk = \xc3\xa9\xff"),
            ["2:6+1 not-utf-8", "3:6+1 not-utf-8"]
        );
    }

    /// Values as people write them, and as nobody should.
    fn value() -> impl Strategy<Value = String> {
        prop_oneof![
            r#"[a-z ="':;#$\\\[\]{}|&<>/.%@!-]{0,24}"#,
            r"[a-z]{0,3}\\{1,4}",
            r"\PC{0,12}",
            Just(String::new()),
        ]
        .prop_map(|v: String| v.trim().to_owned())
    }

    fn name() -> impl Strategy<Value = String> {
        prop_oneof!["[a-c]", "[a-z][a-z0-9 +@/é.-]{0,8}[a-z]"]
    }

    fn line_of_text() -> impl Strategy<Value = String> {
        prop_oneof![
            4 => (name(), value()).prop_map(|(k, v)| format!(" {k} = {v}")),
            2 => name().prop_map(|n| format!("[{n}]")),
            1 => r"[ \t]{0,2}[#;][\PC]{0,8}",
            1 => r"[ \t]{0,3}",
            1 => r#"[\[\]=:\\#;" 'a-c]{0,10}"#,
        ]
    }

    proptest! {
        #[test]
        fn scanner_and_rust_ini_read_values_alike(
            globals in prop::collection::vec((name(), value()), 0..5),
            sections in prop::collection::vec((name(), prop::collection::vec((name(), value()), 0..5)), 0..5),
        ) {
            let mut text = String::new();
            let mut expected = Vec::new();
            for (k, v) in globals {
                text += &format!("{k}={v}\n");
                expected.push((None, k, v));
            }
            for (s, entries) in sections {
                text += &format!("[{s}]\n");
                for (k, v) in entries {
                    text += &format!("  {k} = {v}\r\n");
                    expected.push((Some(s.clone()), k, v));
                }
            }
            let scan = scan(text.as_bytes());
            prop_assert_eq!(&scan.diagnostics, &[]);
            // Same-named sections and keys keep their places, so "the last counts" means the same.
            prop_assert_eq!(&flat(&scan.document), &expected);
            prop_assert_eq!(read_pairs(&normalised(&scan.document)).unwrap(), expected);
        }

        #[test]
        fn the_readers_never_disagree(lines in prop::collection::vec(line_of_text(), 0..20)) {
            let scan = scan(lines.join("\n").as_bytes());
            prop_assert!(scan.diagnostics.iter().all(|d| d.code != Code::ReadersDisagree), "{:?}", scan.diagnostics);
        }

        #[test]
        fn no_bytes_panic_or_make_the_readers_disagree(bytes: Vec<u8>, text in r"(?s).{0,64}") {
            for bytes in [bytes.as_slice(), text.as_bytes()] {
                let scan = scan(bytes);
                prop_assert!(scan.diagnostics.iter().all(|d| d.code != Code::ReadersDisagree));
            }
        }
    }
}
