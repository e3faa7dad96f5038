//! Errors and warnings about a configuration, and how they look.
//!
//! A diagnostic holds positions, not text of the file; [`render`] brings the two together. What
//! it writes is safe for a terminal: nothing of the file reaches it unescaped.

use std::fmt::Write as _;
use std::ops::Range;

use annotate_snippets::renderer::DecorStyle;
use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};
use serde::{Serialize, Serializer};

/// Whether a configuration with this diagnostic can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// It cannot.
    Error,
    /// It can, but somebody should look.
    Warning,
}

impl Severity {
    /// `error` or `warning`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
        }
    }
}

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// What kind of problem it is. The text form is stable: programs may compare it.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Code { $($(#[$doc])* $name,)* }

        impl Code {
            /// Every code.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The stable text.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}
codes! {
    /// A line that is neither comment, section nor `key = value`.
    MalformedLine = "malformed-line",
    /// A control character.
    ControlCharacter = "control-character",
    /// Bytes that are not UTF-8.
    NotUtf8 = "not-utf-8",
    /// A section that is not `[prog-NAME]`.
    UnknownSection = "unknown-section",
    /// A program name that is not allowed.
    BadProgramName = "bad-program-name",
    /// A key that does not exist.
    UnknownKey = "unknown-key",
    /// A key that does nothing without another.
    NoEffect = "no-effect",
    /// A `cmd-NAME` that looks like a misspelling of an action that there is.
    NewAction = "new-action",
    /// A key on the wrong side of the first section.
    MisplacedKey = "misplaced-key",
    /// Nothing after the `=`.
    NoValue = "no-value",
    /// A value that its key does not take.
    BadValue = "bad-value",
    /// A user or group that does not exist.
    UnknownAccount = "unknown-account",
    /// An id that stands for nobody in particular.
    NobodysId = "nobodys-id",
    /// A name for the environment that is reserved or not a name.
    BadVariable = "bad-variable",
    /// Two readers of the file disagree about a line.
    ReadersDisagree = "readers-disagree",
    /// A section or key that a later one replaces.
    Overridden = "overridden",
    /// Runs as root because nobody said otherwise.
    RunsAsRoot = "runs-as-root",
    /// A program that nothing stops.
    NoEnd = "no-end",
}

impl Serialize for Code {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// One problem of a configuration, and where it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Diagnostic {
    /// How bad it is.
    pub severity: Severity,
    /// Its kind.
    pub code: Code,
    /// Line, from 1.
    pub line: usize,
    /// Column, from 1, in characters.
    pub col: usize,
    /// How many characters are meant, at least 1.
    pub width: usize,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub help: Option<String>,
}

/// Where in the file something is: line and column from 1, and how many characters.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub line: usize,
    pub col: usize,
    pub width: usize,
}

/// Collects diagnostics.
#[derive(Debug, Default)]
pub(super) struct Report {
    pub diagnostics: Vec<Diagnostic>,
}

impl Report {
    pub fn error(&mut self, code: Code, at: Place, message: String, help: Option<String>) {
        self.push(Severity::Error, code, at, message, help);
    }

    pub fn warning(&mut self, code: Code, at: Place, message: String, help: &str) {
        let help = Some(help.to_owned());
        self.push(Severity::Warning, code, at, message, help);
    }

    fn push(
        &mut self,
        severity: Severity,
        code: Code,
        at: Place,
        message: String,
        help: Option<String>,
    ) {
        self.diagnostics.push(Diagnostic {
            severity,
            code,
            line: at.line,
            col: at.col,
            width: at.width.max(1),
            message,
            help,
        });
    }
}

/// The longest part of a source line that is shown, in characters. A line may be megabytes long.
const SHOWN: usize = 240;

/// Writes `diagnostics` about `source`, the text of `file`, for people to read.
///
/// The first line of each is `file:line:col: error: message`; the source line with a marker
/// and the help follow. Colours are for terminals.
#[must_use]
pub fn render<'a>(
    file: &str,
    source: &str,
    diagnostics: impl IntoIterator<Item = &'a Diagnostic>,
    colour: bool,
) -> String {
    let renderer = if colour {
        Renderer::styled()
    } else {
        Renderer::plain()
    };
    let renderer = renderer.decor_style(DecorStyle::Ascii);
    let lines: Vec<&str> = source.split('\n').collect();
    let file = printable(file);
    let mut out = String::new();
    let mut line = Line::new(0, "");
    for d in diagnostics {
        if line.number != d.line {
            let text = lines.get(d.line.wrapping_sub(1)).copied().unwrap_or("");
            line = Line::new(d.line, text.trim_end_matches('\r'));
        }
        let (shown, span) = line.excerpt(d.col, d.width);
        let level = match d.severity {
            Severity::Error => Level::ERROR,
            Severity::Warning => Level::WARNING,
        };
        let title = format!(
            "{file}:{}:{}: {}: {}",
            d.line,
            d.col,
            d.severity.as_str(),
            printable(&d.message)
        );
        let snippet = Snippet::source(shown)
            .line_start(d.line)
            .annotation(AnnotationKind::Primary.span(span));
        let mut group = level.no_name().primary_title(title).element(snippet);
        if let Some(help) = &d.help {
            group = group.element(Level::HELP.message(printable(help)));
        }
        let _ = writeln!(out, "{}", renderer.render(&[group]));
    }
    out
}

/// `text` with everything that could steer a terminal written as an escape.
#[must_use]
pub fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        push_printable(&mut out, c);
    }
    out
}

/// `text` between backticks, printable and of bounded length, for messages.
pub(super) fn quote(text: &str) -> String {
    const MAX: usize = 60;
    let mut out = String::from("`");
    for (n, c) in text.chars().enumerate() {
        if n == MAX {
            out.push('…');
            break;
        }
        push_printable(&mut out, c);
    }
    out.push('`');
    out
}

fn push_printable(out: &mut String, c: char) {
    // `escape_debug` also knows the format characters that reorder a line on the screen.
    match c {
        '\'' | '"' | '\\' => out.push(c),
        _ => out.extend(c.escape_debug()),
    }
}

/// A line with the byte each of its characters begins at, so that a long line with many errors
/// is not counted through for each of them.
struct Line<'a> {
    number: usize,
    text: &'a str,
    starts: Vec<usize>,
}

impl<'a> Line<'a> {
    fn new(number: usize, text: &'a str) -> Self {
        let starts = text.char_indices().map(|(at, _)| at).collect();
        Self {
            number,
            text,
            starts,
        }
    }

    /// The byte the character `n` begins at, or the end of the line.
    fn byte(&self, n: usize) -> usize {
        self.starts.get(n).copied().unwrap_or(self.text.len())
    }

    /// The part around the characters `col .. col + width`, made printable, and the byte range
    /// of these characters in it.
    fn excerpt(&self, col: usize, width: usize) -> (String, Range<usize>) {
        let first = col.saturating_sub(1).min(self.starts.len());
        let from = first.saturating_sub(SHOWN / 2);
        let to = (from + SHOWN).min(self.starts.len());
        let end = first.saturating_add(width.max(1)).min(to);
        let shown = |range: Range<usize>| {
            printable(&self.text[self.byte(range.start)..self.byte(range.end)].replace('\t', " "))
        };
        let mut text = String::from(if from > 0 { "…" } else { "" });
        text += &shown(from..first);
        let start = text.len();
        text += &shown(first..end);
        let span = start..text.len();
        text += &shown(end..to);
        if to < self.starts.len() {
            text.push('…');
        }
        (text, span)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn diagnostic(line: usize, col: usize, width: usize) -> Diagnostic {
        Diagnostic {
            severity: Severity::Error,
            code: Code::UnknownKey,
            line,
            col,
            width,
            message: "unknown key `b`".into(),
            help: Some("did you mean `c`?".into()),
        }
    }

    #[test]
    fn a_diagnostic_has_its_line_a_marker_and_help() {
        let text = render("x.cfg", "a = 1\nb = 2\n", [&diagnostic(2, 1, 1)], false);
        assert_eq!(
            text,
            "x.cfg:2:1: error: unknown key `b`\n  |\n2 | b = 2\n  | ^\n  |\n  = help: did you mean `c`?\n"
        );
    }

    #[test]
    fn nothing_of_the_file_steers_the_terminal() {
        let evil = "b\u{1b}[2J\u{202e}\u{9b}x\u{7f}";
        let mut d = diagnostic(1, 1, 30);
        d.message = format!("bad {evil}");
        d.help = Some(evil.into());
        let text = render(evil, evil, [&d], false);
        for c in text.chars() {
            assert!(
                c == '\n' || !c.is_control() && c != '\u{202e}',
                "{c:?} in {text}"
            );
        }
        assert!(text.contains("b\\u{1b}[2J\\u{202e}"), "{text}");
    }

    #[test]
    fn colours_only_when_asked() {
        let d = diagnostic(1, 1, 1);
        assert!(!render("f", "b", [&d], false).contains('\u{1b}'));
        assert!(render("f", "b", [&d], true).contains('\u{1b}'));
    }

    #[test]
    fn a_line_of_megabytes_is_cut_around_the_marker() {
        let line = "é".repeat(1 << 20);
        let text = render("f", &line, [&diagnostic(1, 500_000, 5)], false);
        assert!(text.len() < 4096, "{}", text.len());
        assert!(text.contains("^^^^^\n"), "{text}");
    }

    #[test]
    fn positions_outside_the_text_do_no_harm() {
        for (line, col, width) in [(0, 0, 0), (1, 0, 9), (9, 9, 9), (1, usize::MAX / 2, 1)] {
            let _ = render("f", "ab\ncd", [&diagnostic(line, col, width)], false);
        }
    }

    #[test]
    fn codes_are_distinct() {
        let mut texts: Vec<_> = Code::ALL.iter().map(|c| c.as_str()).collect();
        texts.sort_unstable();
        texts.dedup();
        assert_eq!(texts.len(), Code::ALL.len());
    }
}
